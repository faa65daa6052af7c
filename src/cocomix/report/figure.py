"""What the figures share: colours, the empty frame, the finished figure as SVG and PNG."""

from __future__ import annotations

import html
import io
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Colours that a page replaces by its own variables, so that an inlined figure
# follows the reader's light or dark mode.
INK, MUTED, GRID, PAPER = "#1b1f24", "#59636e", "#d8dee4", "#fffffe"
PAGE_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", PAPER: "transparent"}

# After Okabe and Ito's colour-blind safe set, each at least 3:1 against white and against the page's dark.
METHOD_COLOURS = {
    "ntp": "#7d858f",
    "cocomix": "#d55e00",
    "cocomix_add": "#2a86cc",
    "cocomix_memory": "#0a9a73",
    "kd": "#c4679b",
    "pause": "#b08400",
}
MORE_COLOURS = ["#8b6fd6", "#4f9da6", "#a5694f", "#6f8f2f", *METHOD_COLOURS.values()]
WIDTH, HEIGHT = 5.2, 3.5  # inches: small, so that letters stay readable where a phone shrinks the figure
FONT = 10.5
LONGEST_NAME = 22
_SETTINGS = threading.Lock()
"""matplotlib's settings are the process', not a thread's."""


@dataclass(frozen=True)
class Plot:
    """A finished figure."""

    name: str
    """Name of its files, without the ending."""
    caption: str
    alt: str
    """What a reader who cannot see it should know."""
    svg: str
    """A whole SVG document with a white ground."""
    png: bytes

    @property
    def inline(self) -> str:
        """The SVG element for a page: the page's colours, ids that no other figure has, no document head."""
        text = self.svg[self.svg.index("<svg") :]
        for colour, variable in PAGE_COLOURS.items():
            text = text.replace(colour, variable)
        text = re.sub(r'\bid="', f'id="{self.name}-', text)
        text = re.sub(r'(href="#|url\(#)', rf"\g<1>{self.name}-", text)
        return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(self.alt)}" ', 1)


def method_colours(groups: Sequence[str]) -> dict[str, str]:
    """A colour for each group; the known methods keep theirs in every report."""
    colours = {group: METHOD_COLOURS[group] for group in groups if group in METHOD_COLOURS}
    free = [colour for colour in MORE_COLOURS if colour not in colours.values()] or MORE_COLOURS
    others = [group for group in groups if group not in colours]
    return colours | {group: free[i % len(free)] for i, group in enumerate(others)}


def empty(height: float = HEIGHT) -> tuple[Figure, Any]:
    """A figure ``height`` inches high and its frameless axes."""
    figure = Figure(figsize=(WIDTH, height), facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor(PAPER)
    axes.grid(color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=MUTED, labelsize=FONT - 0.5, length=0)
    axes.xaxis.label.set(color=MUTED, fontsize=FONT - 0.5)
    return figure, axes


def short(name: str) -> str:
    """``name``, cut where it would take the curves' room."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def finish(figure: Figure, name: str, caption: str, alt: str) -> Plot:
    """Draws ``figure``: the same comparison gives the same bytes, whenever it is drawn."""
    svg, png = io.StringIO(), io.BytesIO()
    with _SETTINGS, matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=200)
    return Plot(name, caption, alt, svg.getvalue(), png.getvalue())
