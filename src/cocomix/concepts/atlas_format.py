"""What lies in an atlas file, and how text becomes the words of its index. Imports no torch."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cocomix.errors import UserError
from cocomix.files import atomic_path

FILE = "atlas.sqlite"
FORMAT = 2
_INDEX = "tokenize = \"unicode61 remove_diacritics 2 categories 'C* L* M* N* P* S*'\", detail = none"
"""Split at spaces alone: :func:`words` has put them where they belong."""
SCHEMA = f"""
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE concepts (rank INTEGER PRIMARY KEY, id INTEGER UNIQUE, name TEXT, count INTEGER, frequency REAL,
                       mean_strength REAL, card TEXT);
CREATE INDEX by_strength ON concepts (mean_strength);
CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT, author TEXT, given TEXT, fields TEXT);
CREATE VIRTUAL TABLE name_index USING fts5 (text, {_INDEX});
CREATE VIRTUAL TABLE token_index USING fts5 (text, content = '', {_INDEX});
CREATE VIRTUAL TABLE context_index USING fts5 (text, content = '', {_INDEX});
"""
"""``rank`` 0 is the most frequent concept; it is the indexes' rowid, so that a search finds the frequent ones first
without sorting anything. ``card`` is JSON. ``names`` are people's, the builder's are in ``concepts``."""

EDGES = 2.0 ** (np.arange(-32, 65) / 4)
"""Edges of the histograms, the same for every concept: a bin is a quarter of an octave, from 2⁻⁸ to 2¹⁶, all that
float16 holds. What lies below counts to the first bin."""

_WORD = re.compile(r"[぀-ヿ㐀-䶿一-鿿가-힯]|[^\W_぀-ヿ㐀-䶿一-鿿가-힯]+|[^\w\s]|_")
"""A run of letters and digits; a sign; a character of the scripts that put no spaces between words."""
PREFIX = 3
"""Characters from which on a word of a search also finds the words that begin with it."""
WORDS_ASKED = 16


def words(text: str) -> list[str]:
    """The words and signs of a text, as the index holds them."""
    return [word for word in _WORD.findall(text.encode(errors="replace").decode()) if word.isprintable()]


def query(text: str) -> str:
    """A user's text as a question to the index: all its words must be there, whatever signs it holds. Empty where it
    has no words."""
    quoted = ('"{}"{}'.format(word.replace('"', '""'), " *" * (len(word) >= PREFIX)) for word in words(text))
    return " ".join(list(dict.fromkeys(quoted))[:WORDS_ASKED])


def packed(histogram: Int[np.ndarray, " bins"]) -> list[Any]:
    """A histogram as it is stored: its first bin that is not empty, and the counts from there to the last."""
    full = np.flatnonzero(histogram)
    return [int(full[0]), histogram[full[0] : full[-1] + 1].tolist()] if len(full) else [0, []]


def unpacked(stored: list[Any], all_edges: Float[np.ndarray, " edges"] = EDGES) -> dict[str, Any]:
    """``{"edges": [n + 1], "counts": [n]}`` of what :func:`packed` made."""
    first, counts = stored
    edges = all_edges[first : first + len(counts) + 1] if counts else all_edges[:0]
    return {"edges": [round(float(edge), 5) for edge in edges], "counts": counts}


def reader(path: Path) -> sqlite3.Connection:
    """The file opened to be read, from any thread; raises SQLite's errors.

    A journal beside it is of a process that was killed while it changed the file, or is changing it now: only who may
    write can take back what was half done.
    """
    address = path.resolve().as_uri()
    if journal(path).exists():
        with closing(sqlite3.connect(f"{address}?mode=rw", uri=True, timeout=10)) as connection:
            connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    return sqlite3.connect(f"{address}?mode=ro", uri=True, check_same_thread=False)


def journal(path: Path) -> Path:
    """Where SQLite keeps what a file was before a change."""
    return path.resolve().with_name(f"{path.resolve().name}-journal")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """As :func:`cocomix.files.atomic_path`. The journal of the file before goes: it would be put into the new one."""
    with atomic_path(path) as temporary:
        temporary.unlink(missing_ok=True)  # what a killed process left
        yield temporary
        journal(path).unlink(missing_ok=True)


@contextmanager
def sound(path: Path, words: str) -> Iterator[None]:
    """What a file that is no whole atlas answers, as one sentence; ``words`` behind the verb make it again."""
    try:
        yield
    except (sqlite3.DatabaseError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}): make it again with 'cocomix concepts atlas {words}'"
        ) from error
