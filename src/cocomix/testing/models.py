"""Tiny backbones and networks, built in milliseconds."""

from __future__ import annotations

from typing import Any

import torch

from cocomix.model.config import CoCoMixConfig
from cocomix.model.modeling import CoCoMixForCausalLM

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
    "llama": {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    },
}


def tiny_config(
    family: str = "gpt2", vocab_size: int = 101, backbone: dict[str, Any] | None = None, **mixer: Any
) -> CoCoMixConfig:
    """A network of width 32, 4 blocks, insertion at 2, 40 concepts of which 5 are kept, unless told otherwise."""
    text = {
        **TINY_BACKBONES[family],
        "vocab_size": vocab_size,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "initializer_range": 0.2,  # large enough that a wrong mask or position shows
        **(backbone or {}),
    }
    return CoCoMixConfig(text_config=text, **{"insert_at": 2, "num_concepts": 40, "concept_k": 5, **mixer})


def tiny_model(
    family: str = "gpt2", seed: int = 0, attention: str = "sdpa", backbone: dict[str, Any] | None = None, **mixer: Any
) -> CoCoMixForCausalLM:
    """A :func:`tiny_config` network in evaluation mode."""
    torch.manual_seed(seed)
    config = tiny_config(family, backbone=backbone, **mixer)
    return CoCoMixForCausalLM._from_config(config, attn_implementation=attention).eval()
