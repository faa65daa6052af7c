"""The mean NLL of targets and its gradient, from logits, with one copy of their size instead of four.

At 2,048 tokens and 49,152 entries of a vocabulary each copy is 400 MB; what torch's cross-entropy keeps for its
backward pass (log-probabilities, and two gradients) is made here in pieces of rows, in place. Where a model's head is a
plain layer no logits are kept at all: ``ops/heads.py``.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100
"""Target of a position that has none."""

LOGITS_AT_ONCE = 1 << 23
"""Logits worked on at a time (32 MB in float32)."""


@torch.no_grad()
def mean_nll(logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean NLL over the targets in nats, computed in float32 at least."""
    total = torch.stack([_nll(*piece)[0] for piece in _pieces(logits, targets)]).sum()
    return total / (targets != IGNORED).sum()


@torch.no_grad()
def mean_nll_and_gradient(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "N V"]]:
    """:func:`mean_nll` and its gradient with respect to the logits: (softmax − one-hot) / number of targets."""
    gradient, count = torch.empty_like(logits), (targets != IGNORED).sum()
    total, first = [], 0
    for rows, row_targets in _pieces(logits, targets):
        nll, probabilities = _nll(rows, row_targets)
        total.append(nll)
        meant = (row_targets != IGNORED).to(probabilities.dtype).unsqueeze(-1)
        probabilities.scatter_add_(-1, row_targets.clamp(min=0).unsqueeze(-1), -torch.ones_like(meant))
        gradient[first : first + len(rows)] = probabilities.mul_(meant / count)
        first += len(rows)
    return torch.stack(total).sum() / count, gradient


def _pieces(logits: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, LOGITS_AT_ONCE // logits.shape[-1])
    for rows, row_targets in zip(logits.split(size), targets.split(size), strict=True):
        yield rows.to(torch.promote_types(rows.dtype, torch.float32)), row_targets


def _nll(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the NLLs and the probabilities."""
    log_total = rows.logsumexp(-1, keepdim=True)
    nll = (log_total - rows.gather(-1, targets.clamp(min=0).unsqueeze(-1))).squeeze(-1)
    return nll[targets != IGNORED].sum(), (rows - log_total).exp_()
