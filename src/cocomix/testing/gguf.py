"""A tiny GGUF file, written as llama.cpp's converter does it: its names, its order of rotary pairs, its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tiny_gguf(file: Path, llama: Path, quantised: str = "Q8_0", scaling: float | None = None) -> Path:
    """Writes a Llama (the folder of a :func:`cocomix.testing.teachers.tiny_teacher`) and its tokenizer as ``file``.

    Matrices are stored in the GGUF type ``quantised``, vectors in float32. ``scaling``: a factor of rotary positions
    to state.
    """
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((llama / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    if scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling)
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, json.loads((llama / "tokenizer.json").read_text()), config["eos_token_id"])
    kind = gguf.GGMLQuantizationType[quantised]
    for name, weight in load_file(llama / "model.safetensors").items():
        if name.endswith("q_proj.weight"):
            weight = _rotary_pairs(weight, config["num_attention_heads"])
        if name.endswith("k_proj.weight"):
            weight = _rotary_pairs(weight, config["num_key_value_heads"])
        if weight.ndim == 1:
            writer.add_tensor(_name(name), weight)
        else:
            writer.add_tensor(_name(name), gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: Any, tokenizer: dict[str, Any], eos: int) -> None:
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {entry["content"] for entry in tokenizer["added_tokens"]}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in special else 1 for token, _ in vocabulary])  # 3: control, 1: normal
    writer.add_token_merges(merges)
    writer.add_bos_token_id(eos)
    writer.add_eos_token_id(eos)


def _rotary_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """transformers rotates the halves of a head, llama.cpp neighbours: rows change their places."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, number, part = stem.split(".", 3)
        return f"blk.{number}.{TENSORS[part]}.weight"
    return f"{TENSORS[stem]}.weight"
