"""Exports in EleutherAI's lm-evaluation-harness, from its own command line and by its Python interface."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from cocomix.data.dataset import Dataset, Shard, Split
from cocomix.evaluate.perplexity import evaluate_documents
from cocomix.model.load import load_model
from cocomix.testing.models import tiny_model
from cocomix.testing.text import english_like
from cocomix.train.export import export_model

CONTEXT = 64
STORIES = list(english_like(3))
CHOICES = [
    {"question": "The old harbour opens at dusk and", "answer": 1,
     "choices": ["boats", "the whole town walks down to it, as it did", "no"]},
    {"question": "She said", "choices": ["no", "yes to all of it"], "answer": 1},
    {"question": " ".join(STORIES[2].split()[:14]), "choices": ["a", "bb", "ccc dd"], "answer": 2},
]  # fmt: skip
TASKS = {
    "tiny_choice": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "tiny_rolling": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
}  # fmt: skip
HARNESS = """
import json, runpy, sys
from pathlib import Path
from lm_eval.tasks._index import TaskIndex

every = TaskIndex._iter_yaml_files
TaskIndex._iter_yaml_files = staticmethod(lambda root: [] if Path(root).parent.name == "lm_eval" else every(root))
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    runpy.run_module("lm_eval", run_name="__main__", alter_sys=True)
"""
"""Calls of the harness's command line in one process, without the thousands of definitions that it reads first."""
NETWORKS = {"cocomix": {"mixing": "insert"}, "ntp": {"mixer": "none"}}


class Harness(NamedTuple):
    """What a call of the command line left."""

    results: dict[str, Any]
    samples: dict[str, list[dict[str, Any]]]

    def likelihoods(self) -> list[float]:
        """Log-likelihoods in nats of every answer of the multiple-choice task, in order."""
        ordered = sorted(self.samples["tiny_choice"], key=lambda sample: sample["doc_id"])
        return [float(answer[0]) for sample in ordered for answer in sample["filtered_resps"]]

    def texts(self) -> list[float]:
        """Log-likelihood in nats of each whole text."""
        ordered = sorted(self.samples["tiny_rolling"], key=lambda sample: sample["doc_id"])
        return [float(np.ravel(sample["filtered_resps"])[0]) for sample in ordered]


@pytest.fixture(scope="module")
def exports(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exports")
    for name, network in NETWORKS.items():
        model = tiny_model(**network, backbone={"vocab_size": dataset.vocab_size})
        export_model(model, dataset.tokenizer_folder, root / name, {"run": name, "tokens": 0})
    return root


@pytest.fixture(scope="module")
def texts(dataset: Dataset) -> list[str]:
    """Two that fill pieces of the context, 64 tokens, and one whose last piece is a part."""
    tokenizer = dataset.tokenizer()
    whole = next(s for end in range(100, 900) if len(tokenizer(s := STORIES[0][:end]).input_ids) == 2 * CONTEXT)
    part = STORIES[1][:700]
    assert len(tokenizer(part).input_ids) > 2 * CONTEXT
    assert len(tokenizer(part).input_ids) % CONTEXT
    return [whole, "A short one.", part]


@pytest.fixture(scope="module")
def tasks(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks as the harness defines them, on texts of ours."""
    place = tmp_path_factory.mktemp("tasks")
    for name, lines in (("tiny_choice", CHOICES), ("tiny_rolling", [{"text": text} for text in texts])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(place / f"{name}.jsonl")}}}
        task = {"task": name, "test_split": "test", **data, **TASKS[name]}
        (place / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    return place


@pytest.fixture(scope="module")
def called(exports: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Harness]:
    """The harness's command line: with batches of 1 and of 4, and on a plain export without its code being trusted."""
    place = tmp_path_factory.mktemp("harness")
    calls = {
        "one": ("cocomix", ",trust_remote_code=True", "1"),
        "four": ("cocomix", ",trust_remote_code=True", "4"),
        "plain": ("ntp", "", "4"),
    }
    words = [
        [
            "--model", "hf", "--model_args", f"pretrained={exports / export}{more}",
            "--tasks", "tiny_choice,tiny_rolling", "--include_path", str(tasks), "--device", "cpu",
            "--batch_size", batch, "--log_samples", "--output_path", str(place / name),
        ]
        for name, (export, more, batch) in calls.items()
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(place / "home")}
    command = [sys.executable, "-c", HARNESS, json.dumps(words)]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: read_harness(place / name) for name in calls}


def read_harness(folder: Path) -> Harness:
    (results,) = folder.rglob("results_*.json")
    samples = {
        task: [json.loads(line) for line in next(results.parent.glob(f"samples_{task}_*")).read_text().splitlines()]
        for task in TASKS
    }
    return Harness(json.loads(results.read_text())["results"], samples)


def nats(model: Any, tokenizer: Any, before: str, text: str) -> float:
    """Log-likelihood of ``text`` behind ``before``, one forward pass, nothing padded."""
    ids, known = tokenizer(before + text).input_ids, len(tokenizer(before).input_ids)
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(scores[place - 1, ids[place]]) for place in range(known, len(ids)))


def test_likelihoods_do_not_depend_on_the_batch_size(called):
    assert called["one"].likelihoods() == pytest.approx(called["four"].likelihoods(), abs=1e-5)
    assert called["one"].texts() == pytest.approx(called["four"].texts(), abs=1e-4)
    for task in TASKS:
        one, four = (called[name].results[task] for name in ("one", "four"))
        assert {key: one[key] for key in one if key.endswith(",none")} == pytest.approx(
            {key: four[key] for key in four if key.endswith(",none")}, nan_ok=True
        )


@pytest.mark.parametrize(("call", "export"), [("four", "cocomix"), ("plain", "ntp")])
def test_likelihoods_are_those_of_one_unpadded_pass(call, export, called, exports):
    model, tokenizer = load_model(str(exports / export))
    wanted = [nats(model, tokenizer, doc["question"], " " + choice) for doc in CHOICES for choice in doc["choices"]]
    assert called[call].likelihoods() == pytest.approx(wanted, abs=1e-4)


def test_accuracies_are_by_likelihood_and_by_likelihood_a_byte(called):
    found = called["four"]
    likelihoods, right, right_a_byte = iter(found.likelihoods()), 0, 0
    for doc in CHOICES:
        scores = [next(likelihoods) for _ in doc["choices"]]
        right += int(np.argmax(scores)) == doc["answer"]
        right_a_byte += (
            int(np.argmax([s / len(c) for s, c in zip(scores, doc["choices"], strict=True)])) == doc["answer"]
        )
    assert found.results["tiny_choice"]["acc,none"] == pytest.approx(right / len(CHOICES))
    assert found.results["tiny_choice"]["acc_norm,none"] == pytest.approx(right_a_byte / len(CHOICES))


def document(text: str, dataset: Dataset, place: Path) -> Split:
    """A split of one document without its end-of-text id, which the harness does not predict."""
    ids = np.array(dataset.tokenizer()(text).input_ids, dtype=dataset.dtype)
    file = place / f"{len(list(place.iterdir()))}.bin"
    ids.tofile(file)
    return Split("val", [Shard(file, len(ids), "")], dataset.dtype, dataset.eos_id, len(text.encode()))


def rolled(model: Any, tokenizer: Any, text: str) -> float:
    """Log-likelihood of a text in pieces of the context; the last is given as long a past as the context holds."""
    ids = [tokenizer.eos_token_id, *tokenizer(text).input_ids]
    total, done = 0.0, 1
    while done < len(ids):
        end = min(done + CONTEXT, len(ids))
        start = max(0, end - 1 - CONTEXT)
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids[start : end - 1]])).logits[0].log_softmax(-1)
        total += sum(float(scores[place - 1 - start, ids[place]]) for place in range(done, end))
        done = end
    return total


CALLS = [("one", "cocomix"), ("four", "cocomix"), ("plain", "ntp")]


@pytest.mark.parametrize(("call", "export"), CALLS)
def test_rolling_perplexity_is_what_this_package_evaluates(call, export, called, exports, texts, dataset, tmp_path):
    """Where a text fills its pieces of the context the conventions agree; the end of a text is not predicted there."""
    model, _ = load_model(str(exports / export))
    ours = [evaluate_documents(model, document(text, dataset, tmp_path), CONTEXT) for text in texts]
    assert ours[0].tokens_evaluated == 2 * CONTEXT
    found = [-result.loss * result.tokens_evaluated for result in ours]
    assert found[:2] == pytest.approx(called[call].texts()[:2], abs=1e-2)
    assert found[2] != pytest.approx(called[call].texts()[2], abs=1e-2)


@pytest.mark.parametrize(("call", "export"), CALLS)
def test_rolling_perplexities_are_of_a_byte_and_of_a_word(call, export, called, exports, texts):
    model, tokenizer = load_model(str(exports / export))
    wanted = [rolled(model, tokenizer, text) for text in texts]
    assert called[call].texts() == pytest.approx(wanted, abs=1e-2)
    nats, found = -sum(wanted), called[call].results["tiny_rolling"]
    size, words = sum(len(text.encode()) for text in texts), sum(len(re.split(r"\s+", text)) for text in texts)
    assert found["bits_per_byte,none"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found["byte_perplexity,none"] == pytest.approx(math.exp(nats / size), rel=1e-5)
    assert found["word_perplexity,none"] == pytest.approx(math.exp(nats / words), rel=1e-3)


@pytest.mark.parametrize("mixing", ["insert", "memory", "add"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_padded_batches_change_neither_likelihoods_nor_what_is_generated(family, mixing, dataset):
    """Right-padded batches without a mask for likelihoods, left-padded ones with a mask for generation."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = tiny_model(family, mixing=mixing, backbone={"vocab_size": dataset.vocab_size})
    pairs = [(doc["question"], " " + choice) for doc in CHOICES for choice in doc["choices"]]
    prompts = [(doc["question"], {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}) for doc in CHOICES]
    found = []
    for size in (1, 4):
        harness = HFLM(pretrained=model, tokenizer=dataset.tokenizer(), batch_size=size, device="cpu")
        assert harness.max_length == CONTEXT
        asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        likelihoods = [answer[0] for answer in harness.loglikelihood(asked, disable_tqdm=True)]
        asked = [Instance("generate_until", {}, prompt, i) for i, prompt in enumerate(prompts)]
        found.append((likelihoods, harness.generate_until(asked, disable_tqdm=True)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert found[0][1] == found[1][1]
