"""Who is at work in which browser window, so that they can stop it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Sessions:
    """The running work of each window and kind, at most one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[tuple[str, str], threading.Event] = {}

    @contextmanager
    def work(self, session: str, kind: str) -> Iterator[threading.Event]:
        """An event that is set when the work is to end; the window's former work of this kind is told to end."""
        mine, key = threading.Event(), (session, kind)
        with self._lock:
            former, self._running[key] = self._running.get(key), mine
        if former is not None:
            former.set()
        try:
            yield mine
        finally:
            mine.set()
            with self._lock:
                if self._running.get(key) is mine:
                    del self._running[key]

    def stop(self, session: str, kind: str | None = None) -> bool:
        """Tells a window's work to end, of one kind or all; whether there was any."""
        with self._lock:
            found = [event for key, event in self._running.items() if key[0] == session and kind in (None, key[1])]
        for event in found:
            event.set()
        return bool(found)

    def __len__(self) -> int:
        return len(self._running)
