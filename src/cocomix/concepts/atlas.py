"""The atlas of a set of labels: what each concept is, in a SQLite file that is quick to ask. Imports no torch.

:mod:`cocomix.concepts.build_atlas` makes it. All text in it is data: whoever shows it must escape what means something
to their reader.
"""

from __future__ import annotations

import json
import operator
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any, SupportsIndex

from cocomix.concepts.atlas_format import FILE, FORMAT, query, reader, sound, unpacked
from cocomix.concepts.atlas_names import Given, checked_name, given_names, now, remove_name, write_names, writing
from cocomix.errors import UserError

_KEYS = ("id", "name", "automatic_name", "author", "frequency", "count", "mean_strength")
_SELECT = """SELECT c.id, COALESCE(n.name, c.name), c.name, n.author, c.frequency, c.count, c.mean_strength, c.card
FROM concepts c LEFT JOIN names n ON n.id = c.id"""


class Atlas:
    """A finished atlas, opened for reading."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self.about = dict(connection.execute("SELECT key, value FROM about"))
        """Texts: ``teacher``, ``block``, ``sae`` (its fingerprint), ``missed`` (by how much counts of tokens and
        companions may be too low), and what the attributes below say."""
        self.concepts = int(self.about["concepts"])
        """Size C of the dictionary."""
        self.tokens = int(self.about["tokens"])
        """Labelled tokens that it describes."""
        self.dead = int(self.about["dead"])
        """Concepts that are no token's label."""
        self.labels_fingerprint = self.about["labels"]

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
        with sound(path, str(path.parent)):
            connection = reader(path)
            found = dict(connection.execute("SELECT key, value FROM about")).get("format")
            if found != str(FORMAT):
                raise UserError(
                    f"{path} has format {found}, this version reads {FORMAT}: make it again with 'cocomix concepts "
                    f"atlas {path.parent}'"
                )
            return cls(path, connection)

    def concept(self, id: SupportsIndex) -> dict[str, Any]:
        """All that is known of a concept, lists with the best first:

        - id, name, automatic_name, author (of a name that a person gave, else None), dead (no token's label);
        - frequency (share of tokens labelled with it), count, mean_strength, strengths (histogram of its labels':
          ``{edges, counts}``, the same edges in every concept);
        - promoted and suppressed ``[{token, id, score}]`` (logit lens), labelled ``[{token, count}]``;
        - contexts (the strongest) and random_contexts (a fair sample) ``[{before, token, after, strength}]``;
        - nearest ``[{id, name, cosine}]`` (decoder rows), together ``[{id, name, count, lift}]`` (labels of the same
          tokens; lift: how many times more often than by chance).

        Raises :class:`UserError` when there is no such concept.
        """
        found = self._entries(f"{_SELECT} WHERE c.id = ?", (self._check(id),), 1)[0]
        others = [*found["nearest"], *found["together"]]
        names = self.names({entry["id"] for entry in others})
        for entry in others:
            entry["name"] = names[entry["id"]]
        return found

    def name(self, id: SupportsIndex) -> str:
        """The concept's name: a person's, or else the automatic one."""
        known = self._check(id)
        return self.names([known])[known]

    def names(self, ids: Iterable[SupportsIndex]) -> dict[int, str]:
        """The names of some concepts, ids of NumPy and torch among them; what is none (−1: no label) is left out."""
        asked = json.dumps([operator.index(id) for id in ids])
        with sound(self.path, str(self.path.parent)):
            rows = self._connection.execute(
                """SELECT c.id, COALESCE(n.name, c.name) FROM concepts c LEFT JOIN names n ON n.id = c.id
                WHERE c.id IN (SELECT value FROM json_each(?))""",
                (asked,),
            )
            return dict(rows.fetchall())

    def search(self, text: str, n: int = 20) -> list[dict[str, Any]]:
        """At most ``n`` concepts that know all words of ``text``: first those in whose names they stand, then those
        whose promoted or labelled tokens they are, then those in whose contexts they stand, each the more frequent
        first. A word of three characters or more finds all that begin with it."""
        asked, ranks = query(text), dict[int, None]()
        with sound(self.path, str(self.path.parent)):
            for index in ("name_index", "token_index", "context_index") if asked else ():
                found = self._connection.execute(
                    f"SELECT rowid FROM {index} WHERE {index} MATCH ? ORDER BY rowid LIMIT ?", (asked, n)
                )
                ranks |= dict.fromkeys(rank for (rank,) in found)
                if len(ranks) >= n:
                    break
        return [self._entries(f"{_SELECT} WHERE c.rank = ?", (rank,), 1)[0] for rank in list(ranks)[:n]]

    def top(self, n: int, by: str = "count") -> list[dict[str, Any]]:
        """The ``n`` concepts with the largest ``count`` or ``mean_strength``."""
        if by not in ("count", "frequency", "mean_strength"):
            raise UserError(f"by={by!r}: order concepts by count, frequency or mean_strength")
        order = "c.mean_strength DESC, c.id" if by == "mean_strength" else "c.rank"
        return self._entries(f"{_SELECT} ORDER BY {order} LIMIT ?", (n,), 0)

    def rename(self, id: SupportsIndex, name: str, author: str = "") -> None:
        """Gives a concept a name, at most 200 characters; whoever reads the file sees it from now on.

        Raises :class:`UserError` for no such concept, a name that is none, a file that cannot be changed.
        """
        self.give([Given(operator.index(id), name, author, now(), {})])

    def give(self, names: Iterable[Given]) -> None:
        """Many names as by :meth:`rename`, all or none."""
        checked = []
        for given in names:
            checked.append(given._replace(id=self._check(given.id), name=checked_name(given.name)))
        with writing(self.path) as connection:
            write_names(connection, checked)

    def unname(self, id: SupportsIndex) -> None:
        """Takes a person's name off: the automatic one holds again."""
        known = self._check(id)
        with writing(self.path) as connection:
            remove_name(connection, known)

    def given(self) -> list[Given]:
        """The names that people gave."""
        with sound(self.path, str(self.path.parent)):
            return given_names(self._connection)

    def _entries(self, sql: str, parameters: tuple[Any, ...], least: int) -> list[dict[str, Any]]:
        with sound(self.path, str(self.path.parent)):
            rows = self._connection.execute(sql, parameters).fetchall()
            if len(rows) < least:
                raise ValueError("a concept is missing")
            return [_entry(row) for row in rows]

    def _check(self, id: SupportsIndex) -> int:
        known = operator.index(id)
        if not 0 <= known < self.concepts:
            raise UserError(f"there is no concept {known}: {self.path.parent} has concepts 0 … {self.concepts - 1}")
        return known

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()


def _entry(row: tuple[Any, ...]) -> dict[str, Any]:
    known = dict(zip(_KEYS, row, strict=False))
    card = json.loads(row[len(_KEYS)])
    return {**known, "dead": known["count"] == 0, **card, "strengths": unpacked(card["strengths"])}
