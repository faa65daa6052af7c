"""Figures of a comparison as SVG and PNG: loss against tokens, FLOPs and seconds; costs by part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator

from cocomix.compare.comparison import Comparison, Entry
from cocomix.compare.curves import Axis, Curve, Parts, parts
from cocomix.compare.wording import duration, flops
from cocomix.report.figure import FONT, HEIGHT, INK, MUTED, PAPER, Plot, empty, finish, method_colours, short

Kind = Literal["flops", "seconds"]

PART_COLOURS = {"student": "#4b6f94", "labels": "#93b4d0", "teacher": "#b59a5b", "sae": "#d3c293"}
PART_NAMES = {
    "student": "student's training",
    "labels": "labels",
    "teacher": "teacher's training",
    "sae": "SAE's training",
}


def plots(comparison: Comparison) -> list[Plot]:
    """Every figure that the comparison can fill; none without an evaluation."""
    if not any(entry.run.comparable for entry in comparison.entries):
        return []
    curves = [loss_plot(comparison, axis) for axis in ("tokens", "flops", "seconds")]
    return [*curves, *(cost_plot(comparison, kind) for kind in ("flops", "seconds"))]


def loss_plot(comparison: Comparison, axis: Literal["tokens", "flops", "seconds"]) -> Plot:
    """Validation loss against a cost: a run thin, a method's mean over seeds bold, names at the right."""
    figure, axes = empty()
    colours = method_colours(comparison.groups)
    student = cast(Axis, "tokens" if axis == "tokens" else f"student_{axis}")
    scale, unit = _scale(comparison, axis)
    ends: dict[str, float] = {}
    dashed = False
    for group in comparison.groups:
        curves = [entry.curve for entry in comparison.of(group) if entry.run.comparable and entry.curve]
        if not curves:
            continue
        style: dict[str, Any] = {"color": colours[group], "solid_capstyle": "round"}
        for curve in curves if len(curves) > 1 else []:
            axes.plot(_cost(curve, student) / scale, curve.loss, lw=0.8, alpha=0.45, **style)
        x, y = _mean_curve(curves, student)
        axes.plot(x / scale, y, lw=2, marker="o", ms=3, **style)
        ends[group] = float(y[-1])
        with_labels, _ = _mean_curve(curves, axis)
        if not np.allclose(with_labels, x):
            dashed = True
            axes.plot(with_labels / scale, y, lw=1.5, ls=(0, (3, 2)), **style)
    if comparison.baseline in ends:
        axes.axhline(ends[comparison.baseline], color=MUTED, lw=0.9, ls=":", zorder=0)
    _frame_losses(axes, comparison)
    _name_ends(axes, ends, colours)
    what = {"tokens": "training tokens", "flops": "training FLOPs", "seconds": f"training time, {unit}"}[axis]
    axes.set_xlabel(what + (" (dashed: labels too)" if dashed else ""))
    axes.set_title("validation loss, nats a token", loc="left", fontsize=FONT, color=INK)
    if axis != "seconds":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    against = {"tokens": "tokens", "flops": "FLOPs", "seconds": "time"}[axis]
    caption = f"Validation loss against {against}. The dotted line is {comparison.baseline}'s final loss."
    told = ", ".join(f"{group} {loss:.3f}" for group, loss in ends.items())
    return finish(
        figure,
        f"loss-{axis}",
        caption,
        f"Line chart of validation loss against {against}; final losses: {told}.",
    )


def cost_plot(comparison: Comparison, kind: Kind) -> Plot:
    """A bar for each method: the student's training, the labels, the training of teacher and SAE."""
    rows = {group: _mean_parts(comparison.of(group), kind) for group in comparison.groups}
    bars = {group: part for group, part in rows.items() if part is not None}
    figure, axes = empty(height=1.5 + 0.36 * len(bars))
    biggest = max(sum(_known(part).values()) for part in bars.values())
    scale, unit = (1.0, "") if kind == "flops" else _time_unit(biggest)
    for name in PART_NAMES:
        if any(_known(part).get(name, 0) > 0 for part in bars.values()):
            widths = np.array([_known(part).get(name, 0.0) for part in bars.values()]) / scale
            lefts = np.array([_before(part, name) for part in bars.values()]) / scale
            label, colour = PART_NAMES[name], PART_COLOURS[name]
            axes.barh(range(len(bars)), widths, left=lefts, height=0.62, color=colour, label=label, ec=PAPER, lw=1)
    say = flops if kind == "flops" else duration
    totals = {group: say(sum(_known(part).values())) + _unknown(part) for group, part in bars.items()}
    for row, (group, part) in enumerate(bars.items()):
        end = sum(_known(part).values()) / scale
        axes.annotate(
            totals[group],
            (end, row),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            color=INK,
        )
    axes.set_yticks(range(len(bars)), [short(group) for group in bars], parse_math=False)
    axes.tick_params(axis="y", colors=INK, length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, biggest / scale * 1.28 or 1)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if kind == "flops":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("FLOPs" if kind == "flops" else unit)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False, fontsize=9.5,
        labelcolor=INK, handlelength=1, handleheight=0.9, columnspacing=1.2, borderpad=0,
    )  # fmt: skip
    caption = f"What each method cost in {'FLOPs' if kind == 'flops' else 'time'}, a run; teacher and SAE in full."
    alt = f"Bar chart of costs: {', '.join(f'{group} {total}' for group, total in totals.items())}."
    return finish(figure, f"cost-{kind}", caption, alt)


def _cost(curve: Curve, axis: Axis) -> np.ndarray:
    costs = curve.costs[axis]
    assert costs is not None  # only upstream costs can be unknown
    return costs


def _mean_curve(curves: Sequence[Curve], axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Mean cost and loss over seeds at the first seed's evaluations, as far as all seeds have come."""
    last = min(curve.tokens[-1] for curve in curves)
    first = max(curve.tokens[0] for curve in curves)
    tokens = [t for t in curves[0].tokens if first <= t <= last]
    if not tokens or tokens[-1] < last:
        tokens.append(last)
    costs = np.array([[curve.cost_at(axis, float(t)) for curve in curves] for t in tokens], dtype=float)
    losses = np.array([[curve.loss_at(float(t)) for curve in curves] for t in tokens], dtype=float)
    return costs.mean(axis=1), losses.mean(axis=1)


def _frame_losses(axes: Any, comparison: Comparison) -> None:
    """Cuts the first steep fifth off: what is compared happens below it."""
    curves = [entry.curve for entry in comparison.entries if entry.run.comparable and entry.curve]
    late = 0.2 * max(curve.tokens[-1] for curve in curves)
    seen = np.concatenate([curve.loss[(curve.tokens >= late) & np.isfinite(curve.loss)] for curve in curves])
    low, high = float(seen.min()), float(seen.max())
    pad = 0.06 * (high - low) or 0.05
    axes.set_ylim(low - pad, high + pad)
    axes.set_xlim(left=0)


def _name_ends(axes: Any, ends: Mapping[str, float], colours: Mapping[str, str]) -> None:
    """Names beside the right edge at the height of the last loss, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    step = (high - low) * 1.25 * FONT / (HEIGHT * 72 * 0.72)
    placed: list[float] = []
    for group, loss in sorted(ends.items(), key=lambda item: -item[1]):
        height = min(loss, high, placed[-1] - step if placed else high)
        placed.append(height)
        axes.annotate(
            short(group),
            (1.0, height),
            (4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=colours[group],
            fontsize=FONT,
            fontweight="bold",
            parse_math=False,
            annotation_clip=False,
        )
    if placed and placed[-1] < low:
        axes.set_ylim(placed[-1] - step / 2, high)


def _time_unit(seconds: float) -> tuple[float, str]:
    for size, name in ((2 * 86400, "days"), (2 * 3600, "hours"), (2 * 60, "minutes")):
        if seconds >= size:
            return size / 2, name
    return 1.0, "seconds"


def _scale(comparison: Comparison, axis: str) -> tuple[float, str]:
    if axis != "seconds":
        return 1.0, ""
    return _time_unit(max(e.curve.final("seconds") or 0.0 for e in comparison.entries if e.curve))


def _mean_parts(entries: Sequence[Entry], kind: Kind) -> Parts | None:
    found = [part for entry in entries if (part := parts(entry.run, kind)) is not None]
    if not found:
        return None

    def mean(values: Sequence[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return sum(known) / len(known) if len(known) == len(values) else None

    return Parts(
        student=sum(p.student for p in found) / len(found),
        labels=sum(p.labels for p in found) / len(found),
        teacher=mean([p.teacher for p in found]),
        sae=mean([p.sae for p in found]),
    )


def _known(part: Parts) -> dict[str, float]:
    return {name: value for name, value in vars(part).items() if value is not None}


def _unknown(part: Parts) -> str:
    return " + unknown" if len(_known(part)) < len(PART_NAMES) else ""


def _before(part: Parts, name: str) -> float:
    names = list(PART_NAMES)
    return math.fsum(_known(part).get(earlier, 0.0) for earlier in names[: names.index(name)])
