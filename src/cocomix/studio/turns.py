"""Who may work now: so many at once, the others one after another as they came."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from cocomix.errors import UserError

LOOK_AGAIN = 0.05
"""Seconds after which whoever waits looks whether it is to stop."""


class Turns:
    """So many places, and so many that may wait for one."""

    def __init__(self, places: int, waiting: int) -> None:
        self._free, self._most = places, waiting
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def one(self, stop: threading.Event | None = None) -> Iterator[bool]:
        """Waits for a place, which is given back at the end; False: ``stop`` was set first, and there is none.

        Raises :class:`UserError` where too many wait already.
        """
        if not self._come(stop):
            yield False
            return
        try:
            yield True
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()

    def _come(self, stop: threading.Event | None) -> bool:
        me = object()
        with self._changed:
            if len(self._waiting) >= self._most:
                raise UserError(f"{self._most} requests wait already, more may not (waiting=): come again in a while")
            self._waiting.append(me)
            try:
                while stop is None or not stop.is_set():
                    if self._free and self._waiting[0] is me:
                        self._free -= 1
                        return True
                    self._changed.wait(LOOK_AGAIN)
                return False
            finally:
                self._waiting.remove(me)
                self._changed.notify_all()
