"""Progress on stderr: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 10.0


def is_first_rank() -> bool:
    """Whether this process tells the user what happens: of many that torchrun started, rank 0."""
    return "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """One line for the user on stderr, from rank 0."""
    if is_first_rank():
        with _unless_gone():
            print(text, file=sys.stderr, flush=True)


@contextmanager
def _unless_gone() -> Iterator[None]:
    """A terminal or pipe that nobody reads any more takes no work with it: what is said from then on is lost."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115


class Bar:
    """What :func:`progress` yields: ``advance`` it by items done, with a note such as the loss."""

    def __init__(self, description: str, total: int | None, done: int) -> None:
        self._description, self._total, self._done = description, total, done
        self._first, self._start = done, time.monotonic()
        self._last_line = self._start
        self._rich: Progress | None = None
        if sys.stderr.isatty() and is_first_rank():
            self._rich = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._rich.add_task(description, total=total, completed=done, note="")
            self._rich.start()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts ``count`` more items as done."""
        self._done += count
        if self._rich is not None:
            with _unless_gone():
                self._rich.update(self._task, advance=count, note=note)
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._line(now, note)

    def _line(self, now: float, note: str) -> None:
        text = f"{self._description}: {self._done:,}"
        if self._total:
            rate = (self._done - self._first) / max(now - self._start, 1e-9)
            left = f", about {(self._total - self._done) / rate:.0f} s left" if rate > 0 else ""
            text += f" of {self._total:,} ({self._done / self._total:.0%}{left})"
        say(f"{text}  {note}".rstrip())

    def close(self) -> None:
        """Ends the bar; what was shown last stays."""
        if self._rich is not None:
            with _unless_gone():
                self._rich.stop()


@contextmanager
def progress(description: str, total: int | None = None, done: int = 0) -> Iterator[Bar]:
    """A progress bar over ``total`` items of which ``done`` are done already (a resumed step)."""
    bar = Bar(description, total, done)
    try:
        yield bar
    finally:
        bar.close()
