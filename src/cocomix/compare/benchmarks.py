"""Accuracies on benchmark tasks, from the ``benchmarks.json`` of run folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cocomix.compare.runs import Run, is_finite
from cocomix.errors import UserError

ACCURACIES = ("acc", "exact_match")
"""Metrics whose names begin like this are shares of items that were right."""


@dataclass(frozen=True)
class Score:
    """An accuracy between 0 and 1."""

    value: float
    stderr: float | None
    """Standard error over the task's items; None where nobody tells."""


def scores(run: Run) -> dict[str, Score]:
    """The run's accuracies by ``task metric``.

    Read are the layout of ``cocomix eval`` (``{task: {"metrics": {metric: {"value", "stderr"}}}}``) and flat ones
    (``{task: {"acc", "acc_stderr"}}``), lm-evaluation-harness' ``acc,none`` among them; another filter than
    ``none`` is part of the name. Raises :class:`UserError` for a task that is neither.
    """
    found = {}
    for task, result in run.benchmarks.items():
        if not isinstance(result, dict) or not isinstance(result.get("metrics", {}), dict):
            raise UserError(
                f"{run.folder / 'benchmarks.json'}: '{task}' holds no metrics: write it with 'cocomix eval "
                f"{run.folder} tasks=…', or as {{task: {{metric: value}}}}"
            )
        for metric, score in _metrics(result).items():
            if metric.startswith(ACCURACIES):
                found[f"{task} {metric}"] = score
    return found


def _metrics(result: Mapping[str, Any]) -> dict[str, Score]:
    if "metrics" in result:
        pairs = {
            name: (value.get("value"), value.get("stderr"))
            for name, value in result["metrics"].items()
            if isinstance(value, dict)
        }
    else:
        pairs = {}
        for key, value in result.items():
            name, comma, kind = key.partition(",")  # "acc,none": metric and filter
            if not name.endswith("_stderr"):
                label = name if kind in ("", "none") else f"{name} ({kind})"
                pairs[label] = (value, result.get(f"{name}_stderr{comma}{kind}"))
    return {name: Score(n, _number(e)) for name, (v, e) in pairs.items() if (n := _number(v)) is not None}


def _number(value: Any) -> float | None:
    """``value`` where it is a finite number; a harness writes ``"N/A"`` for what it does not know."""
    return float(value) if isinstance(value, int | float) and is_finite(value) else None


def mean_scores(runs: Iterable[Run]) -> dict[str, Score]:
    """Means over the runs that have a score.

    The items are the same for all runs, so several runs tell no more about them than one: the standard error is the
    mean of the runs' own.
    """
    collected: dict[str, list[Score]] = {}
    for run in runs:
        for name, score in scores(run).items():
            collected.setdefault(name, []).append(score)
    return {name: _mean(found) for name, found in collected.items()}


def _mean(found: list[Score]) -> Score:
    errors = [score.stderr for score in found if score.stderr is not None]
    return Score(
        sum(score.value for score in found) / len(found),
        sum(errors) / len(errors) if len(errors) == len(found) else None,
    )


def unlike(runs: Iterable[Run]) -> list[str]:
    """A sentence for each task that was not asked of all runs in the same way."""
    ways: dict[tuple[str, str], set[Any]] = {}
    for run in runs:
        for task, result in run.benchmarks.items():
            for what in ("context", "items", "source"):
                if isinstance(result, dict) and result.get(what) is not None:
                    ways.setdefault((task, what), set()).add(str(result[what]))
    return [
        f"{task} was scored with a different {what} ({' and '.join(sorted(values))}): its accuracies do not compare."
        for (task, what), values in ways.items()
        if len(values) > 1
    ]
