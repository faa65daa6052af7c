"""Windows → batches: token ids and the named columns aligned to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cocomix.data.dataset import Split
from cocomix.data.order import window_ids


@runtime_checkable
class ColumnSource(Protocol):
    """Anything that yields a column for given windows: a label cache, or an online teacher."""

    def read(self, split: str, window_ids: Int[np.ndarray, " N"]) -> np.ndarray | Tensor:
        """Values aligned to the windows, [N, T, …]."""


@dataclass(frozen=True)
class Batch:
    """B windows of T tokens."""

    window_ids: Int[np.ndarray, " B"]
    inputs: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``."""
        columns = {name: column.to(device, non_blocking=True) for name, column in self.columns.items()}
        inputs, targets = (t.to(device, non_blocking=True) for t in (self.inputs, self.targets))
        return Batch(self.window_ids, inputs, targets, columns)

    def split(self, parts: int) -> list[Batch]:
        """``parts`` micro-batches of equal size, in order."""
        size = len(self.window_ids) // parts
        cuts = [slice(i * size, (i + 1) * size) for i in range(parts)]
        return [
            Batch(
                self.window_ids[c],
                self.inputs[c],
                self.targets[c],
                {n: col[c] for n, col in self.columns.items()},
            )
            for c in cuts
        ]


def read_batch(split: Split, window: int, ids: Int[np.ndarray, " B"], columns: Mapping[str, ColumnSource]) -> Batch:
    """The batch of the given windows."""
    tokens = torch.from_numpy(split.read(ids, window))
    named = {name: torch.as_tensor(source.read(split.name, ids)) for name, source in columns.items()}
    return Batch(ids, tokens[:, :-1], tokens[:, 1:], named)


def sample_batch(
    split: Split, window: int, seed: int, first: int, size: int, columns: Mapping[str, ColumnSource]
) -> Batch:
    """Samples ``first … first + size − 1`` of the run: the whole data state is how many samples it has seen."""
    return read_batch(split, window, window_ids(split.count(window), seed, first, size), columns)
