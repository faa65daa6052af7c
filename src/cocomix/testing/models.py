"""Tiny backbones and networks, built in milliseconds."""

from __future__ import annotations

from typing import Any

import torch

from cocomix.model.config import CoCoMixConfig
from cocomix.model.modeling import CoCoMixForCausalLM

_COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_GROUPED = {"num_key_value_heads": 2}

TINY_BACKBONES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 64,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "gpt_neox": {**_COMMON, "model_type": "gpt_neox", "rotary_pct": 0.5},
    "llama": {**_COMMON, **_GROUPED, "model_type": "llama"},
    "mistral": {**_COMMON, **_GROUPED, "model_type": "mistral", "sliding_window": 6},
    "qwen2": {**_COMMON, **_GROUPED, "model_type": "qwen2"},
    "qwen3": {**_COMMON, **_GROUPED, "model_type": "qwen3", "head_dim": 12},
    "olmo2": {**_COMMON, **_GROUPED, "model_type": "olmo2"},
    "smollm3": {**_COMMON, **_GROUPED, "model_type": "smollm3", "no_rope_layers": [1, 0, 0, 1]},
    "gemma3_text": {
        **_COMMON,
        **_GROUPED,
        "model_type": "gemma3_text",
        "head_dim": 12,
        "query_pre_attn_scalar": 12,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}
"""One of each family, with what is peculiar to it: sliding windows shorter than the tests' texts, norms on keys,
blocks without positions, rotation of a part."""


TINY_MIXERS: list[dict[str, Any]] = [
    {"mixer": "none"},
    {"mixer": "concept", "mixing": "insert"},
    {"mixer": "concept", "mixing": "memory"},
    {"mixer": "concept", "mixing": "add"},
    {"mixer": "pause", "mixing": "insert"},
    {"mixer": "concept", "mixing": "insert", "slot_base": "copy"},
    {"mixer": "concept", "mixing": "insert", "slot_every": 3},
    {"mixer": "pause", "mixing": "insert", "slot_every": 2, "slot_base": "copy"},
    {"mixer": "concept", "mixing": "insert", "slot_positions": "sequential"},
    {"mixer": "concept", "mixing": "none"},
    {"mixer": "pause", "mixing": "memory"},
    {"mixer": "pause", "mixing": "add"},
    {"mixer": "hidden", "mixing": "insert"},
    {"mixer": "hidden", "mixing": "add"},
]
"""Every mixer and mixing; the first five do for a family that adds nothing to GPT-2 and Llama but its blocks."""


TINY_SIZES = {"insert_at": 2, "num_concepts": 40, "concept_k": 5, "state_size": 24, "state_width": 16}


def tiny_config(
    family: str = "gpt2", vocab_size: int = 101, backbone: dict[str, Any] | None = None, **mixer: Any
) -> CoCoMixConfig:
    """A network of width 32, 4 blocks, insertion at 2, 40 concepts of which 5 are kept, unless told otherwise."""
    text = {
        **TINY_BACKBONES[family],
        "vocab_size": vocab_size,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        "initializer_range": 0.2,  # large enough that a wrong mask or position shows
        **(backbone or {}),
    }
    return CoCoMixConfig(text_config=text, **{**TINY_SIZES, **mixer})


def tiny_model(
    family: str = "gpt2", seed: int = 0, attention: str = "sdpa", backbone: dict[str, Any] | None = None, **mixer: Any
) -> CoCoMixForCausalLM:
    """A :func:`tiny_config` network in evaluation mode."""
    torch.manual_seed(seed)
    config = tiny_config(family, backbone=backbone, **mixer)
    return CoCoMixForCausalLM._from_config(config, attn_implementation=attention).eval()
