"""A teacher's next-token probabilities: the K likeliest tokens of each position, on disk, for distillation.

``<dataset>/probabilities/<name>/`` holds ``probabilities.json`` and for each token shard ``<shard>.teacher_tokens.bin``
and ``<shard>.teacher_probs.bin`` (float16). What the others have together is one minus their sum; how much that is
stands in the manifest (``statistics.mass``: what the K tokens hold).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped

from cocomix.concepts.cache import Kind, TeacherCache
from cocomix.concepts.costs import forward_flops
from cocomix.concepts.labelling import not_finite
from cocomix.concepts.labels import id_type
from cocomix.concepts.teacher import Teacher
from cocomix.data.columns import Column
from cocomix.data.dataset import Dataset, Split

MANIFEST = "probabilities.json"
TOKENS, PROBS = "teacher_tokens", "teacher_probs"
MEASURED_WINDOWS = 512
"""Windows over which the kept mass is measured."""


def probability_columns(vocabulary: int, k: int) -> tuple[Column, Column]:
    """Tokens and their probabilities, the likeliest first."""
    return Column(TOKENS, id_type(vocabulary), k), Column(PROBS, "float16", k)


class Probabilities(TeacherCache):
    """Probabilities of a dataset's windows."""

    kind = Kind(
        "probabilities",
        MANIFEST,
        "teacher's probabilities",
        "concepts probabilities",
        frozenset({"vocabulary", "k"}),
    )

    def __init__(self, folder: Path, dataset: Dataset, manifest: dict[str, Any]) -> None:
        self.k: int = manifest["k"]
        self._dataset = dataset
        super().__init__(folder, dataset, manifest, list(probability_columns(manifest["vocabulary"], self.k)))

    @classmethod
    def of(cls, folder: Path, dataset: Dataset, manifest: dict[str, Any]) -> Probabilities:
        return cls(folder, dataset, manifest)

    @property
    def sources(self) -> dict[str, CachedColumn]:
        """A source for each column (see :mod:`cocomix.data.batches`)."""
        return {name: CachedColumn(self, name) for name in (TOKENS, PROBS)}

    def read(self, column: str, split: str, window_ids: Int[np.ndarray, " N"]) -> Shaped[np.ndarray, "N T K"]:
        """The column's values: tokens as int64, probabilities as float16."""
        values = self._columns.read(split, column, window_ids)
        return values.astype(np.int64) if column == TOKENS else values

    def mass(self) -> float:
        """What the K tokens hold of the probability, mean over the first training windows that were asked."""
        total, tokens = 0.0, 0
        asked = np.flatnonzero(self.coverage.mask(self._dataset.split("train"), self.window))[:MEASURED_WINDOWS]
        for first in range(0, len(asked), 64):
            sums = self.read(PROBS, "train", asked[first : first + 64]).astype(np.float32).sum(-1)
            total, tokens = total + float(sums.sum()), tokens + sums.size
        return total / max(tokens, 1)


class CachedColumn:
    """One column of a cache."""

    def __init__(self, cache: Probabilities, name: str) -> None:
        self._cache, self._name = cache, name

    def read(self, split: str, window_ids: Int[np.ndarray, " N"]) -> np.ndarray:
        return self._cache.read(self._name, split, window_ids)


class ProbabilityMaker:
    """Windows → the two columns (see :class:`cocomix.concepts.extraction.Maker`)."""

    def __init__(self, teacher: Teacher, k: int, window: int) -> None:
        self.teacher, self.k, self.window = teacher, k, window
        self.entries = int(teacher.config.vocab_size)
        self.columns: tuple[Column, ...] = probability_columns(self.entries, k)

    @property
    def flops_per_token(self) -> float:
        """What a token costs."""
        return forward_flops(self.teacher, self.window)

    def make(self, split: Split, windows: Int[np.ndarray, " N"]) -> tuple[np.ndarray, np.ndarray]:
        inputs = torch.from_numpy(split.read(windows, self.window))[:, :-1]
        found = self.teacher.probabilities(inputs, self.k)
        assert found.tokens is not None
        if not found.probs.isfinite().all():
            raise not_finite("probabilities", split, windows)
        tokens = found.tokens.cpu().numpy().astype(self.columns[0].dtype)
        return tokens, found.probs.half().cpu().numpy()
