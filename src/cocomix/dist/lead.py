"""Rank 0 leads, the others help: it alone reads, decides and writes, they do the work that it deals out.

So what is written cannot depend on the number of ranks, and what only rank 0 knows (where a stopped run goes on, what
comes next) has to be agreed on by nobody. Helpers know one loop: take a task, do it, reply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from cocomix.dist.world import World, current, shared
from cocomix.errors import UserError
from cocomix.stopping import Stopped, StopRequest

T = TypeVar("T")

LEADER_SECONDS = 86_400.0
"""What ``joined`` is told for work that is led: helpers may wait for hours while rank 0 trains a tokenizer or passes
over text that is finished. A rank that dies is noticed at once all the same."""


class _Ended(NamedTuple):
    """How the leader's work ended; the last that is told to helpers."""

    result: Any = None
    error: str | None = None
    stopped: str | None = None


class _Reply(NamedTuple):
    value: Any
    error: str | None
    stop: bool
    """Whether a signal asked the helper to stop."""


class Crew:
    """Rank 0's hold on its helpers; without any, nothing is sent."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._owed = False
        self._rounds = 0
        self.stop_asked = False
        """Whether a helper was asked to stop by a signal, as far as its replies tell."""

    @property
    def size(self) -> int:
        """Ranks, this one too."""
        return self._world.size

    @property
    def helpers(self) -> int:
        """Ranks without this one."""
        return self._world.size - 1

    def deal(self, tasks: Sequence[Any]) -> None:
        """Hands out one task a helper, in the order of their ranks; :meth:`collect` must come before the next."""
        assert not self._owed, "the replies to the tasks before these were not collected"
        assert len(tasks) == self.helpers
        if tasks:
            self._rounds += 1
            self._owed = True
            _scatter(self._world, [None, *tasks], self._rounds)

    def collect(self) -> list[Any]:
        """The helpers' replies in the order of their ranks, once all are done; raises a helper's :class:`UserError`."""
        if not self._owed:
            return []
        self._owed = False
        gathered: list[Any] | None = self._world.to_first(None)
        assert gathered is not None
        replies: list[_Reply] = gathered[1:]
        self.stop_asked |= any(reply.stop for reply in replies)
        for reply in replies:
            if reply.error is not None:
                raise UserError(reply.error)
        return [reply.value for reply in replies]

    def _dismiss(self, ended: _Ended) -> None:
        if self._owed:
            self._owed = False
            self._world.to_first(None)
        if self.helpers:
            _scatter(self._world, [ended] * self.size, self._rounds)


def led(work: Callable[[Crew], T], helping: Callable[[Any], Any]) -> T:
    """What ``work`` returns, on all ranks: rank 0 does it, the others answer the tasks it deals with ``helping(task)``.

    Tasks, replies and the result are pickled. A :class:`UserError` and :class:`Stopped` that end the work are raised by
    all; of a helper's error the leader hears when it collects. One process does the work alone.
    """
    world = current()
    if not world.first:
        result: T = _help(world, helping)
        return result
    crew = Crew(world)
    try:
        done = work(crew)
    except UserError as error:
        crew._dismiss(_Ended(error=str(error)))
        raise
    except Stopped as stopped:
        crew._dismiss(_Ended(stopped=str(stopped)))
        raise
    crew._dismiss(_Ended(done))
    return done


def _help(world: World, helping: Callable[[Any], Any]) -> Any:
    rounds = 0
    with StopRequest() as stop:
        while not isinstance(task := _scatter(world, None, rounds), _Ended):
            rounds += 1
            world.beat(_where(rounds))
            value, error = None, None
            try:
                value = helping(task)
            except UserError as found:
                error = str(found)
            world.to_first(_Reply(value, error, stop.requested))
    if task.error is not None:
        raise shared(UserError(task.error))
    if task.stopped is not None:
        raise Stopped(task.stopped)
    return task.result


def _where(rounds: int) -> str:
    return f"in round {rounds} of the work that rank 0 deals out"


def _scatter(world: World, values: list[Any] | None, rounds: int) -> Any:
    """This rank's value of the list that rank 0 has."""
    import torch.distributed as dist

    world.beat(_where(rounds))
    mine: list[Any] = [None]
    with world.watching():
        dist.scatter_object_list(mine, values, src=0)
    return mine[0]
