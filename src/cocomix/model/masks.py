"""Attention masks for the two halves, in whatever form the chosen attention implementation wants.

A stream has ``each`` positions a token: one below the insertion, two in an interleaved stream above it. Keys of a
memory stream lie as memory₀ slot₀ memory₁ slot₁ … while its queries are one a token. A sliding window counts tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function

from cocomix.model.adapters import SLIDING
from cocomix.model.attention import CAUSAL, MEMORY, ROWS, serves

Visible = Callable[[Any, Any, Any, Any], Any]
"""(batch, head, query place, key place) → whether the query sees the key."""


class Past(NamedTuple):
    """What a cache holds before a forward pass."""

    tokens: Any = 0
    """How many tokens: a number, or a tensor where a static cache counts them."""
    room: int | None = None
    """Tokens that a static cache has room for; None: the cache grows, or there is none."""

    def keys(self, new: int) -> int:
        """Tokens whose keys the new ones are shown, their own among them."""
        return self.tokens + new if self.room is None else self.room


def stream_mask(
    config: Any,
    kind: str,
    states: Float[Tensor, "B S D"],
    padding: Bool[Tensor, "B N"] | None,
    past: Past,
    each: int,
    shown: Bool[Tensor, "B _"] | None = None,
) -> Any:
    """A causal stream of ``each`` positions a token behind a past: a query sees the keys up to its own.

    ``padding`` [B, past + T] marks the tokens that are real, ``shown`` instead the keys that are. None comes back where
    the kernel's own causal flag is enough.
    """
    keys, window = each * past.keys(states.shape[1] // each), _window(config, kind)
    first = each * past.tokens
    if shown is None and padding is not None:
        shown = padding.repeat_interleave(each, dim=1)
    if window is None or window * each >= keys:
        if _alone(config, states, shown, past) and states.shape[1] > ROWS:
            return CAUSAL
        # A static cache shows keys that are not there yet: its mask is never left to the kernel's flag.
        return _mask(config, states, shown, first, keys, causal_mask_function, past.room is None)
    if each > 1:
        _refuse_flash(config, "a sliding window above the insertion, which counts tokens and not slots")

    def visible(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (key <= query) & (key // each > query // each - window)

    return _mask(config, states, shown, first, keys, visible, False)


def memory_mask(
    config: Any, kind: str, states: Float[Tensor, "B T D"], padding: Bool[Tensor, "B N"] | None, past: Past
) -> Any:
    """The query of token t sees memory and slots of the tokens up to t: the first 2·(t + 1) keys."""
    _refuse_flash(config, "mixing=memory")
    window = _window(config, kind)
    new = states.shape[1]
    if padding is None and past.room is None and new == 1 and (window is None or window > past.tokens):
        return None  # one query behind all keys sees all of them
    if _alone(config, states, padding, past) and (window is None or window >= states.shape[1]):
        return MEMORY

    def visible(batch: Any, head: Any, query: Any, key: Any) -> Any:
        up_to_own = key < 2 * (query + 1)
        return up_to_own if window is None else up_to_own & (key // 2 > query - window)

    shown = None if padding is None else padding.repeat_interleave(2, dim=1)
    return _mask(config, states, shown, past.tokens, 2 * past.keys(states.shape[1]), visible, False)


def _alone(config: Any, states: Tensor, padding: Tensor | None, past: Past) -> bool:
    """Whether nothing but the order of the tokens decides what is seen, and our own kernels' callers serve."""
    plain = padding is None and past.room is None and past.tokens == 0
    return plain and config._attn_implementation == "sdpa" and serves(states)


def _window(config: Any, kind: str) -> int | None:
    return config.sliding_window if kind == SLIDING else None


def _refuse_flash(config: Any, what: str) -> None:
    """FlashAttention knows one causal mask and one window, and would silently apply those."""
    if "flash" in config._attn_implementation:
        raise ValueError(
            f"attn_implementation={config._attn_implementation} cannot do {what}: load the model with sdpa or "
            "flex_attention"
        )


def _mask(
    config: Any,
    states: Tensor,
    shown: Tensor | None,
    first_query: Any,
    keys: int,
    visible: Visible,
    may_skip: bool,
) -> Any:
    make = ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation]
    return make(
        batch_size=states.shape[0],
        q_length=states.shape[1],
        kv_length=keys,
        q_offset=first_query,
        kv_offset=0,
        mask_function=visible,
        attention_mask=shown,
        allow_is_causal_skip=may_skip,
        dtype=states.dtype,
        device=states.device,
        config=config,
    )


def positions_of(
    padding: Bool[Tensor, "B N"] | None, batch: int, past: Past, length: int, device: Any
) -> Int[Tensor, "B T"]:
    """Positions of the new tokens: padded ones do not count."""
    if padding is None:
        return (torch.arange(length, device=device) + past.tokens).expand(batch, -1)
    return (padding.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
