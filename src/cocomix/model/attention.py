"""Causal attention on a CPU that leaves out what no query sees, and attention of slots to memory and slots.

PyTorch's flash kernel for CPUs computes whole blocks of 512 keys and masks them afterwards: up to 512 tokens all of the
square. Here queries go through it a few rows at a time, with the keys up to their own and no further.

With ``memory`` mixing query t sees the memory of tokens ≤ t and the slots of tokens ≤ t: two causal attentions with one
softmax. The kernel returns the log of each one's softmax denominator, which merges them; backward, a kernel given the
joint output and the joint denominator returns the joint attention's gradient for its keys. So nothing of the size
T × 2T is made.

The blocks of transformers call ``scaled_dot_product_attention`` with whatever mask they are given; :class:`CausalMask`
and :class:`MemoryMask` are masks that answer this call themselves. Shapes: B batch, H heads, T tokens, K head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Queries = Float[Tensor, "B H T K"]

ROWS = 192
"""Queries at a time: the fewest for which the kernel takes its larger blocks."""


class CausalMask(Tensor):
    """Stands for "query t sees keys ≤ t" where no cache and no padding is. It holds nothing: :data:`CAUSAL` serves all
    shapes."""

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            return cls.attend(*args, **(kwargs or {}))
        if function is Tensor.__getitem__:  # some attention functions cut a mask to the number of keys
            return args[0]
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def attend(
        cls,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """What ``scaled_dot_product_attention`` returns with this mask."""
        if torch.is_autocast_enabled("cpu"):  # it casts behind this call; rotated queries and keys are in float32
            half = torch.get_autocast_dtype("cpu")
            query, key, value = (x if x.dtype == torch.float64 else x.to(half) for x in (query, key, value))
        if enable_gqa and key.shape[1] != query.shape[1]:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        return cls.written_out(query, key, value, dropout_p, scale) if dropout_p else cls.fast(query, key, value, scale)

    @staticmethod
    def written_out(
        query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, scale: float | None = None
    ) -> Tensor:
        """The definition."""
        return F.scaled_dot_product_attention(query, key, value, None, dropout_p, is_causal=True, scale=scale)

    @staticmethod
    def fast(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
        """The same without dropout."""
        return _Joint.apply(query, scale, key, value)


class MemoryMask(CausalMask):
    """Stands for "query t sees the first 2·(t + 1) keys of memory₀ slot₀ memory₁ slot₁ …"."""

    @staticmethod
    def written_out(
        query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, scale: float | None = None
    ) -> Tensor:
        """The definition."""
        places = torch.arange(key.shape[2], device=key.device)
        visible = places[None] < 2 * (torch.arange(query.shape[2], device=key.device)[:, None] + 1)
        return F.scaled_dot_product_attention(query, key, value, visible, dropout_p, scale=scale)

    @staticmethod
    def fast(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
        """The same without dropout."""
        return _Joint.apply(query, scale, key[:, :, 0::2], value[:, :, 0::2], key[:, :, 1::2], value[:, :, 1::2])


CAUSAL: Tensor = torch.empty(1, 1, 1, 0, dtype=torch.bool).as_subclass(CausalMask)
MEMORY: Tensor = torch.empty(1, 1, 1, 0, dtype=torch.bool).as_subclass(MemoryMask)


def serves(states: Float[Tensor, "B T D"]) -> bool:
    """Whether these masks serve: on a CPU, for more than one token, and with no compiler looking."""
    return states.device.type == "cpu" and states.shape[1] > 1 and not torch.compiler.is_compiling()


class _Joint(torch.autograd.Function):
    """(query, scale, key, value, key, value, …): causal attention to each pair's keys under one softmax."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, scale: float | None, *keys_values: Tensor) -> Tensor:
        parts = [_causal(query, key, value, scale) for key, value in _pairs(keys_values)]
        output, log_sum = parts[0]
        if len(parts) > 1:
            log_sum = torch.stack([own for _, own in parts]).logsumexp(0)
            output = reduce(torch.add, (out * (own - log_sum).exp().unsqueeze(-1).to(out.dtype) for out, own in parts))
        ctx.save_for_backward(query, output, log_sum, *keys_values)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> Any:
        query, output, log_sum, *keys_values = ctx.saved_tensors
        grad_query, grads = None, []
        for key, value in _pairs(keys_values):
            own, *rest = _causal_backward(pull, query, key, value, output, log_sum, ctx.scale)
            grad_query = own if grad_query is None else grad_query + own
            grads += rest
        return grad_query, None, *grads


def _pairs(keys_values: Any) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(keys_values[::2], keys_values[1::2], strict=True)


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """Causal attention, and the log of its softmax denominator [B, H, T]."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    parts = [
        kernel(query[:, :, rows], key[:, :, :end], value[:, :, :end], 0.0, False, attn_mask=mask, scale=scale)
        for rows, end, mask in _row_blocks(query)
    ]
    # Heads of a token lie side by side, as the kernel itself lays them
    output = torch.cat([out.transpose(1, 2) for out, _ in parts], dim=1).transpose(1, 2)
    return output, torch.cat([own for _, own in parts], dim=2)


def _causal_backward(
    pull: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, log_sum: Tensor, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    grad_query: list[Tensor] = []
    grad_key, grad_value = key.new_empty(0), value.new_empty(0)
    for rows, end, mask in reversed(_row_blocks(query)):  # the last rows have all keys
        own, to_key, to_value = kernel(
            pull[:, :, rows],
            query[:, :, rows],
            key[:, :, :end],
            value[:, :, :end],
            output[:, :, rows],
            log_sum[:, :, rows],
            0.0,
            False,
            attn_mask=mask,
            scale=scale,
        )
        if grad_query:
            grad_key[:, :, :end] += to_key
            grad_value[:, :, :end] += to_value
        else:
            grad_key, grad_value = to_key, to_value
        grad_query.append(own.transpose(1, 2))
    return torch.cat(grad_query[::-1], dim=1).transpose(1, 2), grad_key, grad_value


def _row_blocks(query: Tensor) -> list[tuple[slice, int, Tensor]]:
    """Rows, how many keys they see at most, and their mask (0 or −∞, added to the scores)."""
    tokens = query.shape[2]
    size = min(ROWS, tokens)
    firsts = range(0, tokens, size)
    # Rows from `first` on see all keys before it, and behind it a triangle: one mask serves all, shifted.
    triangle = torch.full((size, size), float("-inf"), dtype=query.dtype, device=query.device).triu(1)
    mask = F.pad(triangle, (firsts[-1], 0))[None, None]
    blocks = []
    for first in firsts:
        end, before = min(first + size, tokens), firsts[-1] - first
        blocks.append((slice(first, end), end, mask[:, :, : end - first, before : before + end]))
    return blocks
