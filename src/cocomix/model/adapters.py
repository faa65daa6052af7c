"""How to walk through a transformers backbone: its embedding, blocks, norm; a few lines a family.

A new family is one entry in :data:`ADAPTERS` (and one in ``cocomix.testing.models.TINY_BACKBONES``, which puts it
through the tests of every family). What has to be known of it: the attributes of its embedding, blocks and final norm;
how ids become the states that enter block 0; what its blocks want besides states, mask and cache; and how a block makes
keys and values of given states. Where its attention differs from block to block (sliding windows), the two are kinds of
layer, ``full_attention`` and ``sliding_attention`` as in transformers' ``layer_types``.

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
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as rotate_part
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate
from transformers.pytorch_utils import Conv1D

CACHE_ARGUMENT = "cache" if "cache" in inspect.signature(GPT2Block.forward).parameters else "past_key_values"
"""The name of a cache in the installed transformers' signatures and outputs (renamed between 5.17 and 5.24)."""

KeysValues = tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S K"]]
Arguments = dict[str, Any]

FULL, SLIDING = "full_attention", "sliding_attention"


def layer_kinds(config: Any) -> list[str]:
    """The kind of attention of each block, bottom first."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = [SLIDING if getattr(config, "sliding_window", None) else FULL] * config.num_hidden_layers
    return list(kinds)


def _no_arguments(backbone: Any, states: Tensor, positions: Tensor, kind: str) -> Arguments:
    return {}


def _rotary(backbone: Any, states: Tensor, positions: Tensor, kind: str) -> Arguments:
    return {"position_embeddings": backbone.rotary_emb(states, positions)}


def _rotary_by_kind(backbone: Any, states: Tensor, positions: Tensor, kind: str) -> Arguments:
    return {"position_embeddings": backbone.rotary_emb(states, positions, kind)}


def _plain_embedding(backbone: Any, ids: Tensor, positions: Tensor) -> Tensor:
    return backbone.embed_tokens(ids)


@dataclass(frozen=True)
class Adapter:
    """One backbone family; the defaults are those of Llama and its many relatives."""

    keys_values: Callable[[Any, Float[Tensor, "B S D"], Arguments], KeysValues]
    """(block, states, block arguments) → the keys and values that the block would compute for the states."""
    embedding: str = "embed_tokens"
    """Attribute of the token embedding."""
    blocks: str = "layers"
    """Attribute of the module list of blocks."""
    norm: str = "norm"
    """Attribute of the final norm."""
    cache_argument: str = CACHE_ARGUMENT
    """The name under which a block takes its cache."""
    embed: Callable[[Any, Int[Tensor, "B T"], Int[Tensor, "B T"]], Float[Tensor, "B T D"]] = _plain_embedding
    """(backbone, token ids, positions) → the states that enter block 0."""
    position_embedding: Callable[[Any, Int[Tensor, "B T"]], Float[Tensor, "B T D"]] | None = None
    """(backbone, positions) → learned position embeddings, or None where positions enter by rotation."""
    block_arguments: Callable[[Any, Float[Tensor, "B S D"], Int[Tensor, "B S"], str], Arguments] = _rotary
    """(backbone, states, positions, kind of layer) → what such a block wants besides states, mask and cache."""

    def run_block(
        self, block: nn.Module, states: Float[Tensor, "B S D"], mask: Any, cache: Any, arguments: Arguments
    ) -> Float[Tensor, "B S D"]:
        """The block's output states."""
        taken = {self.cache_argument: cache, "use_cache": cache is not None, **arguments}
        output = block(states, attention_mask=mask, **taken)
        return output[0] if isinstance(output, tuple) else output


def split_heads(states: Float[Tensor, "B S F"], head_size: int) -> Float[Tensor, "B H S K"]:
    """The heads of projected states."""
    return states.unflatten(-1, (-1, head_size)).transpose(1, 2)


def _gpt2(block: Any, states: Tensor, arguments: Arguments) -> KeysValues:
    projection, size = block.attn.c_attn, block.attn.split_size
    if type(projection) is Conv1D:  # keeps [in, out]; the first third makes queries, which nobody asks for here
        kv = F.linear(block.ln_1(states), projection.weight[:, size:].t(), projection.bias[size:])
    else:  # wrapped, by PEFT for instance: its weight alone is not what it computes
        kv = projection(block.ln_1(states))[..., size:]
    keys, values = kv.split(size, dim=-1)
    return split_heads(keys, block.attn.head_dim), split_heads(values, block.attn.head_dim)


def _gpt_neox(block: Any, states: Tensor, arguments: Arguments) -> KeysValues:
    attention = block.attention
    # Rows of the projection lie as query, key, value of head 0, then of head 1, …
    heads = split_heads(attention.query_key_value(block.input_layernorm(states)), 3 * attention.head_size)
    _, keys, values = heads.chunk(3, dim=-1)
    return rotate_part(keys, keys, *arguments["position_embeddings"])[1], values


def _llama(block: Any, states: Tensor, arguments: Arguments) -> KeysValues:
    return _projected(block.self_attn, block.input_layernorm(states), arguments)


def _qwen3(block: Any, states: Tensor, arguments: Arguments) -> KeysValues:
    attention, normed = block.self_attn, block.input_layernorm(states)
    keys = attention.k_norm(split_heads(attention.k_proj(normed), attention.head_dim))
    values = split_heads(attention.v_proj(normed), attention.head_dim)
    return rotate(keys, keys, *arguments["position_embeddings"])[1], values


def _olmo2(block: Any, states: Tensor, arguments: Arguments) -> KeysValues:
    attention = block.self_attn  # norms stand behind attention and MLP, and keys are normed before heads are split
    keys = split_heads(attention.k_norm(attention.k_proj(states)), attention.head_dim)
    values = split_heads(attention.v_proj(states), attention.head_dim)
    return rotate(keys, keys, *arguments["position_embeddings"])[1], values


def _smollm3(block: Any, states: Tensor, arguments: Arguments) -> KeysValues:
    normed, attention = block.input_layernorm(states), block.self_attn
    if attention.use_rope:
        return _projected(attention, normed, arguments)
    # Every fourth block has no positions at all.
    keys, values = attention.k_proj(normed), attention.v_proj(normed)
    return split_heads(keys, attention.head_dim), split_heads(values, attention.head_dim)


def _projected(attention: Any, normed: Tensor, arguments: Arguments) -> KeysValues:
    keys = split_heads(attention.k_proj(normed), attention.head_dim)
    values = split_heads(attention.v_proj(normed), attention.head_dim)
    return rotate(keys, keys, *arguments["position_embeddings"])[1], values


ADAPTERS: dict[str, Adapter] = {
    "gpt2": Adapter(
        _gpt2,
        embedding="wte",
        blocks="h",
        norm="ln_f",
        embed=lambda m, ids, positions: m.drop(m.wte(ids) + m.wpe(positions)),
        position_embedding=lambda m, positions: m.wpe(positions),
        block_arguments=_no_arguments,
    ),
    "gpt_neox": Adapter(
        _gpt_neox,
        embedding="embed_in",
        norm="final_layer_norm",
        cache_argument="layer_past",
        embed=lambda m, ids, positions: m.emb_dropout(m.embed_in(ids)),
    ),
    "llama": Adapter(_llama),
    "mistral": Adapter(_llama),
    "qwen2": Adapter(_llama),
    "qwen3": Adapter(_qwen3),
    "olmo2": Adapter(_olmo2),
    "smollm3": Adapter(_smollm3),
    "gemma3_text": Adapter(_qwen3, block_arguments=_rotary_by_kind),
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
