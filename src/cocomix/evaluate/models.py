"""Any causal model that a user names, also in a GGUF file; what its weights are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from cocomix.data.gguf import find_gguf, quantisation
from cocomix.data.tokenizer import tokenizer_hash, tokenizer_in
from cocomix.devices import pick_device
from cocomix.files import sha256_json
from cocomix.model.load import load_model

OF_A_COPY = ("_name_or_path", "_commit_hash", "transformers_version")
"""Entries of a configuration that differ between copies of one model."""


def load_any(where: str, device: str = "cpu") -> tuple[Any, Any]:
    """Model (evaluation mode) and tokenizer from a run folder, an export or any model's folder, a GGUF file or a folder
    with one (dequantised to float32), or a hub id.

    Raises :class:`cocomix.errors.UserError` where there is no such thing, or it is damaged.
    """
    path, option = Path(where).expanduser(), f"model={where}"
    described = any((path / name).is_file() for name in ("config.json", "recipe.yaml"))
    gguf = find_gguf(path, option) if path.exists() and not described else None
    if gguf is None:
        return load_model(where, device)
    quantisation(gguf)  # says plainly what is wrong with a damaged file
    model: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    return model.to(pick_device(device)).eval(), tokenizer_in(gguf, option)


def model_fingerprint(model: Any, tokenizer: Any) -> str:
    """Hash over the configuration, over names, types and values of the weights, and over the tokenizer: what decides a
    model's scores."""
    digest = hashlib.sha256(tokenizer_hash(tokenizer).encode())
    digest.update(sha256_json(_of_the_network(json.loads(model.config.to_json_string(use_diff=False)))).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _of_the_network(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, and those inside it, without where it was read from and which version wrote it."""
    return {
        key: _of_the_network(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in OF_A_COPY
    }
