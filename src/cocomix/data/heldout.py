"""Which documents are held out: decided by their text alone, whatever their order or file."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

from cocomix.data.settings import PrepareSettings
from cocomix.errors import UserError


class HoldOut(NamedTuple):
    """The rule that holds documents out."""

    below: float
    """Documents whose position is smaller are held out."""
    divide_at: float | None = None
    """Where the source is one text (perhaps repeated): the share of it, from its beginning, to train on."""


def position_of(text: str, seed: int) -> float:
    """A number in [0, 1), uniform over texts: equal texts have equal ones, so never lie on both sides."""
    digest = hashlib.sha256(f"{seed}\n".encode() + text.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def fair_hold_out(measured: Iterable[tuple[float, int, str]], settings: PrepareSettings) -> HoldOut:
    """The rule nearest to ``val_fraction`` under which both sides hold a window.

    ``measured``: (position, tokens, text) of every document. Raises :class:`UserError` when the text is too
    short.
    """
    tokens_at: dict[float, int] = {}
    tokens = documents = 0
    only = ""
    for position, count, text in measured:
        tokens_at[position] = tokens_at.get(position, 0) + count
        tokens, documents, only = tokens + count, documents + 1, text
    needed = settings.window + 1
    if documents == 0:
        raise UserError(f"{settings.source} holds no text: every document is empty")
    if len(tokens_at) == 1:
        return _divided(only, tokens, settings)
    best: HoldOut | None = None
    below = 0
    ordered = sorted(tokens_at)
    for position, following in itertools.pairwise(ordered):
        below += tokens_at[position]
        if below < needed or tokens - below < needed:
            continue
        rule = HoldOut((position + following) / 2)
        if best is None or abs(rule.below - settings.val_fraction) < abs(best.below - settings.val_fraction):
            best = rule
    if best is None:
        raise _too_short(settings, tokens, documents)
    return best


def _divided(text: str, tokens: int, settings: PrepareSettings) -> HoldOut:
    """Divides a single document; its end is held out, at least a quarter more of it than a window needs."""
    held_out = max(settings.val_fraction, 1.25 * (settings.window + 1) / tokens)
    if held_out > 0.5:
        raise _too_short(settings, tokens, 1)
    return HoldOut(0.5, 1 - held_out)


def divide(text: str, share: float) -> tuple[str, str]:
    """``text`` in two, at the last paragraph's end before ``share`` of it, else a line's, a sentence's, a
    word's end.

    The second part is at most half as long again as its share asks for.
    """
    wanted = math.floor(len(text) * share)
    earliest = max(1, math.floor(wanted - (len(text) - wanted) / 2))
    for gap in ("\n\n", "\n", ". ", " "):
        found = text.rfind(gap, earliest, wanted)
        if found >= 0:
            return text[: found + len(gap)], text[found + len(gap) :]
    return text[:wanted], text[wanted:]


def _too_short(settings: PrepareSettings, tokens: int, documents: int) -> UserError:
    return UserError(
        f"{settings.source} is too short: {tokens:,} tokens in {documents:,} documents do not fill a "
        f"window of {settings.window} tokens for training and one "
        "for validation; add text or set a smaller window="
    )
