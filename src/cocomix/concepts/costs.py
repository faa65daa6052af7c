"""Floating-point operations of the teacher's side, counted from its modules.

Counted are matrix products (a multiply and an add are two operations) of what causal attention needs: position s
of T looks at s keys, (T + 1)/2 on average. Norms, softmax, activations, TopK, look-ups and routers are left out.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.settings import AttributionSettings
from cocomix.concepts.teacher import Teacher


class LabelFlops(NamedTuple):
    """Operations a token, by part."""

    forward: float
    """All blocks and the head."""
    backward: float
    """Gradients of activations above the block and in the head; there are none of weights."""
    encode: float
    attribute: float

    @property
    def total(self) -> float:
        """All parts."""
        return sum(self)


def label_flops(
    teacher: Teacher, sae: SparseAutoencoder, settings: AttributionSettings, window: int, active: float
) -> LabelFlops:
    """What :func:`cocomix.concepts.attribution.label_windows` costs a token, for windows of ``window`` tokens and
    ``active`` latents a token.

    A product with weights costs 2·in·out forward and the same backward (one operand needs a gradient); the two
    products of attention cost twice their forward backward (both operands do), or once for ``gradient_of:
    next_token`` (other tokens' keys and values need none). ``select: activation`` only needs the blocks up to the
    named one.
    """
    row, dense = 2.0 * teacher.width, 2.0 * teacher.width * sae.latents
    if settings.select == "activation":
        return LabelFlops(activation_flops(teacher, window), 0.0, dense, 0.0)
    products = [_products(teacher, block) for block in teacher.blocks]
    attention, head = attention_flops(teacher, window), 2.0 * teacher.width * teacher.config.vocab_size
    above = len(products) - teacher.block - 1
    operands = 1 if settings.gradient_of == "next_token" else 2
    forward = forward_flops(teacher, window)
    backward = sum(products[teacher.block + 1 :]) + above * operands * attention + head
    encode, attribute = dense, row * active
    if settings.latents == "preact":
        attribute = dense
    if settings.at == "reconstruction":
        encode += dense + row * active  # encoded once more, to be decoded into the stream
    return LabelFlops(forward, backward, encode, attribute)


def forward_flops(teacher: Teacher, window: int) -> float:
    """A forward pass to the logits, a token."""
    head = 2.0 * teacher.width * teacher.config.vocab_size
    return head + sum(_products(teacher, block) + attention_flops(teacher, window) for block in teacher.blocks)


def activation_flops(teacher: Teacher, window: int) -> float:
    """What :meth:`Teacher.activations` costs a token: the blocks up to the named one."""
    below = teacher.blocks[: teacher.block + 1]
    return sum(_products(teacher, block) for block in below) + len(below) * attention_flops(teacher, window)


def sae_step_flops(width: int, latents: int) -> float:
    """A training step of a TopK autoencoder a token, with dense products: encoding and decoding, and backward both
    operands of each (the decoder's bias is taken off the input, so it wants the input's gradient). The loss on
    dead latents is left out."""
    return 6 * 2.0 * width * latents


def attention_flops(teacher: Teacher, window: int) -> float:
    """The two products of one block's causal attention, forward, a token."""
    config = teacher.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 4.0 * config.num_attention_heads * size * (window + 1) / 2


def _products(teacher: Teacher, block: nn.Module) -> float:
    dense = sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Linear | Conv1D))
    # A mixture of experts keeps the weights of all in one tensor, of which a token uses a few.
    experts = [p for m in block.modules() for p in m.parameters(recurse=False) if p.dim() == 3]
    chosen = getattr(teacher.config, "num_experts_per_tok", None)
    return 2.0 * (dense + sum(p.numel() * (1.0 if chosen is None else chosen / len(p)) for p in experts))
