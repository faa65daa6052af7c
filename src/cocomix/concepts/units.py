"""How an extraction is cut into units of work, how far it is, and who does what is left.

A unit is a range of whole batches of one token shard. Its labels lie in files of their own under ``units/`` until all
units of the shard are complete and one rank joins them. Batches begin at multiples of their size in the shard,
whatever the units and the ranks, so the labels depend on neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

from cocomix.concepts.coverage import Coverage
from cocomix.data.columns import Column
from cocomix.data.dataset import Split
from cocomix.files import TEMPORARY_SUFFIX, read_json, write_json
from cocomix.progress import say

UNITS = "units"
"""Folder of the units' files, beside the finished ones."""


class Layout(NamedTuple):
    """What the cut into units was made with; it stays the same until an extraction is finished."""

    batch_windows: int
    unit_tokens: int


@dataclass(frozen=True)
class ShardWork:
    """A token shard and which of its windows are to be labelled."""

    split: Split
    path: Path
    """The token shard."""
    first: int
    """Number of its first window in the split."""
    due: Bool[np.ndarray, " N"]
    """True for the windows of the shard that get labels."""
    unit: int
    """Windows of a unit."""

    @property
    def name(self) -> str:
        """The shard's file name."""
        return self.path.name

    @property
    def units(self) -> int:
        """Number of units."""
        return -(-len(self.due) // self.unit)

    def windows(self, unit: int) -> range:
        """The unit's windows, counted in the shard."""
        return range(unit * self.unit, min((unit + 1) * self.unit, len(self.due)))

    def part(self, unit: int) -> Path:
        """What a unit's files are named after, in a shard's place."""
        return Path(f"{self.path.stem}.unit-{unit:05d}.bin")


def batch_size(due: Bool[np.ndarray, " N"], batch_windows: int) -> int:
    """Windows of a shard that one batch spans: where few are due it spans more, so that about ``batch_windows`` are."""
    return max(1, round(batch_windows / max(due.mean(), 1 / len(due))))


def cut(splits: Sequence[Split], coverage: Coverage, window: int, layout: Layout) -> list[ShardWork]:
    """The shards that hold windows of ``window`` tokens, cut into units, in their order."""
    batches = max(1, layout.unit_tokens // (layout.batch_windows * window))
    shards = []
    for split in splits:
        mask, first = coverage.mask(split, window), 0
        for shard, count in zip(split.shards, split.windows_per_shard(window), strict=True):
            if count:
                due = mask[first : first + count]
                unit = batches * batch_size(due, layout.batch_windows)
                shards.append(ShardWork(split, shard.path, first, due, unit))
            first += count
    return shards


class Work(NamedTuple):
    """What one rank does at a time: label a unit, join a shard's units, count a shard's labels."""

    kind: Literal["join", "label", "count"]
    shard: str
    unit: int = 0


@dataclass
class State:
    """How far an extraction is; rank 0 keeps it in ``extraction.json`` until the manifest is written."""

    path: Path
    identity: dict[str, Any]
    layout: Layout
    windows: dict[str, list[int]] = field(default_factory=dict)
    """Windows of each unit of each token shard, by file name, whose labels are durable."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each finished label file."""
    seconds: float = 0.0
    """Worked so far, ranks added up."""

    @classmethod
    def read(cls, path: Path) -> State:
        """The state in ``path``, whatever number of ranks left it."""
        saved = read_json(path, "the state of an extraction")
        return cls(
            path, saved["identity"], Layout(*saved["layout"]), saved["windows"], saved["files"], saved["seconds"]
        )

    def save(self) -> None:
        """Writes the file, after the units' files were made durable."""
        write_json(
            self.path,
            {
                "identity": self.identity,
                "layout": list(self.layout),
                "windows": self.windows,
                "files": self.files,
                "seconds": self.seconds,
            },
        )

    def begin(self, shards: Sequence[ShardWork], columns: Sequence[Column], window: int) -> None:
        """Notes the units of all shards. Those whose files are missing or too short have to be labelled again, and so
        has a shard whose finished files are."""
        folder = self.path.parent
        for shard in shards:
            noted = self.windows.get(shard.name, [])
            self.windows[shard.name] = noted if len(noted) == shard.units else [0] * shard.units
            if self.finished(shard, columns):
                files = [(folder / c.file(shard.path), len(shard.due) * c.window_bytes(window)) for c in columns]
                damaged = [path for path, size in files if not path.is_file() or path.stat().st_size != size]
                if not damaged:
                    self.windows[shard.name] = [len(shard.windows(unit)) for unit in range(shard.units)]
                    continue
                say(f"{damaged[0]} is missing or damaged: its windows are labelled again")
                for path, _ in files:
                    del self.files[path.name]
            for unit, done in enumerate(self.windows[shard.name]):
                parts = [(folder / UNITS / c.file(shard.part(unit)), done * c.window_bytes(window)) for c in columns]
                lost = [path for path, size in parts if done and not _holds(path, size)]
                if lost:
                    say(f"{lost[0]} is missing or damaged: its {done:,} windows are labelled again")
                    self.windows[shard.name][unit] = 0

    def finished(self, shard: ShardWork, columns: Sequence[Column]) -> bool:
        """Whether the shard's label files are."""
        return all(column.file(shard.path) in self.files for column in columns)

    def left(self, shards: Sequence[ShardWork], columns: Sequence[Column], counted: set[str]) -> list[Work]:
        """All that is still to do. Joining comes first: it frees space."""
        joins, labels, counts = [], [], []
        for shard in shards:
            done = self.windows[shard.name]
            if self.finished(shard, columns):
                counts += [Work("count", shard.name)] if shard.name not in counted else []
            elif missing := [unit for unit in range(shard.units) if done[unit] < len(shard.windows(unit))]:
                labels += [Work("label", shard.name, unit) for unit in missing]
            else:
                joins.append(Work("join", shard.name))
        return [*joins, *labels, *counts]


def deal(left: Sequence[Work], held: Sequence[Work | None]) -> list[list[Work]]:
    """A queue for each rank. ``held``: what each is in the midst of, which comes first in its queue."""
    queues = [[work] if work is not None and work in left else [] for work in held]
    for work in left:
        if work not in held:
            min(queues, key=len).append(work)
    return queues


def _holds(path: Path, size: int) -> bool:
    """Whether a unit's file, under its own or its temporary name, has the bytes that were noted."""
    unfinished = path.with_name(path.name + TEMPORARY_SUFFIX)
    return any(p.is_file() and p.stat().st_size >= size for p in (path, unfinished))
