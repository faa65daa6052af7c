"""What an atlas counts besides labels, against slow counts; and what keeps its memory small."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from cocomix.concepts.atlas import Atlas
from cocomix.concepts.atlas_counts import SparseCounts
from cocomix.concepts.atlas_format import EDGES
from cocomix.concepts.atlas_places import KeptPlaces, StrongestPlaces, drawn
from cocomix.concepts.build_atlas import build_atlas
from cocomix.concepts.labels import Labels
from cocomix.concepts.load_sae import load_sae
from cocomix.concepts.settings import AtlasSettings
from cocomix.data.dataset import Dataset


@pytest.fixture(scope="module")
def atlas(labelled: Path) -> Atlas:
    return build_atlas(AtlasSettings(labels=str(labelled), contexts=4, random_contexts=6, nearest=5))


@pytest.fixture(scope="module")
def found(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids and strengths of all training tokens, [N, K], and the tokens."""
    labels, split = Labels.open(dataset, "shared"), dataset.split("train")
    windows = np.arange(split.count(dataset.window))
    ids, strengths = labels.read("train", windows), labels.strengths("train", windows)
    tokens = split.read(windows, dataset.window)[:, :-1]
    return ids.reshape(-1, labels.k), strengths.reshape(-1, labels.k), tokens.reshape(-1)


def test_histograms_equal_a_slow_count(atlas: Atlas, found: tuple[np.ndarray, ...]) -> None:
    ids, strengths, _ = found
    for concept in (0, 9, 63):
        shown = atlas.concept(concept)["strengths"]
        counts, edges = np.histogram(strengths[ids == concept].astype(np.float64), EDGES)
        full = np.flatnonzero(counts)
        assert shown["counts"] == counts[full[0] : full[-1] + 1].tolist()
        np.testing.assert_allclose(shown["edges"], edges[full[0] : full[-1] + 2], atol=1e-5)


def test_companions_equal_a_slow_count(atlas: Atlas, found: tuple[np.ndarray, ...]) -> None:
    ids, _, _ = found
    together = np.zeros((64, 64))
    for row in ids:
        for a, b in combinations(row[row >= 0], 2):
            together[a, b] += 1
            together[b, a] += 1
    counts = np.bincount(ids[ids >= 0], minlength=64)
    lift = together * len(ids) / np.maximum(np.outer(counts, counts), 1)
    for concept in (2, 31):
        score = np.where((together > 1) & (lift > 1), together * np.log(np.maximum(lift, 1)), 0)[concept]
        shown = atlas.concept(concept)["together"]
        assert shown
        assert [e["id"] for e in shown] == np.argsort(-score, kind="stable")[: len(shown)].tolist()
        assert len(shown) == min(10, int((score > 0).sum()))
        assert [e["count"] for e in shown] == [together[concept, e["id"]] for e in shown]
        assert [e["lift"] for e in shown] == pytest.approx([lift[concept, e["id"]] for e in shown], abs=0.01)
        assert [e["name"] for e in shown] == [atlas.name(e["id"]) for e in shown]


def test_nearest_are_the_rows_with_the_largest_cosines(atlas: Atlas, sae_path: Path) -> None:
    rows = load_sae(sae_path).W_dec
    cosines = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)
    for concept in (0, 40):
        others = [c for c in range(64) if c != concept]
        due = sorted((float(cosines[concept, c]) for c in others), reverse=True)[:5]
        shown = atlas.concept(concept)["nearest"]
        assert [e["cosine"] for e in shown] == pytest.approx(due, abs=1e-4)
        for entry in shown:
            assert entry["cosine"] == pytest.approx(float(cosines[concept, entry["id"]]), abs=1e-4)


def test_drawn_contexts_are_places_of_the_concept(
    atlas: Atlas, dataset: Dataset, found: tuple[np.ndarray, ...]
) -> None:
    ids, strengths, tokens = found
    tokenizer = dataset.tokenizer()
    for concept in (4, 50):
        here = ids == concept
        there = {
            (tokenizer.decode(tokens[row]).strip("�"), round(float(s), 4))
            for row, s in zip(np.nonzero(here)[0], strengths[here], strict=True)
        }
        shown = atlas.concept(concept)["random_contexts"]
        assert len(shown) == 6
        assert all((e["token"], e["strength"]) in there for e in shown)


def test_a_sample_is_uniform_and_does_not_depend_on_how_places_come() -> None:
    """Each of 200 places is among 20 kept in a tenth of 300 samples: 30 times, give or take 4·√27."""
    token = np.arange(200)
    concept, strength = np.full(200, 7), np.ones(200, dtype=np.float32)
    times = np.zeros(200)
    for seed in range(300):
        whole, parts = KeptPlaces(10, 20), KeptPlaces(10, 20)
        lots = drawn(concept, token, seed)
        whole.add(concept, strength, token // 10, token % 10, lots)
        for part in np.array_split(token[::-1], 13):
            parts.add(concept[part], strength[part], part // 10, part % 10, lots[part])
        assert (whole.places == parts.places).all()
        times[whole.places["window"] * 10 + whole.places["position"]] += 1
    assert times.sum() == 300 * 20
    assert abs(times - 30).max() < 4 * 27**0.5 + 1


def test_strongest_places_are_the_same_in_one_piece_and_in_many() -> None:
    draw = np.random.default_rng(0)
    concept, window = draw.integers(0, 20, 3000), np.arange(3000) // 30
    strength = draw.random(3000).astype(np.float32)
    whole, parts = StrongestPlaces(20, 4), StrongestPlaces(20, 4)
    whole.add(concept, strength, window, np.arange(3000) % 30, strength)
    for part in np.array_split(np.arange(3000), 11):
        parts.add(concept[part], strength[part], window[part], part % 30, strength[part])
    assert (whole.places == parts.places).all()
    for c in range(20):
        best = sorted((strength[(window == w) & (concept == c)].max(initial=0) for w in range(100)), reverse=True)[:4]
        assert whole.places["strength"][whole.places["concept"] == c].tolist() == [float(s) for s in best]


@pytest.mark.parametrize("room", [10_000, 100])
def test_counts_in_little_room_are_too_low_by_no_more_than_they_say(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocomix.concepts.atlas_counts.WAITING", 500)
    keys = np.random.default_rng(0).zipf(1.3, 20_000) % 5000
    counts = SparseCounts(room)
    for part in np.array_split(keys, 50):
        counts.add(part)
    kept, shown = counts.counted()
    true = np.bincount(keys, minlength=5000)
    assert (np.diff(kept) > 0).all()
    assert (shown <= true[kept]).all()
    assert (shown >= true[kept] - counts.missed).all()
    missing = np.setdiff1d(np.arange(5000), kept)
    assert (true[missing] <= counts.missed).all()
    if room == 10_000:
        assert counts.missed == 0
        assert shown.sum() == len(keys)
    else:
        assert counts.missed > 0
        assert len(kept) <= room


def test_a_concept_that_is_never_a_label_is_dead(labelled: Path, dataset: Dataset) -> None:
    first = Labels.open(dataset, "shared").read("train", np.arange(1))
    absent = sorted(set(range(64)) - set(first.reshape(-1).tolist()))
    made = build_atlas(AtlasSettings(labels=str(labelled), tokens=dataset.window))
    try:
        entry = made.concept(absent[0])
        assert entry["dead"]
        assert made.dead == len(absent)
        assert (entry["count"], entry["frequency"], entry["mean_strength"]) == (0, 0, 0)
        assert entry["contexts"] == entry["random_contexts"] == entry["labelled"] == entry["together"] == []
        assert entry["promoted"]
        assert entry["strengths"] == {"edges": [], "counts": []}
        assert not made.concept(int(first[first >= 0][0]))["dead"]
    finally:
        build_atlas(AtlasSettings(labels=str(labelled))).close()
