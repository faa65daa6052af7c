"""`cocomix eval MODEL tasks=…` as a function: tasks one after another, each finished one kept in a file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from cocomix.devices import pick_device
from cocomix.errors import UserError
from cocomix.evaluate.asked import Asked, OwnTask, Scoring
from cocomix.evaluate.harness import harness_tasks
from cocomix.evaluate.models import load_any, model_fingerprint
from cocomix.evaluate.scoring import longest_context
from cocomix.evaluate.settings import EvalSettings
from cocomix.evaluate.tasks import ALIASES, TASKS
from cocomix.files import read_json, sha256_json, write_json
from cocomix.progress import progress, say
from cocomix.stopping import Stopped, StopRequest

FILE = "benchmarks.json"


def find_tasks(settings: EvalSettings) -> list[Asked]:
    """The tasks that ``settings`` name with their items, each once.

    Raises :class:`UserError` for a name that nobody knows, and data that is not here.
    """
    if settings.include is not None and not Path(settings.include).is_dir():
        raise UserError(f"include={settings.include} is no folder: give one with task definitions (*.yaml) of lm-eval")
    found: dict[str, Asked] = {}
    for name in settings.tasks or []:
        plain = ALIASES.get(name, name)
        own = TASKS.get(plain)
        asked: list[Asked] = [OwnTask(own, settings.limit)] if own else []
        for task in asked or harness_tasks(plain, settings.limit, settings.include):
            found.setdefault(task.name, task)
    return list(found.values())


def results_file(settings: EvalSettings) -> Path:
    """Where finished tasks are kept: ``out``, or ``benchmarks.json`` in the run's or model's folder; beside a GGUF
    file; for a model of the hub in the working folder.

    Raises :class:`UserError` when nothing can be written there, before any work is done.
    """
    path = Path(settings.model).expanduser()
    if settings.out is not None:
        file = Path(settings.out).expanduser()
    elif path.is_dir():
        file = path / FILE
    elif path.is_file():
        file = path.with_name(f"{path.stem}.{FILE}")
    else:
        file = Path(f"{settings.model.replace('/', '--')}.{FILE}")
    folder = next(folder for folder in file.absolute().parents if folder.exists())
    places = (folder, file) if file.exists() else (folder,)
    if file.is_dir() or not folder.is_dir() or not all(os.access(place, os.W_OK) for place in places):
        raise UserError(f"results cannot be written to {file}: name another file with out=FILE.json")
    return file


def run_benchmarks(settings: EvalSettings) -> dict[str, Any]:
    """The results of all tasks asked for, by name (``hellaswag``; of the first N items alone ``hellaswag[:N]``).

    A result holds ``metrics`` (name → value, standard error, unit), ``items`` asked ``of`` how many, how many of them
    were ``cut`` to ``context`` tokens, ``seconds``, ``source`` and ``model`` (a hash of its weights,
    configuration and tokenizer). A task that is in the file with the same model, items and context is not run again.
    Raises :class:`UserError` for mistakes, and :class:`Stopped` when a signal asked to stop: the tasks finished before
    are in the file.
    """
    device = pick_device(settings.device)
    file = results_file(settings)
    tasks = find_tasks(settings)
    model, tokenizer = load_any(settings.model, "cpu")
    fingerprint = model_fingerprint(model, tokenizer)
    model = model.to(device)
    limit = longest_context(model, tokenizer)
    if settings.context is not None and settings.context > limit:
        raise UserError(
            f"context={settings.context} is longer than the model's {limit} positions: choose context={limit}"
        )
    longest = settings.context or limit
    results = {}
    with StopRequest() as stop:
        for number, task in enumerate(tasks, 1):
            name = task.name if task.items == task.total else f"{task.name}[:{task.items}]"
            about = {"model": fingerprint, "source": task.source, "items": task.items, "context": longest}
            key = sha256_json(about)
            kept = _read(file).get(name, {})
            head = f"[{number}/{len(tasks)}] {name}"
            if kept.get("key") == key:
                say(f"{head}: done before, in {kept['seconds']:.0f} s")
                results[name] = kept
                continue

            def check() -> None:
                if stop.requested:
                    raise Stopped(f"finished tasks are in {file}; the same command goes on with the others")

            check()
            start = time.monotonic()
            with progress(head, task.requests) as bar:
                outcome = task.run(model, tokenizer, Scoring(longest, settings.batch, check, bar.advance))
            results[name] = {
                "metrics": {metric: value.to_json() for metric, value in outcome.metrics.items()},
                "items": task.items,
                "of": task.total,
                "cut": outcome.cut,
                "context": longest,
                "seconds": round(time.monotonic() - start, 1),
                "source": about["source"],
                "model": fingerprint,
                "key": key,
            }
            # Read again: another process may have finished another task of this model.
            write_json(file, {**_read(file), name: results[name]})
    return results


def _read(file: Path) -> dict[str, Any]:
    return read_json(file, "a file of benchmark results") if file.is_file() else {}


def told(results: dict[str, Any]) -> str:
    """Results as lines for people."""
    lines = []
    for name, result in results.items():
        figures = [
            f"{metric} {_figure(m['value'])}" + (f" ± {_figure(m['stderr'])}" if m["stderr"] is not None else "")
            for metric, m in result["metrics"].items()
        ]
        cut = f", {result['cut']:,} cut to {result['context']} tokens" if result["cut"] else ""
        lines.append(f"{name}: {', '.join(figures)} ({result['items']:,} of {result['of']:,} items{cut})")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"
