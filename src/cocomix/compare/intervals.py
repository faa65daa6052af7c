"""Intervals over seeds: a paired bootstrap, Student's t beside it, and what the first is worth with few seeds."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Interval = tuple[float, float]

RESAMPLES = 10_000
CONFIDENCE = 0.95

COVERAGE = {2: 0.50, 3: 0.75, 4: 0.80, 5: 0.84, 6: 0.86, 7: 0.88, 8: 0.89, 9: 0.89}
"""How often the 95 % bootstrap over so many normally distributed values holds their mean (simulated; with two it is
their range, which holds it half the time). From ten on it is 90 % and more."""


def bootstrap(values: Sequence[float | None]) -> Interval | None:
    """95 % percentile interval of the mean of paired differences, resampled over seeds with a fixed generator.

    A value is one seed's difference, so that candidate and baseline of a seed are drawn together. None with fewer than
    two values, or when one is missing. With few seeds it is narrower than it says, see :data:`COVERAGE`.
    """
    array = _all_known(values)
    if array is None:
        return None
    picks = np.random.default_rng(0).integers(0, len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(array[picks].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def student_t(values: Sequence[float | None]) -> Interval | None:
    """95 % interval of the mean by Student's t distribution: right for any number of normally distributed values.

    None with fewer than two values, or when one is missing.
    """
    array = _all_known(values)
    if array is None:
        return None
    half = t_quantile(len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return float(array.mean()) - half, float(array.mean()) + half


def _all_known(values: Sequence[float | None]) -> np.ndarray | None:
    known = [v for v in values if v is not None]
    return np.array(known) if len(known) >= 2 and len(known) == len(values) else None


@functools.cache
def t_quantile(degrees: int) -> float:
    """The bound that ``|t|`` stays below with probability 0.95, for ``degrees`` of freedom.

    With t = √ν·tan θ the density is cosine to the power of ν − 1: smooth on a finite range, where a sum will do.
    """
    theta = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(theta) ** (degrees - 1)
    mass = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2)))
    return math.sqrt(degrees) * math.tan(float(np.interp(CONFIDENCE, mass / mass[-1], theta)))


@dataclass(frozen=True)
class Spread:
    """A mean over seeds."""

    mean: float
    half: float | None
    """Half the width of its 95 % interval by Student's t; None with one seed."""


def spread(values: Sequence[float]) -> Spread:
    """Mean of at least one value, and its interval."""
    bounds = student_t(values)
    mean = sum(values) / len(values)
    return Spread(mean, None if bounds is None else bounds[1] - mean)
