"""HTML of what the studio shows. Whatever comes from a person, a text or a model is escaped here, and nowhere else."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path

from cocomix.studio.reading import Doing, Reading, Token
from cocomix.studio.service import Studio

_SIGNS = str.maketrans({sign: f"&#{ord(sign)};" for sign in "{}$`\\"})
"""Signs of the templates that gradio fills: text must not be one."""
HOVERED = 3
CONTINUED = "·"
"""A token without characters of its own: it goes on with one that a token before it began."""


def escaped(value: object) -> str:
    """``value`` as text in HTML, between tags or in a quoted attribute."""
    return html.escape(str(value)).translate(_SIGNS)


def visible(token: str) -> str:
    """A token by itself: its line breaks and tabs, and spaces alone, as signs."""
    shown = token.replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍") or CONTINUED
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
    most = _most(v for v in values if v is not None)
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
    shown = escaped(token.piece).replace("\n", '<i aria-hidden="true">↵</i>\n')
    shown = shown or f'<i aria-hidden="true">{CONTINUED}</i>'
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


def token_panel(reading: Reading, number: int, doing: Doing | None = None) -> str:
    """What is mixed behind a token and, once measured, what it does."""
    token = reading.tokens[number]
    strongest = _most(mixed.strength for mixed in token.concepts)
    less = " less" if doing is not None else ""  # a phone's width is for what was asked for last
    columns = [
        _column("concept mixed behind it", [concept_button(m.id, reading.names[m.id]) for m in token.concepts], ""),
        _column("z", [f"{mixed.strength:.2f}" for mixed in token.concepts]),
        _column("", [_bar(abs(mixed.strength) / strongest) for mixed in token.concepts], f"wide{less}"),
        _column("p", [f"{mixed.probability:.1%}" for mixed in token.concepts], f"number{less}"),
    ]
    if doing is not None and doing.alone is not None:
        columns.append(_column("effect", [f"{effect:+.3f}" for effect in doing.alone]))
    if doing is not None and doing.teacher is not None:
        columns.append(_column("teacher", [f"{strength:.2f}" if strength > 0 else "–" for strength in doing.teacher]))
    head = "".join(heading for heading, _ in columns)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in zip(*(cells for _, cells in columns), strict=True))
    surprise = "" if token.surprise is None else f" · surprise {token.surprise:.2f} nats"
    return (
        f"<h3>Token {number}: <code>{escaped(visible(token.piece))}</code><small>{surprise}</small></h3>"
        f"{_told(doing) if doing else ''}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _told(doing: Doing) -> str:
    """What was measured, in words."""
    if doing.next is None:
        said = "<p>No token follows: there is nothing that concepts could do for it.</p>"
    else:
        said = (
            f"<p>The next token is <code>{escaped(visible(doing.next))}</code>, log p {doing.log_probability:.2f}. "
            f"Switching off all of these together takes {doing.together:+.3f} nats from it; one alone takes its "
            "<i>effect</i> (nats).</p>"
        )
    return said + (note(f"Teacher: {doing.missing}.") if doing.teacher is None else "")


def _column(heading: str, cells: list[str], kind: str = "number") -> tuple[str, list[str]]:
    """A heading and the cells under it."""
    kind = f' class="{kind}"' if kind else ""
    return f"<th{kind}>{heading}</th>", [f"<td{kind}>{cell}</td>" for cell in cells]


def _most(values: Iterable[float]) -> float:
    """The largest size, or 1."""
    return max(map(abs, values), default=0.0) or 1.0


def concept_button(id: int, name: str) -> str:
    """A concept that one can go to."""
    return f'<button type="button" class="concept" data-concept="{int(id)}"><b>{int(id)}</b> {escaped(name)}</button>'


def _bar(share: float) -> str:
    return f'<i class="bar" style="--v:{share:.3f}"></i>'
