"""HTML of what the studio shows. Whatever comes from a person, a text or a model is escaped here, and nowhere else."""

from __future__ import annotations

import html
from pathlib import Path

from cocomix.studio.reading import Reading, Token
from cocomix.studio.service import Studio

_SIGNS = str.maketrans({sign: f"&#{ord(sign)};" for sign in "{}$`\\"})
"""Signs of the templates that gradio fills: text must not be one."""
HOVERED = 3


def escaped(value: object) -> str:
    """``value`` as text in HTML, between tags or in a quoted attribute."""
    return html.escape(str(value)).translate(_SIGNS)


def visible(token: str) -> str:
    """A token by itself: its line breaks and tabs, and spaces alone, as signs."""
    shown = token.replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍") or "∅"
    return shown.replace(" ", "␣") if shown.isspace() else shown


def alert(sentence: str) -> str:
    """A mistake, told."""
    return f'<p class="alert" role="alert">{escaped(sentence)}</p>' if sentence else ""


def note(text: str) -> str:
    """A quiet line."""
    return f'<p class="quiet">{escaped(text)}</p>'


def head(studio: Studio) -> str:
    """What is served."""
    about = f"{Path(studio.settings.model).name} · {studio.concepts:,} concepts · reads {studio.positions:,} tokens"
    return f'<header><h1>CoCoMix studio</h1><p class="quiet">{escaped(about)}</p></header>'


def text(reading: Reading, concept: int | None) -> str:
    """The tokens of a text, each a button, coloured by a concept's strength or, without one, by surprise."""
    values = [_value(token, concept) for token in reading.tokens]
    most = max((abs(v) for v in values if v is not None), default=0.0) or 1.0
    parts = [
        _token(number, token, value, most, reading)
        for number, (token, value) in enumerate(zip(reading.tokens, values, strict=True))
    ]
    tokens = f'<div class="text" role="group" aria-label="tokens of the text">{"".join(parts)}</div>'
    return tokens + _legend(reading, concept, most)


def _value(token: Token, concept: int | None) -> float | None:
    if concept is None:
        return token.surprise
    return next((mixed.strength for mixed in token.concepts if mixed.id == concept), None)


def _token(number: int, token: Token, value: float | None, most: float, reading: Reading) -> str:
    first = "; ".join(reading.names[mixed.id] for mixed in token.concepts[:HOVERED])
    told = "" if value is None else f"{value:.2f}\n"
    share = 0.0 if value is None else min(1.0, abs(value) / most)
    sign = " negative" if value is not None and value < 0 else ""
    shown = escaped(token.piece).replace("\n", '<i aria-hidden="true">↵</i>\n') or "∅"
    return (
        f'<span class="token{sign}" role="button" tabindex="{0 if number == 0 else -1}" data-token="{number}" '
        f'style="--v:{share:.3f}" title="{escaped(told + first)}">{shown}</span>'
    )


def _legend(reading: Reading, concept: int | None, most: float) -> str:
    if concept is None:
        known = [token.surprise for token in reading.tokens if token.surprise is not None]
        mean = f", {sum(known) / len(known):.2f} on average" if known else ""
        what = f"surprise: 0 to {most:.2f} nats{mean}"
    else:
        times = sum(_value(token, concept) is not None for token in reading.tokens)
        what = f"strength of concept {concept} where it is mixed: at {times} of {len(reading.tokens)} tokens"
    return f'<p class="quiet legend"><i class="scale"></i>{escaped(what)}</p>'


def token_panel(reading: Reading, number: int) -> str:
    """What is mixed behind a token."""
    token = reading.tokens[number]
    most = max((abs(mixed.strength) for mixed in token.concepts), default=0.0) or 1.0
    rows = "".join(
        f"<tr><td>{concept_button(mixed.id, reading.names[mixed.id])}</td>"
        f'<td class="number">{mixed.strength:.2f}</td><td class="wide">{_bar(abs(mixed.strength) / most)}</td>'
        f'<td class="number">{mixed.probability:.1%}</td></tr>'
        for mixed in token.concepts
    )
    surprise = "" if token.surprise is None else f" · surprise {token.surprise:.2f} nats"
    return (
        f"<h3>Token {number}: <code>{escaped(visible(token.piece))}</code><small>{surprise}</small></h3>"
        f'<table><thead><tr><th>concept mixed behind it</th><th class="number">z</th><th class="wide"></th>'
        f'<th class="number">p</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def concept_button(id: int, name: str) -> str:
    """A concept that one can go to."""
    return f'<button type="button" class="concept" data-concept="{int(id)}"><b>{int(id)}</b> {escaped(name)}</button>'


def _bar(share: float) -> str:
    return f'<i class="bar" style="--v:{share:.3f}"></i>'
