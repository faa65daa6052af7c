"""One streaming pass over labels: counts, strengths, strongest places and labelled tokens of every concept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from cocomix.concepts.labels import Labels
from cocomix.data.dataset import Split
from cocomix.progress import progress

TOKENS_AT_ONCE = 1 << 18
LABELLED_TOKENS = 10
"""Labelled tokens kept of a concept."""


@dataclass
class Gathered:
    """Of C concepts. The strongest places are sorted by concept, then from strong to weak."""

    tokens: int
    counts: Int[np.ndarray, " C"]
    sums: Float[np.ndarray, " C"]
    """Strengths added up."""
    concept: Int[np.ndarray, " P"]
    strength: Float[np.ndarray, " P"]
    window: Int[np.ndarray, " P"]
    position: Int[np.ndarray, " P"]
    token_counts: Int[np.ndarray, " V"]
    """How often each token occurs in the text that was read."""
    labelled: dict[int, list[tuple[int, int]]]
    """Token ids and counts of a concept, the most characteristic first."""


def gather(labels: Labels, split: Split, vocab_size: int, tokens: int, contexts: int) -> Gathered:
    """Reads the labels of the first ``tokens`` tokens of a split; keeps each concept's ``contexts`` strongest places,
    no two in the same window."""
    due = np.flatnonzero(labels.coverage.mask(split, labels.window))[: -(-tokens // labels.window)]
    windows = len(due)
    step = max(1, TOKENS_AT_ONCE // labels.window)
    counts = np.zeros(labels.concepts, dtype=np.int64)
    sums = np.zeros(labels.concepts)
    token_counts = np.zeros(vocab_size, dtype=np.int64)
    best = _Strongest(labels.concepts, contexts)
    pairs = _Pairs()
    with progress("atlas, tokens", windows * labels.window) as bar:
        for first in range(0, windows, step):
            ids = due[first : first + step]
            concepts = labels.read(split.name, ids).reshape(-1)
            strengths = labels.strengths(split.name, ids).reshape(-1)
            words = split.read(ids, labels.window)[:, :-1].reshape(-1)
            token_counts += np.bincount(words, minlength=vocab_size)
            place = np.flatnonzero(concepts >= 0)
            concepts, strengths = concepts[place], strengths[place].astype(np.float32)
            token_of = place // labels.k
            counts += np.bincount(concepts, minlength=labels.concepts)
            sums += np.bincount(concepts, weights=strengths, minlength=labels.concepts)
            best.add(concepts, strengths, ids[token_of // labels.window], (token_of % labels.window).astype(np.int64))
            pairs.add(concepts * vocab_size + words[token_of])
            bar.advance(len(ids) * labels.window)
    return Gathered(
        windows * labels.window,
        counts,
        sums,
        *best.columns,
        token_counts=token_counts,
        labelled=_characteristic(*pairs.counted(), token_counts, vocab_size),
    )


class _Strongest:
    """The ``number`` strongest places of each concept in distinct windows."""

    def __init__(self, concepts: int, number: int) -> None:
        self._concepts, self._number = concepts, number
        self._bar = np.full(concepts, -np.inf, dtype=np.float32)
        empty = np.empty(0, dtype=np.int64)
        self.columns = (empty, np.empty(0, dtype=np.float32), empty, empty)
        """Concept, strength, window, position."""

    def add(self, concept: np.ndarray, strength: np.ndarray, window: np.ndarray, position: np.ndarray) -> None:
        """Takes more places. Weaker ones than those kept are dropped before anything is sorted."""
        new = strength > self._bar[concept]
        joined = [
            np.concatenate([old, column[new]])
            for old, column in zip(self.columns, (concept, strength, window, position), strict=True)
        ]
        by_strength = np.argsort(-joined[1], kind="stable")
        in_window = (joined[0] * (int(joined[2].max(initial=0)) + 1) + joined[2])[by_strength]
        order = by_strength[np.sort(np.unique(in_window, return_index=True)[1])]
        order = order[np.argsort(joined[0][order], kind="stable")]
        concept = joined[0][order]
        rank = np.arange(len(order)) - np.searchsorted(concept, concept)
        kept = rank < self._number
        order, concept, rank = order[kept], concept[kept], rank[kept]
        self.columns = tuple(column[order] for column in joined)  # type: ignore[assignment]
        last = rank == self._number - 1
        self._bar[concept[last]] = self.columns[1][last]


class _Pairs:
    """How often each (concept, token) key occurs."""

    def __init__(self) -> None:
        self._keys = np.empty(0, dtype=np.int64)
        self._counts = np.empty(0, dtype=np.int64)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, keys: np.ndarray) -> None:
        """Takes more keys."""
        self._waiting.append(np.unique(keys, return_counts=True))
        if sum(len(keys) for keys, _ in self._waiting) > max(1 << 22, len(self._keys)):
            self.counted()

    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct keys in order, and their counts."""
        keys = np.concatenate([self._keys, *(keys for keys, _ in self._waiting)])
        counts = np.concatenate([self._counts, *(counts for _, counts in self._waiting)])
        self._waiting = []
        order = np.argsort(keys, kind="stable")
        self._keys, start = np.unique(keys[order], return_index=True)
        self._counts = np.add.reduceat(counts[order], start) if len(start) else counts
        return self._keys, self._counts


def _characteristic(
    keys: np.ndarray, counts: np.ndarray, token_counts: np.ndarray, vocab_size: int
) -> dict[int, list[tuple[int, int]]]:
    """Tokens of each concept by count × log(share under the concept / share in the text)."""
    concept, token = np.divmod(keys, vocab_size)
    totals = np.bincount(concept, weights=counts) if len(concept) else np.empty(0)
    lift = counts / totals[concept] / (token_counts[token] / max(token_counts.sum(), 1))
    order = np.lexsort((-counts * np.log(lift), concept))
    concept, token, counts = concept[order], token[order], counts[order]
    kept = np.arange(len(order)) - np.searchsorted(concept, concept) < LABELLED_TOKENS
    found: dict[int, list[tuple[int, int]]] = {}
    for c, t, n in zip(concept[kept].tolist(), token[kept].tolist(), counts[kept].tolist(), strict=True):
        found.setdefault(c, []).append((t, n))
    return found
