"""A steering score's files; its picture: four measures against the dose, a curve and its band for each method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

from cocomix.files import atomic_path, write_json, write_text
from cocomix.report.figure import FONT, GRID, INK, MUTED, PAPER, Plot, finish
from cocomix.report.steering import METHODS, columns, steering_table, summarised

COLOURS = {"concept": "#d55e00", "random": "#7d858f", "teacher": "#2a86cc"}
PANELS = (
    # measure, key, title, how its numbers are written
    ("activation", "change", "concept's activation, gained (× usual)", "{:+g}"),
    ("promoted", "change", "share of promoted tokens, gained", "{:+.0%}"),
    ("perplexity", "change", "perplexity, × unsteered", "{:g}"),
    ("distinct_2", "mean", "distinct-2", "{:g}"),
)


def steering_plot(summary: dict[str, Any]) -> Plot:
    """``summary`` of :func:`cocomix.report.steering.summarised`; bands are 95 % intervals over concepts."""
    figure = Figure(figsize=(9.2, 6.6), facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (measure, key, title, form) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        _frame(axes, title)
        for method, name in METHODS.items():
            _curve(axes, summary, method, name, measure, key)
        if measure == "perplexity":
            axes.axhline(summary["fluency"], color=INK, lw=1, ls=(0, (3, 2)))
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.yaxis.set_major_formatter(
                FuncFormatter(lambda value, _, form=form: form.format(value) if abs(value) > 1e-9 else "0")
            )
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize=FONT, labelcolor=INK)
    told = (
        f"Means over {summary['concepts']} concepts and 95 % intervals against the dose in usual strengths; "
        f"the dashed line bounds fluency at {summary['fluency']:g} times the unsteered perplexity"
    )
    return finish(figure, "steering", f"{told}.", f"Dose-response curves. {told}.")


def write_score(score: dict[str, Any], fluency: float, folder: Path) -> tuple[dict[str, Any], str]:
    """Writes ``steering.md``, ``steering.png`` and, last of all, ``steering.json`` of what
    :func:`cocomix.steer.score.score` measured; returns what the last holds (``score`` and its ``"summary"``) and the
    table."""
    summary = summarised(score, fluency)
    result, table = {**score, "summary": summary}, steering_table(score, summary)
    write_text(folder / "steering.md", table)
    write_steering(summary, folder / "steering.png")
    write_json(folder / "steering.json", result)
    return result, table


def write_steering(summary: dict[str, Any], path: Path) -> Path:
    """Writes :func:`steering_plot` as PNG, whole or not at all; returns ``path``."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(steering_plot(summary).png)
    return path


def _frame(axes: Any, title: str) -> None:
    axes.set_facecolor(PAPER)
    axes.grid(color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", colors=MUTED, labelsize=FONT - 0.5, length=0)
    axes.set_title(title, loc="left", fontsize=FONT, color=INK)
    axes.set_xlabel("dose, in usual strengths", color=MUTED, fontsize=FONT - 0.5)
    axes.xaxis.set_major_formatter(ScalarFormatter())


def _curve(axes: Any, summary: dict[str, Any], method: str, name: str, measure: str, key: str) -> None:
    doses = [point["dose"] for point in summary["methods"][method]["curve"]]
    middle = np.array(columns(summary, method, measure, key), dtype=float)
    # The interval is the change's; around a mean it lies as far to either side.
    ends = [np.array(columns(summary, method, measure, bound), dtype=float) for bound in ("low", "high")]
    if key == "mean":
        change = np.array(columns(summary, method, measure, "change"), dtype=float)
        ends = [end - change + middle for end in ends]
    axes.plot(doses, middle, "o-", ms=4, lw=1.8, color=COLOURS[method], label=name)
    axes.fill_between(doses, *ends, color=COLOURS[method], alpha=0.16, lw=0)
