"""How often pairs occur, in bounded memory: (concept, token), and (concept, concept) on one token.

Pairs are keys, one whole number each. Where more distinct keys turn up than there is room for, the rarest are dropped
(lossy counting, Manku and Motwani 2002): what stays is then too low by :attr:`SparseCounts.missed` at most.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

KEYS = 1 << 24
"""Distinct keys that are kept, 12 bytes each."""
WAITING = 1 << 22
"""Keys that are collected before they are sorted."""
LEFT_AT_ONCE = 2048
"""Concepts whose partners are ranked together."""


class SparseCounts:
    """Counts of whole numbers, most of which never occur."""

    def __init__(self, room: int = KEYS) -> None:
        self._room = room
        self._keys = np.empty(0, dtype=np.int64)
        self._counts = np.empty(0, dtype=np.int32)
        self._waiting: list[np.ndarray] = []
        self._number = 0
        self.missed = 0
        """No count is too low by more than this; 0: all are exact."""

    def add(self, keys: Int[np.ndarray, " N"]) -> None:
        """Counts each of ``keys``."""
        self._waiting.append(keys)
        self._number += len(keys)
        if self._number >= WAITING:
            self._merge()

    def counted(self) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
        """Distinct keys in order, and their counts."""
        self._merge()
        return self._keys, self._counts

    def _merge(self) -> None:
        if not self._number:
            return
        new = np.concatenate(self._waiting)
        self._waiting, self._number = [], 0
        new.sort()
        first = np.flatnonzero(np.concatenate([[True], new[1:] != new[:-1]]))
        counts = np.diff(np.append(first, len(new))).astype(np.int32)
        new = new[first]
        at = np.searchsorted(self._keys, new)
        known = np.zeros(len(new), dtype=bool)
        inside = at < len(self._keys)
        known[inside] = self._keys[at[inside]] == new[inside]
        self._counts[at[known]] += counts[known]
        self._keys = np.insert(self._keys, at[~known], new[~known])
        self._counts = np.insert(self._counts, at[~known], counts[~known])
        if len(self._keys) > self._room:
            self._drop()

    def _drop(self) -> None:
        """Makes room for as many keys again as are kept."""
        bound = int(np.partition(self._counts, -(self._room // 2))[-(self._room // 2)])
        kept = self._counts > bound
        self._keys, self._counts = self._keys[kept], self._counts[kept]
        self.missed += bound


class Ranked(NamedTuple):
    """The partners of C concepts, one after another: those of concept c are ``first[c]`` to ``first[c + 1]``."""

    first: Int[np.ndarray, " C+1"]
    partner: Int[np.ndarray, " P"]
    times: Int[np.ndarray, " P"]
    lift: Float[np.ndarray, " P"]
    """How many times more often they meet than if neither knew of the other."""

    def of(self, concept: int) -> list[tuple[int, int, float]]:
        """(partner, times, lift), the most characteristic first."""
        here = slice(int(self.first[concept]), int(self.first[concept + 1]))
        return list(zip(self.partner[here].tolist(), self.times[here].tolist(), self.lift[here].tolist(), strict=True))


def ranked_tokens(
    pairs: SparseCounts, concepts: Int[np.ndarray, " C"], tokens: Int[np.ndarray, " V"], number: int
) -> Ranked:
    """The ``number`` most characteristic tokens of each concept, from keys concept·V + token.

    Order: count × log-lift, lift = (share among the concept's labels) / (share in the text). ``concepts`` counts each
    concept's labels, ``tokens`` each token in the text.
    """
    keys, counts = pairs.counted()
    share = tokens / max(tokens.sum(), 1)
    parts = []
    for left in range(0, len(concepts), LEFT_AT_ONCE):
        right = min(left + LEFT_AT_ONCE, len(concepts))
        here = slice(*np.searchsorted(keys, [left * len(tokens), right * len(tokens)]))
        concept, token = np.divmod(keys[here], len(tokens))
        lift = counts[here] / concepts[concept] / share[token]
        parts.append(_best(concept, token, counts[here], lift, number))
    return _joined(parts, len(concepts))


def ranked_concepts(pairs: SparseCounts, concepts: Int[np.ndarray, " C"], tokens: int, number: int) -> Ranked:
    """The ``number`` most characteristic companions of each concept, from keys (smaller id)·C + larger id.

    Order: count × log-lift, lift = n_ij · N / (n_i · n_j) over N ``tokens``; only what meets more than once, and more
    often than by chance (lift > 1).
    """
    keys, counts = pairs.counted()
    often = counts > 1
    one, other = np.divmod(keys[often], len(concepts))
    counts = counts[often]
    lift = counts * (tokens / concepts[one]) / concepts[other]
    parts = []
    for left in range(0, len(concepts), LEFT_AT_ONCE):
        mine, theirs = ((ids >= left) & (ids < left + LEFT_AT_ONCE) & (lift > 1) for ids in (one, other))
        parts.append(
            _best(
                np.concatenate([one[mine], other[theirs]]),
                np.concatenate([other[mine], one[theirs]]),
                np.concatenate([counts[mine], counts[theirs]]),
                np.concatenate([lift[mine], lift[theirs]]),
                number,
            )
        )
    return _joined(parts, len(concepts))


def _best(
    concept: np.ndarray, partner: np.ndarray, times: np.ndarray, lift: np.ndarray, number: int
) -> tuple[np.ndarray, ...]:
    order = np.lexsort((partner, -times * np.log(lift), concept))
    ordered = concept[order]
    order = order[np.arange(len(order)) - np.searchsorted(ordered, ordered) < number]
    return concept[order], partner[order], times[order], lift[order]


def _joined(parts: list[tuple[np.ndarray, ...]], concepts: int) -> Ranked:
    concept, partner, times, lift = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Ranked(np.searchsorted(concept, np.arange(concepts + 1)), partner, times, lift)
