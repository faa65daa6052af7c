"""What was made and measured as HTML: texts side by side, a dose-response curve, runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from cocomix.compare.comparison import Comparison
from cocomix.compare.runs import Run
from cocomix.compare.wording import count, verdict
from cocomix.studio.markup import escaped
from cocomix.studio.streaming import Texts


def texts(prompt: str, made: Texts, edits: Sequence[str], state: str) -> str:
    """Both texts side by side; ``state`` says how far they are."""
    columns = _written("unsteered", prompt, made.unsteered)
    if made.steered is not None:
        columns += _written(", ".join(edits), prompt, made.steered)
    return f'<div class="pair" aria-live="polite">{columns}</div><p class="quiet state">{escaped(state)}</p>'


def _written(title: str, prompt: str, text: str) -> str:
    return (
        f'<section class="written"><h3>{escaped(title)}</h3>'
        f'<p><span class="prompt">{escaped(prompt)}</span>{escaped(text)}</p></section>'
    )


def doses(points: Iterable[tuple[float, float]], name: str, expected: Sequence[float]) -> str:
    """The dose-response curve as far as it is measured."""
    found = [(dose, nats) for dose, nats in points if math.isfinite(nats)]
    if not found:
        return ""
    wide, high, pad = 560, 200, 48
    left, right = min(expected), max(expected)
    low, top = min(0.0, *(n for _, n in found)), max(0.0, *(n for _, n in found))
    top = top if top > low else low + 1.0

    def x(dose: float) -> float:
        return pad + (dose - left) / (right - left) * (wide - 2 * pad)

    def y(nats: float) -> float:
        return high - 28 - (nats - low) / (top - low) * (high - 40)

    line = " ".join(f"{x(d):.1f},{y(n):.1f}" for d, n in found)
    dots = "".join(
        f'<circle cx="{x(d):.1f}" cy="{y(n):.1f}" r="4"><title>{d:g}×: {n:+.3f} nats</title></circle>' for d, n in found
    )
    ticks = "".join(
        f'<text x="{x(d):.1f}" y="{high - 4}" text-anchor="middle">{d:g}×</text>' for d in expected if abs(d) != 1
    )
    marks = [n for n in dict.fromkeys((low, 0.0, top)) if n == 0 or abs(y(n) - y(0.0)) > 14]
    sides = "".join(
        f'<text x="0" y="{y(n) + 4:.1f}">{n:+.2g}</text>' if n else f'<text x="0" y="{y(n) + 4:.1f}">0</text>'
        for n in marks
    )
    told = ", ".join(f"{d:g} times: {n:+.2f}" for d, n in found)
    return (
        f'<figure class="doses"><figcaption>How much likelier the tokens that <b>{escaped(name)}</b> promotes become '
        f"on held-out text (nats), when it is set to multiples of its usual strength</figcaption>"
        f'<svg viewBox="0 0 {wide} {high}" role="img" aria-label="{escaped(told)}">'
        f'<line x1="{pad}" x2="{wide - pad}" y1="{y(0.0):.1f}" y2="{y(0.0):.1f}"/><polyline points="{line}"/>'
        f"{dots}{ticks}{sides}"
        "</svg></figure>"
    )


def runs(comparison: Comparison, plot: str) -> str:
    """Curves, a table, and what the comparison says."""
    rows = "".join(_run(entry.name, entry.run) for entry in comparison.entries)
    said = "".join(f"<li>{escaped(verdict(pair))}</li>" for pair in comparison.pairs)
    said += "".join(f"<li>{escaped(note)}</li>" for note in comparison.notes)
    return (
        f'<figure class="curves">{plot}</figure><div class="scroll"><table><thead><tr><th>run</th><th>method</th>'
        '<th class="number">seed</th><th class="number">tokens</th><th class="number">loss</th>'
        f"<th>state</th></tr></thead><tbody>{rows}</tbody></table></div><ul>{said}</ul>"
    )


def _run(name: str, run: Run) -> str:
    tokens = run.last.tokens if run.last else run.progress.tokens if run.progress else 0
    loss = f"{run.last.loss:.4f}" if run.last is not None and run.last.loss is not None else "–"
    state = "finished" if run.manifest.finished else "not finished"
    return (
        f"<tr><td>{escaped(name)}</td><td>{escaped(run.method)}</td><td class=number>{run.seed}</td>"
        f"<td class=number>{count(tokens)}</td><td class=number>{loss}</td><td>{state}</td></tr>"
    )
