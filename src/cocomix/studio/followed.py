"""What is opened from a file that may be made anew meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class Followed(Generic[T]):
    """Opened when it is asked for, and again when another file lies in its place, or none."""

    def __init__(self, path: Path | None, open: Callable[[], T]) -> None:
        self._path, self._open = path, open
        self._lock = threading.Lock()
        self._opened: list[tuple[tuple[int, int] | None, T]] = []
        """What the file was when it was opened last, and what was in it."""

    def __call__(self) -> T:
        """What lies there now; raises what opening raises."""
        with self._lock:
            found = self._signature()
            if not self._opened or self._opened[0][0] != found:
                self._opened = [(found, self._open())]
            return self._opened[0][1]

    def _signature(self) -> tuple[int, int] | None:
        try:
            stat = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return (stat.st_ino, stat.st_mtime_ns) if stat is not None else None
