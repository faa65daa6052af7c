"""Autoencoders as OpenAI released them for GPT-2 (openai/sparse_autoencoder): one ``.pt`` state dict in a folder.

Tensors: ``pre_bias`` [D], ``encoder.weight`` [C, D], ``latent_bias`` [C], ``decoder.weight`` [D, C], beside statistics.
Releases v1 and v4 have ReLU and read activations as they are; the v5 ones have TopK and read layer-normed activations.
No tensor says so: by their convention TopK means layer norm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cocomix.concepts.sae import Normalise, SparseAutoencoder, Threshold, TopK, Weights
from cocomix.concepts.sae_files import check_tensors, length, read_tensors, whole_number
from cocomix.errors import UserError
from cocomix.files import sha256_file

STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def load_openai(path: Path) -> SparseAutoencoder:
    """The autoencoder of OpenAI's layout in ``path``; raises :class:`UserError` that names what does not fit."""
    state = read_tensors(path)
    if "decoder.linear.weight" in state:  # their tied decoder is the encoder's module
        state["decoder.weight"] = state.pop("decoder.linear.weight").t()
    latents, width = length(state, "latent_bias", path), length(state, "pre_bias", path)
    wanted = {
        "encoder.weight": (latents, width),
        "latent_bias": (latents,),
        "decoder.weight": (width, latents),
        "pre_bias": (width,),
    }
    activation, normalise = _activation(state, latents, path)
    words = {name for name in state if name.split(".")[0] in ("activation", "activation_state_dict")}
    check_tensors(state, wanted, path, ignored={*STATISTICS, *words})
    weights = Weights(
        W_enc=state["encoder.weight"].float().t().contiguous(),
        b_enc=state["latent_bias"].float(),
        W_dec=state["decoder.weight"].float().t().contiguous(),
        b_dec=state["pre_bias"].float(),
    )
    return SparseAutoencoder(weights, activation, normalise, fingerprint=sha256_file(path))


def _activation(state: dict[str, Any], latents: int, path: Path) -> tuple[TopK | Threshold, Normalise]:
    name = state.get("activation", "ReLU")
    if name == "ReLU":
        return Threshold(), "none"
    arguments = state.get("activation_state_dict") or {}
    if name != "TopK" or arguments.get("postact_fn", "ReLU") != "ReLU":
        shown = name if name != "TopK" else f"TopK with {arguments['postact_fn']}"
        raise UserError(
            f"{path}: activation {shown} is not supported, only ReLU and TopK with ReLU: choose one of those"
        )
    k = whole_number(arguments, "k", path)
    if k > latents:
        raise UserError(f"{path}: k={k} does not fit its {latents} latents: download it again")
    return TopK(k), "layer_norm"
