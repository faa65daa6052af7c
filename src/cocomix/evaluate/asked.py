"""A task that is asked of a model, whoever defines it: how it is scored, what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from cocomix.evaluate.metrics import Metric, measure
from cocomix.evaluate.olmo_data import data_version
from cocomix.evaluate.scoring import score
from cocomix.evaluate.tasks import Item, Task, requests_of


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


class Asked(Protocol):
    """A task with its items."""

    @property
    def name(self) -> str:
        """As lm-evaluation-harness calls it."""

    @property
    def items(self) -> int:
        """How many are asked."""

    @property
    def total(self) -> int:
        """How many there are."""

    @property
    def requests(self) -> int | None:
        """How many requests the progress counts; None where the task tells its own progress."""

    @property
    def source(self) -> str:
        """Where items come from, with a version: results of other sources are not the same task's."""

    def run(self, model: Any, tokenizer: Any, scoring: Scoring) -> Outcome:
        """Scores the items."""


@dataclass(frozen=True)
class OwnTask:
    """A task of :mod:`cocomix.evaluate.tasks`."""

    task: Task
    asked: list[Item]
    total: int

    @classmethod
    def of(cls, task: Task, limit: int | None) -> OwnTask:
        """With its first ``limit`` items, or all."""
        return cls(task, *task.items(limit))

    @property
    def name(self) -> str:
        """lm-evaluation-harness' name."""
        return self.task.name

    @property
    def items(self) -> int:
        """How many are asked."""
        return len(self.asked)

    @property
    def requests(self) -> int:
        """One for each answer of each item."""
        return sum(len(item.requests) for item in self.asked)

    @property
    def source(self) -> str:
        """The wheel and its version."""
        return f"{data_version()}, {self.task.split}"

    def run(self, model: Any, tokenizer: Any, scoring: Scoring) -> Outcome:
        """Scores the items."""

        def advance(requests: int) -> None:
            scoring.advance(requests)
            scoring.check()

        requests = list(requests_of(self.asked))
        scores = score(model, tokenizer, requests, scoring.longest, scoring.batch, advance)
        metrics = measure(self.task, self.asked, [s.nats for s in scores], [s.greedy for s in scores])
        left = iter(scores)
        cut = sum(any([next(left).cut for _ in item.requests]) for item in self.asked)
        return Outcome(metrics, cut)
