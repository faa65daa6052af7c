"""The picture of an inspected text: tokens in reading order, under each its strongest concepts and what they do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from cocomix.files import atomic_path
from cocomix.report.figure import GRID, INK, MUTED, PAPER, Plot, finish

HELPS, HURTS = "#2a7fb8", "#d55e00"
COLUMNS, CELL, LINE, HEAD, GAP = 4, 2.75, 0.185, 0.3, 0.16  # inches
MARGIN, TOP = 0.2, 0.62
NAME, BAR = 31, 0.62
"""Letters of a name, and inches of the longest bar to either side of nothing."""
MOST = 200
"""Tokens that are drawn; what comes behind is counted."""


def inspection_plot(tokens: Sequence[dict[str, Any]], most: int = 6) -> Plot:
    """``tokens`` as ``cocomix inspect`` tells them; ``most`` concepts of each are drawn.

    A bar is a concept's contribution to the log-probability of the next token where that was measured, to the right
    where it helped, or else its strength; a filled dot: active in the teacher too.
    """
    shown = [{**token, "concepts": token["concepts"][:most]} for token in tokens[:MOST]]
    measured, asked = any("contribution" in token for token in shown), any(_concepts(shown, "teacher"))
    lines = max(len(token["concepts"]) for token in shown)
    step = HEAD + lines * LINE + GAP
    rows = math.ceil(len(shown) / COLUMNS)
    width, height = 2 * MARGIN + COLUMNS * CELL - GAP, TOP + rows * step + MARGIN
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    told = _legend(axes, measured, asked, len(tokens) - len(shown))
    key = "contribution" if measured else "strength"
    longest = max((abs(value) for value in _concepts(shown, key) if value), default=1.0)
    together = max((abs(t["contribution"]) for t in shown if t.get("contribution")), default=1.0)
    for place, token in enumerate(shown):
        left, top = MARGIN + (place % COLUMNS) * CELL, TOP + (place // COLUMNS) * step
        _head(axes, token, left, top, together)
        for line, concept in enumerate(token["concepts"]):
            _concept(axes, concept, left, top + HEAD + (line + 0.62) * LINE, key, longest)
    first = "".join(token["token"] for token in shown[:12]).strip()
    return finish(figure, "inspection", f"Predicted concepts of “{first}…”. {told}", f"Tokens and concepts. {told}")


def write_inspection(tokens: Sequence[dict[str, Any]], path: Path | str) -> Path:
    """Writes :func:`inspection_plot` as PNG, whole or not at all; returns ``path``."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(inspection_plot(tokens).png)
    return Path(path)


def _concepts(tokens: Sequence[dict[str, Any]], key: str) -> list[Any]:
    return [concept[key] for token in tokens for concept in token["concepts"] if key in concept]


def _legend(axes: Any, measured: bool, asked: bool, left_out: int) -> str:
    parts = ["a bar: its strength z"]
    if measured:
        parts = [
            "a bar: what the concept adds to log p(next token), blue where it helps, orange where it hurts",
            "beside the token: what all mixed concepts add",
        ]
    if asked:
        parts.append("filled dot: active in the teacher too")
    if left_out:
        parts.append(f"{left_out:,} more tokens are not drawn")
    _text(axes, MARGIN, 0.17, "Predicted concepts, token by token", 11.0, INK, weight="bold")
    _text(axes, MARGIN, 0.4, "; ".join(parts), 8.0, MUTED)
    return "; ".join(parts) + "."


def _head(axes: Any, token: dict[str, Any], left: float, top: float, longest: float) -> None:
    width, value = CELL - GAP, token.get("contribution")
    axes.add_patch(
        FancyBboxPatch(
            (left + 0.03, top + 0.03), width - 0.06, HEAD - 0.09, boxstyle="round,pad=0.03,rounding_size=0.05",
            fc=_tint(value, longest), ec=GRID, lw=0.7,
        )
    )  # fmt: skip
    _text(axes, left + 0.08, top + HEAD / 2, _visible(token["token"]), 10.0, INK, weight="bold")
    if value is not None:
        _text(axes, left + width - 0.07, top + HEAD / 2, f"{value:+.2f}", 8.5, INK, ha="right")


def _concept(axes: Any, concept: dict[str, Any], left: float, y: float, key: str, longest: float) -> None:
    if "teacher" in concept:
        active = concept["teacher"] > 0
        axes.plot([left + 0.09], [y], "o", ms=3.6, mfc=INK if active else PAPER, mec=INK if active else MUTED, mew=0.8)
    name = concept["name"] if len(concept["name"]) <= NAME else concept["name"][: NAME - 1] + "…"
    _text(axes, left + (0.18 if "teacher" in concept else 0.06), y, _visible(name), 7.5, INK)
    value = concept[key]
    signed = key == "contribution"
    right = left + CELL - GAP - 0.04
    zero = right - BAR / 2 if signed else right - BAR
    axes.add_patch(Rectangle((right - BAR, y - 0.055), BAR, 0.11, fc="#f0f2f5", ec="none"))
    if value is not None:
        length = value / longest * (BAR / 2 if signed else BAR)
        axes.add_patch(Rectangle((zero, y - 0.055), length, 0.11, fc=HELPS if value > 0 else HURTS, ec="none"))
    axes.plot([zero, zero], [y - 0.075, y + 0.075], color=MUTED, lw=0.6)


def _tint(value: float | None, longest: float) -> tuple[float, ...]:
    """White where nothing is added, towards the sign's colour where much is."""
    share = 0.0 if value is None else min(1.0, abs(value) / longest) * 0.45
    colour = to_rgb(HELPS if (value or 0) > 0 else HURTS)
    return tuple(1 - share * (1 - part) for part in colour)


def _visible(text: str) -> str:
    for character, sign in (("\n", "↵"), ("\t", "→"), ("\r", "")):
        text = text.replace(character, sign)
    shown = text if text.strip() else text.replace(" ", "␣") or "·"
    return shown.strip() if len(shown) <= 40 else shown[:39] + "…"


def _text(axes: Any, x: float, y: float, text: str, size: float, colour: str, **how: Any) -> None:
    axes.text(x, y, text, fontsize=size, color=colour, va="center", parse_math=False, **how)
