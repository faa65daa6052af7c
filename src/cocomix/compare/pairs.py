"""A candidate held against a baseline, seed by seed: what it saves, where it ends, how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cocomix.compare.curves import AXES, Axis, Curve
from cocomix.compare.intervals import Interval, bootstrap

By = Callable[[Sequence[float | None]], Interval | None]
"""How an interval is made: :func:`bootstrap` or :func:`student_t`."""


@dataclass(frozen=True)
class Losses:
    """Two losses in nats a token at the same cost ``at`` (tokens, FLOPs or seconds)."""

    at: float
    baseline: float
    candidate: float

    @property
    def difference(self) -> float:
        """Candidate minus baseline: negative when the candidate is better."""
        return self.candidate - self.baseline


@dataclass(frozen=True)
class SeedPair:
    """One run of the candidate against one of the baseline."""

    seed: int
    final: Losses
    """At each run's own end; ``at`` is the candidate's tokens."""
    equal: Mapping[Axis, Losses | None]
    """At the smaller of the two budgets, by axis; None where it lies before an evaluation or beside one that is not
    finite, or a cost is not known."""
    unknown: frozenset[Axis]
    """The axes on which a part of a cost is not known."""
    saved: Mapping[Axis, float | None]
    """Share of the baseline's cost that the candidate saves on the way to the baseline's final loss."""
    reverse: float | None
    """Share of its own tokens that the baseline needs to reach the candidate's final loss."""
    reverse_saved: Mapping[Axis, float | None]
    """Share of the candidate's cost that the baseline saves on the way to the candidate's final loss."""


def savings(baseline: Curve, candidate: Curve) -> dict[Axis, float | None]:
    """1 − (candidate's cost to reach the baseline's final loss) / (baseline's cost), by axis.

    Both costs are read where the curve *first* reaches that loss, by the same rule. So a run held against
    itself saves exactly nothing, also when its curve is noisy, and for a falling curve the denominator is
    the baseline's whole budget.
    Negative: lost; None: never reached, or a cost is not known.
    """
    target = float(baseline.loss[-1])
    ours, theirs = candidate.tokens_to_reach(target), baseline.tokens_to_reach(target)
    saved: dict[Axis, float | None] = {}
    for axis in AXES:
        saved[axis] = None
        if ours is not None and theirs is not None:
            cost, against = candidate.cost_at(axis, ours), baseline.cost_at(axis, theirs)
            if cost is not None and against:
                saved[axis] = 1 - cost / against
    return saved


def equal_cost(baseline: Curve, candidate: Curve, axis: Axis) -> Losses | None:
    """Both losses at the smaller of the two final costs."""
    ends = baseline.final(axis), candidate.final(axis)
    if ends[0] is None or ends[1] is None:
        return None
    at = min(ends[0], ends[1])
    losses = baseline.loss_for(axis, at), candidate.loss_for(axis, at)
    return None if losses[0] is None or losses[1] is None else Losses(at, losses[0], losses[1])


def seed_pair(seed: int, baseline: Curve, candidate: Curve) -> SeedPair:
    """Everything that is said about one candidate run and one baseline run, both ending in a finite loss."""
    saved = savings(baseline, candidate)
    back = baseline.tokens_to_reach(float(candidate.loss[-1])) if saved["tokens"] is None else None
    nothing: dict[Axis, float | None] = dict.fromkeys(AXES)
    return SeedPair(
        seed=seed,
        final=Losses(float(candidate.tokens[-1]), float(baseline.loss[-1]), float(candidate.loss[-1])),
        equal={axis: equal_cost(baseline, candidate, axis) for axis in AXES},
        unknown=frozenset(axis for axis in AXES for c in (baseline, candidate) if c.costs[axis] is None),
        saved=saved,
        reverse=None if back is None else back / float(baseline.tokens[-1]),
        reverse_saved=nothing if back is None else savings(candidate, baseline),
    )


@dataclass(frozen=True)
class Pair:
    """A candidate method against the baseline method over their paired seeds."""

    baseline: str
    candidate: str
    by_seed: tuple[SeedPair, ...]
    shared_by: int
    """Number of runs that the training of the candidate's teacher is shared over."""
    sae_shared_by: int
    """The same of its SAE."""
    has_teacher: bool
    """Whether the candidate pays a teacher at all."""
    notes: tuple[str, ...] = ()
    """What a reader must know before trusting the numbers, one sentence each."""

    @property
    def seeds(self) -> list[int]:
        """The paired seeds."""
        return [pair.seed for pair in self.by_seed]

    @property
    def reached(self) -> int:
        """In how many seeds the candidate reached the baseline's final loss."""
        return sum(pair.saved["tokens"] is not None for pair in self.by_seed)

    def saved(self, axis: Axis) -> float | None:
        """Mean share saved over the seeds; None unless every seed reached the baseline's final loss."""
        return _mean([pair.saved[axis] for pair in self.by_seed])

    def known(self, axis: Axis) -> bool:
        """Whether all parts of the costs on ``axis`` are known."""
        return not any(axis in pair.unknown for pair in self.by_seed)

    def saved_interval(self, axis: Axis, by: By = bootstrap) -> Interval | None:
        """95 % interval of :meth:`saved` over seeds."""
        return by([pair.saved[axis] for pair in self.by_seed])

    @property
    def reverse(self) -> float | None:
        """Mean share of its own tokens that the baseline needs to reach the candidate's final loss."""
        return _mean([pair.reverse for pair in self.by_seed])

    def reverse_saved(self, axis: Axis) -> float | None:
        """Mean share of the candidate's cost that the baseline saves to reach the candidate's final loss."""
        return _mean([pair.reverse_saved[axis] for pair in self.by_seed])

    def equal(self, axis: Axis) -> Losses | None:
        """Mean losses at equal cost over the seeds."""
        return _mean_losses([pair.equal[axis] for pair in self.by_seed])

    @property
    def final(self) -> Losses:
        """Mean final losses over the seeds."""
        losses = _mean_losses([pair.final for pair in self.by_seed])
        assert losses is not None
        return losses

    def difference_interval(self, of: Callable[[SeedPair], Losses | None], by: By = bootstrap) -> Interval | None:
        """95 % interval over seeds of a loss difference, e.g. ``lambda pair: pair.final``."""
        losses = [of(pair) for pair in self.by_seed]
        return by([None if x is None else x.difference for x in losses])

    def equal_interval(self, axis: Axis, by: By = bootstrap) -> Interval | None:
        """95 % interval over seeds of the loss difference at equal cost."""
        return self.difference_interval(lambda pair: pair.equal[axis], by)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _mean_losses(losses: Sequence[Losses | None]) -> Losses | None:
    known = [x for x in losses if x is not None]
    if not known or len(known) < len(losses):
        return None
    n = len(known)
    return Losses(sum(x.at for x in known) / n, sum(x.baseline for x in known) / n, sum(x.candidate for x in known) / n)
