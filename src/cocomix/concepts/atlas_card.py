"""A concept's card for a terminal. What it holds is data: control characters are shown as escapes, markup as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

BLOCKS = " ▁▂▃▄▅▆▇█"
CONTEXTS_SHOWN = 8


def drawn_card(concept: dict[str, Any]) -> Panel:
    """The card of :meth:`cocomix.concepts.atlas.Atlas.concept`; a ``student`` in it gets a part of its own."""
    facts = Text(
        f"{concept['count']:,} labels, {concept['frequency']:.3%} of tokens, "
        f"mean strength {concept['mean_strength']:.3f}"
        if concept["count"]
        else "never a label"
    )
    rows = [
        ("strengths", _histogram(concept["strengths"])),
        ("promotes", _tokens(concept["promoted"])),
        ("suppresses", _tokens(concept["suppressed"])),
        ("lies on", _joined(f"{_token(e['token'])} ({e['count']:,})" for e in concept["labelled"])),
        ("near", _joined(f"{e['id']} {_shown(e['name'])} ({e['cosine']:.2f})" for e in concept["nearest"][:4])),
        ("beside", _joined(f"{e['id']} {_shown(e['name'])} (×{e['lift']:.3g})" for e in concept["together"][:4])),
    ]
    if concept["author"] is not None:
        named = f"{_shown(concept['author'] or 'somebody')}; automatic: {_shown(concept['automatic_name'])}"
        rows.insert(0, ("named by", Text(named)))
    parts: list[RenderableType] = [facts, _grid(rows)]
    for title, key in (("strongest", "contexts"), ("drawn at random", "random_contexts")):
        parts += [Text(), Text(title, "bold"), _contexts(concept[key][:CONTEXTS_SHOWN])]
    if concept.get("student") is not None:
        parts += [Text(), *_student(concept["student"])]
    return Panel(Group(*parts), title=Text(f"concept {concept['id']}: {_shown(concept['name'])}"))


def _student(found: dict[str, Any]) -> list[RenderableType]:
    facts = f"predicted at {found['frequency']:.3%} of tokens"
    if found["strength"] is not None:
        facts += f", mean strength {found['strength']:.3f}"
    facts += f", norm of its row {found['norm']:.3f}"
    if found["effect"] is not None:
        facts += f", effect {found['effect']:.3g} nats a token"
    rows = [
        ("strengths", _histogram(found["strengths"])),
        ("recall", Text(_share(found["recall"], found["recall_by_chance"], f"{found['labels']:,} labels"))),
        (
            "precision",
            Text(_share(found["precision"], found["precision_by_chance"], f"{found['predictions']:,} predictions")),
        ),
    ]
    for name, key in (("promotes", "promoted"), ("suppresses", "suppressed")):
        if found[key] is not None:
            rows.append((name, _joined(f"{_token(e['token'])} ({e['change']:+.2g})" for e in found[key])))
    title = Text("the model", "bold")
    if found["ignored"]:
        title.append("  ignores it")
    return [title, Text(facts), _grid(rows)]


def _share(value: float | None, by_chance: float, of: str) -> str:
    return (
        f"none of 0 (by chance {by_chance:.2%})"
        if value is None
        else f"{value:.1%} of {of} (by chance {by_chance:.2%})"
    )


def _histogram(found: dict[str, Any]) -> Text:
    """Bars one beside the other, and the values between which they stand."""
    counts, edges = found["counts"], found["edges"]
    if not counts:
        return Text("–")
    highest = max(counts)
    # Whoever is there at all is seen.
    bars = "".join(BLOCKS[0 if not n else max(1, round(n / highest * (len(BLOCKS) - 1)))] for n in counts)
    return Text(f"{edges[0]:.3g} {bars} {edges[-1]:.3g}")


def _grid(rows: list[tuple[str, Text]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for title, text in rows:
        if text.plain:
            grid.add_row(Text(title, "bold"), text)
    return grid


def _contexts(contexts: list[dict[str, Any]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for context in contexts:
        grid.add_row(Text(f"{context['strength']:.2f}"), _Context(context))
    return grid


class _Context:
    """The text around a token, which stands out: reversed, or in brackets where styles do not show."""

    def __init__(self, context: dict[str, Any]) -> None:
        self._parts = [_shown(context[key]) for key in ("before", "token", "after")]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        before, token, after = self._parts
        yield Text.assemble(before, (token if console.color_system else f"[{token}]", "bold reverse"), after)


def _tokens(entries: list[dict[str, Any]]) -> Text:
    return _joined(_token(entry["token"]) for entry in entries)


def _joined(texts: Iterable[str]) -> Text:
    return Text("  ".join(texts))


def _shown(text: str) -> str:
    """On one line, whatever is no letter or sign as an escape."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _token(text: str) -> str:
    return _shown(text) if text.strip(" ") else repr(text)
