"""Autoencoders as OpenAI released them for GPT-2 (openai/sparse_autoencoder): one ``.pt`` state dict in a folder.

Tensors: ``pre_bias`` [D], ``encoder.weight`` [C, D], ``latent_bias`` [C], ``decoder.weight`` [D, C], beside statistics.
The TopK releases (v5) read layer-normed activations and say so in no tensor: by their convention TopK means layer norm.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from cocomix.concepts.sae import SparseAutoencoder, TopK, Weights
from cocomix.errors import UserError, explained
from cocomix.files import sha256_file

NAMES = {
    "W_enc": "encoder.weight",
    "b_enc": "latent_bias",
    "W_dec": "decoder.weight",
    "b_dec": "pre_bias",
}


def weights_file(folder: Path) -> Path | None:
    """The one ``.pt`` file in a folder, or None."""
    files = sorted(folder.glob("*.pt"))
    return files[0] if len(files) == 1 else None


def load_openai(folder: Path) -> SparseAutoencoder:
    """The autoencoder of OpenAI's layout in ``folder``; raises :class:`UserError` that names what does not fit."""
    path = weights_file(folder)
    assert path is not None
    state = _read(path)
    missing = [name for name in NAMES.values() if name not in state]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: it is no autoencoder of OpenAI's GPT-2 layout")
    if state.get("activation") != "TopK":
        raise UserError(
            f"{path}: activation={state.get('activation')!r} is not supported, only TopK (OpenAI's v5 releases): "
            "choose one of those"
        )
    k = int(state["activation_state_dict"]["k"])
    latents, width = state["encoder.weight"].shape
    wanted = {"encoder.weight": (latents, width), "latent_bias": (latents,), "decoder.weight": (width, latents)}
    for name, shape in {**wanted, "pre_bias": (width,)}.items():
        if tuple(state[name].shape) != shape:
            raise UserError(
                f"{path}: {name} is {list(state[name].shape)} where {list(shape)} is due: download it again"
            )
    if not 1 <= k <= latents:
        raise UserError(f"{path}: k={k} does not fit its {latents} latents: download it again")
    weights = Weights(
        W_enc=state["encoder.weight"].float().t().contiguous(),
        b_enc=state["latent_bias"].float(),
        W_dec=state["decoder.weight"].float().t().contiguous(),
        b_dec=state["pre_bias"].float(),
    )
    return SparseAutoencoder(weights, TopK(k), "layer_norm", fingerprint=sha256_file(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        with explained(path):
            state = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, so it could run code when loaded: convert it to safetensors where you "
            "trust it"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise UserError(f"{path} is truncated or no PyTorch file: download it again") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, not an autoencoder's tensors")
    return state
