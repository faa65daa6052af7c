"""Attention through which a position's gradient only comes from its own stream.

The paper's Eq. 1 wants ∂NLL_t/∂h_t, the loss of the token's own next token. NLL_t does not depend on h_s for s > t,
and depends on h_t only through position t itself: its queries, and the key and value that position t reads of itself
in every block above. So in ∂(Σ_t NLL_t)/∂h_t, which one backward pass gives, exactly the terms NLL_s, s > t, are too
many, and all of them come in where a query at s reads the key or value of t. Here these are constants: attention
weights are softmax(q_t·k̄_s + bias) with k̄ without a gradient, and the output is Σ_s p_ts·v̄_s; the diagonal gets
q_t·(k_t − k̄_t) and p_tt·(v_t − v̄_t) on top, which are zero and whose gradients are those of the own key and value.
All values stay what they were, and one backward pass gives ∂NLL_t/∂h_t for all t at once, with half of the attention's
products backward.

It is put in through transformers' attention interface. Whether a family's attention goes through it, and nothing else
carries a gradient from one position to another, :func:`check_own_path` measures.

Shapes: B windows, H heads, G key and value heads, T tokens, E head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cocomix.concepts.nll import IGNORED
from cocomix.concepts.teacher import Teacher
from cocomix.errors import UserError

NAME = "cocomix_own_path"
CHECKED_TOKENS = 12


def own_path_attention(
    module: nn.Module,
    query: Float[Tensor, "B H T E"],
    key: Float[Tensor, "B G T E"],
    value: Float[Tensor, "B G T F"],
    attention_mask: Float[Tensor, "B 1 T T"] | Float[Tensor, "1 1 T T"],
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "B T H F"], None]:
    """An attention function of transformers: additive mask, no dropout (the teacher is in evaluation mode)."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.detach().mT * scaling
    own = (query * (key - key.detach())).sum(-1) * scaling
    scores.diagonal(dim1=-2, dim2=-1).add_(own)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    precise = torch.promote_types(query.dtype, torch.float32)
    weights = (scores + attention_mask).softmax(-1, dtype=precise).to(query.dtype)
    own_weight = weights.detach().diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    output = weights @ value.detach() + own_weight * (value - value.detach())
    return output.transpose(1, 2).contiguous(), None


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, own_path_attention)
    AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def own_path(teacher: Teacher) -> Iterator[None]:
    """Inside, the teacher's attention is :func:`own_path_attention`."""
    _register()
    before = teacher.model.config._attn_implementation
    teacher.model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        teacher.model.set_attn_implementation(before)


def check_own_path(teacher: Teacher) -> None:
    """Raises :class:`UserError` when inside :func:`own_path` the gradients are not those of each token's own loss.

    Measured on a few tokens, by the loss of the last alone: its gradient at the last position must be the teacher's
    own, and zero at all before it.
    """
    tokens = torch.arange(CHECKED_TOKENS).unsqueeze(0) % teacher.config.vocab_size
    targets = torch.full_like(tokens, IGNORED)
    targets[0, -1] = tokens[0, 0]
    due = teacher.loss_and_gradient(tokens, targets).gradient[0]
    with own_path(teacher):
        found = teacher.loss_and_gradient(tokens, targets).gradient[0]
    exact = found.dtype in (torch.float32, torch.float64)
    error = (found[-1] - due[-1]).norm() / due[-1].norm()
    if found[:-1].any() or not error < (1e-3 if exact else 0.1):
        raise UserError(
            f"attribution.gradient_of=next_token is not possible with teacher={teacher.name}: the blocks of a "
            f"{teacher.config.model_type} carry effects from token to token by other ways than an attention that can "
            "be exchanged; give attribution.gradient_of=sequence"
        )
