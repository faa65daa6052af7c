"""Regression of the teacher's state by the mixer ``hidden``: the paper's ablation of concept prediction.

The target is standardised, as an autoencoder's input is: (s − μ)/σ over the state's width. So one weight means the same
for every teacher and block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from cocomix.data.batches import Batch
from cocomix.model.output import CoCoMixOutput


class _StateLoss:
    """Mean over all tokens."""

    columns: tuple[str, ...] = ("teacher_state",)
    arguments: Mapping[str, Any] = {}
    reads_head = False

    def count(self, batch: Batch) -> int:
        return batch.inputs.numel()

    def _pair(self, output: CoCoMixOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """Guess and target [B, T, S], in float32 at least."""
        assert output.state is not None
        guess = output.state if output.state.itemsize > 4 else output.state.float()
        state = batch.columns["teacher_state"].to(guess.dtype)
        mean, std = state.mean(-1, keepdim=True), state.std(-1, keepdim=True)
        return guess, (state - mean) / (std + 1e-5)


class StateL1(_StateLoss):
    """|ŝ − s|, mean over the width."""

    name = "state_l1"

    def total(self, output: CoCoMixOutput, batch: Batch) -> Tensor:
        guess, state = self._pair(output, batch)
        return (guess - state).abs().mean(-1).sum()


class StateL2(_StateLoss):
    """(ŝ − s)², mean over the width."""

    name = "state_l2"

    def total(self, output: CoCoMixOutput, batch: Batch) -> Tensor:
        guess, state = self._pair(output, batch)
        return (guess - state).square().mean(-1).sum()


class StateCosine(_StateLoss):
    """1 − cos(ŝ, s)."""

    name = "state_cosine"

    def total(self, output: CoCoMixOutput, batch: Batch) -> Tensor:
        return (1 - F.cosine_similarity(*self._pair(output, batch), dim=-1)).sum()
