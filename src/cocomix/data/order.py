"""Which window comes when: a pure function of (seed, epoch, position), the same for any number of processes.

A pass over ``count`` windows is a keyed permutation of 0 … count − 1: an eight-round Feistel network over the
next power of four (at least 64), walked until it lands inside (Black and Rogaway, "Ciphers with arbitrary finite
domains", 2002). Nothing is stored, and a run's whole data state is the number of samples it has seen.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt64

ROUNDS = 8
"""With four, orders of a dozen windows were visibly uneven."""
SMALLEST_HALF = 3
"""Bits of half a value; over a domain of a few values the network reaches few permutations."""


def window_ids(count: int, seed: int, start: int, number: int) -> Int[np.ndarray, " number"]:
    """The window ids of samples ``start … start + number − 1``, int64; sample s lies in epoch s // count."""
    assert count > 0, "an order needs at least one window"
    samples = np.arange(start, start + number, dtype=np.int64)
    epochs, positions = np.divmod(samples, count)
    out = np.empty(number, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = _permuted(positions[here], count, seed, int(epoch))
    return out


def _permuted(positions: Int[np.ndarray, " N"], count: int, seed: int, epoch: int) -> Int[np.ndarray, " N"]:
    half = max(SMALLEST_HALF, (max(count - 1, 1).bit_length() + 1) // 2)
    keys = np.array([_mix(np.uint64(seed), np.uint64(epoch), np.uint64(r)) for r in range(ROUNDS)], dtype=np.uint64)
    values = positions.astype(np.uint64)
    walking = np.ones(len(values), dtype=bool)
    while walking.any():
        values[walking] = _feistel(values[walking], keys, half)
        walking = values >= count
    return values.astype(np.int64)


def _feistel(values: UInt64[np.ndarray, " N"], keys: UInt64[np.ndarray, " R"], half: int) -> UInt64[np.ndarray, " N"]:
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    for key in keys:
        left, right = right, left ^ (_scramble(right ^ key) & mask)
    return (left << np.uint64(half)) | right


def _scramble(value: np.ndarray | np.uint64) -> np.ndarray:
    """The finalizer of splitmix64: an input bit changes each output bit with probability about a half."""
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(value ^ (value >> np.uint64(31)))


def _mix(*parts: np.uint64) -> np.uint64:
    state = np.uint64(0x9E3779B97F4A7C15)
    for part in parts:
        with np.errstate(over="ignore"):
            state = np.uint64(_scramble(state ^ part) + np.uint64(0x9E3779B97F4A7C15))
    return state
