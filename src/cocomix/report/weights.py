"""The histogram of the compression's weights, one norm a concept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import LogFormatter, LogLocator

from cocomix.compare.wording import share
from cocomix.files import atomic_path
from cocomix.report.figure import FONT, INK, MUTED, PAPER, Plot, empty, finish

BINS = 60
UNUSED, USED = "#d55e00", "#4b6f94"


class PlainNumbers(LogFormatter):
    """``0.02`` where the logarithmic axis' own formatter writes powers of ten."""

    def _num_to_string(self, x: float, vmin: float, vmax: float) -> str:
        return f"{x:g}"


def weights_plot(norms: Sequence[float], bound: float) -> Plot:
    """How many concepts have weights of which norm, on a logarithmic axis; those below ``bound`` apart.

    Norms of nothing at all stand in the first bar.
    """
    values = np.asarray(norms, dtype=float)
    below = values < bound
    lowest = min(float(values[values > 0].min(initial=bound)), bound) / 1.25
    highest = max(float(values.max(initial=bound)), bound) * 1.25
    # The bound is the edge of a bar, so that no bar is half of one colour.
    left = max(1, round(BINS * np.log(bound / lowest) / np.log(highest / lowest)))
    edges = np.concatenate(
        [np.geomspace(lowest, bound, left + 1)[:-1], np.geomspace(bound, highest, max(1, BINS - left) + 1)]
    )
    figure, axes = empty()
    for part, colour in ((values[below], UNUSED), (values[~below], USED)):
        counts, _ = np.histogram(np.maximum(part, lowest), edges)
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colour, ec=PAPER, lw=0.4)
    axes.axvline(bound, color=INK, lw=1, ls=(0, (3, 2)))
    axes.set_xscale("log")
    # Over less than a decade the marks between its ends bear numbers too, and plain ones.
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 3, 4, 6, 8)))
    axes.xaxis.set_major_formatter(PlainNumbers())
    axes.xaxis.set_minor_formatter(PlainNumbers(minor_thresholds=(2, 1)))
    axes.tick_params(axis="x", which="minor", colors=MUTED, labelsize=FONT - 0.5, length=0)
    axes.set_xlabel("norm of a concept's weights in the compression")
    axes.set_title("concepts", loc="left", fontsize=FONT, color=INK)
    told = f"{share(below.mean())} below {bound:g}"
    axes.set_title(told, loc="right", fontsize=FONT, color=UNUSED if below.any() else MUTED)
    caption = f"Norms of the compression's weights: {told}, median {np.median(values):.3g}."
    return finish(figure, "compression", caption, f"Histogram of the weights' norms of {len(values)} concepts; {told}.")


def write_histogram(norms: Sequence[float], bound: float, path: Path) -> Path:
    """Writes :func:`weights_plot` as PNG, whole or not at all; returns ``path``."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(weights_plot(norms, bound).png)
    return path
