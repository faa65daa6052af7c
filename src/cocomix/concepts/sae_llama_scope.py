"""Autoencoders of Llama Scope (arXiv 2410.20526), as its library lm_saes wrote and writes them.

- ``hyperparams.json`` and ``checkpoints/final.safetensors``: ``encoder.weight`` [C, D], ``decoder.weight`` [D, C] and
  biases, in units of activations scaled to an average norm √D (``dataset_average_activation_norm``). For inference the
  library takes the scale out of the biases, brings decoder columns to norm 1, and only then compares with
  ``jump_relu_threshold``, which is one number in the activations' own units.
- ``config.json`` and ``sae_weights.safetensors`` (later, as Llama-Scope-R1-Distill): a threshold a latent
  (``log_jumprelu_threshold``) in units of the scaled activations and times the decoder's norm; the average norm lies
  in the file as ``dataset_average_activation_norm.HOOK``. ``W_E`` [D, C] and ``W_D`` [C, D] are later names.

What is loaded has the scale folded in: it reads and writes the teacher's own activations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from cocomix.concepts.sae import SparseAutoencoder, Threshold, TopK, Weights
from cocomix.concepts.sae_files import check_tensors, length, read_tensors, whole_number
from cocomix.concepts.sae_saelens import block_of
from cocomix.errors import UserError
from cocomix.files import read_json, sha256_file

FIRST, LATER = "hyperparams.json", "config.json"
NAMES = {"W_E": "encoder.weight", "b_E": "encoder.bias", "W_D": "decoder.weight", "b_D": "decoder.bias"}
THRESHOLD, NORM = "log_jumprelu_threshold", "dataset_average_activation_norm"


def load_llama_scope(path: Path) -> SparseAutoencoder:
    """The autoencoder in ``path``, with its configuration beside or above ``checkpoints/``; raises
    :class:`UserError` that names what does not fit."""
    places = [path.parent.parent / FIRST, path.parent / FIRST, path.parent / LATER]
    where = next((place for place in places if place.is_file()), None)
    if where is None:
        raise UserError(f"{path} lacks its {FIRST} or {LATER}: put beside it what the release has")
    config = read_json(where, "a Llama Scope configuration")
    _refuse(config, where)
    t = read_tensors(path)
    norms = {name: t.pop(name) for name in list(t) if name.startswith(NORM)}
    t = {name.removeprefix("activation_function."): tensor for name, tensor in t.items()}
    for new, old in NAMES.items():
        if new in t:
            t[old] = t.pop(new).t() if new.startswith("W") else t.pop(new)
    latents, width = length(t, "encoder.bias", path), whole_number(config, "d_model", where)
    wanted = {"encoder.weight": (latents, width), "encoder.bias": (latents,), "decoder.weight": (width, latents)}
    if config.get("use_decoder_bias", True):
        wanted["decoder.bias"] = (width,)
    if THRESHOLD in t:
        wanted[THRESHOLD] = (latents,)
    check_tensors(t, wanted, path)
    scale = _scale(config, norms, width, where)
    t = {name: tensor.float() for name, tensor in t.items()}
    W_enc, W_dec = t["encoder.weight"].t(), t["decoder.weight"].t()
    b_dec = t["decoder.bias"] / scale if "decoder.bias" in t else W_dec.new_zeros(width)
    b_enc = t["encoder.bias"] / scale
    if config.get("sparsity_include_decoder_norm", True):
        size = W_dec.norm(dim=-1).clamp(min=1e-8)
        W_enc, b_enc, W_dec = W_enc * size, b_enc * size, W_dec / size[:, None]
    return SparseAutoencoder(
        Weights(W_enc.contiguous(), b_enc, W_dec.contiguous(), b_dec),
        _activation(config, t, scale, latents, where),
        subtract_b_dec=bool(config.get("apply_decoder_bias_to_pre_encoder", False)),
        fingerprint=sha256_file(path),
        block=block_of(config.get("hook_point_in"), where),
        stated_l0=float(config["top_k"]) if "top_k" in config and where.name == FIRST else None,
    )


def _refuse(config: dict[str, Any], where: Path) -> None:
    if config.get("hook_point_out", config.get("hook_point_in")) != config.get("hook_point_in"):
        raise UserError(
            f"{where}: it reads {config['hook_point_in']} and predicts {config['hook_point_out']}: an autoencoder of "
            "one activation is wanted, choose one on a block's output"
        )
    if config.get("use_glu_encoder"):
        raise UserError(f"{where}: use_glu_encoder=true is not supported: choose an autoencoder without it")


def _scale(config: dict[str, Any], norms: dict[str, Tensor], width: int, where: Path) -> float:
    """What activations were multiplied by in training."""
    how = config.get("norm_activation", "dataset-wise")
    if how in ("none", "inference"):  # the latter: folded already
        return 1.0
    if how != "dataset-wise":
        raise UserError(f"{where}: norm_activation={how!r} is not supported, only dataset-wise: choose such a one")
    hook = config.get("hook_point_in")
    average = (config.get(NORM) or {}).get("in") or norms.get(f"{NORM}.{hook}")
    if average is None or not float(average) > 0:
        raise UserError(
            f"{where}: norm_activation=dataset-wise, and no {NORM} of {hook} is stored: write it there as "
            f'"{NORM}": {{"in": …}}, or load the release by its name in SAELens (sae=saelens:RELEASE/SAE_ID)'
        )
    return float(width**0.5 / float(average))


def _activation(
    config: dict[str, Any], t: dict[str, Tensor], scale: float, latents: int, where: Path
) -> TopK | Threshold:
    name, common = str(config.get("act_fn", "relu")).lower(), float(config.get("jump_relu_threshold") or 0)
    if THRESHOLD in t:
        return Threshold(t[THRESHOLD].exp() / scale)
    if name == "jumprelu" or (name == "topk" and common > 0):  # found for a TopK one after training
        return Threshold(common)
    if name == "relu":
        return Threshold()
    k = config.get("top_k")
    if name == "topk" and isinstance(k, int) and 1 <= k <= latents:
        return TopK(k)
    raise UserError(f"{where}: act_fn={name!r} with top_k={k} is not supported: choose a jumprelu, topk or relu one")
