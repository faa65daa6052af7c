"""What a CoCoMix network returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

from cocomix.model.adapters import CACHE_ARGUMENT


@dataclass
class CoCoMixOutput(ModelOutput):
    """What :meth:`CoCoMixForCausalLM.forward` returns; what was not asked for is None."""

    loss: Tensor | None = None
    """Mean NLL in nats a target, when ``labels`` were given (transformers' convention)."""
    logits: Tensor | None = None
    """Next-token logits [B, T, V] (or the last ``logits_to_keep`` positions)."""
    nll: Tensor | None = None
    """Sum of NLLs in nats over ``targets`` that are not ignored."""
    z_sum: Tensor | None = None
    """Sum of (log Σ exp of the next-token logits)² over ``targets`` that are not ignored."""
    concept_nll: Tensor | None = None
    """Sum of concept NLLs in nats over ``concept_ids`` with a meaning."""
    divergence: Tensor | None = None
    """Sum of KL(teacher ‖ student) in nats over ``targets`` that are not ignored; ``teacher_probs`` ask for it."""
    state: Tensor | None = None
    """The mixer's guess of the teacher's state [B, T, S]."""
    concept_logits: Tensor | None = None
    """z [B, T, C], after edits."""
    concept_vector: Tensor | None = None
    """ĉ [B, T, D], what the mixer makes for each token; None while the model trains."""
    cache: Any = None
    """Keys and values of all tokens so far: one entry a token below the insertion, two above (insert, memory)."""
    if CACHE_ARGUMENT == "past_key_values":  # older transformers; generate() reads the one it knows
        past_key_values: Any = None
