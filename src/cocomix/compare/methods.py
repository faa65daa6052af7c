"""What each method has reached, one entry a method, all at the same cost: the rows of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cocomix.compare.benchmarks import Score, mean_scores
from cocomix.compare.comparison import Comparison, Entry
from cocomix.compare.curves import AXES, Axis, Curve
from cocomix.compare.intervals import Spread, spread
from cocomix.compare.pairs import Pair

Missing = Literal["not known", "out of range"]
"""Why a loss at a cost is missing: a part of the cost is not known; it lies before a run's first evaluation, or beside
one that is not finite."""


@dataclass(frozen=True)
class Level:
    """Where a method stands, over its seeds; ppl is a token's."""

    loss: Spread
    ppl: Spread


@dataclass(frozen=True)
class Method:
    """A row."""

    name: str
    seeds: tuple[int, ...]
    """Those of the runs that count: evaluated and not diverged."""
    left_out: int
    """Runs without an evaluation, or diverged."""
    active: int
    """Parameters that a token touches, of the first run."""
    total: int
    final: Level | None
    """At each run's own end; None where no run counts."""
    equal: Mapping[Axis, Level | Missing]
    """At the budgets of :func:`budgets`, which are the same for all methods."""
    pair: Pair | None
    """Against the baseline; None for the baseline itself, and where nothing could be paired."""
    benchmarks: Mapping[str, Score]


def budgets(comparison: Comparison) -> dict[Axis, float | None]:
    """The cost that every method has spent, by axis: the smallest final one among the runs; None: nobody knows one."""
    curves = [curve for entry in comparison.entries if (curve := _curve(entry)) is not None]
    ends = {axis: [end for curve in curves if (end := curve.final(axis)) is not None] for axis in AXES}
    return {axis: min(values) if values else None for axis, values in ends.items()}


def methods(comparison: Comparison) -> list[Method]:
    """A row for every group, the baseline's first."""
    at = budgets(comparison)
    pairs = {pair.candidate: pair for pair in comparison.pairs}
    return [_method(name, comparison.of(name), at, pairs.get(name)) for name in comparison.groups]


def _method(name: str, entries: Sequence[Entry], at: Mapping[Axis, float | None], pair: Pair | None) -> Method:
    usable = [(entry, curve) for entry in entries if (curve := _curve(entry)) is not None]
    curves = [curve for _, curve in usable]
    parameters = entries[0].run.manifest.parameters
    return Method(
        name=name,
        seeds=tuple(entry.run.seed for entry, _ in usable),
        left_out=len(entries) - len(usable),
        active=parameters.active,
        total=parameters.total,
        final=_level([float(curve.loss[-1]) for curve in curves]) if curves else None,
        equal={axis: _at(curves, axis, at[axis]) for axis in AXES},
        pair=pair,
        benchmarks=mean_scores(entry.run for entry in entries),
    )


def _curve(entry: Entry) -> Curve | None:
    return entry.curve if entry.run.comparable else None


def _at(curves: Sequence[Curve], axis: Axis, cost: float | None) -> Level | Missing:
    if cost is None or any(curve.costs[axis] is None for curve in curves):
        return "not known"
    losses = [loss for curve in curves if (loss := curve.loss_for(axis, cost)) is not None]
    return _level(losses) if losses and len(losses) == len(curves) else "out of range"


def _level(losses: Sequence[float]) -> Level:
    return Level(spread(losses), spread([math.exp(min(loss, 700.0)) for loss in losses]))
