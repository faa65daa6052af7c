"""Autoencoders as SAELens saves them (versions 5 and 6); SAELens itself is not imported.

``cfg.json`` names the architecture: ``standard`` (ReLU), ``topk``, ``jumprelu`` (also what BatchTopK becomes when it
is saved) or ``gated``. SAELens 5 wrote ``activation_fn_str`` and ``activation_fn_kwargs`` where 6 writes ``topk`` and
``k``; read as ReLU, such a file reconstructs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from cocomix.concepts.sae import Normalise, SparseAutoencoder, Text, Threshold, TopK, Weights
from cocomix.concepts.sae_files import check_tensors, read_tensors, whole_number
from cocomix.errors import UserError
from cocomix.files import read_json, sha256_file

SAELENS_CONFIG, SAELENS_WEIGHTS, SAELENS_SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"

EXTRA: dict[str, set[str]] = {
    "standard": {"b_enc"},
    "topk": {"b_enc"},
    "jumprelu": {"b_enc", "threshold"},
    "gated": {"r_mag", "b_mag", "b_gate"},
}
"""By architecture: tensors [C] beside W_enc, W_dec and b_dec."""

SCALED = "expected_average_only_in"

TEXT: dict[str, type] = {"model_name": str, "prepend_bos": bool, "context_size": int}
"""Facts on what an autoencoder was trained on, by their names in a configuration."""

LAYER = r"(?:^|\.)(?:h|layers?|blocks)\.(\d+)"
"""A block in a module's name; what follows it is a part of the block."""


def load_saelens(path: Path) -> SparseAutoencoder:
    """The autoencoder whose weights are ``path``, with ``cfg.json`` beside."""
    config = read_json(path.parent / SAELENS_CONFIG, "an SAE's configuration")
    scaler = path.parent / SAELENS_SCALER
    scale = read_json(scaler, "SAELens' activation scale").get("scaling_factor") if scaler.is_file() else None
    return from_saelens(config, read_tensors(path), path.parent / SAELENS_CONFIG, path, sha256_file(path), scale)


def from_saelens(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    where: object,
    weights_at: object,
    fingerprint: str,
    scale: float | None = None,
    stated_l0: float | None = None,
) -> SparseAutoencoder:
    """The autoencoder of a configuration and tensors in SAELens' terms.

    ``where`` and ``weights_at`` name them in errors. ``scale``: what SAELens multiplied activations by in training,
    where it is known and not folded into the weights. Raises :class:`UserError` that names what is not supported.
    """
    config = modern(config)
    architecture = config["architecture"]
    if architecture not in EXTRA:
        raise UserError(
            f"{where}: architecture={architecture!r} is not supported, only {', '.join(EXTRA)} (BatchTopK as SAELens' "
            "save_inference_model writes it: jumprelu): choose one of those"
        )
    normalise = _normalise(config, scale, where)
    if config.get("reshape_activations", "none") != "none":
        raise UserError(
            f"{where}: reshape_activations={config['reshape_activations']!r} reads attention heads: an SAE on a "
            "block's output (residual stream) is wanted"
        )
    width, latents = (whole_number(config, key, where) for key in ("d_in", "d_sae"))
    tensors = _unfinetuned(dict(tensors), config, weights_at)
    wanted = {"W_enc": (width, latents), "W_dec": (latents, width), "b_dec": (width,)}
    check_tensors(tensors, wanted | {name: (latents,) for name in sorted(EXTRA[architecture])}, weights_at)
    t = {name: tensor.float() for name, tensor in tensors.items()}
    activation: TopK | Threshold
    if architecture == "topk":
        k = whole_number(config, "k", where)
        if k > latents:
            raise UserError(
                f"{where}: k={k} is more than its d_sae={latents} latents: the file is wrong, save it again"
            )
        activation = TopK(k)
    elif architecture == "gated":
        t["W_enc"], t["b_enc"], threshold = ungated(t["W_enc"], t["r_mag"], t["b_mag"], t["b_gate"])
        activation = Threshold(threshold)
    else:
        activation = Threshold(t["threshold"]) if architecture == "jumprelu" else Threshold()
    weights = Weights(t["W_enc"], t["b_enc"], t["W_dec"], t["b_dec"])
    if config.get("rescale_acts_by_decoder_norm"):
        # Activations are compared after scaling by their decoder row's norm: the same as unit rows.
        norms = weights.W_dec.norm(dim=-1).clamp(min=1e-8)
        weights = Weights(weights.W_enc * norms, weights.b_enc * norms, weights.W_dec / norms[:, None], weights.b_dec)
    if scale is not None and config["normalize_activations"] == SCALED:
        weights = Weights(weights.W_enc * scale, weights.b_enc, weights.W_dec / scale, weights.b_dec / scale)
    return SparseAutoencoder(
        weights,
        activation,
        normalise,
        subtract_b_dec=config.get("apply_b_dec_to_input", True),
        fingerprint=fingerprint,
        block=block_of(config["hook_name"], where),
        stated_l0=stated_l0 or of_kind(float | int, config, "stated_l0"),
        text=Text(*(of_kind(kind, config, key) for key, kind in TEXT.items())),
    )


def modern(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of SAELens 5 or 6 in the words of 6, with its defaults; facts on the hook at the top level."""
    metadata = config.get("metadata") or {}
    function = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    architecture = config.get("architecture", "standard")
    arguments = config.get("activation_fn_kwargs") or {}
    normalise = config.get("normalize_activations") or "none"
    told = {
        "architecture": architecture if function == "relu" else function,
        "normalize_activations": SCALED if normalise is True else normalise,
        "hook_name": config.get("hook_name") or config.get("hook_point") or metadata.get("hook_name"),
        "model_from_pretrained_kwargs": config.get("model_from_pretrained_kwargs")
        or metadata.get("model_from_pretrained_kwargs")
        or {},
    }
    told |= {key: config.get(key, metadata.get(key)) for key in (*TEXT, "stated_l0")}
    return {**config, **told, **({"k": arguments["k"]} if "k" in arguments else {})}


def of_kind(kind: Any, config: Mapping[str, Any], key: str) -> Any:
    """A fact that nothing depends on: None where it is missing or no such value."""
    return config[key] if isinstance(config.get(key), kind) else None


def block_of(hook: str | None, where: object) -> int | None:
    """The block whose output a hook is, in TransformerLens' or a module's name; None where the name says nothing.

    Raises :class:`UserError` when the hook is known to be no block's output.
    """
    if hook is None:
        return None
    if found := re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", hook):
        block = int(found[1]) - (found[2] == "pre")  # what a block reads is the output of the one before
        if block >= 0:
            return block
    elif found := re.search(rf"{LAYER}(?:\.output)?$", hook):
        return int(found[1])
    elif not re.search(rf"hook_|{LAYER}\.|(?:^|\.)(?:embed_tokens|embed_in|wte)$", hook):
        return None
    raise no_block(hook, where)


def no_block(hook: str, where: object) -> UserError:
    """What to say of an autoencoder on ``hook``, which is no block's output."""
    return UserError(
        f"{where}: it reads {hook}, which is no block's output: use an SAE on hook_resid_post (or hook_resid_pre of a "
        "later block)"
    )


def ungated(W_enc: Tensor, r_mag: Tensor, b_mag: Tensor, b_gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Encoder, bias and threshold of the JumpReLU autoencoder that a gated one with tied encoders equals.

    Gate and magnitude are u + b_gate and e^r·u + b_mag of one product u, so the gate is open exactly where the
    magnitude passes b_mag − e^r·b_gate (arXiv 2404.16014, section 3.2).
    """
    factor = r_mag.exp()
    return W_enc * factor, b_mag, b_mag - factor * b_gate


def _normalise(config: dict[str, Any], scale: float | None, where: object) -> Normalise:
    found = config["normalize_activations"]
    if found == SCALED and scale is None:
        raise UserError(
            f"{where}: normalize_activations={found!r} without the scale: fold it into the weights with SAELens "
            f"(fold_activation_norm_scaling_factor) and save again, or put its {SAELENS_SCALER} beside"
        )
    if found not in (SCALED, "none", "layer_norm", "constant_norm_rescale"):
        raise UserError(
            f"{where}: normalize_activations={found!r} is not supported, only none, layer_norm, constant_norm_rescale "
            f"and {SCALED}: choose an SAE with one of those, or fold it into the weights with SAELens and save again"
        )
    if config["model_from_pretrained_kwargs"].get("center_writing_weights"):
        if found in (SCALED, "constant_norm_rescale"):
            raise UserError(
                f"{where}: normalize_activations={found!r} on a model with center_writing_weights is not supported: "
                "choose an SAE of the model as it is"
            )
        return "layer_norm" if found == "layer_norm" else "centre"
    normalise: Normalise = "none" if found == SCALED else next(name for name in get_args(Normalise) if name == found)
    return normalise


def _unfinetuned(tensors: dict[str, Tensor], config: dict[str, Any], where: object) -> dict[str, Tensor]:
    """Without the per-latent factors of SAELens 5's finetuning, which scale what is decoded."""
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        factor = tensors.pop(name, None)
        if factor is None or bool((factor == 1).all()):
            continue
        if not config.get("finetuning_scaling_factor"):
            raise UserError(
                f"{where} holds {name}, and its configuration says finetuning_scaling_factor=false: one of them is "
                "wrong, save it again"
            )
        if factor.shape == tensors["W_dec"].shape[:1]:
            tensors["W_dec"] = tensors["W_dec"] * factor[:, None]
    return tensors
