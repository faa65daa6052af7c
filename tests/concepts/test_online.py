"""Labels made while a run trains are those of the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cocomix.concepts import labelling
from cocomix.concepts.attribution import label_windows
from cocomix.concepts.extract import extract
from cocomix.concepts.labels import Labels
from cocomix.concepts.online import OnlineLabels
from cocomix.concepts.settings import ExtractSettings, OnlineSettings
from cocomix.data.batches import ColumnSource, sample_batch
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError
from cocomix.testing.teachers import tiny_sae, tiny_teacher, write_sae


def _open(dataset: Dataset, sae: Path, window: int | None = None, **values: object) -> OnlineLabels:
    settings = OnlineSettings.model_validate({"sae": str(sae), **values})
    return OnlineLabels.open(dataset, window or dataset.window, settings)


@pytest.mark.parametrize(
    "attribution", [{}, {"latents": "preact", "order": "absolute", "k": 6}, {"select": "activation"}]
)
def test_the_same_chunks_have_exactly_the_labels_of_the_cache(
    dataset: Dataset, own_data: Path, sae_path: Path, attribution: dict[str, object]
) -> None:
    extract(ExtractSettings.model_validate({"data": str(own_data), "sae": str(sae_path), "attribution": attribution}))
    cache = Labels.open(Dataset.open(own_data), "concepts")
    online = _open(dataset, sae_path, attribution=attribution)
    assert isinstance(online, ColumnSource)
    for name in ("train", "val"):
        # a cache's batches begin anew in each shard
        first = 0
        for count in dataset.split(name).windows_per_shard(dataset.window):
            windows = np.arange(first, first + count)
            found = online.read(name, windows)
            assert found.dtype == np.int64
            assert found.shape == (count, dataset.window, cache.k)
            assert np.array_equal(found, cache.read(name, windows))
            first += count
    assert (online.concepts, online.k, online.window) == (cache.concepts, cache.k, cache.window)
    assert online.cost["flops_per_token"] == cache.cost["flops_per_token"]
    assert online.upstream == cache.manifest["upstream"]


def test_windows_of_a_runs_batch_have_the_caches_labels(dataset: Dataset, sae_path: Path, labelled: Path) -> None:
    cache, online = Labels.open(dataset, "shared"), _open(dataset, sae_path, batch_windows=3)
    columns = {"cache": cache, "online": online, "again": online}
    batch = sample_batch(dataset.split("train"), dataset.window, 5, 1000, 20, columns)
    found = batch.columns["online"]
    assert (found == batch.columns["cache"]).float().mean() > 0.99  # rounding may swap two scores all but equal
    assert torch.equal(found, batch.columns["again"])
    assert (found == -1).any()


def test_a_chunk_goes_through_the_teacher_at_once(
    dataset: Dataset, sae_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = _open(dataset, sae_path, batch_windows=3)
    seen: list[np.ndarray] = []

    def watched(teacher: object, sae: object, inputs: torch.Tensor, *rest: object) -> object:
        seen.append(inputs.numpy())
        return label_windows(teacher, sae, inputs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(labelling, "label_windows", watched)
    windows = np.array([9, 2, 40, 7])
    online.read("train", windows)
    assert [len(inputs) for inputs in seen] == [3, 1]
    assert np.array_equal(np.concatenate(seen), dataset.split("train").read(windows, dataset.window)[:, :-1])
    assert online.read("train", windows[:0]).shape == (0, dataset.window, 4)


def test_what_was_spent_is_counted_and_can_be_set_by_a_resumed_run(dataset: Dataset, sae_path: Path) -> None:
    online = _open(dataset, sae_path)
    assert online.cost["flops_per_token"] > 0
    assert online.cost["seconds_per_token"] == online.seconds == 0
    online.read("train", np.arange(20))
    assert online.tokens == 20 * dataset.window
    assert online.seconds > 0
    assert online.cost["seconds_per_token"] == online.seconds / online.tokens
    online.seconds, online.tokens = 1000.0, 100 * dataset.window
    online.read("train", np.arange(20))
    assert online.tokens == 120 * dataset.window
    assert 1000 < online.seconds < 1010


def test_the_fingerprint_is_of_all_that_labels_depend_on_and_of_nothing_else(
    dataset: Dataset, teacher_path: Path, sae_path: Path, tmp_path: Path
) -> None:
    one = _open(dataset, sae_path)
    assert _open(dataset, sae_path, batch_windows=2, max_fvu=0.9).fingerprint == one.fingerprint
    teacher = tiny_teacher(tmp_path / "teacher", dataset, seed=1)
    sae = tiny_sae(tmp_path / "sae", teacher, dataset)
    others = [
        _open(dataset, sae_path, attribution={"order": "smallest"}),
        _open(dataset, sae_path, dtype="bfloat16"),
        _open(dataset, sae_path, window=16),
        _open(dataset, sae, teacher=str(teacher_path), force=True),
        _open(dataset, sae_path, teacher=str(teacher), force=True),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_a_smaller_window_than_the_datasets_can_be_labelled(dataset: Dataset, sae_path: Path) -> None:
    online = _open(dataset, sae_path, window=16)
    split = dataset.split("train")
    last = np.array([split.count(16) - 1])
    assert online.read("train", last).shape == (1, 16, 4)
    online.check_covers(split, 7, 10**6)
    assert online.coverage.mask(split, 16).all()


def test_parts_that_do_not_fit_are_refused_as_by_an_extraction(
    dataset: Dataset, teacher_path: Path, sae_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="was trained on block 1: give block=1"):
        _open(dataset, sae_path, block=0)
    with pytest.raises(UserError, match="attribution.k=13 is more than the 12 latents"):
        _open(dataset, sae_path, attribution={"k": 13})
    with pytest.raises(UserError, match="window=65 is longer than the context of the teacher"):
        _open(dataset, sae_path, window=65)
    torch.manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(64, 32), dim=-1)
    sick = write_sae(tmp_path / "random", decoder.T, torch.zeros(64), decoder, torch.zeros(32), k=8)
    with pytest.raises(UserError, match=r"of the variance of this block unexplained \(max_fvu=0.5\)"):
        _open(dataset, sick, teacher=str(teacher_path), block=1)
    assert _open(dataset, sick, teacher=str(teacher_path), block=1, force=True).upstream["sae"] is None
