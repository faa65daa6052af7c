from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.data.order import window_ids

counts = st.integers(1, 300)
seeds = st.integers(0, 2**63 - 1)
PINNED = [3, 2, 9, 4, 7, 5, 0, 6, 8, 1, 0, 7, 6, 3, 9, 1, 8, 4, 5, 2]


@given(count=counts, seed=seeds, epoch=st.integers(0, 50))
def test_an_epoch_visits_every_window_once(count: int, seed: int, epoch: int) -> None:
    ids = window_ids(count, seed, epoch * count, count)
    assert sorted(ids.tolist()) == list(range(count))


@given(count=counts, seed=seeds, start=st.integers(0, 500), lengths=st.lists(st.integers(0, 40), max_size=6))
def test_order_does_not_depend_on_how_it_is_read(count: int, seed: int, start: int, lengths: list[int]) -> None:
    whole = window_ids(count, seed, start, sum(lengths))
    starts = start + np.concatenate([[0], np.cumsum(lengths)]).astype(int)
    parts = [window_ids(count, seed, int(first), length) for first, length in zip(starts, lengths, strict=False)]
    assert np.array_equal(whole, np.concatenate([*parts, np.empty(0, np.int64)]))


@given(count=st.integers(50, 600), seed=seeds)
@settings(max_examples=30)
def test_epochs_and_seeds_differ(count: int, seed: int) -> None:
    first = window_ids(count, seed, 0, count)
    assert not np.array_equal(first, window_ids(count, seed, count, count))
    assert not np.array_equal(first, window_ids(count, seed ^ 1, 0, count))


def test_order_is_pinned() -> None:
    """A resumed run relies on it: another order for the same seed would repeat some windows and miss
    others."""
    assert window_ids(10, 0, 0, 20).tolist() == PINNED


def test_every_window_comes_at_every_place_equally_often() -> None:
    count, epochs = 7, 1400
    orders = window_ids(count, 3, 0, count * epochs).reshape(epochs, count)
    table = np.stack([np.bincount(orders[:, place], minlength=count) for place in range(count)])
    # A cell's standard deviation is 13; the largest of 49 deviations is seldom beyond four of them.
    assert np.abs(table - epochs / count).max() < 60


def test_neighbours_do_not_stay_neighbours() -> None:
    ids = window_ids(10_000, 0, 0, 10_000)
    assert (np.abs(np.diff(ids)) == 1).mean() < 0.002
    assert abs(np.corrcoef(ids, np.arange(10_000))[0, 1]) < 0.05
