"""Who is at work in which browser window, so that they can stop it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Sessions:
    """The running work of each window."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[tuple[str, threading.Event]] = []

    @contextmanager
    def work(self, session: str) -> Iterator[threading.Event]:
        """An event that is set when this work of a window is to end."""
        mine = (session, threading.Event())
        with self._lock:
            self._running.append(mine)
        try:
            yield mine[1]
        finally:
            with self._lock:
                self._running.remove(mine)

    def stop(self, session: str) -> bool:
        """Tells all work of a window to end; whether there was any."""
        with self._lock:
            found = [event for name, event in self._running if name == session]
        for event in found:
            event.set()
        return bool(found)

    def __len__(self) -> int:
        return len(self._running)
