"""Attention masks for the two halves, in whatever form the chosen attention implementation wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function


def causal_mask(config: Any, states: Float[Tensor, "B S D"], padding: Bool[Tensor, "B N"] | None, past: int) -> Any:
    """Query i at place past + i sees keys 0 … past + i; None where the kernel's own causal flag is enough.

    ``padding`` marks the keys (past ones included) that are real.
    """
    keys = past + states.shape[1]
    return _mask(config, states, padding, past, keys, causal_mask_function, True)


def memory_mask(config: Any, states: Float[Tensor, "B S D"], padding: Bool[Tensor, "B N"] | None, past: int) -> Any:
    """Keys lie as memory₀ slot₀ memory₁ slot₁ …; the query of token t sees the first 2·(t + 1) of them."""
    keys = 2 * (past + states.shape[1])
    return _mask(config, states, padding, past, keys, _up_to_own_slot, False)


def _up_to_own_slot(batch: Any, head: Any, query: Any, key: Any) -> Any:
    return key < 2 * (query + 1)


def _mask(
    config: Any,
    states: Tensor,
    padding: Tensor | None,
    past: int,
    keys: int,
    function: Callable[..., Any],
    may_skip: bool,
) -> Any:
    make = ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation]
    return make(
        batch_size=states.shape[0],
        q_length=states.shape[1],
        kv_length=keys,
        q_offset=past,
        kv_offset=0,
        mask_function=function,
        attention_mask=padding,
        allow_is_causal_skip=may_skip,
        dtype=states.dtype,
        device=states.device,
        config=config,
    )


def positions_of(
    padding: Bool[Tensor, "B N"] | None, batch: int, past: int, length: int, device: Any
) -> Int[Tensor, "B T"]:
    """Positions of the new tokens: padded ones do not count."""
    import torch

    if padding is None:
        return torch.arange(past, past + length, device=device).expand(batch, -1)
    return (padding.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
