"""The runs in a folder, by name. Names come from visitors: only those that were found there are taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cocomix.compare.comparison import Comparison, compare
from cocomix.compare.runs import Run, load_run
from cocomix.errors import UserError

PLACES = ("run.json", "*/run.json", "*/*/run.json")
"""Where in the folder: a sweep's runs lie one deeper."""


def find_runs(root: Path) -> dict[str, Run]:
    """Runs by the name of their folder in ``root``; damaged ones are left out."""
    found = {}
    for manifest in sorted(file for place in PLACES for file in root.glob(place)):
        try:
            found[manifest.parent.relative_to(root).as_posix()] = load_run(manifest.parent)
        except UserError:
            continue
    return found


def compare_runs(root: Path, names: Sequence[object]) -> Comparison:
    """The runs of these names held against each other.

    Raises :class:`UserError` for a name that was not found, and for runs that cannot be compared.
    """
    known, chosen = find_runs(root), dict[str, Run]()
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise UserError(f"there is no run {str(name)[:80]!r}: choose among those shown")
        chosen[name] = known[name]
    return compare(list(chosen.values()))
