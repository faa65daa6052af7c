"""One optimizer step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cocomix.data.batches import Batch
from cocomix.dist.parallel import Spread
from cocomix.dist.world import World
from cocomix.losses.terms import Term, asked


class StepResult(NamedTuple):
    """What a step measured, before the weights changed."""

    losses: dict[str, float]
    """Each loss as a mean over its own count, all ranks and micro-batches, nats."""
    grad_norm: float
    """Norm of the gradient before clipping."""


class NonFinite(Exception):
    """A loss or the gradient is infinite or no number; the weights are as they were before the step."""

    def __init__(self, what: str, rank: int | None) -> None:
        super().__init__(what)
        self.what = what
        self.rank = rank
        """The rank whose windows gave it; None where only the sum over ranks is known to be bad."""


def train_step(
    spread: Spread,
    terms: Sequence[tuple[Term, float]],
    micro_batches: Sequence[Batch],
    optimizers: Sequence[torch.optim.Optimizer],
    clip: float,
    autocast: contextlib.AbstractContextManager[object] | None = None,
    world: World | None = None,
) -> StepResult:
    """Gradient of Σ_terms weight · (sum / count), both over all ranks and micro-batches; clip; update.

    Raises :class:`NonFinite`, on all ranks, before the update when a loss or the gradient is not finite.
    """
    world = world or World()
    own = [float(sum(term.count(batch) for batch in micro_batches)) for term, _ in terms]
    counts = [max(1.0, sum(column)) for column in zip(*world.table(own), strict=True)]
    _forget(optimizers, spread)
    sums = _backward(spread, terms, counts, micro_batches, autocast)
    norm = clip_gradients(spread.plain, clip)
    rows = world.table([*sums, norm])
    losses = {
        term.name: sum(row[i] for row in rows) / counts[i] for i, (term, _) in enumerate(terms)
    }  # in the order of ranks: the same on all, whatever way numbers travelled
    fault = _fault(list(losses), rows)
    if fault is not None:
        _forget(optimizers, spread)
        raise fault
    for optimizer in optimizers:
        optimizer.step()
    return StepResult(losses, norm)


def _forget(optimizers: Sequence[torch.optim.Optimizer], spread: Spread) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=not spread.keeps_gradients)


def _backward(
    spread: Spread,
    terms: Sequence[tuple[Term, float]],
    counts: list[float],
    micro_batches: Sequence[Batch],
    autocast: contextlib.AbstractContextManager[object] | None,
) -> list[float]:
    """Gradients of this rank's windows; returns each term's sum over them."""
    sums: list[Any] = [0.0] * len(terms)
    for number, batch in enumerate(micro_batches, 1):
        with spread.micro_batch(last=number == len(micro_batches)):
            with autocast or contextlib.nullcontext():
                output = spread.called(input_ids=batch.inputs, **asked(terms, batch))
                totals = [term.total(output, batch) for term, _ in terms]
            loss: Any = sum(
                weight / count * total for (_, weight), count, total in zip(terms, counts, totals, strict=True)
            )
            # Ranks' gradients are averaged where a sum is wanted.
            (loss * spread.ranks if spread.ranks > 1 else loss).backward()
            # Kept on the device: one look at the end, not one a micro-batch.
            sums = [so_far + total.detach() for so_far, total in zip(sums, totals, strict=True)]
    return [float(value) for value in sums]


def clip_gradients(model: nn.Module, largest: float) -> float:
    """Scales the gradients down to a norm of ``largest`` where it is larger; returns the norm, over all shards."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    total: Any = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    norm = float(whole(total))
    if norm > largest:  # else a pass over all gradients that multiplies by one
        nn.utils.clip_grads_with_norm_(parameters, largest, total)
    return norm


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered on every rank (work of all ranks); any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def _fault(names: list[str], rows: list[list[float]]) -> NonFinite | None:
    for i, name in enumerate(names):
        for rank, row in enumerate(rows):
            if not math.isfinite(row[i]):
                return NonFinite(f"loss {name} is {row[i]}", rank)
    norm = rows[0][-1]
    return None if math.isfinite(norm) else NonFinite(f"the gradient's norm is {norm}", None)
