"""Ctrl-C, SIGTERM, SLURM's SIGUSR1 and a terminal that is gone ask long work to stop at its next safe point."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

EXIT_STOPPED = 75
"""Exit code of work that stopped on request and can go on (EX_TEMPFAIL: "try again")."""


EXIT_LOST = 69
"""Exit code of a rank that lost another one (EX_UNAVAILABLE); the same command goes on from the last checkpoint."""


class Stopped(Exception):
    """Work stopped on request after saving; the same command goes on from there."""


class StopRequest:
    """Context in which a signal sets ``requested`` instead of ending the process; a second one ends it."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopRequest:
        # Only the main thread may install handlers; elsewhere (a notebook's worker) signals keep their meaning.
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            # Under nohup the terminal may go: its signal is ignored already, and stays so.
            wanted = [n for n in self.SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
            self._old = {number: signal.signal(number, self._handle) for number in wanted}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number != signal.SIGHUP:  # shell and system may both tell that the terminal is gone
            raise KeyboardInterrupt
        self.requested = True
