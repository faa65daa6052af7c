"""The steering score on a real, tiny run: what is matched, what is measured, that a constructed success is seen."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from cocomix.cli import main
from cocomix.concepts.atlas import Atlas
from cocomix.concepts.sae import SparseAutoencoder, Weights
from cocomix.errors import UserError
from cocomix.model.mixers import ConceptMixer
from cocomix.report.steering import best, summarised
from cocomix.steer import score as score_room
from cocomix.steer.edits import steering
from cocomix.steer.notation import Edit
from cocomix.steer.score import METHODS, Bench, claim, score
from cocomix.steer.score_baselines import along, decoder_row, random_direction
from cocomix.steer.score_judge import Judge, counted, distinct, matches
from cocomix.steer.score_sample import draw_concepts, listed_concepts, suitable
from cocomix.steer.score_settings import ScoreSettings
from cocomix.steer.score_texts import write
from cocomix.steer.usual import labels_folder
from cocomix.stopping import Stopped, StopRequest

SMALL = {"doses": [2.0, 8.0], "prompts": 3, "prompt_tokens": 6, "max_new_tokens": 10, "device": "cpu"}


SHORT = ["prompt_tokens=6", "max_new_tokens=10"]


@pytest.fixture(scope="module")
def run(steered_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, beside data with an atlas."""
    labels = steered_run.parent / "data" / "labels" / "concepts"
    if not (labels / "atlas.sqlite").is_file():
        assert main(["concepts", "atlas", str(labels)]) == 0
    return Path(shutil.copytree(steered_run, tmp_path_factory.mktemp("score") / "run"))


@pytest.fixture(scope="module")
def settings(run: Path, tmp_path_factory: pytest.TempPathFactory) -> ScoreSettings:
    return ScoreSettings(model=str(run), concepts=3, out=str(tmp_path_factory.mktemp("out") / "score"), **SMALL)


@pytest.fixture(scope="module")
def bench(settings: ScoreSettings) -> Bench:
    return Bench.open(settings)


@pytest.fixture(scope="module")
def scored(settings: ScoreSettings) -> dict[str, Any]:
    return score(settings)


@pytest.mark.parametrize("method", METHODS)
def test_dose_0_is_the_unsteered_text(method: str, bench: Bench) -> None:
    concept = bench.entries[0]["id"]
    (text,) = bench.texts(method, concept, [0.0])
    assert text.equal(bench.unsteered[method == "teacher"])


@pytest.mark.parametrize("method", METHODS)
def test_a_large_dose_changes_the_text_and_leaves_the_prompt(method: str, bench: Bench) -> None:
    (text,) = bench.texts(method, bench.entries[-1]["id"], [1000.0])
    assert not text.equal(bench.unsteered[method == "teacher"])
    assert text[:, :6].equal(bench.prompts)


def test_doses_in_one_batch_are_those_alone(bench: Bench) -> None:
    concept = bench.entries[0]["id"]
    together = list(bench.texts("concept", concept, [3.0, 30.0]))
    alone = [next(bench.texts("concept", concept, [dose])) for dose in (3.0, 30.0)]
    assert [text.tolist() for text in together] == [text.tolist() for text in alone]


def test_random_direction_changes_the_mixed_vector_by_as_much_as_the_edit(bench: Bench) -> None:
    """In each token, of each request."""
    requests = [[Edit(5, "add", 4.0)], [Edit(5, "add", 40.0)]]
    direction = random_direction(32, seed=0, concept=5)
    ids = torch.cat([bench.prompts, bench.prompts])
    plain, edited, turned = (_mixed(bench, ids, context) for context in (
        None, lambda: steering(bench.model, requests), lambda: along(bench.model, requests, direction)
    ))  # fmt: skip
    size, change = (edited - plain).norm(dim=-1), turned - plain
    torch.testing.assert_close(change.norm(dim=-1), size, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(change, size.unsqueeze(-1) * direction, rtol=1e-3, atol=1e-5)
    assert size[3:].mean() > 2 * size[:3].mean() > 0
    assert _mixed(bench, ids, None).equal(plain), "nothing is left behind"


def _mixed(bench: Bench, ids: torch.Tensor, context: Any) -> torch.Tensor:
    found: list[torch.Tensor] = []
    mixer = bench.model.mixer
    assert isinstance(mixer, ConceptMixer)

    def states(module: Any, arguments: Any, output: Any) -> None:
        found.append(output.vector)

    def run() -> None:
        handle = mixer.register_forward_hook(states)  # behind the one that turns
        with torch.no_grad():
            bench.model(input_ids=ids)
        handle.remove()

    if context is None:
        run()
    else:
        with context():
            run()
    return found[0]


def test_random_directions_have_length_1_and_are_the_concepts_own() -> None:
    first, same, other = (random_direction(32, 0, concept) for concept in (1, 1, 2))
    assert first.norm().item() == pytest.approx(1)
    assert first.equal(same)
    assert abs(float(first @ other)) < 0.8


def test_decoder_row_is_added_in_the_units_that_the_autoencoder_decodes(bench: Bench) -> None:
    teacher, sae = bench.own.teacher, bench.own.sae
    before = teacher.activations(bench.prompts)
    with decoder_row(teacher, sae, 7, torch.tensor([0.0, 2.0, 5.0])):
        after = teacher.activations(bench.prompts)
    scale = sae.normalised(before.flatten(0, 1))[2].view(3, -1, 1)
    torch.testing.assert_close(after - before, torch.tensor([0.0, 2, 5]).view(3, 1, 1) * scale * sae.W_dec[7])
    assert teacher.activations(bench.prompts).equal(before)


def test_a_student_that_obeys_is_seen_to_obey(run: Path, tmp_path: Path) -> None:
    """The concept's row of the compression points at the unembedding of the tokens that it promotes."""
    bench = Bench.open(ScoreSettings(model=str(run), concepts=4, out=str(tmp_path), **{**SMALL, "prompts": 24}))
    at = len(bench.entries) - 1
    entry, match = bench.entries[at], bench.matches[at]
    promoted = [token["id"] for token in entry["promoted"]]
    mixer: Any = bench.model.mixer
    unembedding = bench.model.get_output_embeddings().weight
    towards = unembedding[promoted].mean(0) - unembedding.mean(0)
    with torch.no_grad():
        mixer.compress.weight[entry["id"]] = 4 * towards / towards.norm()
    record = bench.measure(entry, match)
    shares = {method: [cell["promoted"] for cell in cells] for method, cells in record["methods"].items()}
    assert shares["concept"][-1] > shares["concept"][0] + 0.1
    assert shares["concept"][-1] > shares["random"][-1] + 0.1


def test_a_judge_hears_the_concept_in_the_text_that_holds_it(bench: Bench) -> None:
    """Mean activation and share of active tokens against a slow count."""
    match, text = bench.matches[-1], bench.unsteered[0]
    values, indices = bench.own.sae.encode(bench.own.teacher.activations(text).flatten(0, 1))
    found = [
        sum(value for value, latent in zip(row, ids, strict=True) if latent == match.latent)
        for row, ids in zip(values.tolist(), indices.tolist(), strict=True)
    ]
    written = np.array(found).reshape(text.shape)[:, 6:]
    cell = bench.judged(text, match, [1])
    assert cell["activation"] == pytest.approx(written.mean() / match.usual, abs=1e-6)
    assert cell["active"] == pytest.approx((written > 0).mean())


def test_perplexity_is_the_teachers_of_the_written_tokens_alone(bench: Bench) -> None:
    text = bench.unsteered[0]
    with torch.no_grad():
        shares = bench.own.teacher.model(input_ids=text).logits.log_softmax(-1)
    slow = [-float(shares[row, at - 1, text[row, at]]) for row in range(3) for at in range(6, 16)]
    assert bench.judge._replace(batch=2).nll(text, 10) == pytest.approx(np.mean(slow), rel=1e-5)


def test_what_a_models_files_ask_of_generation_does_not_count(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = bench.own.teacher.model
    habits = GenerationConfig(repetition_penalty=50.0, no_repeat_ngram_size=1)
    monkeypatch.setattr(teacher, "generation_config", habits)
    assert write(teacher, bench.prompts, 1, bench.vocabulary, bench.settings).equal(bench.unsteered[1])
    assert teacher.generation_config is habits


def test_counts_of_tokens() -> None:
    assert distinct([1, 1, 1, 1], 1) == 0.25
    assert distinct([1, 2, 1, 2, 1], 2) == 0.5
    found = counted(torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 1, 2]]), [1, 5])
    assert found == {
        "promoted": pytest.approx(4 / 12),
        "distinct_1": pytest.approx((1 + 4 / 6) / 2),
        "distinct_2": pytest.approx((1 + 4 / 5) / 2),
        "repeated_4": 0,
    }


def test_another_judge_with_the_same_latents_in_another_order_is_matched(bench: Bench) -> None:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    sae = bench.own.sae
    weights = Weights(sae.W_enc[:, order], sae.b_enc[order], sae.W_dec[order], sae.b_dec)
    other = SparseAutoencoder(weights, sae.activation, sae.normalise, sae.subtract_b_dec)
    judge, text = Judge(bench.own.teacher, other, 4), torch.cat(bench.unsteered)
    concepts = torch.nonzero(bench.own.usual(text) > 0).flatten().tolist()[:5]
    found = matches(judge, bench.own, concepts, text, judge.usual(text))
    assert [int(order[match.latent]) for match in found] == concepts
    assert [match.correlation for match in found] == pytest.approx([1.0] * len(concepts))
    assert [match.usual for match in found] == pytest.approx(bench.own.usual(text)[concepts].tolist())


def test_a_stopped_score_goes_on_to_the_same_result(
    settings: ScoreSettings, scored: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a second run of the same seed is the same."""
    again = settings.model_copy(update={"out": str(tmp_path / "score")})
    asked = StopRequest()
    asked.requested = True
    with monkeypatch.context() as patch:
        patch.setattr(score_room, "StopRequest", lambda: contextlib.nullcontext(asked))
        with pytest.raises(Stopped, match="1 of 3 concepts"):
            score(again)
    first = [path.read_bytes() for path in (tmp_path / "score" / "concepts").iterdir()]
    assert len(first) == 1
    assert score(again)["concepts"] == scored["concepts"]


def test_concepts_are_drawn_by_the_rule(bench: Bench, scored: dict[str, Any]) -> None:
    among = suitable(bench.strengths, bench.activations)
    atlas = Atlas.open(labels_folder(bench.settings.model))
    usable = sorted((e for e in map(atlas.concept, among.tolist()) if e["count"]), key=lambda e: (e["count"], e["id"]))
    ranks = [[e["id"] for e in usable].index(record["id"]) for record in scored["concepts"]]
    edges = np.linspace(0, len(usable), 4).astype(int)
    assert all(low <= rank < high for rank, low, high in zip(ranks, edges[:-1], edges[1:], strict=True))
    others = {tuple(e["id"] for e in draw_concepts(atlas, among, 3, seed)) for seed in range(8)}
    assert len(others) > 1
    assert tuple(record["id"] for record in scored["concepts"]) in others


def test_a_score_goes_on_over_the_atlas_that_it_was_begun_with_alone(bench: Bench, tmp_path: Path) -> None:
    claim(tmp_path, bench.about())
    first = bench.entries[0]
    remade = bench._replace(entries=[{**first, "promoted": first["promoted"][1:]}, *bench.entries[1:]])
    with pytest.raises(UserError, match="a score with another atlas"):
        claim(tmp_path, remade.about())
    before = {**bench.about(), "rule": "in other words"}  # as an older version wrote it
    del before["atlas"]
    (tmp_path / "about.json").write_text(json.dumps(before))
    claim(tmp_path, bench.about())
    with pytest.raises(UserError, match="a score with another atlas"):
        claim(tmp_path, remade.about())


def test_a_listed_concept_that_cannot_be_measured_is_refused_with_the_reason(bench: Bench) -> None:
    atlas = Atlas.open(labels_folder(bench.settings.model))
    fit = [entry["id"] for entry in bench.entries]
    for strength, activation, reason in (
        (math.nan, 1.0, "is never mixed by the model"),
        (-0.5, 1.0, "is mixed with a mean logit of -0.5, which is not above 0"),
        (1.0, math.nan, "is never active in the labels' autoencoder"),
    ):
        strengths, activations = torch.ones(64), torch.ones(64)
        strengths[fit[1]], activations[fit[1]] = strength, activation
        with pytest.raises(UserError, match=f"concepts={fit[0]},{fit[1]}: {fit[1]} {reason}"):
            listed_concepts(atlas, strengths, activations, fit[:2])
        assert [entry["id"] for entry in listed_concepts(atlas, strengths, activations, fit[2:])] == fit[2:]


def test_a_copied_export_is_scored_with_the_labels_that_are_given(bench: Bench, run: Path, tmp_path: Path) -> None:
    export = Path(shutil.copytree(run / "export", tmp_path / "copied"))
    labels = str(labels_folder(str(run)))
    update = {"model": str(export), "labels": labels, "out": str(tmp_path / "score")}
    found = Bench.open(bench.settings.model_copy(update=update))
    torch.testing.assert_close(found.strengths, bench.strengths, equal_nan=True)
    assert [entry["id"] for entry in found.entries] == [entry["id"] for entry in bench.entries]
    assert not list(tmp_path.rglob("usual.safetensors"))


def test_the_summary_finds_the_largest_gain_within_the_bound() -> None:
    doses = np.array([0.0, 1.0, 3.0])
    bound = math.log(1.5)

    def found(gains: list[float], nlls: list[float]) -> tuple[float, float, float]:
        return best(doses, np.array(gains, dtype=float), np.array(nlls, dtype=float), 1.5)

    # within the bound at every dose: the top
    assert found([0, 2, 1], [0, 0.1, 0.1]) == pytest.approx((2, 1, math.exp(0.1)))
    # the bound is met half-way between 1 and 3
    assert found([0, 1, 3], [0, 0, 2 * bound]) == pytest.approx((2, 2, 1.5))
    # what is above the bound does not count, what comes back below it does
    assert found([0, 9, 4], [0, 2 * bound, 0])[0] == pytest.approx(6.5)
    # nothing gained
    assert found([0, -1, -2], [0, 1, 1]) == (0, 0, 1)


def test_the_summary_pairs_each_concept_with_its_own_unsteered_text(scored: dict[str, Any]) -> None:
    summary = summarised(scored, 1.5)
    cells = [record["methods"]["teacher"] for record in scored["concepts"]]
    changes = [cell[2]["activation"] - cell[0]["activation"] for cell in cells]
    point = summary["methods"]["teacher"]["curve"][2]
    assert point["activation"]["change"] == pytest.approx(np.mean(changes))
    half = 4.302653 * np.std(changes, ddof=1) / math.sqrt(3)  # Student's t, two degrees of freedom
    assert point["activation"]["high"] == pytest.approx(np.mean(changes) + half, rel=1e-4)
    factors = [math.exp(cell[2]["nll"] - cell[0]["nll"]) for cell in cells]
    assert point["perplexity"]["change"] == pytest.approx(np.exp(np.log(factors).mean()))
    assert summary["methods"]["random"]["best"]["perplexity"] <= 1.5 + 1e-9


def test_command_line_writes_result_table_and_picture(
    run: Path, settings: ScoreSettings, scored: dict[str, Any], cli: Any
) -> None:
    """From concepts that are measured already."""
    words = ["concepts=3", "doses=2,8", "prompts=3", *SHORT, f"out={settings.out}"]
    code, out, err = cli("steer", "score", run, *words, "--json")
    assert (code, json.loads(out)["concepts"]) == (0, scored["concepts"]), err
    folder = Path(str(settings.out))
    assert json.loads((folder / "steering.json").read_text())["summary"]["concepts"] == 3
    assert "| decoder row in the teacher | 8 |" in (folder / "steering.md").read_text()
    assert (folder / "steering.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = cli("steer", "score", run, *words, "seed=1")
    assert (code, err.count("\n")) == (2, 1)
    assert "another measured" in err
    assert "out=" in err


def test_a_model_that_mixes_nothing_in_is_read_and_not_steered(run: Path, tmp_path: Path, cli: Any) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    config = json.loads((other / "export" / "config.json").read_text())
    (other / "export" / "config.json").write_text(json.dumps({**config, "mixing": "none", "slot_base": "none"}))
    model = f"model={other}"
    assert cli("inspect", "The", model)[0] == 0
    for words in (
        ["steer", "score", model, *SHORT],
        ["generate", "The", model, "max_new_tokens=3", "--steer", "3=x5"],
        ["inspect", "The", model, "contributions=true"],
    ):
        code, out, err = cli(*words)
        assert (code, out) == (2, "")
        assert f"{model} mixes no concepts into its stream (model.mixing=none)" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["concepts=0"], "concepts=0"),
        (["concepts=3,3"], "different ids"),
        (["concepts=99999,1", *SHORT], "no concept 99999"),
        (["concepts=many"], "concepts=many"),
        (["doses=-1,2"], "doses"),
        (["doses=.nan"], "doses"),
        (["doses=0"], "doses"),
        (["doses=1e9"], "at most 1000"),
        (["prompts=100000", *SHORT], "held-out windows"),
        (["prompt_tokens=31"], "the model reads 32"),
        (["fluency=1"], "fluency"),
        (["judge=x"], "judge_sae"),
        (["judge=nowhere", "judge_sae=nowhere"], "nowhere"),
        (["labels=nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(
    words: list[str], sentence: str, run: Path, tmp_path: Path, cli: Any
) -> None:
    code, out, err = cli("steer", "score", run, f"out={tmp_path / 'new'}", "device=cpu", *words)
    lines = [line for line in err.splitlines() if "usual strengths are measured" not in line]
    assert (code, out, len(lines)) == (2, "", 1)
    assert sentence in lines[0]
    assert not (tmp_path / "new").exists()


def test_a_folder_of_something_else_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        score(ScoreSettings(model=str(run), out=str(tmp_path), **SMALL))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
