"""The atlas of a set of labels: what each concept is, in a SQLite file that is quick to ask. Imports no torch.

:mod:`cocomix.concepts.build_atlas` makes it.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from cocomix.errors import UserError

FILE = "atlas.sqlite"
FORMAT = 1
SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE concepts (id INTEGER PRIMARY KEY, name TEXT, count INTEGER, frequency REAL, mean_strength REAL,
                       promoted TEXT, labelled TEXT, contexts TEXT);
CREATE INDEX by_count ON concepts (count);
CREATE INDEX by_strength ON concepts (mean_strength);
"""


class Atlas:
    """A finished atlas, opened for reading."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        about = dict(connection.execute("SELECT key, value FROM about"))
        self.concepts = int(about["concepts"])
        """Size C of the dictionary."""
        self.tokens = int(about["tokens"])
        """Labelled tokens that it describes."""
        self.labels_fingerprint = about["labels"]

    @classmethod
    def open(cls, path: Path | str) -> Atlas:
        """Opens ``atlas.sqlite``, or the one in a folder of labels.

        Raises :class:`UserError` when it is missing, of another version or damaged.
        """
        path = Path(path)
        if path.is_dir():
            path = path / FILE
        if not path.is_file():
            labels = path.parent if path.name == FILE else path
            raise UserError(f"there is no atlas {path}: make it with 'cocomix concepts atlas {labels}'")
        # Read-only, from any thread: the studio's workers share it.
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        try:
            found = dict(connection.execute("SELECT key, value FROM about")).get("format")
            if found != str(FORMAT):
                raise UserError(
                    f"{path} has format {found}, this version reads {FORMAT}: make it again with 'cocomix concepts "
                    f"atlas {path.parent}'"
                )
            return cls(path, connection)
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{path} is damaged ({error}): make it again with 'cocomix concepts atlas {path.parent}'"
            ) from error

    def concept(self, id: int) -> dict[str, Any]:
        """id, name, frequency (share of tokens labelled with it), count, mean_strength, promoted ``[{token, score}]``,
        labelled ``[{token, count}]``, contexts ``[{before, token, after, strength}]``, strongest first.

        Raises :class:`UserError` when there is no such concept.
        """
        self._check(id)
        return _concept(self._connection.execute(f"{_SELECT} WHERE id = ?", (id,)).fetchone())

    def name(self, id: int) -> str:
        """The concept's name."""
        self._check(id)
        return str(self._connection.execute("SELECT name FROM concepts WHERE id = ?", (id,)).fetchone()[0])

    def search(self, text: str, n: int = 20) -> list[dict[str, Any]]:
        """Concepts whose name, promoted or labelled tokens contain ``text`` (names first, then the more frequent);
        where there are none, those in whose contexts it stands."""
        like = "%" + _like(text) + "%"
        for where in ("promoted LIKE :t OR labelled LIKE :t OR name LIKE :t", "contexts LIKE :t"):
            rows = self._connection.execute(
                f"""{_SELECT} WHERE {where.replace(":t", ":t ESCAPE '!'")}
                ORDER BY name LIKE :t ESCAPE '!' DESC, count DESC LIMIT :n""",
                {"t": like, "n": n},
            ).fetchall()
            if rows:
                return [_concept(row) for row in rows]
        return []

    def top(self, n: int, by: str = "count") -> list[dict[str, Any]]:
        """The ``n`` concepts with the largest ``count`` or ``mean_strength``."""
        if by not in ("count", "frequency", "mean_strength"):
            raise UserError(f"by={by!r}: order concepts by count, frequency or mean_strength")
        rows = self._connection.execute(f"{_SELECT} ORDER BY {by} DESC, id LIMIT ?", (n,))
        return [_concept(row) for row in rows]

    def _check(self, id: int) -> None:
        if not 0 <= id < self.concepts:
            raise UserError(f"there is no concept {id}: {self.path.parent} has concepts 0 … {self.concepts - 1}")

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()


_SELECT = "SELECT id, name, frequency, count, mean_strength, promoted, labelled, contexts FROM concepts"


def _like(text: str) -> str:
    """``text`` as it stands in the JSON columns, LIKE's wildcards escaped by ``!``."""
    text = json.dumps(text, ensure_ascii=False)[1:-1]
    return text.replace("!", "!!").replace("%", "!%").replace("_", "!_")


def _concept(row: tuple[Any, ...]) -> dict[str, Any]:
    keys = ("id", "name", "frequency", "count", "mean_strength")
    lists = zip(("promoted", "labelled", "contexts"), (json.loads(text) for text in row[5:]), strict=True)
    return {**dict(zip(keys, row, strict=False)), **dict(lists)}
