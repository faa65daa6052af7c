"""Attention of slots to memory and slots without a mask: two causal attentions, merged by their log-sum-exps.

Query t sees the memory of tokens ≤ t and the slots of tokens ≤ t: two causal attentions with one softmax. PyTorch's
flash kernels return the log of each one's softmax denominator, which merges them; backward, a kernel given the joint
output and the joint denominator returns the joint attention's gradient for its keys. Nothing of the size T × 2T is made.

The blocks of transformers call ``scaled_dot_product_attention`` with whatever mask they are given; :class:`MemoryMask` is a
mask that answers this call itself. Shapes: B batch, H heads, G key-value heads, T tokens, K head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Queries = Float[Tensor, "B H T K"]


class MemoryMask(Tensor):
    """Stands for "the first 2·(t + 1) keys of memory₀ slot₀ memory₁ slot₁ …" where no cache and no padding is. It holds
    nothing: :data:`MEMORY` serves all shapes and devices."""

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            return _instead(*args, **(kwargs or {}))
        if function is Tensor.__getitem__:  # some attention functions cut a mask to the number of keys
            return args[0]
        return super().__torch_function__(function, types, args, kwargs or {})


MEMORY: Tensor = torch.empty(1, 1, 1, 0, dtype=torch.bool).as_subclass(MemoryMask)


def merges(states: Float[Tensor, "B T D"]) -> bool:
    """Whether the merged kernels serve these states: on a CPU, for more than one token, and with no compiler looking."""
    return states.device.type == "cpu" and states.shape[1] > 1 and not torch.compiler.is_compiling()


def _instead(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa and key.shape[1] != query.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    if dropout_p:
        return masked_attention(query, key, value, dropout_p, scale)
    return merged_attention(query, key[:, :, 0::2], value[:, :, 0::2], key[:, :, 1::2], value[:, :, 1::2], scale)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, scale: float | None = None) -> Tensor:
    """The definition, with the mask written out: keys lie as memory₀ slot₀ memory₁ slot₁ …"""
    places = torch.arange(key.shape[2], device=key.device)
    visible = places[None] < 2 * (torch.arange(query.shape[2], device=key.device)[:, None] + 1)
    return F.scaled_dot_product_attention(query, key, value, visible, dropout_p, scale=scale)


def merged_attention(
    query: Queries, memory_key: Queries, memory_value: Queries, slot_key: Queries, slot_value: Queries, scale: float | None
) -> Queries:
    """Attention of T queries to T memories and T slots, both causal, under one softmax."""
    return _Merged.apply(query, memory_key, memory_value, slot_key, slot_value, scale)


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, *rest: Any) -> Tensor:
        *keys_values, scale = rest
        pairs = [keys_values[:2], keys_values[2:]]
        parts = [_causal(query, key, value, scale) for key, value in pairs]
        log_sum = torch.logaddexp(parts[0][1], parts[1][1])
        output: Any = sum(out * (own - log_sum).exp().unsqueeze(-1).to(out.dtype) for out, own in parts)
        ctx.save_for_backward(query, *keys_values, output, log_sum)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> Any:  # type: ignore[override]
        query, memory_key, memory_value, slot_key, slot_value, output, log_sum = ctx.saved_tensors
        grads = []
        for key, value in ((memory_key, memory_value), (slot_key, slot_value)):
            grads.append(_causal_backward(pull, query, key, value, output, log_sum, ctx.scale))
        (query_grad, *memory), (other, *slots) = grads
        return query_grad + other, *memory, *slots, None


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """Causal attention and the log of its softmax denominator [B, H, T]."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True, scale=scale)


def _causal_backward(
    pull: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, log_sum: Tensor, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        pull, query, key, value, output, log_sum, 0.0, True, scale=scale
    )
