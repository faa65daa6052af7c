"""Places where concepts occur: the strongest, and a fair sample; and the text around them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from cocomix.data.dataset import Split

PLACE = np.dtype([("concept", "i4"), ("position", "i4"), ("window", "i8"), ("strength", "f4")])
"""One label: position is that of its token in the window."""
BEFORE, AFTER = 12, 6
"""Tokens of a context before and after the labelled one."""
CUT = -1
"""Token id where a context's document or window is at its end."""
WINDOWS_AT_ONCE = 256


class KeptPlaces:
    """The ``number`` places of each concept with the largest priority; of equal ones those that came first."""

    def __init__(self, concepts: int, number: int) -> None:
        self._number = number
        self._bar = np.full(concepts, -np.inf)
        self._priority = np.empty(0)
        self.places = np.empty(0, dtype=PLACE)
        """Sorted by concept, then by priority, the largest first."""

    def add(
        self,
        concept: Int[np.ndarray, " N"],
        strength: Float[np.ndarray, " N"],
        window: Int[np.ndarray, " N"],
        position: Int[np.ndarray, " N"],
        priority: Float[np.ndarray, " N"],
    ) -> None:
        """Takes more places. Those below what is kept are dropped before anything is sorted."""
        new = np.flatnonzero(priority > self._bar[concept])
        places = np.empty(len(new), dtype=PLACE)
        for name, column in (("concept", concept), ("strength", strength), ("window", window), ("position", position)):
            places[name] = column[new]
        places = np.concatenate([self.places, places])
        priority = np.concatenate([self._priority, priority[new]])
        order = self._order(places, priority)
        ids = places["concept"][order]
        rank = np.arange(len(order)) - np.searchsorted(ids, ids)
        kept = rank < self._number
        order, ids, last = order[kept], ids[kept], rank[kept] == self._number - 1
        self.places, self._priority = places[order], priority[order]
        self._bar[ids[last]] = self._priority[last]

    def _order(self, places: np.ndarray, priority: np.ndarray) -> np.ndarray:
        return np.lexsort((-priority, places["concept"]))


class StrongestPlaces(KeptPlaces):
    """The strongest, no two of a concept in the same window."""

    def _order(self, places: np.ndarray, priority: np.ndarray) -> np.ndarray:
        order = np.lexsort((-priority, places["window"], places["concept"]))
        concept, window = places["concept"][order], places["window"][order]
        new = np.ones(len(order), dtype=bool)
        new[1:] = (concept[1:] != concept[:-1]) | (window[1:] != window[:-1])
        order = order[new]
        return order[super()._order(places[order], priority[order])]


def drawn(concept: Int[np.ndarray, " N"], token: Int[np.ndarray, " N"], seed: int) -> Float[np.ndarray, " N"]:
    """A number in [0, 1) for each place, the same for the same place and seed (SplitMix64's last steps).

    The places with the largest numbers are a uniform sample, whatever the order in which they come. ``token`` numbers
    the tokens of the split.
    """
    x = (token.astype(np.uint64) << np.uint64(20)) ^ concept.astype(np.uint64)
    x += np.uint64((0x9E3779B97F4A7C15 * (seed + 1)) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)) * 2.0**-53


def surroundings(split: Split, length: int, places: np.ndarray) -> Int[np.ndarray, "P around"]:
    """The token ids around each place, itself at column :data:`BEFORE`; :data:`CUT` where its document or its window
    of ``length`` tokens has ended."""
    found = np.empty((len(places), BEFORE + 1 + AFTER), dtype=np.int32)
    for here, rows, row in _by_windows(split, length, places["window"]):
        at = places["position"][here][:, None] + np.arange(-BEFORE, AFTER + 1)
        ids = rows[row[:, None], at.clip(0, length - 1)]
        end = (at < 0) | (at >= length) | (ids == split.eos_id)
        end[:, BEFORE] = False
        end[:, :BEFORE] = np.logical_or.accumulate(end[:, BEFORE - 1 :: -1], axis=1)[:, ::-1]
        end[:, BEFORE + 1 :] = np.logical_or.accumulate(end[:, BEFORE + 1 :], axis=1)
        found[here] = np.where(end, CUT, ids)
    return found


def _by_windows(split: Split, length: int, windows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A few windows at a time: which places lie in them, the windows' ids, and each place's row of these."""
    order = np.argsort(windows, kind="stable")
    distinct, first = np.unique(windows[order], return_index=True)
    first = np.append(first, len(windows))
    for start in range(0, len(distinct), WINDOWS_AT_ONCE):
        ids = distinct[start : start + WINDOWS_AT_ONCE]
        here = order[first[start] : first[start + len(ids)]]
        yield here, split.read(ids, length), np.searchsorted(ids, windows[here])
