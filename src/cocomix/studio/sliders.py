"""Edits as the Steer page's sliders have them, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from cocomix.errors import UserError
from cocomix.steer.edits import Edit, parse_edit

KINDS = {"set": "set to", "add": "add", "scale": "multiply by", "ablate": "switch off"}
LARGEST = 10.0
"""Where a slider ends, on both sides; larger strengths are written."""
ROWS = 4


class Row(NamedTuple):
    """A concept's slider."""

    concept: str = ""
    """Its number; empty: the row is not used."""
    kind: str = "set"
    value: float = 2.0


def written(rows: Sequence[Row], more: str | None, unit: str) -> list[str]:
    """The edits of the sliders and those of ``more``, a line each; ``unit``: ``u`` counts in usual strengths."""
    edits = [_written(row, unit) for row in rows if str(row.concept or "").strip()]
    return edits + [line.strip() for line in (more or "").splitlines() if line.strip()]


def room_for(concept: str, fields: Sequence[Any]) -> int | None:
    """The row whose field has the concept already, or else the first that is free; None: all are taken."""
    there = [_concept(field) for field in fields]
    wanted = _concept(concept)
    return next((there.index(name) for name in (wanted, "") if name in there), None)


def _concept(field: Any) -> str:
    """The number of a concept that may have its name behind it."""
    return str(field or "").strip().removeprefix("#").partition(" ")[0][:20]


def _written(row: Row, unit: str) -> str:
    concept = _concept(row.concept)
    if not isinstance(row.kind, str) or row.kind not in KINDS:
        raise UserError(f"edit of concept {concept}: {str(row.kind)[:20]!r} is none of {', '.join(KINDS)}")
    if row.kind == "ablate":
        return f"{concept}=off"
    try:
        value = float(row.value)
    except (TypeError, ValueError):
        raise UserError(f"edit of concept {concept}: {str(row.value)[:20]!r} is no number") from None
    how = {"set": f"set:{value:g}{unit}", "add": f"{value:+g}{unit}", "scale": f"x{value:g}"}
    return f"{concept}={how[row.kind]}"


def rows_of(texts: Iterable[str], unit: str) -> tuple[list[Row], str]:
    """:data:`ROWS` rows, and from the first text that no slider can say on the rest, a line each. The inverse of
    :func:`written`, in the same order, since edits of a concept act in theirs; what is no edit is kept as it is, so
    that whoever made it can mend it."""
    rows: list[Row] = []
    more: list[str] = []
    for text in texts:
        row = _row(text, unit) if len(rows) < ROWS and not more else None
        if row is None:
            more.append(text)
        else:
            rows.append(row)
    return rows + [Row()] * (ROWS - len(rows)), "\n".join(more)


def _row(text: str, unit: str) -> Row | None:
    try:
        edit = parse_edit(text)
    except UserError:
        return None
    everywhere = (edit.start, edit.end, edit.until) == (0, None, None)
    if not everywhere or edit.kind not in KINDS or abs(edit.value) > LARGEST:
        return None
    if edit.kind in ("set", "add") and _unit(edit) != unit:
        return None
    return Row(str(edit.concept), edit.kind, Row().value if edit.kind == "ablate" else edit.value)


def _unit(edit: Edit) -> str:
    return "u" if edit.unit == "usual" else ""


def chunks(values: Sequence[Any]) -> list[Row]:
    """Rows from their fields in a row, as a page hands them over."""
    return [Row(*values[first : first + len(Row._fields)]) for first in range(0, len(values), len(Row._fields))]
