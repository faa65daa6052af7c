"""The student's side of the atlas: what a trained model makes of each concept, in ``RUN/atlas.sqlite``.

The file belongs to the atlas of the labels that the run learnt from and to the run's weights, and says so by their
hashes. :mod:`cocomix.steer.student_atlas_build` makes it; :func:`card` puts both sides of a concept together.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from cocomix.concepts.atlas import Atlas
from cocomix.concepts.atlas_format import reader, sound, unpacked
from cocomix.errors import UserError
from cocomix.steer.student_atlas_pass import EDGES
from cocomix.steer.usual import run_folder

FILE = "atlas.sqlite"
FORMAT = 1
NORM_BOUND, EFFECT_BOUND = 1e-2, 1e-4
"""A concept is called ignored whose compression row is shorter, or whose measured effect (nats a token) is smaller."""
_SELECT = """SELECT c.count, c.strength, c.strengths, c.predictions, c.labels, c.hits, c.norm, e.effect, e.promoted,
e.suppressed FROM concepts c LEFT JOIN effects e ON e.id = c.id"""


class StudentAtlas:
    """A finished one, opened for reading."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self.about = dict(connection.execute("SELECT key, value FROM about"))
        self.concepts, self.tokens = int(self.about["concepts"]), int(self.about["tokens"])
        self.labels_fingerprint = self.about["labels"]
        self.agreement = {key: float(self.about[key]) for key in ("recall", "marginal_recall", "mixed_recall")}
        """Over all labels: ``recall``, the share that is among as many predictions a token as there are labels;
        ``marginal_recall``, the same of a constant, the most frequent labels; ``mixed_recall``, the share among the K
        that are mixed."""

    @classmethod
    def open(cls, run: Path | str) -> StudentAtlas:
        """Opens that of a run; raises :class:`UserError` when it is missing, of another version or damaged."""
        path = student_path(run)
        if not path.is_file():
            raise UserError(f"there is no atlas {path}: make it with 'cocomix concepts atlas model={run}'")
        with sound(path, f"model={path.parent}"):
            connection = reader(path)
            found = dict(connection.execute("SELECT key, value FROM about")).get("format")
            if found != str(FORMAT):
                raise ValueError(f"format {found}, this version reads {FORMAT}")
            return cls(path, connection)

    def concept(self, id: int) -> dict[str, Any]:
        """What the model makes of a concept:

        - count and frequency (share of tokens at which it is among the K that are mixed), strength (its mean logit
          there, over more text than :func:`cocomix.steer.usual.load_usual` reads; None: never), strengths (histogram,
          ``{edges, counts}``);
        - predictions, labels and hits: tokens at which it is among as many strongest as there are labels, of which it
          is a label, and both; recall = hits / labels and recall_by_chance (what as many predictions at random tokens
          get), precision = hits / predictions and precision_by_chance (its share of tokens); None of 0;
        - norm (of its compression row), effect (nats a token, when it is set to that strength), promoted and
          suppressed ``[{token, id, change}]`` by the mean change of log p of the next token; None: not measured;
        - ignored: its norm or its effect is below a bound.
        """
        with sound(self.path, f"model={self.path.parent}"):
            row = self._connection.execute(f"{_SELECT} WHERE c.id = ?", (id,)).fetchone()
            if row is None:
                raise UserError(f"there is no concept {id}: {self.path.parent} has concepts 0 … {self.concepts - 1}")
            return self._entry(row)

    def measured(self) -> list[int]:
        """Concepts whose effect was measured, the largest effect first."""
        with sound(self.path, f"model={self.path.parent}"):
            return [id for (id,) in self._connection.execute("SELECT id FROM effects ORDER BY effect DESC, id")]

    def ignored(self) -> int:
        """How many concepts the model ignores."""
        with sound(self.path, f"model={self.path.parent}"):
            (number,) = self._connection.execute(
                "SELECT COUNT(*) FROM concepts c LEFT JOIN effects e ON e.id = c.id WHERE norm < ? OR effect < ?",
                (NORM_BOUND, EFFECT_BOUND),
            ).fetchone()
            return int(number)

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def _entry(self, row: tuple[Any, ...]) -> dict[str, Any]:
        count, strength, strengths, predictions, labels, hits, norm, effect, promoted, suppressed = row
        return {
            "count": count,
            "frequency": count / max(self.tokens, 1),
            "strength": strength,
            "strengths": unpacked(json.loads(strengths), EDGES),
            "predictions": predictions,
            "labels": labels,
            "hits": hits,
            "recall": hits / labels if labels else None,
            "recall_by_chance": predictions / max(self.tokens, 1),
            "precision": hits / predictions if predictions else None,
            "precision_by_chance": labels / max(self.tokens, 1),
            "norm": norm,
            "effect": effect,
            "promoted": promoted and json.loads(promoted),
            "suppressed": suppressed and json.loads(suppressed),
            "ignored": norm < NORM_BOUND or (effect is not None and effect < EFFECT_BOUND),
        }


def card(atlas: Atlas, student: StudentAtlas | None, id: int) -> dict[str, Any]:
    """``atlas.concept(id)``, and under ``student`` what the model makes of it (None without a model).

    Raises :class:`UserError` when the two are not of the same labels.
    """
    if student is not None:
        check_belongs(atlas, student)
    return {**atlas.concept(id), "student": None if student is None else student.concept(id)}


def check_belongs(atlas: Atlas, student: StudentAtlas) -> None:
    """Raises :class:`UserError` when the two are not of the same labels."""
    if student.labels_fingerprint != atlas.labels_fingerprint:
        raise UserError(
            f"{student.path} is of other labels than {atlas.path}: make it with 'cocomix concepts atlas "
            f"{atlas.path.parent} model={student.path.parent}'"
        )


def student_path(run: Path | str) -> Path:
    """Where the student's side of a run or of a model's folder lies."""
    folder = run_folder(str(run)) or Path(run).expanduser()
    if not folder.is_dir():
        raise UserError(f"model={run} is no folder: give a run folder or an export folder")
    return folder / FILE
