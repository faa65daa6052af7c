"""A run's validation loss and costs as functions of the tokens it has trained on.

Between two evaluations the loss is taken to be linear in the logarithm of the tokens, because loss curves are
close to that, while a line in the tokens themselves would lie above a convex curve and favour whoever is
evaluated more often. The costs (FLOPs, seconds) are taken to be linear in the tokens, which they are up to
restarts and shared machines. So every question about equal costs or costs to reach a loss is answered at one
point of the token axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from cocomix.compare.runs import Cost, Evaluation, Run, is_finite

Axis = Literal[
    "tokens",
    "flops",
    "seconds",
    "student_flops",
    "student_seconds",
    "upstream_flops",
    "upstream_seconds",
]
"""``flops`` and ``seconds`` are the student's training and the teacher's labels together; ``student_*`` is
the first alone, ``upstream_*`` adds the run's share of the training of teacher and SAE."""

MAIN_AXES: tuple[Axis, ...] = ("tokens", "flops", "seconds")
AXES: tuple[Axis, ...] = (
    *MAIN_AXES,
    "student_flops",
    "student_seconds",
    "upstream_flops",
    "upstream_seconds",
)


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, in the order of tokens."""

    tokens: Float[np.ndarray, " E"]
    loss: Float[np.ndarray, " E"]
    """Nats a token; infinite where the run had diverged."""
    costs: Mapping[Axis, Float[np.ndarray, " E"] | None]
    """Cumulative cost at each evaluation; None where a part of it is not known."""

    def loss_at(self, tokens: int | float) -> float | None:
        """The loss after ``tokens``; None outside the evaluated range, and beside an evaluation that is not finite."""
        if not self.tokens[0] <= tokens <= self.tokens[-1]:
            return None
        right = int(np.searchsorted(self.tokens, tokens))
        left = right if self.tokens[right] == tokens else right - 1
        if not np.isfinite(self.loss[[left, right]]).all():
            return None
        if left == right:
            return float(self.loss[right])
        share = _log_share(float(tokens), self.tokens[left], self.tokens[right])
        return float(self.loss[left] + share * (self.loss[right] - self.loss[left]))

    def tokens_to_reach(self, loss: float) -> float | None:
        """The tokens at which the running minimum of the loss first comes down to ``loss``; None if never.

        A run whose first evaluation is already there gets that evaluation's tokens: an upper bound.
        """
        lowest = np.minimum.accumulate(self.loss)
        there = np.flatnonzero(lowest <= loss)
        if not len(there):
            return None
        right = int(there[0])
        if right == 0 or not np.isfinite(lowest[right - 1]):
            return float(self.tokens[right])
        share = (lowest[right - 1] - loss) / (lowest[right - 1] - lowest[right])
        return _log_between(float(share), self.tokens[right - 1], self.tokens[right])

    def cost_at(self, axis: Axis, tokens: int | float) -> float | None:
        """The cost of training on ``tokens``; None where it is not known."""
        costs = self.costs[axis]
        return None if costs is None else float(np.interp(tokens, self.tokens, costs))

    def loss_for(self, axis: Axis, cost: int | float) -> float | None:
        """The loss that ``cost`` buys; None outside the evaluated range or where the cost is not known."""
        costs = self.costs[axis]
        if costs is None or not costs[0] <= cost <= costs[-1]:
            return None
        return self.loss_at(float(np.interp(cost, costs, self.tokens)))

    def final(self, axis: Axis) -> float | None:
        """The cost at the last evaluation."""
        return self.cost_at(axis, float(self.tokens[-1]))


def _log_share(value: float, left: float, right: float) -> float:
    """How far ``value`` lies between ``left`` and ``right``, by logarithms (plainly where left is 0)."""
    if left <= 0:
        return float((value - left) / (right - left))
    return float(np.log(value / left) / np.log(right / left))


def _log_between(share: float, left: float, right: float) -> float:
    """The inverse of :func:`_log_share`."""
    if share >= 1:  # exactly the evaluation, without the rounding of exp(log(…))
        return float(right)
    return float(left + share * (right - left) if left <= 0 else left * (right / left) ** share)


@dataclass(frozen=True)
class Parts:
    """What a run has cost so far, by part; None: not known."""

    student: float
    labels: float
    teacher: float | None
    """The teacher's training, in full."""
    sae: float | None
    """The SAE's training, in full."""


def label_seconds(run: Run, at: Evaluation) -> float:
    """Seconds of labelling behind an evaluation; with several epochs a window's cached labels are paid once."""
    labels = run.manifest.labels
    if labels is None:
        return 0.0
    labelled = at.flops.teacher / labels.flops_per_token if labels.flops_per_token > 0 else at.tokens
    if labels.cached_seconds_per_token is None or at.label_seconds is None:
        return labelled * labels.seconds_per_token
    return labelled * labels.cached_seconds_per_token + at.label_seconds


def parts(run: Run, kind: Literal["flops", "seconds"]) -> Parts | None:
    """The run's costs at its last evaluation, in FLOPs or seconds; None before the first one."""
    if run.last is None:
        return None
    last = run.last
    teacher, sae = upstream(run, kind)
    if kind == "flops":
        return Parts(last.flops.student, last.flops.teacher, teacher, sae)
    return Parts(last.seconds, label_seconds(run, last), teacher, sae)


def upstream(run: Run, kind: Literal["flops", "seconds"]) -> tuple[float | None, float | None]:
    """The full training cost of teacher and SAE behind the run; 0 without a teacher, None: not known."""
    labels = run.manifest.labels
    if not run.pays_teacher:
        return 0.0, 0.0
    if labels is None:
        return None, 0.0

    def part(cost: Cost | None) -> float | None:
        return None if cost is None else getattr(cost, kind)

    return part(labels.upstream.teacher), part(labels.upstream.sae)


class Sharing(NamedTuple):
    """Over how many runs the training of a run's teacher and that of its SAE are shared."""

    teacher: int
    sae: int


def curve(run: Run, shared_by: Sharing) -> Curve:
    """The run's curve, with its share of the training of teacher and SAE. Needs an evaluation."""
    evaluations = run.evaluations
    student = np.array([e.flops.student for e in evaluations], dtype=float)
    teacher = np.array([e.flops.teacher for e in evaluations], dtype=float)
    training = np.array([e.seconds for e in evaluations], dtype=float)
    labelling = np.array([label_seconds(run, e) for e in evaluations], dtype=float)

    def with_upstream(
        costs: Float[np.ndarray, " E"], kind: Literal["flops", "seconds"]
    ) -> Float[np.ndarray, " E"] | None:
        teacher, sae = upstream(run, kind)
        return None if teacher is None or sae is None else costs + teacher / shared_by.teacher + sae / shared_by.sae

    return Curve(
        tokens=np.array([e.tokens for e in evaluations], dtype=float),
        loss=np.array([e.loss if is_finite(e.loss) else np.inf for e in evaluations], dtype=float),
        costs={
            "tokens": np.array([e.tokens for e in evaluations], dtype=float),
            "flops": student + teacher,
            "seconds": training + labelling,
            "student_flops": student,
            "student_seconds": training,
            "upstream_flops": with_upstream(student + teacher, "flops"),
            "upstream_seconds": with_upstream(training + labelling, "seconds"),
        },
    )
