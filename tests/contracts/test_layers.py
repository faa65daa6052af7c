"""Who may import whom: imports go down only, and this table is the house's plan (docs/design.md tells it in words)."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import cocomix

SOURCE = Path(cocomix.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

GROUND = {"errors", "config", "files", "progress", "stopping", "stages", "places", "allocator", "devices"}
"""Modules that every room may import; among themselves they form no cycle."""

MAY_IMPORT: dict[str, set[str]] = {
    # room: the rooms that it may import, besides itself and the ground floor
    "dist": set(),
    "ops": set(),
    "data": {"dist"},
    "model": {"ops"},
    "compare": set(),
    "concepts": {"data", "dist", "ops"},
    "losses": {"data", "model"},
    "evaluate": {"data", "dist", "model"},
    "report": {"compare"},
    "steer": {"data", "model", "concepts"},
    "studio": {"data", "model", "concepts", "evaluate", "compare", "report", "steer"},
    "train": {"data", "dist", "ops", "model", "concepts", "losses", "evaluate"},
    "sweep": {"data", "dist", "concepts", "train"},
    "quickstart": {"data", "dist", "model", "concepts", "losses", "evaluate", "train", "compare", "report", "steer"},
    "cli": {
        "data",
        "dist",
        "model",
        "concepts",
        "losses",
        "evaluate",
        "train",
        "compare",
        "report",
        "steer",
        "quickstart",
        "studio",
        "sweep",
    },
    "testing": {
        "data",
        "dist",
        "ops",
        "model",
        "concepts",
        "losses",
        "evaluate",
        "train",
        "compare",
        "report",
        "steer",
    },
}


def module_name(path: Path) -> str:
    """``cocomix.data.order`` for its file, ``cocomix.data`` for the room's ``__init__.py``."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


def imports(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of this package, inside functions and under TYPE_CHECKING too."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            inner = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else base for name in inner]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "cocomix":
                yield node.lineno, name


def forbidden(path: Path, text: str) -> list[str]:
    """One sentence for each import that goes up or sideways."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    room = parts[0]
    if room in ("__init__", "__main__"):
        allowed = {"cli"} if room == "__main__" else set()
    else:
        allowed = GROUND | ({room} | MAY_IMPORT[room] if room not in GROUND else set())
    return [
        f"{path.relative_to(SOURCE.parent)}, line {line}: {room} may not import {name}"
        for line, name in imports(path, text)
        if name != "cocomix" and name.split(".")[1] not in allowed
    ]


def test_every_room_has_a_place_in_the_table() -> None:
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    modules = {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    assert rooms == set(MAY_IMPORT)
    assert modules == GROUND


def test_the_table_itself_has_no_circle() -> None:
    assert list(graphlib.TopologicalSorter(MAY_IMPORT).static_order())


def test_imports_go_down_only() -> None:
    assert [sentence for path in FILES for sentence in forbidden(path, path.read_text(encoding="utf-8"))] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module_name(path): {name for _, name in imports(path, path.read_text(encoding="utf-8"))} for path in FILES}
    # What is imported inside a function breaks a circle for Python, not for the reader: it counts.
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"these import each other: {' → '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("model/new.py", "import cocomix.train.run", "line 1: model may not import cocomix.train.run"),
        (
            "concepts/new.py",
            "def f():\n    import cocomix.model.load",
            "line 2: concepts may not import cocomix.model.load",
        ),
        ("data/new.py", "from ..steer.edits import Edit", "line 1: data may not import cocomix.steer.edits"),
        ("files.py", "from cocomix.data.order import window_ids", "line 1: files may not import cocomix.data.order"),
        ("train/new.py", "from cocomix import testing", "line 1: train may not import cocomix.testing"),
    ],
)
def test_an_import_that_goes_up_is_named_with_file_and_line(file: str, text: str, sentence: str) -> None:
    found = forbidden(SOURCE / file, text)
    assert len(found) == 1
    assert found[0].startswith(f"cocomix/{file}, {sentence}")
