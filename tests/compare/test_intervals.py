"""Intervals over seeds, held against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cocomix.compare.intervals import COVERAGE, bootstrap, spread, student_t, t_quantile


# From the tables of the t distribution, two-sided 95 %.
@pytest.mark.parametrize(
    ("degrees", "bound"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (9, 2.2622), (30, 2.0423), (1000, 1.9623)]
)
def test_bound_of_students_t_is_that_of_the_tables(degrees, bound):
    assert t_quantile(degrees) == pytest.approx(bound, abs=1e-4)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds):
    rng = np.random.default_rng(seeds)
    samples = rng.normal(0.3, 0.1, size=(1500, seeds)).tolist()
    held = {by: np.mean([low <= 0.3 <= high for low, high in map(by, samples)]) for by in (bootstrap, student_t)}
    assert held[bootstrap] == pytest.approx(COVERAGE[seeds], abs=0.03)
    assert held[student_t] == pytest.approx(0.95, abs=0.02)


def test_bootstrap_covers_the_mean_and_needs_two_values():
    values = list(np.random.default_rng(5).normal(0.3, 0.1, size=40))
    low, high = bootstrap(values)
    # close to mean ± 1.96 standard errors, the normal approximation
    error = 1.96 * np.std(values) / math.sqrt(40)
    assert low == pytest.approx(np.mean(values) - error, abs=0.01)
    assert high == pytest.approx(np.mean(values) + error, abs=0.01)
    assert bootstrap(values) == bootstrap(values)
    for by in (bootstrap, student_t):
        assert by([0.3]) is None
        assert by([0.3, None]) is None


def test_spread_of_two_values_is_their_mean_and_a_wide_half():
    found = spread([4.0, 5.0])
    assert found.mean == 4.5
    assert found.half == pytest.approx(12.7062 * math.sqrt(0.5) / math.sqrt(2), rel=1e-4)
    assert spread([4.0]).half is None
