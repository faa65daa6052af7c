"""Which concepts know these words, or are dead, or ignored by a model: a list of an atlas' entries."""

from __future__ import annotations

from typing import Any

from cocomix.concepts.atlas import Atlas
from cocomix.concepts.settings import FindSettings
from cocomix.errors import UserError
from cocomix.steer.student_atlas import StudentAtlas, check_belongs

OF_THE_LABELS = ("id", "name", "author", "dead", "frequency", "count", "mean_strength")
OF_THE_MODEL = ("frequency", "strength", "recall", "precision", "norm", "effect", "ignored")


def find_concepts(settings: FindSettings) -> dict[str, Any]:
    """``{"atlas", "found": how many there are, "concepts": [{"id", "name", "author", "dead", "frequency", "count",
    "mean_strength", "student"}]}``, at most ``limit`` of them; ``student`` is what the model makes of it, None without
    one. Of words the order is the search's (names, then tokens, then contexts), unless ``by`` says another.

    Raises :class:`UserError` for a missing atlas, and for a question that only a model's atlas answers.
    """
    atlas = Atlas.open(settings.folder)
    student = None if settings.model is None else StudentAtlas.open(settings.model)
    if student is not None:
        check_belongs(atlas, student)
    for asked in (settings.only == "ignored" and "only=ignored", settings.by == "effect" and "by=effect"):
        if asked and student is None:
            raise UserError(f"{asked} asks what a model makes of concepts: add model=RUN")
    if settings.text:
        entries = atlas.search(settings.text, atlas.concepts)
    else:
        entries = atlas.top(atlas.concepts, "mean_strength" if settings.by == "mean_strength" else "count")
    rows = []
    for entry in entries:
        made_of_it = None if student is None else student.concept(entry["id"])
        told = None if made_of_it is None else {key: made_of_it[key] for key in OF_THE_MODEL}
        rows.append({**{key: entry[key] for key in OF_THE_LABELS}, "student": told})
    rows = [row for row in rows if _wanted(row, settings.only)]
    if settings.by is not None and (settings.text or settings.by == "effect"):
        rows.sort(key=lambda row: _measure(row, settings.by), reverse=True)
    return {"atlas": str(atlas.path), "found": len(rows), "concepts": rows[: settings.limit]}


def _wanted(row: dict[str, Any], only: str | None) -> bool:
    match only:
        case "dead":
            return bool(row["dead"])
        case "ignored":
            return bool(row["student"]["ignored"])
        case "named":
            return row["author"] is not None
        case _:
            return True


def _measure(row: dict[str, Any], by: str | None) -> float:
    if by != "effect":
        return float(row[str(by)] or 0.0)
    effect = row["student"]["effect"]
    return -1.0 if effect is None else float(effect)  # those that were not measured stand last
