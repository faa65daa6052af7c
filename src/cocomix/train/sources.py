"""Where a run's columns come from: caches beside its dataset, or teachers that are asked while it trains."""

from __future__ import annotations

from typing import Any

from cocomix.concepts.cache import TeacherCache
from cocomix.concepts.labels import Labels
from cocomix.concepts.online import OnlineLabels
from cocomix.concepts.online_teacher import STATE, OnlineTeacher
from cocomix.concepts.probabilities import PROBS, TOKENS, Probabilities
from cocomix.data.batches import ColumnSource
from cocomix.data.dataset import Dataset, Split
from cocomix.errors import UserError
from cocomix.files import sha256_json
from cocomix.train.settings import DataSettings

Source = Labels | OnlineLabels | Probabilities | OnlineTeacher
CONCEPTS = "concept_ids"


class Sources:
    """What a run reads of its teachers."""

    def __init__(self, dataset: Dataset, window: int, settings: DataSettings, wanted: frozenset[str]) -> None:
        """``wanted``: the columns that the losses read. Raises :class:`UserError` for what is not there or does not
        fit. Labels are opened also where no loss reads them: they say how many concepts there are."""
        self.window = window
        self.labels: Labels | OnlineLabels | None = None
        self.teacher: Probabilities | OnlineTeacher | None = None
        if settings.online is not None:
            self.labels = OnlineLabels.open(dataset, window, settings.online)
        elif settings.labels is not None:
            self.labels = self._fitting("labels", Labels.open(dataset, settings.labels))
        asked = wanted & {PROBS, TOKENS, STATE}
        if settings.teacher is not None and asked:
            self.teacher = OnlineTeacher.open(dataset, window, settings.teacher, asked)
        elif settings.probabilities is not None and asked:
            self.teacher = self._fitting("probabilities", Probabilities.open(dataset, settings.probabilities))
        self.columns: dict[str, ColumnSource] = {} if self.teacher is None else {**self.teacher.sources}
        if self.labels is not None and CONCEPTS in wanted:
            self.columns[CONCEPTS] = self.labels
        self.columns = {name: self.columns[name] for name in sorted(self.columns)}
        self.read: list[Source] = [s for s in (self.labels if CONCEPTS in self.columns else None, self.teacher) if s]
        """Those of which the losses read a column."""

    def _fitting(self, option: str, cache: Any) -> Any:
        if cache.window != self.window:
            raise UserError(
                f"data.{option}={cache.folder.name} was extracted for windows of {cache.window} tokens, the run "
                f"has data.window={self.window}: set data.window={cache.window} or extract again"
            )
        return cache

    @property
    def state_size(self) -> int | None:
        """Width of the teacher's state, where one is asked."""
        return self.teacher.width if isinstance(self.teacher, OnlineTeacher) else None

    @property
    def caches(self) -> list[TeacherCache]:
        """Those that lie on the disk."""
        return [source for source in (self.labels, self.teacher) if isinstance(source, TeacherCache)]

    @property
    def online(self) -> list[OnlineLabels | OnlineTeacher]:
        """Those that compute when they are read."""
        return [source for source in self.read if isinstance(source, OnlineLabels | OnlineTeacher)]

    @property
    def seconds(self) -> float:
        """Seconds that this rank has spent on asking teachers so far."""
        return sum((source.seconds for source in self.online), 0.0)

    def resume(self, seconds: float, tokens: int) -> None:
        """Sets what was counted until now: ``seconds`` of all together, ``tokens`` of each."""
        for number, source in enumerate(self.online):
            source.seconds, source.tokens = 0.0 if number else seconds, tokens

    def check_covers(self, split: Split, seed: int, samples: int) -> None:
        """Raises :class:`UserError` when a run of ``samples`` windows reads some that are not there."""
        for source in self.read:
            source.check_covers(split, seed, samples)

    def flops(self, samples: int, windows: int) -> float:
        """What the teachers' part of ``samples`` windows cost: a cache of ``windows`` is made once, however often a run
        reads it; what is asked while training is paid each time."""
        return sum(
            (
                (min(samples, windows) if isinstance(source, TeacherCache) else samples)
                * self.window
                * source.cost["flops_per_token"]
                for source in self.read
            ),
            0.0,
        )

    def describe(self, ranks: int) -> dict[str, Any] | None:
        """What the run reads and what that cost; seconds as if it was made by as many ranks as the run has, like the
        run's own, and once more without what is asked while it trains: that is known at its end alone, while the
        counters' ``label_seconds`` tell it at any time. One teacher behind two sources is paid once. Labels that only
        say how many concepts there are cost the run nothing."""
        sources = self.read or [s for s in (self.labels,) if s]
        if not sources:
            return None
        first = sources[0]
        return {
            "fingerprint": first.fingerprint
            if len(sources) == 1
            else sha256_json([source.fingerprint for source in sources]),
            "online": bool(self.online),
            "flops_per_token": sum((source.cost["flops_per_token"] for source in self.read), 0.0),
            "seconds_per_token": sum((source.cost["seconds_per_token"] for source in self.read), 0.0) / ranks,
            "cached_seconds_per_token": sum(
                (s.cost["seconds_per_token"] for s in self.read if isinstance(s, TeacherCache)), 0.0
            )
            / ranks,
            "upstream": _upstream(self.read),
            "of": first.identity if len(sources) == 1 else [source.identity for source in sources],
        }


def _upstream(sources: list[Source]) -> dict[str, Any]:
    """Training of the distinct teachers and autoencoders; None where that of one is not known."""
    found: dict[str, Any] = {part: {"flops": 0.0, "seconds": 0.0} for part in ("teacher", "sae")}
    teachers: set[str] = set()
    for source in sources:
        teacher = source.identity["teacher"]["fingerprint"]
        for part in ("teacher", "sae"):
            if part == "teacher" and teacher in teachers:
                continue
            cost, so_far = source.upstream[part], found[part]
            if cost is None or so_far is None:
                found[part] = None
            else:
                found[part] = {key: so_far[key] + cost[key] for key in ("flops", "seconds")}
        teachers.add(teacher)
    return found
