"""One optimizer step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from cocomix.data.batches import Batch
from cocomix.errors import UserError
from cocomix.losses.terms import Term


class StepResult(NamedTuple):
    """What a step measured, before the weights changed."""

    losses: dict[str, float]
    """Each loss as a mean over its own count, nats."""
    grad_norm: float
    """Norm of the gradient before clipping."""


class NonFinite(UserError):
    """A loss or gradient is infinite or no number; the weights are as they were before the step."""


def train_step(
    model: nn.Module,
    terms: Sequence[tuple[Term, float]],
    micro_batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    clip: float,
    autocast: contextlib.AbstractContextManager[object] | None = None,
) -> StepResult:
    """Gradient of Σ_terms weight · (sum over all micro-batches / count over all micro-batches), clip, update.

    Raises :class:`NonFinite` before the update when a loss or the gradient is not finite.
    """
    counts = {term.name: max(1, sum(term.count(batch) for batch in micro_batches)) for term, _ in terms}
    sums = dict.fromkeys(counts, 0.0)
    optimizer.zero_grad(set_to_none=True)
    for batch in micro_batches:
        with autocast or contextlib.nullcontext():
            output = model(input_ids=batch.inputs, targets=batch.targets, **batch.columns)
            totals = {term.name: term.total(output, batch) for term, _ in terms}
        sum(weight / counts[term.name] * totals[term.name] for term, weight in terms).backward()  # type: ignore[union-attr]
        for name, total in totals.items():
            sums[name] += float(total.detach())
    losses = {name: sums[name] / counts[name] for name in sums}
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), clip))
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    if bad or not math.isfinite(norm):
        what = f"loss {bad[0]} is {losses[bad[0]]}" if bad else f"the gradient's norm is {norm}"
        windows = ", ".join(str(w) for batch in micro_batches for w in batch.window_ids[:8])
        optimizer.zero_grad(set_to_none=True)
        raise NonFinite(
            f"{what} on windows {windows}: the weights were not changed; try a lower optimizer.lr, or look at these "
            "windows"
        )
    optimizer.step()
    return StepResult(losses, norm)
