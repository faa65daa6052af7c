"""What a dataset folder was made of: has the same command nothing, something or everything left to do?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cocomix.data.dataset import MANIFEST
from cocomix.errors import UserError
from cocomix.files import read_json
from cocomix.progress import say

STATE = "prepare.json"
"""Says what an unfinished folder is made of and which of its shards are complete."""


def finished(out: Path, made_of: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest where ``out`` is complete and made of the same; None where there is work left.

    Raises :class:`UserError` naming the first difference where the folder holds shards made of something
    else.
    """
    for name, what in ((MANIFEST, "a dataset"), (STATE, "an unfinished dataset")):
        if not (out / name).exists():
            continue
        found = read_json(out / name, f"{what}'s manifest")
        difference = _difference(found, made_of)
        if difference is None and name == MANIFEST:
            say(f"{out} is complete and made with these settings: nothing to do")
            (out / STATE).unlink(missing_ok=True)
            return found
        if difference is None:
            continue
        if name == STATE and not any(found["shards"].values()):
            # Nothing but perhaps a tokenizer was made, e.g. before an error in the source: begun anew.
            (out / STATE).unlink()
            continue
        raise UserError(f"{out} holds {what} {difference}: choose another folder, or delete that one")
    return None


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    for group, made in (("settings", "made with"), ("source", "made of another source, with")):
        old, new = found.get(group, {}), wanted[group]
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return f"{made} {key}={old.get(key)} where this command has {key}={new.get(key)}"
    return None
