"""How long a run goes on: steps, tokens, FLOPs or seconds; and how far it is."""

from __future__ import annotations

import math

from cocomix.train.counters import Counters
from cocomix.train.settings import TrainSettings

BEFORE_THE_CLOCK_TELLS = 10**9
"""Steps that a run with a budget in seconds is thought to have until its first step has been timed."""


class Budget:
    """The end of a run. Of several budgets the most telling counts: seconds, FLOPs, steps, tokens, in this order."""

    def __init__(self, settings: TrainSettings, step_tokens: int, step_flops: float) -> None:
        self.seconds = settings.seconds
        self.steps: int | None = None
        """Steps of the whole run; None where the clock decides."""
        if settings.seconds is not None:
            pass
        elif settings.flops is not None:
            self.steps = math.ceil(settings.flops / step_flops)
        elif settings.steps is not None:
            self.steps = settings.steps
        else:
            self.steps = math.ceil((settings.tokens or 0) / step_tokens)

    def share(self, counters: Counters) -> float:
        """Which share of the budget is used, 0 … 1."""
        if self.seconds is not None:
            return min(1.0, counters.seconds / self.seconds)
        assert self.steps is not None
        return min(1.0, counters.step / self.steps)

    def over(self, counters: Counters) -> bool:
        """Whether nothing is left."""
        return self.share(counters) >= 1.0

    def expected_steps(self, counters: Counters) -> int:
        """Steps of the whole run; where the clock decides, at the speed so far. What the schedule is laid over."""
        if self.steps is not None:
            return self.steps
        share = self.share(counters)
        return max(counters.step + 1, round(counters.step / share)) if share > 0 else BEFORE_THE_CLOCK_TELLS


def passes(before: float, after: float, number: int) -> bool:
    """Whether one of ``number`` marks, spread evenly over a run with the last at its end, lies in (before, after]."""
    slack = 1e-9  # shares are quotients: 3/9 three times is not quite one
    return math.floor(after * number + slack) > math.floor(before * number + slack)
