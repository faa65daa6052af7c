"""The loop over units of work: ranks label on their own for a while, then meet, note how far they are, share what is
left and go on. Nobody waits longer than such a round, and what a killed rank loses is its last one."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from cocomix.concepts.units import UNITS, ShardWork, State, Work, batch_size, deal
from cocomix.data.columns import Column, ColumnWriter
from cocomix.data.dataset import Split
from cocomix.dist.world import World
from cocomix.errors import UserError, explained
from cocomix.files import atomic_path
from cocomix.progress import Bar, progress
from cocomix.stopping import Stopped, StopRequest

SECONDS_BETWEEN_MEETINGS = 30.0
PIECE = 1 << 24
"""Bytes copied, or labels counted, at once."""


@runtime_checkable
class Maker(Protocol):
    """Makes columns from windows of text."""

    @property
    def window(self) -> int:
        """Tokens of a window."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """What is made. The first holds entries of a dictionary; the largest value of its type stands for none."""

    @property
    def entries(self) -> int:
        """Size of that dictionary."""

    def make(self, split: Split, windows: Int[np.ndarray, " N"]) -> Sequence[np.ndarray]:
        """A column's values each, [N, window, width] in its dtype."""


@dataclass
class Report:
    """What a rank has done since the ranks last met."""

    windows: dict[tuple[str, int], int] = field(default_factory=dict)
    """Durable windows of the units that it worked on."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of label files that it joined."""
    counts: dict[str, tuple[int, np.ndarray]] = field(default_factory=dict)
    """Of shards that it counted: labels with a meaning, bits of the concepts that occur."""
    held: Work | None = None
    """What it is in the midst of."""
    tokens: int = 0
    seconds: float = 0.0
    stop: bool = False
    """Whether a signal asked it to stop."""


class Extraction:
    """Labels the shards that ``state`` says are not labelled yet, with whatever ``maker`` makes."""

    def __init__(
        self,
        maker: Maker,
        batch_windows: int,
        shards: Sequence[ShardWork],
        state: State,
        world: World,
        what: str = "labels",
    ) -> None:
        self.columns, self._what = maker.columns, what
        self.found = 0
        """Labels with a meaning."""
        self.used: Bool[np.ndarray, " C"] = np.zeros(maker.entries, dtype=bool)
        """Concepts that occur."""
        self._maker, self._batch_windows, self._window = maker, batch_windows, maker.window
        self._shards = {shard.name: shard for shard in shards}
        self.state = state
        self._folder, self._world = state.path.parent, world
        self._counted: set[str] = set()
        self._stop = StopRequest()
        self._report = Report()
        self._running: Iterator[int] | None = None
        self._sync: Callable[[], None] = _nothing
        self._rate = ""

    def run(self) -> None:
        """Works until nothing is left on any rank; all ranks call it.

        Raises :class:`UserError` on all ranks when one met it, :class:`Stopped` when any was asked to stop. What was
        done until then is noted.
        """
        self.state = self._world.once(self._begin)
        shards, world = list(self._shards.values()), self._world
        total = sum(int(shard.due.sum()) for shard in shards) * self._window
        held: list[Work | None] = [None] * world.size
        with self._stop, progress(f"{self._what}, tokens", total, self._tokens_done()) as bar:
            try:
                while left := self.state.left(shards, self.columns, self._counted):
                    error = self._round(deal(left, held)[world.rank], bar)
                    reports = world.gather(self._report)
                    held = [report.held for report in reports]
                    self._merge(reports, bar)
                    with world.together():
                        if world.first:
                            self.state.save()
                        if error is not None:
                            raise error
                    self._remove_joined(self._report.files)
                    if any(report.stop for report in reports):
                        raise Stopped(
                            f"the {self._what} in {self._folder} are saved after {self._windows_done():,} windows; the "
                            "same command goes on from there"
                        )
            finally:
                self._leave()

    def _begin(self) -> State:
        self.state.begin(list(self._shards.values()), self.columns, self._window)
        self.state.save()  # now that all checks have passed
        return self.state

    def _round(self, queue: list[Work], bar: Bar) -> UserError | None:
        """Works through ``queue`` until the next meeting; returns the mistake that ended it."""
        if not queue or queue[0] != self._report.held:  # its last step was done before the ranks met
            self._leave()
        self._report = Report(held=self._report.held)
        start = time.perf_counter()
        try:
            while queue and not self._stop.requested:
                if self._running is None:
                    self._report.held = queue[0]
                    self._running = self._begun(queue[0])
                self._world.beat(f"at {queue[0].kind} of {queue[0].shard}, unit {queue[0].unit}")
                before = time.perf_counter()
                tokens = next(self._running, None)
                if tokens is None:
                    queue.pop(0)
                    self._leave()
                    continue
                now = time.perf_counter()
                if tokens:
                    each = " a rank" if self._world.size > 1 else ""
                    self._rate = f"{tokens / (now - before):,.0f} tokens/s{each}"
                bar.advance(tokens, self._rate)
                self._report.tokens += tokens
                if now - start >= SECONDS_BETWEEN_MEETINGS:
                    break
            self._sync()
        except UserError as error:
            return error
        finally:
            self._report.stop = self._stop.requested
            self._report.seconds = time.perf_counter() - start
        return None

    def _begun(self, work: Work) -> Iterator[int]:
        """The work's steps; each yields how many tokens it labelled."""
        shard = self._shards[work.shard]
        if work.kind == "label":
            return self._label(shard, work.unit)
        return self._join(shard) if work.kind == "join" else self._count(shard)

    def _leave(self) -> None:
        """Leaves what was begun; files stay as they are."""
        if self._running is not None:
            self._running.close()  # type: ignore[attr-defined]
        self._running, self._report.held, self._sync = None, None, _nothing

    def _label(self, shard: ShardWork, unit: int) -> Iterator[int]:
        first, stop = shard.windows(unit).start, shard.windows(unit).stop
        size = batch_size(shard.due, self._batch_windows)
        at = first + self.state.windows[shard.name][unit]
        # Closing a file of a full disk fails once more: explained, and each is closed.
        with explained(self._folder), contextlib.ExitStack() as files:
            writers = []
            for column in self.columns:
                parts = self._folder / UNITS
                writers.append(ColumnWriter(parts, shard.part(unit), column, self._window, at - first))
                files.callback(writers[-1].close)

            def sync() -> None:
                for writer in writers:
                    writer.sync()
                self._report.windows[shard.name, unit] = at - first

            self._sync = sync
            while at < stop:
                end = min((at // size + 1) * size, stop)
                due = shard.due[at:end]
                for writer, values in zip(writers, self._values(shard, at, due), strict=True):
                    writer.append(values)
                at = end
                if at == stop:
                    self._sync = _nothing
                    for writer in writers:
                        writer.finish()
                    self._report.windows[shard.name, unit] = at - first
                yield int(due.sum()) * self._window

    def _values(self, shard: ShardWork, first: int, due: Bool[np.ndarray, " N"]) -> list[np.ndarray]:
        """Each column for the shard's windows from ``first`` on; those that are not due have no entry."""
        values = [np.zeros((len(due), self._window, column.width), column.dtype) for column in self.columns]
        values[0][:] = np.iinfo(values[0].dtype).max
        places = np.flatnonzero(due)
        # Where few are due, a batch may hold more of them than the teacher shall see at once.
        for part in np.array_split(places, max(1, -(-len(places) // self.state.layout.batch_windows))):
            if len(part):
                made = self._maker.make(shard.split, shard.first + first + part)
                for column, of_part in zip(values, made, strict=True):
                    column[part] = of_part
        return values

    def _join(self, shard: ShardWork) -> Iterator[int]:
        files = {}
        for column in self.columns:
            path, digest = self._folder / column.file(shard.path), hashlib.sha256()
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                self._sync = functools.partial(_flush, file, path)
                for unit in range(shard.units):
                    part = self._folder / UNITS / column.file(shard.part(unit))
                    due = len(shard.windows(unit)) * column.window_bytes(self._window)
                    if not part.is_file() or part.stat().st_size != due:
                        raise UserError(
                            f"{part} has gone or changed while it was waited for: run the same command again, it "
                            "labels these windows again"
                        )
                    with part.open("rb") as source:
                        while piece := source.read(PIECE):
                            file.write(piece)
                            digest.update(piece)
                            yield 0
                self._sync = _nothing
            files[path.name] = digest.hexdigest()
        self._report.files = self._report.files | files

    def _count(self, shard: ShardWork) -> Iterator[int]:
        column = self.columns[0]
        path, none = self._folder / column.file(shard.path), np.iinfo(column.dtype).max
        used, found = np.zeros_like(self.used), 0
        with explained(path):
            ids = np.memmap(path, dtype=column.dtype, mode="r")
        for start in range(0, len(ids), PIECE):
            part = ids[start : start + PIECE]
            here = part[part != none]
            used[here] = True
            found += len(here)
            yield 0
        self._report.counts[shard.name] = found, np.packbits(used)

    def _merge(self, reports: Sequence[Report], bar: Bar) -> None:
        """All that was done by any rank, on every rank."""
        for rank, report in enumerate(reports):
            for (name, unit), done in report.windows.items():
                self.state.windows[name][unit] = done
            self.state.files |= report.files
            self.state.seconds += report.seconds
            for name, (found, used) in report.counts.items():
                self._counted.add(name)
                self.found += found
                self.used |= np.unpackbits(used, count=len(self.used)).astype(bool)
            if rank != self._world.rank:
                bar.advance(report.tokens, self._rate)

    def _remove_joined(self, files: dict[str, str]) -> None:
        """Frees the space of units whose joined file is noted."""
        for shard in self._shards.values():
            for column in self.columns:
                if column.file(shard.path) in files:
                    for unit in range(shard.units):
                        (self._folder / UNITS / column.file(shard.part(unit))).unlink(missing_ok=True)

    def _windows_done(self) -> int:
        return sum(sum(done) for done in self.state.windows.values())

    def _tokens_done(self) -> int:
        done = 0
        for shard in self._shards.values():
            for unit, windows in enumerate(self.state.windows[shard.name]):
                first = shard.windows(unit).start
                done += int(shard.due[first : first + windows].sum())
        return done * self._window


def _flush(file: BinaryIO, path: Path) -> None:
    with explained(path):
        file.flush()
        os.fsync(file.fileno())


def _nothing() -> None:
    pass
