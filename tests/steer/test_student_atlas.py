"""What a model makes of each concept, against slow counts and single edits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cocomix.cli import main
from cocomix.concepts.atlas import Atlas
from cocomix.concepts.atlas_text import held_out_text
from cocomix.concepts.build_atlas import build_atlas
from cocomix.concepts.labels import Labels, open_labels
from cocomix.concepts.settings import AtlasSettings
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError
from cocomix.model.load import load_concept_model
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.steer import student_atlas_build, student_atlas_effects
from cocomix.steer.edits import Edit, steering
from cocomix.steer.student_atlas import StudentAtlas, card
from cocomix.steer.student_atlas_build import TEXT_LENGTH, build_student_atlas
from cocomix.testing.databases import killed_while_changing
from cocomix.testing.models import tiny_model

TOKENS = 6000


@pytest.fixture(scope="module")
def run(steered_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, whose data stay where they are."""
    return Path(shutil.copytree(steered_run, tmp_path_factory.mktemp("student") / "run"))


@pytest.fixture(scope="module")
def settings(steered_run: Path) -> AtlasSettings:
    labels = steered_run.parent / "data" / "labels" / "concepts"
    return AtlasSettings(labels=str(labels), student_tokens=TOKENS, effects=6, effect_tokens=128, device="cpu")


@pytest.fixture(scope="module")
def student(run: Path, settings: AtlasSettings) -> StudentAtlas:
    return build_student_atlas(settings, str(run))


@pytest.fixture(scope="module")
def model(run: Path) -> CoCoMixForCausalLM:
    return load_concept_model(str(run))[0]


@pytest.fixture(scope="module")
def found(settings: AtlasSettings, model: CoCoMixForCausalLM) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every held-out token its labels [N, L], the K mixed concepts, the strongest first, and their logits."""
    labels, dataset = open_labels(settings.folder)
    split = dataset.split("val")
    windows = np.arange(split.count(labels.window))
    with torch.no_grad():
        logits = model(torch.from_numpy(split.read(windows, labels.window)[:, :-1])).concept_logits
    best = logits.flatten(0, 1).topk(8, dim=-1)
    return labels.read("val", windows).reshape(-1, labels.k), best.indices.numpy(), best.values.numpy()


def test_counts_equal_a_slow_count(
    run: Path, settings: AtlasSettings, found: tuple[np.ndarray, ...], tmp_path: Path
) -> None:
    """Of exactly the held-out tokens, which come first."""
    ids, mixed, strengths = found
    other = Path(shutil.copytree(run, tmp_path / "run"))
    held_out = settings.model_copy(update={"student_tokens": len(ids), "effects": 0})
    made = build_student_atlas(held_out, str(other))
    assert made.tokens == int(made.about["held_out"]) == len(ids)
    k, total = ids.shape[1], (ids >= 0).sum()
    hits = 0
    for concept in range(64):
        entry = made.concept(concept)
        here, there, predicted = (ids == concept).any(1), (mixed == concept).any(1), (mixed[:, :k] == concept).any(1)
        assert (entry["count"], entry["labels"]) == (there.sum(), here.sum())
        assert (entry["predictions"], entry["hits"]) == (predicted.sum(), (here & predicted).sum())
        assert sum(entry["strengths"]["counts"]) == entry["count"]
        if entry["count"]:
            z = strengths[mixed == concept]
            assert entry["strength"] == pytest.approx(float(z.mean()), rel=1e-4, abs=1e-5)
            assert entry["strengths"]["edges"][0] <= z.min() <= z.max() <= entry["strengths"]["edges"][-1]
        else:
            assert entry["strength"] is None
        hits += entry["hits"]
    assert made.agreement["recall"] == pytest.approx(hits / total)
    frequent = np.sort(np.bincount(ids[ids >= 0], minlength=64))[::-1][:k].sum()
    assert made.agreement["marginal_recall"] == pytest.approx(frequent / total)
    caught = sum(np.isin(row[row >= 0], kept).sum() for row, kept in zip(ids, mixed, strict=True))
    assert made.agreement["mixed_recall"] == pytest.approx(caught / total)


def test_training_text_is_read_where_the_held_out_is_short(student: StudentAtlas) -> None:
    assert int(student.about["held_out"]) < student.tokens
    assert TOKENS <= student.tokens < TOKENS + 64


def test_effects_are_those_of_a_single_edit(
    student: StudentAtlas, model: CoCoMixForCausalLM, settings: AtlasSettings, run: Path
) -> None:
    """One at a time, through the vocabulary's whole softmax."""
    measured = student.measured()
    assert len(measured) == 6
    _, dataset = open_labels(settings.folder)
    text = torch.from_numpy(held_out_text(dataset, 32, 128, TEXT_LENGTH))
    assert text.shape == (4, min(32, TEXT_LENGTH))
    tokenizer = dataset.tokenizer()
    for concept in (measured[0], measured[-1]):
        entry = student.concept(concept)
        with torch.no_grad():
            before = model(text).logits.log_softmax(-1)
            with steering(model, [Edit(concept, "set", entry["strength"])]):
                after = model(text).logits.log_softmax(-1)
        change = (after - before).mean((0, 1))
        kl = (before.exp() * (before - after)).sum(-1).mean()
        assert entry["effect"] == pytest.approx(float(kl), rel=1e-3, abs=1e-6)
        for token in (*entry["promoted"], *entry["suppressed"]):
            assert token["change"] == pytest.approx(float(change[token["id"]]), abs=1e-3)
            assert tokenizer.decode([token["id"]]).strip("�") in token["token"] or "�" in token["token"]
        assert entry["promoted"][0]["change"] >= entry["promoted"][-1]["change"]
        assert entry["promoted"][0]["change"] > 0 > entry["suppressed"][0]["change"]
    assert student.concept(measured[0])["effect"] >= student.concept(measured[-1])["effect"]


def test_a_batch_of_concepts_measures_as_one_at_a_time(
    run: Path, settings: AtlasSettings, student: StudentAtlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocomix.steer.student_atlas_effects.LOGITS_AT_ONCE", 1)
    other = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("atlas.sqlite")))
    single = build_student_atlas(settings, str(other))
    for concept in student.measured():
        assert single.concept(concept)["effect"] == pytest.approx(student.concept(concept)["effect"], abs=1e-6)


def test_effects_hold_few_logits_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny_model(), list[int]()
    text = torch.randint(1, 101, (5, 8), generator=torch.Generator().manual_seed(0))
    asked = text, range(7), [20.0] * 7
    whole = list(student_atlas_effects.effects(model, *asked))
    bound = 3 * 8 * model.config.text_config.vocab_size
    monkeypatch.setattr(student_atlas_effects, "LOGITS_AT_ONCE", bound)
    monkeypatch.setattr(student_atlas_effects, "TOGETHER", 4)
    model.register_forward_hook(lambda module, given, output: seen.append(output.logits.numel()))
    parts = list(student_atlas_effects.effects(model, *asked))
    assert max(seen) <= bound
    assert [effect.concept for effect in parts] == list(range(7))
    assert min(effect.size for effect in whole) > 1e-4
    for part, due in zip(parts, whole, strict=True):
        assert part.size == pytest.approx(due.size, rel=1e-3)
        torch.testing.assert_close(part.change, due.change, atol=1e-5, rtol=1e-3)


def test_a_run_that_mixes_nothing_in_has_no_effects_to_measure(
    run: Path, settings: AtlasSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("atlas.sqlite")))
    config = json.loads((other / "export" / "config.json").read_text())
    (other / "export" / "config.json").write_text(json.dumps({**config, "mixing": "none", "slot_base": "none"}))
    made = build_student_atlas(settings.model_copy(update={"student_tokens": 99}), str(other))
    assert made.measured() == []
    assert "mixes no concepts into its stream" in capsys.readouterr().err


def test_the_same_command_with_more_effects_goes_on(
    run: Path, settings: AtlasSettings, student: StudentAtlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    asked: list[int] = []
    measure = student_atlas_build.effects

    def noted(model: Any, text: Any, concepts: Any, strengths: Any) -> Any:
        asked.extend(concepts)
        return measure(model, text, concepts, strengths)

    monkeypatch.setattr(student_atlas_build, "effects", noted)
    monkeypatch.setattr(student_atlas_build, "predict_all", None)  # what was counted is kept
    more = build_student_atlas(settings.model_copy(update={"effects": 9}), str(other))
    assert len(asked) == 3
    assert set(more.measured()) == set(asked) | set(student.measured())


def test_short_rows_are_told_as_ignored(
    run: Path, settings: AtlasSettings, model: CoCoMixForCausalLM, student: StudentAtlas, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    changed = load_concept_model(str(other))[0]
    with torch.no_grad():
        changed.mixer.compress.weight[11] *= 1e-6
    changed.save_pretrained(other / "export")
    made = build_student_atlas(settings, str(other))  # other weights: it is made anew
    assert made.concept(11)["ignored"]
    assert made.concept(11)["norm"] < 1e-4
    assert student.concept(12)["norm"] == pytest.approx(
        float(model.mixer.compress.weight[12].detach().norm()), rel=1e-5
    )
    assert not student.concept(12)["ignored"]
    assert made.ignored() == sum(made.concept(c)["ignored"] for c in range(64))


def test_a_card_has_both_sides_and_refuses_what_does_not_belong_together(
    student: StudentAtlas, settings: AtlasSettings, tmp_path: Path
) -> None:
    atlas = build_atlas(settings)
    both = card(atlas, student, 5)
    assert both["student"] == student.concept(5)
    assert {key: value for key, value in both.items() if key != "student"} == atlas.concept(5)
    assert card(atlas, None, 5)["student"] is None
    for id in (-1, 64):
        with pytest.raises(UserError, match="concepts 0 … 63"):
            student.concept(id)
    atlas.labels_fingerprint = "another"
    with pytest.raises(UserError, match="is of other labels than"):
        card(atlas, student, 5)


def test_what_is_no_student_atlas_is_told(run: Path, student: StudentAtlas, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make it with 'cocomix concepts atlas model="):
        StudentAtlas.open(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        StudentAtlas.open(tmp_path / "nowhere")
    (tmp_path / "atlas.sqlite").write_bytes(student.path.read_bytes()[:5000])
    with pytest.raises(UserError, match="is damaged"):
        StudentAtlas.open(tmp_path).concept(5)


def test_a_damaged_one_is_made_again(run: Path, settings: AtlasSettings, student: StudentAtlas, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    with (other / "atlas.sqlite").open("r+b") as file:
        file.seek(-4096 * 4, 2)
        file.write(b"\xff" * 4096 * 4)
    made = build_student_atlas(settings, str(other))
    assert made.concept(63) == student.concept(63)
    assert made.measured() == student.measured()


@pytest.mark.parametrize("deleted", [False, True])
def test_one_that_a_killed_process_left_half_changed_is_whole_again(
    run: Path, settings: AtlasSettings, student: StudentAtlas, tmp_path: Path, deleted: bool
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    journal = killed_while_changing(other / "atlas.sqlite", "UPDATE concepts SET strengths = printf('%4000s', '')")
    if deleted:
        (other / "atlas.sqlite").unlink()
    else:
        assert StudentAtlas.open(other).concept(63) == student.concept(63)
    made = build_student_atlas(settings, str(other))
    assert made.concept(63) == student.concept(63)
    assert not journal.exists()


def test_labels_of_another_dictionary_are_refused(run: Path, settings: AtlasSettings, tmp_path: Path) -> None:
    data = Path(shutil.copytree(Path(settings.folder).parents[1], tmp_path / "data"))
    manifest = data / "labels" / "concepts" / "labels.json"
    text = json.loads(manifest.read_text())
    text["sae"]["latents"] = 65
    manifest.write_text(json.dumps(text))
    assert Labels.open(Dataset.open(data), "concepts").concepts == 65
    with pytest.raises(UserError, match="are of 65 concepts, the model predicts 64"):
        build_student_atlas(
            settings.model_copy(update={"labels": str(manifest.parent), "student_tokens": 99}), str(run)
        )


def test_the_verbs_know_the_labels_of_the_run(
    run: Path, settings: AtlasSettings, student: StudentAtlas, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model={run}", f"student_tokens={TOKENS}", "effects=6", "effect_tokens=128"]
    assert main(["concepts", "atlas", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["student"]["measured"] == 6
    assert found["student"]["recall"] == pytest.approx(student.agreement["recall"])
    assert main(["concepts", "show", "5", f"model={run}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == card(Atlas.open(settings.folder), student, 5)
    concept = student.measured()[0]
    assert main(["concepts", "show", str(concept), f"model={run}"]) == 0
    shown = capsys.readouterr().out
    assert "recall" in shown
    assert "nats a token" in shown
    assert main(["concepts", "show", "5", f"model={run.parent}"]) == 2
    assert "does not say which labels it learnt from" in capsys.readouterr().err


def test_concepts_are_found_by_words_and_by_what_the_model_makes_of_them(
    run: Path, student: StudentAtlas, settings: AtlasSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    atlas = build_atlas(settings)
    word = atlas.top(1)[0]["promoted"][0]["token"].strip()
    cases = {
        ("only=ignored", f"model={run}"): [i for i in range(atlas.concepts) if student.concept(i)["ignored"]],
        ("by=effect", f"model={run}", "limit=3"): student.measured()[:3],
        (word, f"labels={settings.folder}"): [entry["id"] for entry in atlas.search(word, atlas.concepts)],
        ("only=dead", f"labels={settings.folder}"): [e["id"] for e in atlas.top(atlas.concepts) if e["dead"]],
    }
    for words, expected in cases.items():
        assert main(["concepts", "find", *words, *([] if "limit=3" in words else ["limit=1000"]), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert sorted(c["id"] for c in found["concepts"]) == sorted(expected), words
    assert main(["concepts", "find", "by=effect", "limit=2", f"model={run}"]) == 0
    out = capsys.readouterr().out
    assert f"{atlas.concepts:,} concepts, the first 2" in out
    assert "effect" in out.splitlines()[1]
    assert main(["concepts", "find", "only=ignored", f"labels={settings.folder}"]) == 2
    assert "only=ignored asks what a model makes of concepts: add model=RUN" in capsys.readouterr().err
