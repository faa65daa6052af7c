"""A concept as HTML: what a search found, and a concept's card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cocomix.studio.markup import concept_button, escaped, note, visible

CONTEXTS = 8
FOUND = 20
"""Concepts of a search that are listed."""
TOKENS_SHOWN = 10


def found(entries: Sequence[dict[str, Any]]) -> str:
    """The first :data:`FOUND` of what a search found, and whether there are more."""
    if not entries:
        return note("Nothing found: try another word, or a concept's number.")
    buttons = "".join(f"<li>{concept_button(e['id'], e['name'])}</li>" for e in entries[:FOUND])
    more = note(f"The first {FOUND}: more words find fewer.") if len(entries) > FOUND else ""
    return f'<ul class="found">{buttons}</ul>{more}'


def card(concept: dict[str, Any]) -> str:
    """A concept's card."""
    facts = [
        ("label of", f"{concept['count']:,} tokens ({concept['frequency']:.3%})"),
        ("mean strength as a label", f"{concept['mean_strength']:.2f}"),
        ("usual strength in the model", "measuring …" if concept["usual"] is None else concept["usual"]),
    ]
    if concept["author"] is not None:
        facts.append(("named by", concept["author"] or "somebody"))
        facts.append(("automatic name", concept["automatic_name"]))
    told = "".join(f"<div><dt>{escaped(k)}</dt><dd>{escaped(v)}</dd></div>" for k, v in facts)
    apart = note(concept["apart"]) if concept["apart"] else ""
    student = apart if concept["student"] is None else _student(concept["student"])
    return (
        f'<article class="card"><h2><small>concept {int(concept["id"])}</small>{escaped(concept["name"])}</h2>'
        f'<dl class="facts">{told}</dl>'
        f'<div class="columns">{_chips("Promotes", concept["promoted"])}{_chips("Suppresses", concept["suppressed"])}'
        f"{_chips('Label of the tokens', concept['labelled'])}</div>"
        f"{student}"
        f"{_contexts('Strongest contexts', concept['contexts'])}"
        f"{_contexts('Random contexts', concept['random_contexts'])}"
        f'<div class="columns">{_histogram("Strengths as a label", concept["strengths"])}'
        f"{_others('Nearest', concept['nearest'], 'cosine')}"
        f"{_others('Often together', concept['together'], 'lift')}</div>"
        "</article>"
    )


def _chips(title: str, tokens: Sequence[dict[str, Any]]) -> str:
    chips = "".join(f"<code>{escaped(visible(entry['token']))}</code>" for entry in tokens[:TOKENS_SHOWN])
    return f'<section><h3>{title}</h3><p class="chips">{chips or "none"}</p></section>'


def _contexts(title: str, contexts: Sequence[dict[str, Any]]) -> str:
    lines = "".join(
        f'<li><span class="number">{c["strength"]:.2f}</span><q>{escaped(c["before"])}'
        f"<mark>{escaped(visible(c['token']))}</mark>{escaped(c['after'])}</q></li>"
        for c in contexts[:CONTEXTS]
    )
    return f'<section><h3>{title}</h3><ul class="contexts">{lines or "<li>none</li>"}</ul></section>'


def _others(title: str, others: Sequence[dict[str, Any]], key: str) -> str:
    rows = "".join(
        f'<li>{concept_button(o["id"], o["name"])}<span class="number">{key} {o[key]:.2f}</span></li>'
        for o in others[:TOKENS_SHOWN]
    )
    return f'<section><h3>{title}</h3><ul class="found">{rows or "<li>none</li>"}</ul></section>'


def _student(found: dict[str, Any]) -> str:
    """What the model makes of it."""
    facts = [("mixed at", f"{found['frequency']:.3%} of tokens"), ("norm of its row", f"{found['norm']:.3f}")]
    for name in ("recall", "precision"):
        if found[name] is not None:
            facts.append((name, f"{found[name]:.1%} (by chance {found[f'{name}_by_chance']:.1%})"))
    if found["effect"] is not None:
        facts.append(("effect", f"{found['effect']:.3g} nats a token"))
    told = "".join(f"<div><dt>{escaped(k)}</dt><dd>{escaped(v)}</dd></div>" for k, v in facts)
    chips = "".join(
        _chips(title, found[key])
        for title, key in (("Promotes, measured", "promoted"), ("Suppresses, measured", "suppressed"))
        if found[key] is not None
    )
    ignored = "<small> · the model ignores it</small>" if found["ignored"] else ""
    strengths = _histogram("Strengths in the model", found["strengths"])
    return f'<h3>In the model{ignored}</h3><dl class="facts">{told}</dl><div class="columns">{chips}{strengths}</div>'


def _histogram(title: str, strengths: dict[str, Any]) -> str:
    edges, counts = strengths["edges"], strengths["counts"]
    if not counts:
        return f'<section><h3>{title}</h3><p class="chips">none</p></section>'
    most = max(counts)
    bars = "".join(
        f'<i style="height:{max(2, 100 * n / most) if n else 0:.0f}%" '
        f'title="{low:.3g} to {high:.3g}: {n:,} tokens"></i>'
        for n, low, high in zip(counts, edges, edges[1:], strict=False)
    )
    return (
        f'<section><h3>{title}</h3><div class="histogram" role="img" aria-label="histogram">{bars}</div>'
        f'<p class="quiet ends"><span>{edges[0]:.3g}</span><span>{edges[-1]:.3g}</span></p></section>'
    )
