"""The next batch, read while the present one is computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Items by number, one read ahead in a thread; counts the seconds that were spent waiting."""

    def __init__(self, read: Callable[[int], T], pool: ThreadPoolExecutor | None) -> None:
        self._read, self._pool = read, pool
        self._next: tuple[int, Future[T]] | None = None
        self.waited = 0.0

    def get(self, number: int, last: bool) -> T:
        """Item ``number``; begins with ``number + 1`` unless this is the last."""
        start = time.perf_counter()
        begun, self._next = self._next, None
        item = begun[1].result() if begun is not None and begun[0] == number else self._read(number)
        if self._pool is not None and not last:
            self._next = number + 1, self._pool.submit(self._read, number + 1)
        self.waited += time.perf_counter() - start
        return item


@contextmanager
def prefetching(read: Callable[[int], T], ahead: bool) -> Iterator[Prefetch[T]]:
    """A :class:`Prefetch`; without ``ahead`` it reads when asked (where reading is computing)."""
    if not ahead:
        yield Prefetch(read, None)
        return
    with ThreadPoolExecutor(1, "batches") as pool:
        yield Prefetch(read, pool)
