"""The mean NLL of targets and its gradient, from a head's input or from logits.

At 2,048 tokens and 49,152 entries of a vocabulary logits are 400 MB, and torch's cross-entropy keeps three copies more
for its backward pass. From a head's input (:func:`head_nll_and_gradient`) they are made, used and forgotten chunk by
chunk; from logits (:func:`mean_nll_and_gradient`) there is one copy of their size.

Shapes: N tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

IGNORED = -100
"""Target of a position that has none."""

LOGITS_AT_ONCE = 1 << 23
"""Logits worked on at a time (32 MB in float32)."""


LOGITS_OF_A_CHUNK = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Logits of a chunk of tokens between the head's products: on a CPU they should stay in its last cache."""


@torch.no_grad()
def head_nll(hidden: Float[Tensor, "N D"], head: nn.Linear, targets: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """:func:`mean_nll` of ``head(hidden)``; no more logits than a chunk's are held."""
    total = [_head_nll(logits, targets[part])[0] for part, logits in _chunks(hidden, head)]
    return torch.stack(total).sum() / (targets != IGNORED).sum()


@torch.no_grad()
def head_nll_and_gradient(
    hidden: Float[Tensor, "N D"], head: nn.Linear, targets: Int[Tensor, " N"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "N D"]]:
    """:func:`head_nll` and its gradient with respect to ``hidden``: (softmax − one-hot)·W / number of targets."""
    gradient, count = torch.empty_like(hidden), (targets != IGNORED).sum()
    total = []
    for part, logits in _chunks(hidden, head):
        nll, sums = _head_nll(logits, targets[part])
        total.append(nll)
        # e^(z − max)·W / sum is softmax·W: a row's factor is put on D values behind the product, not on V before it.
        here, meant = targets[part].clamp(min=0).unsqueeze(-1), (targets[part] != IGNORED).unsqueeze(-1)
        pulled = logits.scatter_add_(-1, here, -sums).to(hidden.dtype) @ head.weight
        torch.mul(pulled, (meant / (sums * count)), out=gradient[part])
    return torch.stack(total).sum() / count, gradient


def _chunks(hidden: Tensor, head: nn.Linear) -> Iterator[tuple[slice, Tensor]]:
    """Slices of tokens and their logits, in float32 at least, in memory that the next chunk takes over."""
    size = max(1, LOGITS_OF_A_CHUNK.get(hidden.device.type, 1 << 26) // head.out_features)
    room = hidden.new_empty(min(size, len(hidden)), head.out_features)
    for first in range(0, len(hidden), size):
        x = hidden[first : first + size]
        logits = torch.mm(x, head.weight.t(), out=room[: len(x)])
        if head.bias is not None:
            logits += head.bias
        yield slice(first, first + size), logits.to(torch.promote_types(logits.dtype, torch.float32))


def _head_nll(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the NLLs, and each row's Σ e^(z − max); the logits become e^(z − max)."""
    largest = logits.amax(-1, keepdim=True)
    chosen = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)) - largest
    sums = logits.sub_(largest).exp_().sum(-1, keepdim=True)
    return (sums.log() - chosen).squeeze(-1)[targets != IGNORED].sum(), sums


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
