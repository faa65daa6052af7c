"""A teacher's activations computed by all ranks: chunk i of a buffer by rank i mod size, gathered on rank 0.

While rank 0 trains on a buffer, the others compute theirs of the next one, and hold it until rank 0 asks for it.
Tensors travel over gloo, in the chunks' order; the buffer is bit for bit the one that a single rank computes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from cocomix.concepts.activations import ActivationBatches
from cocomix.dist.lead import Crew
from cocomix.dist.world import current


class Open(NamedTuple):
    """A task: load the teacher."""


class Task(NamedTuple):
    """A task: send the chunks that are held, then compute a helper's share of buffer ``number`` (None: of none)."""

    send: bool
    number: int | None


class ActivationHelper:
    """What a rank that helps does; its reply to a :class:`Task` is the seconds that it worked on it."""

    def __init__(self, open_batches: Callable[[], ActivationBatches]) -> None:
        """``open_batches`` loads the teacher; its :class:`cocomix.errors.UserError` is the helper's."""
        self._open = open_batches
        self._held: list[Tensor] = []

    def __call__(self, task: Open | Task) -> float:
        """Does a task."""
        if isinstance(task, Open):
            self._batches = self._open()
            return 0.0
        began, world = time.perf_counter(), current()
        if task.send:
            with world.watching():
                for chunk in self._held:
                    dist.send(chunk, dst=0)
        self._held = []
        if task.number is not None:
            chunks = self._batches.chunks(task.number)[world.rank :: world.size]
            self._held = [self._batches.chunk(ids).cpu().contiguous() for ids in chunks]
        return time.perf_counter() - began


@dataclass(frozen=True)
class SharedBatches(ActivationBatches):
    """Rank 0's batches, which helpers compute with it; alone, it computes all of them."""

    crew: Crew
    _order: deque[int] = field(default_factory=deque, init=False, repr=False)
    _worked: list[float] = field(default_factory=list, init=False, repr=False)

    @property
    def seconds_of_helpers(self) -> float:
        """Seconds that helpers worked on the buffers asked for so far, summed over them."""
        return sum(self._worked, 0.0)

    def expect(self, numbers: Iterable[int]) -> None:
        """Says which buffers will be asked for, in this order; helpers begin with the first."""
        self._order.extend(numbers)
        self._deal(send=False)

    def buffer(self, number: int) -> Float[Tensor, "N D"]:
        """The shuffled activations of buffer ``number``, float32; what comes next is under way when it returns."""
        assert self._order.popleft() == number, "buffers are asked for in the order that was told"
        ids = self.chunks(number)
        own = {i: self.chunk(ids[i]) for i in range(0, len(ids), self.crew.size)}
        self._worked.extend(self.crew.collect())
        self._deal(send=True)
        return self.shuffled([own[i] if i in own else self._received(i, len(ids[i])) for i in range(len(ids))], number)

    def _deal(self, send: bool) -> None:
        following = self._order[0] if self._order else None
        self.crew.deal([Task(send, following)] * self.crew.helpers)

    def _received(self, chunk: int, windows: int) -> Float[Tensor, "N D"]:
        held = torch.empty(windows * self.window, self.teacher.width)
        with current().watching():
            dist.recv(held, src=chunk % self.crew.size)
        return held.to(self.teacher.device)
