"""What an edit of a concept is, and how it is written: ``12=x5``, ``12=set:2u @prompt: until:END``. No torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from cocomix.errors import UserError

Place = int | Literal["prompt"]
"""A token's position, counted from 0, or the first behind the prompt."""
Kind = Literal["scale", "set", "add", "clamp", "ablate"]
Unit = Literal["raw", "usual"]

LARGEST = 1e6
"""Strengths beyond it make no text, only numbers that overflow."""

FORMS = (
    "write ID=x5 (scale), ID=set:4, ID=+3 or ID=-3 (add), ID=clamp:0:4, ID=off (ablate); a strength with u behind it "
    "(ID=set:2u) is in units of the concept's usual one; @START:END and until:TEXT say where it holds"
)

_FORM = re.compile(
    r"\s*(?P<concept>[0-9]{1,18})\s*=\s*"
    r"(?:[x×*](?P<scale>[^\s:@]+)|set:(?P<set>[^\s:@]+)|(?P<add>[+-][^\s:@]+)|(?P<ablate>off)"
    r"|clamp:(?P<clamp>[^\s:@]*:[^\s:@]*))"
    r"(?:\s*@(?P<span>[0-9a-z]*:[0-9a-z]*|[0-9]+))?"
    r"(?:\s+until:(?P<until>.+)|\s*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Edit:
    """One change of one concept's logit z. ``str()`` writes it so that :func:`parse_edit` reads it."""

    concept: int
    kind: Kind
    value: float = 0.0
    """``scale``: z·value; ``set``: value; ``add``: z + value. ``ablate``: never among the K that are mixed."""
    low: float | None = None
    """``clamp``: z is at least this; None: no bound."""
    high: float | None = None
    """``clamp``: z is at most this."""
    unit: Unit = "raw"
    """What ``value``, ``low`` and ``high`` are counted in: z itself, or the concept's usual strength."""
    start: Place = 0
    """First token that is edited."""
    end: Place | None = None
    """First token that is not edited any more; None: to the text's end."""
    until: str | None = None
    """The edit ends where the text behind the prompt contains this."""

    def __str__(self) -> str:
        span = (
            ""
            if (self.start, self.end) == (0, None)
            else f" @{self.start or ''}:{'' if self.end is None else self.end}"
        )
        return f"{self.concept}={self._how()}{span}" + ("" if self.until is None else f" until:{self.until}")

    def _how(self) -> str:
        unit = "u" if self.unit == "usual" else ""
        match self.kind:
            case "scale":
                return f"x{_number(self.value)}"
            case "set":
                return f"set:{_number(self.value)}{unit}"
            case "add":
                return f"{'' if math.copysign(1, self.value) < 0 else '+'}{_number(self.value)}{unit}"
            case "clamp":
                return f"clamp:{_written(self.low)}:{_written(self.high)}{unit}"
        return "off"

    @property
    def changes_nothing(self) -> bool:
        """Whether no logit whatever is changed by it."""
        return (self.kind, self.value) in (("scale", 1.0), ("add", 0.0)) or (
            self.kind == "clamp" and self.low is self.high is None
        )

    @property
    def looks_at_the_prompt(self) -> bool:
        """Whether one must know where the prompt ends."""
        return self.until is not None or "prompt" in (self.start, self.end)

    def check(self) -> None:
        """Raises :class:`UserError` for strengths that are no numbers or too large, and bounds in the wrong order."""
        for number in (self.value, self.low, self.high):
            if number is not None and not abs(number) <= LARGEST:
                raise UserError(f"edit {self}: {number:g} is no number from {-LARGEST:,.0f} to {LARGEST:,.0f}; {FORMS}")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise UserError(f"edit {self}: the lower bound is above the upper one: swap them")

    def in_raw_units(self, usual: float) -> Edit:
        """The same edit of z itself; ``usual`` is the concept's usual strength.

        Raises :class:`UserError` where the concept has none.
        """
        if self.unit == "raw":
            return self
        if not math.isfinite(usual):
            raise UserError(
                f"edit {self}: concept {self.concept} is never mixed on held-out text, so it has no usual strength: "
                "give the strength without u"
            )
        bounds = [None if bound is None else bound * usual for bound in (self.low, self.high)]
        if usual < 0:
            bounds.reverse()
        return replace(self, value=self.value * usual, low=bounds[0], high=bounds[1], unit="raw")


def parse_edit(text: str) -> Edit:
    """``12=x5`` (or ``×5``) scales, ``12=set:4`` sets, ``12=+3`` and ``12=-3`` add, ``12=clamp:0:4`` keeps within
    bounds (either may be left out), ``12=off`` ablates.

    ``u`` behind a strength counts in units of the concept's usual one. ``@2:8`` edits the tokens 2 to 7, ``@5`` token
    5 alone, ``@prompt:`` what comes behind the prompt; ``until:TEXT``, last, ends the edit where the text behind the
    prompt contains TEXT. Raises :class:`UserError` for anything else, not-a-number and infinity included.
    """
    shown = repr(text) if len(text) <= 80 else f"{text[:80]!r}…"
    match = _FORM.fullmatch(text)
    if match is None:
        raise UserError(f"{shown} is no edit: {FORMS}")
    kind, written = next((k, match[k]) for k in ("scale", "set", "add", "clamp", "ablate") if match[k] is not None)
    unit: Unit = "usual" if kind in ("set", "add", "clamp") and written.endswith("u") else "raw"
    numbers = (written.removesuffix("u") if unit == "usual" else written).split(":")
    try:
        values = [] if kind == "ablate" else [_read_number(number, kind) for number in numbers]
        start, end = _read_span(match["span"])
    except ValueError as error:
        raise UserError(f"{shown}: {error}; {FORMS}") from None
    given = {"low": values[0], "high": values[1]} if kind == "clamp" else {"value": values[0]} if values else {}
    edit = Edit(int(match["concept"]), kind, unit=unit, start=start, end=end, until=match["until"], **given)  # type: ignore[arg-type]
    edit.check()
    return edit


def _read_number(text: str, kind: str) -> float | None:
    if kind == "clamp" and not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]!r} is no finite number")
    return value


def _read_span(text: str | None) -> tuple[Place, Place | None]:
    if text is None:
        return 0, None
    first, colon, last = text.partition(":")
    start = _read_place(first) if first else 0
    if not colon:
        assert isinstance(start, int)
        return start, start + 1
    end = _read_place(last) if last else None
    if isinstance(start, int) and isinstance(end, int) and start >= end:
        raise ValueError(f"the span @{text} holds no token")
    return start, end


def _read_place(text: str) -> Place:
    if text == "prompt":
        return "prompt"
    if not text.isdigit() or len(text) > 9:
        raise ValueError(f"{text[:20]!r} is no position: give a token's number, or 'prompt' for the prompt's end")
    return int(text)


def _written(bound: float | None) -> str:
    return "" if bound is None else _number(bound)


def _number(value: float) -> str:
    """The shortest text that reads as the same number."""
    return repr(float(value)).removesuffix(".0")
