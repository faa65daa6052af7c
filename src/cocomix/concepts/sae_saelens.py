"""Autoencoders as SAELens 6 saves them for inference; SAELens itself is not imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from cocomix.concepts.sae import SparseAutoencoder, TopK, Weights
from cocomix.errors import UserError, explained
from cocomix.files import read_json, sha256_file

SAELENS_CONFIG, SAELENS_WEIGHTS = "cfg.json", "sae_weights.safetensors"


def load_saelens(folder: Path) -> SparseAutoencoder:
    """A TopK autoencoder as SAELens 6 saves it for inference; SAELens itself is not imported."""
    path = folder / SAELENS_CONFIG
    config = read_json(path, "an SAE's configuration")
    architecture = config.get("architecture")
    if architecture != "topk":
        raise UserError(
            f"{path}: architecture={architecture!r} is not supported, only topk (as SAELens 6 writes it): "
            "load it with SAELens and train or choose a TopK one"
        )
    normalise = config.get("normalize_activations", "none")
    if normalise not in ("none", "layer_norm"):
        raise UserError(
            f"{path}: normalize_activations={normalise!r} is not supported: fold it into the weights with "
            "SAELens (fold_activation_norm_scaling_factor) and save again"
        )
    if config.get("reshape_activations", "none") != "none":
        raise UserError(
            f"{path}: reshape_activations={config['reshape_activations']!r} reads attention heads: an SAE on a "
            "block's output (residual stream) is wanted"
        )
    width, latents, k = (_whole_number(config, key, path) for key in ("d_in", "d_sae", "k"))
    if k > latents:
        raise UserError(f"{path}: k={k} is more than its d_sae={latents} latents: the file is wrong, save it again")
    weights = _read_weights(folder / SAELENS_WEIGHTS, width, latents)
    if config.get("rescale_acts_by_decoder_norm"):
        # Activations are compared after scaling by their decoder row's norm: the same as unit rows.
        norms = weights.W_dec.norm(dim=-1).clamp(min=1e-8)
        weights = Weights(weights.W_enc * norms, weights.b_enc * norms, weights.W_dec / norms[:, None], weights.b_dec)
    return SparseAutoencoder(
        weights,
        TopK(k),
        normalise,
        subtract_b_dec=config.get("apply_b_dec_to_input", True),
        fingerprint=sha256_file(folder / SAELENS_WEIGHTS),
    )


def _whole_number(config: dict[str, Any], key: str, path: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{path}: {key}={value!r} should be a positive whole number: save the SAE again")
    return value


def _read_weights(path: Path, width: int, latents: int) -> Weights:
    wanted = {"W_enc": (width, latents), "b_enc": (latents,), "W_dec": (latents, width), "b_dec": (width,)}
    try:
        with explained(path), safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}): copy or train it again") from error
    for word, names in (("lacks", wanted.keys() - tensors), ("also holds", tensors.keys() - wanted)):
        if names:
            raise UserError(
                f"{path} {word} {', '.join(sorted(names))}: the inference form of a TopK SAE has W_enc, b_enc, "
                "W_dec, b_dec and nothing else (SAELens: save_inference_model)"
            )
    for name, shape in wanted.items():
        found = tuple(tensors[name].shape)
        if found != shape:
            hint = "it is transposed" if found == shape[::-1] else "d_in or d_sae in cfg.json is wrong"
            raise UserError(f"{path}: {name} is {list(found)} where {list(shape)} is due: {hint}, save it again")
        if not torch.isfinite(tensors[name]).all():
            raise UserError(f"{path}: {name} holds values that are not finite: train the SAE again")
    return Weights(**{name: tensors[name].float() for name in wanted})
