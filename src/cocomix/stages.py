"""Stages of a long job: finished ones are found again, an interrupted one goes on, changed ones are done anew."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocomix.files import read_json, sha256_json, write_json
from cocomix.progress import say


@dataclass(frozen=True)
class Stage:
    """One step of a job."""

    name: str
    does: str
    """What it does, for the user, in a few words."""
    expect: Callable[[], float]
    """About how many seconds it takes; asked only when it is about to run."""
    outputs: tuple[str, ...]
    """Files and folders that it makes, relative to the job's folder."""
    settings: Any
    """What its result depends on besides the stages before it (anything that JSON can hold)."""
    work: Callable[[], dict[str, Any] | None]
    """Does it, resuming what it finds; returns facts to keep (e.g. FLOPs)."""


class Job:
    """Stages in a row, recorded in ``stages.json`` of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "stages.json"
        self.record: dict[str, Any] = read_json(self._path, "a job's stages") if self._path.is_file() else {}

    def run(self, stages: list[Stage]) -> dict[str, Any]:
        """Runs what is not done; returns the record: name → {"key", "done", "seconds", "facts"}."""
        key = ""
        for number, stage in enumerate(stages, 1):
            key = sha256_json([key, stage.name, stage.settings])
            known = self.record.get(stage.name, {})
            head = f"[{number}/{len(stages)}] {stage.name}: {stage.does}"
            if known.get("key") == key and known.get("done") and self._there(stage):
                say(f"{head}: done before, in {known['seconds']:.0f} s")
                continue
            if known.get("key") != key:
                self._clear(stage)
            spent = known.get("seconds", 0.0) if known.get("key") == key else 0.0
            entry: dict[str, Any] = {"key": key, "does": stage.does, "done": False, "seconds": spent, "facts": {}}
            self.record[stage.name] = entry
            self._write()
            say(f"{head}: about {stage.expect():.0f} s")
            start = time.monotonic()
            try:
                entry["facts"] = stage.work() or {}
                entry["done"] = True
            finally:
                # An interrupted stage keeps the time it took so far: the report counts all of it.
                entry["seconds"] = spent + time.monotonic() - start
                self._write()
        return self.record

    def _there(self, stage: Stage) -> bool:
        return all((self.folder / output).exists() for output in stage.outputs)

    def _clear(self, stage: Stage) -> None:
        for output in stage.outputs:
            path = self.folder / output
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _write(self) -> None:
        write_json(self._path, self.record)
