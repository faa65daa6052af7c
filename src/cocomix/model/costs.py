"""What a network costs: parameters and floating-point operations, counted from its modules.

Counted are matrix products (a multiply and an add are two operations) of what causal attention needs: position s of S
looks at s keys, on average (S + 1)/2. Norms, activations, softmax and embedding look-ups are left out, as is usual.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from cocomix.model.mixers import ConceptMixer, HiddenMixer
from cocomix.model.modeling import CoCoMixForCausalLM


class Parameters(NamedTuple):
    """Numbers of parameters; tied ones count once."""

    total: int
    active: int
    """Those that a token touches: of the compression only K of C rows (base + (C + K)·d, paper section 4)."""


class ForwardFlops(NamedTuple):
    """Forward operations a token, by part."""

    lower: float
    upper: float
    head: float
    mixer: float

    @property
    def total(self) -> float:
        return self.lower + self.upper + self.head + self.mixer

    @property
    def training(self) -> float:
        """Forward and backward: the backward pass multiplies twice where the forward multiplies once."""
        return 3 * self.total


def count_parameters(model: CoCoMixForCausalLM) -> Parameters:
    """Total and active parameters of a model (on any device, meta included)."""
    total = sum(p.numel() for p in model.parameters())
    if not isinstance(model.mixer, ConceptMixer):
        return Parameters(total, total)
    touched = 0 if model.config.mixing == "none" else model.config.concept_k
    return Parameters(total, total - (model.config.num_concepts - touched) * model.config.text_config.hidden_size)


def count_flops(model: CoCoMixForCausalLM, window: int) -> ForwardFlops:
    """Forward operations a token at windows of ``window`` tokens."""
    config, text = model.config, model.config.text_config
    d = text.hidden_size
    head_size = getattr(text, "head_dim", None) or d // text.num_attention_heads
    width = text.num_attention_heads * head_size
    kv_width = (getattr(text, "num_key_value_heads", None) or text.num_attention_heads) * head_size
    products = [_products(block) for block in model.blocks]
    cut = len(products) if model.mixer is None else config.insert_at
    one_stream = 4 * width * (window + 1) / 2
    lower = sum(products[:cut]) + cut * one_stream
    above = len(products) - cut
    slots_alone = 4 * width * (window + 1) + 4 * d * kv_width
    match config.mixing if above else "none":
        case "insert" if config.slot_every > 1:  # 1 + 1/s positions a token, all blocks alike
            positions = 1 + 1 / config.slot_every
            upper = positions * (sum(products[cut:]) + above * 4 * width * (positions * window + 1) / 2)
        case "insert":  # two positions a token, each of 2T positions sees T + 1/2 on average; the last block as below
            upper = 2 * sum(products[cut:-1]) + (above - 1) * 2 * 4 * width * (2 * window + 1) / 2
            upper += products[-1] + slots_alone
        case "memory":  # one position a token, two keys a token, the memory's keys and values besides
            upper = sum(products[cut:]) + above * slots_alone
        case _:
            upper = sum(products[cut:]) + above * one_stream
    mixer = 0.0
    if isinstance(model.mixer, ConceptMixer):
        rows = 0 if config.mixing == "none" else config.concept_k
        mixer = 2.0 * d * (config.num_concepts + rows)
    elif isinstance(model.mixer, HiddenMixer):
        unread = model.mixer.compress.weight.numel() if config.mixing == "none" else 0
        mixer = 2.0 * (sum(p.numel() for p in model.mixer.parameters() if p.dim() == 2) - unread)
    return ForwardFlops(lower, upper, 2.0 * d * text.vocab_size, mixer)


def _products(block: nn.Module) -> int:
    """Operations of a block's weight products for one position."""
    return sum(2 * m.weight.numel() for m in block.modules() if isinstance(m, nn.Linear | Conv1D))
