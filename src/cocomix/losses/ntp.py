"""Next-token prediction: −log f(x_{t+1} | h_≤t, ĉ_≤t), the first term of paper Eq. 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cocomix.data.batches import Batch
from cocomix.model.modeling import IGNORED
from cocomix.model.output import CoCoMixOutput


class NextTokenLoss:
    """Mean over the batch's targets that count."""

    name = "ntp"
    columns: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = {}
    reads_head = True

    def count(self, batch: Batch) -> int:
        return count_targets(batch)

    def total(self, output: CoCoMixOutput, batch: Batch) -> Tensor:
        assert output.nll is not None
        return output.nll


def count_targets(batch: Batch) -> int:
    """How many of the batch's targets count."""
    return int((batch.targets != IGNORED).sum())


def head_weights(weights: Mapping[str, float]) -> tuple[float, float, float]:
    """The weights of the losses that read next-token logits, as the model's forward pass takes them."""
    return weights.get("ntp", 0.0), weights.get("distill", 0.0), weights.get("z", 0.0)
