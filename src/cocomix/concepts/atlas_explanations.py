"""Names of concepts as JSON that other tools read and write: Neuronpedia's explanations. Imports no torch.

A file is a list of objects (or an object a line), one a concept::

    {"modelId": "gpt2", "layer": "5-largest", "index": "650", "description": "cities of Europe",
     "explanationModelName": "gpt-4o-mini", "typeName": "oai_token-act-pair"}

``index`` is the concept's id (a text or a number), ``description`` its name, ``explanationModelName`` who named it.
``modelId`` (the teacher) and ``layer`` (its block, and the labels' name) say where it is from; fields that we do not
know are kept and written again. An export holds every concept that is a label somewhere, also those with an automatic
name (``typeName`` :data:`AUTOMATIC`), so that what comes back changed is what somebody named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cocomix.concepts.atlas import Atlas
from cocomix.concepts.atlas_names import Given, checked_name, now
from cocomix.errors import UserError, explained
from cocomix.files import write_text

AUTOMATIC = "cocomix-tokens"
"""``typeName`` of a name made of labelled and promoted tokens."""
GIVEN = "cocomix-given"
"""``typeName`` of a name that was given with :meth:`Atlas.rename`."""
OURSELVES = "cocomix"


def explanations(atlas: Atlas) -> Iterator[dict[str, Any]]:
    """An object for each concept that is a label somewhere or has a person's name, by id."""
    given = {name.id: name for name in atlas.given()}
    where = place(atlas)
    for entry in sorted(atlas.top(atlas.concepts), key=lambda entry: entry["id"]):
        name = given.get(entry["id"])
        if name is None and entry["dead"]:
            continue
        yield {
            **where,
            "index": str(entry["id"]),
            "description": entry["name"],
            "explanationModelName": name.author if name else OURSELVES,
            "typeName": AUTOMATIC if name is None else GIVEN,
            **(name.fields if name else {}),
        }


def place(atlas: Atlas) -> dict[str, str]:
    """Where an atlas' concepts are from: the teacher, and its block with the labels' name."""
    return {
        "modelId": Path(atlas.about["teacher"]).name,
        "layer": f"{atlas.about['block']}-{atlas.path.resolve().parent.name}",
    }


def export_names(atlas: Atlas, path: Path | str) -> int:
    """Writes :func:`explanations` as a list, a line a concept, so that a line can be found; returns how many."""
    lines = [json.dumps(entry, ensure_ascii=False) for entry in explanations(atlas)]
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")
    return len(lines)


def origin(path: Path | str) -> str | None:
    """Where the names of a file are from, ``gpt2-small 9-res-jb``, as its first entry says it; None: it does not."""
    _, first = next(_entries(Path(path)), (0, {}))
    told = [str(first.get(key) or "") for key in ("modelId", "layer")] if isinstance(first, dict) else [""]
    return " ".join(told) if all(told) else None


def import_names(atlas: Atlas, path: Path | str) -> int:
    """Gives concepts the names in a file, all or none, and returns how many are new; of several for one concept the
    last. A description that is the concept's name already changes nothing.

    Raises :class:`UserError` that names the line of an entry without a concept or without a name that can be.
    """
    found: dict[int, Given] = {}
    before = atlas.names(range(atlas.concepts))
    for line, entry in _entries(Path(path)):
        try:
            given = _given(entry)
            if not 0 <= given.id < atlas.concepts:
                raise UserError(f"there is no concept {given.id}, ids go from 0 to {atlas.concepts - 1}")
            if given.name.strip() == before[given.id].strip():
                found.pop(given.id, None)
                continue
            found[given.id] = given._replace(name=checked_name(given.name))
        except UserError as error:
            raise UserError(f"{path}, line {line}: {error}; nothing was imported") from error
    atlas.give(found.values())
    return len(found)


def _given(entry: Any) -> Given:
    if not isinstance(entry, dict) or not {"index", "description"} <= entry.keys():
        raise UserError('an object with "index" and "description" is wanted')
    index, name, author = entry["index"], entry["description"], entry.get("explanationModelName") or ""
    if not re.fullmatch(r"\d{1,12}", str(index), re.ASCII) or isinstance(index, bool | float):
        raise UserError(f'"index" {str(index)[:40]!r} is no concept\'s number')
    if not isinstance(name, str) or not isinstance(author, str):
        raise UserError('"description" and "explanationModelName" must be texts')
    try:
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"it holds {error.object[error.start]!r}, half of a character: leave it out") from error
    # What an automatic name's fields say is no longer so once somebody has changed it.
    automatic = entry.get("typeName") == AUTOMATIC
    ours = {"index", "description", "explanationModelName", *(["typeName"] if automatic else [])}
    kept = {key: value for key, value in entry.items() if key not in ours}
    return Given(int(index), name, "" if automatic and author == OURSELVES else author, now(), kept)


def _entries(path: Path) -> Iterator[tuple[int, Any]]:
    """The entries of a list, or of an object a line, each with the line in which it begins."""
    try:
        with explained(path):
            text = path.read_text(encoding="utf-8-sig")
        at, line, decoder = len(text) - len(text.lstrip()), 1, json.JSONDecoder()
        between, start = r"\s*", 0
        if text[at : at + 1] == "[":
            json.loads(text)  # so that what lies between two entries is a comma
            at, between = at + 1, r"[\s,\]]*"
        while (at := re.compile(between).match(text, at).end()) < len(text):  # type: ignore[union-attr]
            line += text.count("\n", start, at)
            start = at
            entry, at = decoder.raw_decode(text, at)
            yield line, entry
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f"{path} is no file of names: a JSON list of objects is wanted, or an object a line ({error})"
        ) from error
