"""Names that people gave to concepts, in the atlas file. Imports no torch."""

from __future__ import annotations

import datetime
import json
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cocomix.concepts.atlas_format import words
from cocomix.errors import UserError

LONGEST = 200
"""Characters of a name."""
_BIDI = frozenset(("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"))


class Given(NamedTuple):
    """A name that a person, or their language model, gave."""

    id: int
    name: str
    author: str
    when: str
    """UTC, ISO 8601."""
    fields: dict[str, Any]
    """What else an imported entry says; exported again."""


def now() -> str:
    """This second, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def checked_name(name: str) -> str:
    """``name`` without spaces around it.

    Raises :class:`UserError` for an empty or too long one, and for characters that nobody sees.
    """
    name = name.strip()
    if not name:
        raise UserError("a concept's name is empty: write what it is about")
    if len(name) > LONGEST:
        raise UserError(f"a concept's name has {len(name)} characters, {LONGEST} at most: shorten {name[:30]!r}…")
    for at, char in enumerate(name):
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(char) in _BIDI:
            raise UserError(f"a concept's name holds the control character {char!r} at place {at}: leave it out")
    return name


def given_names(connection: sqlite3.Connection) -> list[Given]:
    """All that people gave, by id."""
    rows = connection.execute("SELECT id, name, author, given, fields FROM names ORDER BY id")
    return [Given(id, name, author, when, json.loads(fields)) for id, name, author, when, fields in rows]


def write_names(connection: sqlite3.Connection, names: Iterable[Given]) -> None:
    """Puts names in the place of what the concepts are called; the caller commits."""
    for given in names:
        values = (*given[:4], json.dumps(given.fields, ensure_ascii=False))
        connection.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?, ?)", values)
        index_name(connection, given.id, given.name)


def remove_name(connection: sqlite3.Connection, id: int) -> None:
    """The concept bears its automatic name again; the caller commits."""
    connection.execute("DELETE FROM names WHERE id = ?", (id,))
    (name,) = connection.execute("SELECT name FROM concepts WHERE id = ?", (id,)).fetchone()
    index_name(connection, id, name)


def index_name(connection: sqlite3.Connection, id: int, name: str) -> None:
    """Lets a concept be found under ``name``, and no longer under what it was called."""
    connection.execute(
        "INSERT OR REPLACE INTO name_index (rowid, text) SELECT rank, ? FROM concepts WHERE id = ?",
        (" ".join(words(name)), id),
    )


@contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """The atlas file opened for a change that happens wholly or not at all; readers see what was until it is done.

    Raises :class:`UserError` when the file cannot be changed.
    """
    with changing(path):
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=10)
        with closing(connection), connection:
            yield connection


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Turns SQLite's refusals to change the file into a :class:`UserError`."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path} cannot be changed ({error}): see that it may be written to and that no other process holds it"
        ) from error
