"""One streaming pass over labels: counts, strengths, places, tokens and companions of every concept.

Memory does not grow with the text: a few numbers a concept, its places, and two tables of pairs
(:mod:`cocomix.concepts.atlas_counts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int

from cocomix.concepts.atlas_counts import Ranked, SparseCounts, ranked_concepts, ranked_tokens
from cocomix.concepts.atlas_format import EDGES
from cocomix.concepts.atlas_places import KeptPlaces, StrongestPlaces, drawn
from cocomix.concepts.labels import Labels
from cocomix.data.dataset import Split
from cocomix.progress import progress

TOKENS_AT_ONCE = 1 << 18
LABELLED_TOKENS = 10
"""Labelled tokens kept of a concept."""
TOGETHER = 10
"""Companions kept of a concept."""
PAIRED_LABELS = 8
"""Of a token with more labels the first so many, the best, make pairs: their number grows with the square."""


@dataclass
class Gathered:
    """Of C concepts. Places are sorted by concept."""

    tokens: int
    counts: Int[np.ndarray, " C"]
    sums: Float[np.ndarray, " C"]
    """Strengths added up."""
    histogram: Int[np.ndarray, "C bins"]
    """Labels by strength, see :data:`EDGES`."""
    strongest: np.ndarray
    """Places, of each concept the strongest first, no two in the same window."""
    random: np.ndarray
    """Places, a uniform sample of each concept's."""
    token_counts: Int[np.ndarray, " V"]
    """How often each token occurs in the text that was read."""
    labelled: Ranked
    """Token ids of a concept, the most characteristic first."""
    together: Ranked
    """Concepts that are labels of the same tokens, the most characteristic first."""
    missed: int
    """The counts of tokens and companions are too low by this at most; 0: exact."""


def gather(
    labels: Labels, split: Split, vocab_size: int, tokens: int, contexts: int, random_contexts: int, seed: int = 0
) -> Gathered:
    """Reads the labels of the first ``tokens`` tokens of a split; keeps each concept's ``contexts`` strongest places,
    and ``random_contexts`` drawn with ``seed``."""
    due = np.flatnonzero(labels.coverage.mask(split, labels.window))[: -(-tokens // labels.window)]
    total, size = len(due) * labels.window, labels.concepts
    step = max(1, TOKENS_AT_ONCE // labels.window)
    counts, sums = np.zeros(size, dtype=np.int64), np.zeros(size)
    histogram = np.zeros((size, len(EDGES) - 1), dtype=np.int64)
    token_counts = np.zeros(vocab_size, dtype=np.int64)
    strongest, random = StrongestPlaces(size, contexts), KeptPlaces(size, random_contexts)
    on_token, on_concept = SparseCounts(), SparseCounts()
    with progress("atlas, tokens", total) as bar:
        for first in range(0, len(due), step):
            ids = due[first : first + step]
            found = labels.read(split.name, ids).reshape(-1, labels.k)
            words = split.read(ids, labels.window)[:, :-1].reshape(-1)
            token_counts += np.bincount(words, minlength=vocab_size)
            on_concept.add(_companions(found, size))
            place = np.flatnonzero(found >= 0)
            concepts = found.reshape(-1)[place]
            strengths = labels.strengths(split.name, ids).reshape(-1)[place].astype(np.float32)
            counts += np.bincount(concepts, minlength=size)
            sums += np.bincount(concepts, weights=strengths, minlength=size)
            histogram += histograms(concepts, strengths, size)
            row, position = np.divmod(place // labels.k, labels.window)
            window = ids[row]
            strongest.add(concepts, strengths, window, position, strengths)
            lots = drawn(concepts, window * labels.window + position, seed)
            random.add(concepts, strengths, window, position, lots)
            on_token.add(concepts * vocab_size + words[place // labels.k])
            bar.advance(len(ids) * labels.window)
    return Gathered(
        total,
        counts,
        sums,
        histogram,
        strongest.places,
        random.places,
        token_counts,
        labelled=ranked_tokens(on_token, counts, token_counts, LABELLED_TOKENS),
        together=ranked_concepts(on_concept, counts, total, TOGETHER),
        missed=max(on_token.missed, on_concept.missed),
    )


def histograms(
    concepts: Int[np.ndarray, " N"], strengths: Float[np.ndarray, " N"], size: int
) -> Int[np.ndarray, "{size} bins"]:
    """How many strengths of each of ``size`` concepts lie between two :data:`EDGES`."""
    bins = len(EDGES) - 1
    # The edges are powers of 2^(1/4): the bin is the exponent, and no edge need be looked up.
    with np.errstate(divide="ignore", invalid="ignore"):
        octaves = np.log2(strengths)
    at = np.floor(np.nan_to_num((octaves - np.log2(EDGES[0])) * 4, nan=0.0)).clip(0, bins - 1).astype(np.int64)
    return np.bincount(concepts * bins + at, minlength=size * bins).reshape(size, bins)


def _companions(found: Int[np.ndarray, "N K"], size: int) -> Int[np.ndarray, " M"]:
    """A key, (smaller id)·C + larger id, for every two labels of a token."""
    keys = []
    for one, other in combinations(range(min(found.shape[1], PAIRED_LABELS)), 2):
        a, b = found[:, one], found[:, other]
        both = (a >= 0) & (b >= 0)
        a, b = a[both], b[both]
        keys.append(np.minimum(a, b) * size + np.maximum(a, b))
    return np.concatenate(keys) if keys else np.empty(0, dtype=np.int64)
