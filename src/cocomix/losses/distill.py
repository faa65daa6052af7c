"""Knowledge distillation: KL(teacher ‖ student) over the next token (arXiv 1503.02531, temperature 1; paper's KD)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cocomix.data.batches import Batch
from cocomix.losses.ntp import count_targets, head_weights
from cocomix.model.output import CoCoMixOutput


class DistillLoss:
    """Mean over the batch's targets that count. With a teacher's K likeliest tokens alone it is the divergence with one
    bucket for all others, a lower bound of the whole one."""

    name = "distill"
    columns: tuple[str, ...] = ("teacher_probs", "teacher_tokens")
    reads_head = True

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.arguments: Mapping[str, Any] = {"loss_weights": head_weights(weights)}

    def count(self, batch: Batch) -> int:
        return count_targets(batch)

    def total(self, output: CoCoMixOutput, batch: Batch) -> Tensor:
        assert output.divergence is not None
        return output.divergence
