"""The ranks that torchrun started, and what they tell each other; alone, a process is a world of one.

What ranks exchange here is small and goes over gloo, beside the tensors of a model. A user's mistake that one rank
meets is raised by all; a rank that dies or hangs ends the others with a reason (:class:`RankLost`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from cocomix.errors import UserError

T = TypeVar("T")

HEARTBEAT_SECONDS = 1.0
TELLTALES = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "broken pipe", "socket")
"""Words by which an error of PyTorch's tells that it comes from the exchange between ranks."""


class RankLost(Exception):
    """Another rank died or does not answer."""


class World:
    """This process and the others that work on the same."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._where = "at the start"
        self._beat = 0.0

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes what is written once."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with self.watching():
            dist.all_gather_object(values, value)
        return values

    def from_first(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        with self.watching():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def to_first(self, value: T) -> list[T] | None:
        """The values of all ranks, in their order, on rank 0; None elsewhere."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] | None = [None] * self.size if self.first else None
        with self.watching():
            dist.gather_object(value, values, dst=0)
        return values

    def table(self, row: Sequence[float]) -> list[list[float]]:
        """One row of numbers from each rank, in their order, on every rank, bit for bit (float64)."""
        if self.size == 1:
            return [[float(x) for x in row]]
        import torch
        import torch.distributed as dist

        mine = torch.tensor(row, dtype=torch.float64)
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        with self.watching():
            dist.all_gather(rows, mine)
        return [r.tolist() for r in rows]

    def barrier(self) -> None:
        """Waits for all ranks."""
        self.table([0.0])

    @contextmanager
    def together(self) -> Iterator[None]:
        """What one rank cannot do, no rank has done: a :class:`UserError` inside is raised by all ranks at the end."""
        error: UserError | None = None
        try:
            yield
        except UserError as found:
            error = found
        if self.size > 1:
            texts = self.gather(None if error is None else str(error))
            lowest = next((rank for rank, text in enumerate(texts) if text is not None), None)
            if lowest is not None:
                # Of the others' errors only the text travels; one's own keeps its class.
                raise shared(error if error is not None and lowest == self.rank else UserError(texts[lowest]))
        elif error is not None:
            raise error

    def once(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, done by rank 0 alone; its :class:`UserError` is raised by all."""
        result: Any = None
        with self.together():
            if self.first:
                result = work()
        return self.from_first(result)

    def in_turn(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, done by rank 0 first and then by the others, which find what it left on the disk."""
        result: Any = None
        for turn in (True, False):
            with self.together():
                if self.first == turn:
                    result = work()
        return result

    def beat(self, where: str) -> None:
        """Notes where this rank is, so that the others can say it when it answers no more."""
        self._where = where
        now = time.monotonic()
        if self.size > 1 and now - self._beat > HEARTBEAT_SECONDS:
            self._beat = now
            _store().set(f"cocomix/{self.rank}", where)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Turns PyTorch's errors about an exchange between ranks into :class:`RankLost`; other errors pass."""
        if self.size == 1:
            yield
            return
        try:
            yield
        except (RuntimeError, ConnectionError, OSError) as error:
            if isinstance(error, RankLost | UserError) or not _is_exchange(error):
                raise
            raise RankLost(self._reason(error)) from error

    def _reason(self, error: BaseException) -> str:
        what = "does not answer" if "timed out" in str(error).lower() else "is gone"
        return f"rank {self.rank}, {self._where}: another rank {what}{self._last_seen()}"

    def _last_seen(self) -> str:
        """Where the other ranks were when they were last heard of, as far as the store still tells."""
        seen = []
        for rank in range(self.size):
            if rank == self.rank:
                continue
            try:
                store, key = _store(), f"cocomix/{rank}"
                if store.check([key]):
                    seen.append(f"rank {rank} was last heard of {store.get(key).decode()}")
            except Exception:  # the store may be gone with the rank that kept it
                break
        return f" ({', '.join(seen)})" if seen else ""


def shared(error: UserError) -> UserError:
    """Marks an error as raised by all ranks: rank 0 is the one to tell it."""
    error.rank = 0  # type: ignore[attr-defined]
    return error


_current: World | None = None
_groups: list[Any] = []
"""Process groups that were used. One whose last owner is a DDP module may never end: PyTorch 2.13 joins the group's
thread there with the interpreter's lock held, and the thread may be waiting for that lock."""


def current() -> World:
    """The world that this process has joined, or a world of one."""
    return _current or World()


def launched() -> tuple[int, int, int]:
    """(rank, number of ranks, rank on this machine) as torchrun's environment variables tell; (0, 1, 0) without."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(name in os.environ for name in names):
        return 0, 1, 0
    rank, size, local = (int(os.environ[name]) for name in names)
    return rank, size, local


@contextmanager
def joined(timeout: float = 600.0, device: str = "auto") -> Iterator[World]:
    """Joins the ranks that torchrun started, or those of a process group that is there already.

    ``timeout``: seconds after which an exchange with a rank that does not answer ends. ``device``: where the ranks
    compute, as settings say it. Raises :class:`RankLost` when the others do not come, and :class:`UserError` on a rank
    for which there is no GPU.
    """
    global _current
    rank, size, local = launched()
    if _current is not None or size == 1:
        yield current()
        return
    import torch
    import torch.distributed as dist

    world = World(rank, size, local)
    cuda = device.partition(":")[0] in ("auto", "cuda") and torch.cuda.is_available()
    try:
        if cuda and local >= torch.cuda.device_count():
            raise UserError(
                f"rank {local} of this machine has no GPU: it has {torch.cuda.device_count()}, start as many ranks a "
                "machine (torchrun --nproc-per-node), or give device=cpu"
            )
        if torch.cuda.is_available() and local < torch.cuda.device_count():
            torch.cuda.set_device(local)  # also where only a teacher computes there
        mine = not dist.is_initialized()
        if mine:
            with world.watching():
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout)
                )
        _current = world
        _groups.append(dist.group.WORLD)
        yield world
        if mine:  # only after good work: a rank that leaves with an error must not wait for the others
            dist.destroy_process_group()
    except UserError as error:
        if getattr(error, "rank", None) is None:  # met by this rank alone: it has to tell it itself
            error.rank = rank  # type: ignore[attr-defined]
        raise
    finally:
        _current = None


def _store() -> Any:
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def _is_exchange(error: BaseException) -> bool:
    text = f"{type(error).__module__}.{type(error).__name__} {error}".lower()
    return any(word in text for word in TELLTALES)


def usable_cores() -> list[int]:
    """The numbers of the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]
