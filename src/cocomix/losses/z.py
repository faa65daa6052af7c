"""z-loss: the square of log Σ exp of the next-token logits, which keeps them from drifting (PaLM, arXiv 2204.02311)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cocomix.data.batches import Batch
from cocomix.losses.ntp import count_targets, head_weights
from cocomix.model.output import CoCoMixOutput


class ZLoss:
    """Mean over the batch's targets that count."""

    name = "z"
    columns: tuple[str, ...] = ()
    reads_head = True

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.arguments: Mapping[str, Any] = {"z_sum": True, "loss_weights": head_weights(weights)}

    def count(self, batch: Batch) -> int:
        return count_targets(batch)

    def total(self, output: CoCoMixOutput, batch: Batch) -> Tensor:
        assert output.z_sum is not None
        return output.z_sum
