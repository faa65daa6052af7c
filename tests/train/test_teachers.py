"""What runs read of a teacher: cached probabilities, and a teacher that is asked while they train."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cocomix.compare.comparison import compare
from cocomix.compare.runs import load_run
from cocomix.concepts.extract import extract, extract_probabilities
from cocomix.concepts.probabilities import PROBS, TOKENS, Probabilities
from cocomix.concepts.settings import ExtractSettings, ProbabilitySettings
from cocomix.concepts.teacher import load_teacher
from cocomix.config import load_settings
from cocomix.errors import UserError
from cocomix.files import read_json
from cocomix.testing.teachers import tiny_sae, tiny_teacher
from cocomix.train.checkpoint import checkpoint_folders, read_tensors
from cocomix.train.metrics import read_lines
from cocomix.train.run import Run
from cocomix.train.settings import TrainSettings
from cocomix.train.verb import train

BACKBONE = "model.backbone={model_type: gpt2, n_embd: 16, n_layer: 2, n_head: 2}"
KD = "losses={ntp: 1, distill: 0.5}"


@pytest.fixture(scope="module")
def teacher(dataset, tmp_path_factory) -> Path:
    return tiny_teacher(tmp_path_factory.mktemp("teacher"), dataset, steps=10)


@pytest.fixture(scope="module")
def cached(dataset, teacher):
    """The manifest of probabilities of five tokens each."""
    return extract_probabilities(ProbabilitySettings(data=str(dataset.folder), teacher=str(teacher), k=5, name="five"))


def go(dataset, run: Path, *more: str) -> dict:
    words = [f"data.path={dataset.folder}", f"run={run}", BACKBONE, "batch_windows=4", "checkpoint.number=2",
             "evaluations=1", "eval_documents=2"]  # fmt: skip
    return train(load_settings(TrainSettings, [*words, *more]))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(checkpoint_folders(run)[-1])


def losses(run: Path, name: str) -> list[float]:
    return [line["losses"][name] for line in read_lines(run / "metrics.jsonl")]


def test_cached_probabilities_are_those_of_the_teacher(dataset, teacher, cached):
    cache = Probabilities.open(dataset, "five")
    model = load_teacher(str(teacher), 0, dataset, dataset.window, torch.device("cpu"), "float32")
    windows = np.array([0, 3, 11])
    inputs = torch.from_numpy(dataset.split("train").read(windows, dataset.window))[:, :-1]
    due = model.model(inputs).logits.softmax(-1)
    tokens, probs = cache.read(TOKENS, "train", windows), cache.read(PROBS, "train", windows)
    assert probs.shape == tokens.shape == (3, dataset.window, 5)
    found = due.gather(-1, torch.from_numpy(tokens))
    assert np.allclose(found.numpy(), probs, atol=1e-3)
    assert torch.allclose(found, due.topk(5).values, atol=1e-6)
    assert 0 < cached["statistics"]["mass"] < 1


def test_a_run_pays_for_the_teacher_and_says_which(dataset, cached, tmp_path):
    result = go(dataset, tmp_path / "kd", KD, "data.probabilities=five", "steps=3")
    record = read_json(tmp_path / "kd" / "run.json", "a run")["labels"]
    assert record["flops_per_token"] == cached["cost"]["flops_per_token"] > 0
    assert record["cached_seconds_per_token"] == record["seconds_per_token"] > 0
    assert record["of"]["k"] == 5
    assert result["evaluation"]["flops"]["teacher"] == pytest.approx(3 * 4 * dataset.window * record["flops_per_token"])
    assert all(value > 0 for value in losses(tmp_path / "kd", "distill"))


def test_labels_that_only_say_how_many_concepts_there_are_cost_the_run_nothing(dataset, teacher, tmp_path):
    """Mixing without concept prediction: the same labels, not read by any loss."""
    sae = tiny_sae(tmp_path / "sae", teacher, dataset)
    extract(ExtractSettings(data=str(dataset.folder), sae=str(sae), name="counted"))
    mixer = ["model.mixer=concept", "model.concept_k=8", "model.insert_at=1", "data.labels=counted", "steps=2"]
    go(dataset, tmp_path / "ntp", "method=ntp", "steps=2")
    go(dataset, tmp_path / "cocomix", "method=cocomix", *mixer, "losses={ntp: 1, concept: 0.1}")
    go(dataset, tmp_path / "alone", "method=mixing_alone", *mixer, "losses={ntp: 1, concept: 0}")
    reads, alone = (read_json(tmp_path / name / "run.json", "a run")["labels"] for name in ("cocomix", "alone"))
    assert (alone["fingerprint"], alone["of"]) == (reads["fingerprint"], reads["of"])
    assert (alone["flops_per_token"], alone["seconds_per_token"]) == (0, 0)
    assert alone["upstream"] == {part: {"flops": 0, "seconds": 0} for part in ("teacher", "sae")}
    assert reads["flops_per_token"] > 0
    assert reads["upstream"]["sae"]["flops"] > 0
    go(dataset, tmp_path / "alone", "method=mixing_alone", *mixer, "losses={ntp: 1, concept: 0}")  # it resumes
    pairs = compare([load_run(tmp_path / name) for name in ("ntp", "cocomix", "alone")]).pairs
    assert [(pair.candidate, pair.shared_by, pair.has_teacher) for pair in pairs] == [
        ("cocomix", 1, True),
        ("mixing_alone", 1, False),
    ]


def test_a_teacher_asked_while_training_gives_what_the_cache_holds(dataset, teacher, cached, tmp_path):
    go(dataset, tmp_path / "cached", KD, "data.probabilities=five", "steps=4")
    go(dataset, tmp_path / "asked", KD, f"data.teacher.name={teacher}", "data.teacher.k=5", "steps=4")
    assert losses(tmp_path / "asked", "distill") == pytest.approx(losses(tmp_path / "cached", "distill"), abs=2e-3)
    assert read_json(tmp_path / "asked" / "run.json", "a run")["labels"]["cached_seconds_per_token"] == 0
    go(dataset, tmp_path / "whole", KD, f"data.teacher.name={teacher}", "steps=4")
    assert losses(tmp_path / "whole", "distill")[0] >= losses(tmp_path / "asked", "distill")[0]


def test_a_distillation_of_no_weight_is_plain_training_to_the_last_bit(dataset, cached, tmp_path):
    go(dataset, tmp_path / "plain", "steps=3")
    go(dataset, tmp_path / "none", "losses={ntp: 1, distill: 0}", "data.probabilities=five", "steps=3")
    plain, none = weights(tmp_path / "plain"), weights(tmp_path / "none")
    assert all(torch.equal(plain[name], none[name]) for name in plain)


def test_distillation_learns_the_teacher_where_nothing_else_is_asked(dataset, teacher, cached, tmp_path):
    go(dataset, tmp_path / "run", "losses={distill: 1}", "data.probabilities=five", "steps=40", "optimizer.lr=1e-2")
    found = losses(tmp_path / "run", "distill")
    assert found[-1] < 0.7 * found[0]


@pytest.mark.parametrize("kind", ["l1", "l2", "cosine"])
def test_the_teacher_s_state_is_learned(dataset, teacher, tmp_path, kind):
    mixer = ["model.mixer=hidden", "model.mixing=add", "model.insert_at=1", "model.state_width=32"]
    source = [f"data.teacher.name={teacher}", "data.teacher.block=1"]
    loss = f"losses={{ntp: 1, state_{kind}: 1}}"
    go(dataset, tmp_path / "run", *mixer, *source, loss, "steps=40", "optimizer.lr=1e-2")
    found = losses(tmp_path / "run", f"state_{kind}")
    assert found[-1] < 0.9 * found[0]
    assert read_json(tmp_path / "run" / "run.json", "a run")["labels"]["of"]["block"] == 1
    assert read_json(tmp_path / "run" / "export" / "config.json", "a model")["state_size"] == 32


def test_a_run_with_a_teacher_resumes_to_the_same_weights(dataset, teacher, tmp_path):
    words = [KD, f"data.teacher.name={teacher}", "data.teacher.k=3", "steps=6", "schedule.kind=constant"]
    go(dataset, tmp_path / "straight", *words)
    go(dataset, tmp_path / "halved", *words, "steps=3")
    go(dataset, tmp_path / "halved", *words)
    straight, halved = weights(tmp_path / "straight"), weights(tmp_path / "halved")
    assert all(torch.equal(straight[name], halved[name]) for name in straight)
    lines = (tmp_path / "halved" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["label_seconds"] > json.loads(lines[0])["label_seconds"] > 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["losses={ntp: 1, distill: 1}"], "losses.distill needs data.probabilities=NAME"),
        (["losses={ntp: 1, state_l2: 1}"], "losses.state_l2 needs model.mixer=hidden and data.teacher.name=…"),
        ([KD, "data.probabilities=fife"], "has no such probabilities (did you mean 'five'?)"),
        ([KD, "data.probabilities=five", "data.teacher.name=x"], "are two sources of probabilities"),
        (["model.mixer=hidden", "model.insert_at=1"], "model.state_size is needed where no data.teacher is asked"),
    ],
)
def test_what_does_not_fit_is_named(dataset, cached, tmp_path, words, sentence):
    with pytest.raises(UserError) as told:
        Run(
            load_settings(
                TrainSettings, [f"data.path={dataset.folder}", f"run={tmp_path}", BACKBONE, "steps=1", *words]
            )
        )
    assert sentence in str(told.value)
