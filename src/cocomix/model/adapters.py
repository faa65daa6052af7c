"""How to walk through a transformers backbone: its embedding, blocks, norm; a few lines a family.

Shapes: B batch, T tokens, S positions of a stream, D hidden size, H key-value heads, K head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

CACHE_ARGUMENT = "cache" if "cache" in inspect.signature(GPT2Block.forward).parameters else "past_key_values"
"""The name of a cache in the installed transformers' signatures and outputs (renamed between 5.17 and 5.24)."""

KeysValues = tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S K"]]


@dataclass(frozen=True)
class Adapter:
    """One backbone family."""

    embedding: str
    """Attribute of the token embedding."""
    blocks: str
    """Attribute of the module list of blocks."""
    norm: str
    """Attribute of the final norm."""
    embed: Callable[[Any, Int[Tensor, "B T"], Int[Tensor, "B T"]], Float[Tensor, "B T D"]]
    """(backbone, token ids, positions) → the states that enter block 0."""
    position_embedding: Callable[[Any, Int[Tensor, "B T"]], Float[Tensor, "B T D"]] | None
    """(backbone, positions) → learned position embeddings, or None where positions enter by rotation."""
    block_arguments: Callable[[Any, Float[Tensor, "B S D"], Int[Tensor, "B S"]], dict[str, Any]]
    """(backbone, states, positions) → what each block wants besides states, mask and cache."""
    keys_values: Callable[[Any, Float[Tensor, "B S D"], dict[str, Any]], KeysValues]
    """(block, states, block arguments) → the keys and values that the block would compute for the states."""

    def run_block(
        self,
        block: nn.Module,
        states: Float[Tensor, "B S D"],
        mask: Any,
        cache: Any,
        arguments: dict[str, Any],
    ) -> Float[Tensor, "B S D"]:
        """The block's output states."""
        output = block(states, attention_mask=mask, **{CACHE_ARGUMENT: cache}, use_cache=cache is not None, **arguments)
        return output[0] if isinstance(output, tuple) else output


def _gpt2_keys_values(block: Any, states: Tensor, arguments: dict[str, Any]) -> KeysValues:
    projection, size = block.attn.c_attn, block.attn.split_size
    # Conv1D keeps [in, out]; the first third makes queries, which nobody asks for here.
    kv = F.linear(block.ln_1(states), projection.weight[:, size:].t(), projection.bias[size:])
    keys, values = kv.split(size, dim=-1)
    return _split_heads(keys, block.attn.head_dim), _split_heads(values, block.attn.head_dim)


def _llama_keys_values(block: Any, states: Tensor, arguments: dict[str, Any]) -> KeysValues:
    attention, normed = block.self_attn, block.input_layernorm(states)
    keys = _split_heads(attention.k_proj(normed), attention.head_dim)
    values = _split_heads(attention.v_proj(normed), attention.head_dim)
    cos, sin = arguments["position_embeddings"]
    _, keys = apply_rotary_pos_emb(keys, keys, cos, sin)
    return keys, values


def _split_heads(states: Float[Tensor, "B S F"], head_size: int) -> Float[Tensor, "B H S K"]:
    return states.unflatten(-1, (-1, head_size)).transpose(1, 2)


ADAPTERS: dict[str, Adapter] = {
    "gpt2": Adapter(
        embedding="wte",
        blocks="h",
        norm="ln_f",
        embed=lambda m, ids, positions: m.drop(m.wte(ids) + m.wpe(positions)),
        position_embedding=lambda m, positions: m.wpe(positions),
        block_arguments=lambda m, states, positions: {},
        keys_values=_gpt2_keys_values,
    ),
    "llama": Adapter(
        embedding="embed_tokens",
        blocks="layers",
        norm="norm",
        embed=lambda m, ids, positions: m.embed_tokens(ids),
        position_embedding=None,
        block_arguments=lambda m, states, positions: {"position_embeddings": m.rotary_emb(states, positions)},
        keys_values=_llama_keys_values,
    ),
}
"""Families by the ``model_type`` of their transformers configuration."""


def adapter_for(model_type: str) -> Adapter:
    """The adapter of a family; raises :class:`ValueError` that lists the known ones."""
    if model_type not in ADAPTERS:
        raise ValueError(f"backbone model_type={model_type!r} has no adapter; known: {', '.join(sorted(ADAPTERS))}")
    return ADAPTERS[model_type]


def check_positions(config: Any, adapter: Adapter, last: int) -> None:
    """Raises :class:`ValueError` when position ``last`` lies beyond a table of learned positions."""
    limit = config.max_position_embeddings
    if adapter.position_embedding is not None and last >= limit:
        raise ValueError(f"the sequence has {last + 1} tokens, the backbone's position table holds {limit}")


def interleave(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """first₀ second₀ first₁ second₁ … along ``dim``."""
    dim = dim % first.dim()
    return torch.stack((first, second), dim=dim + 1).flatten(dim, dim + 1)
