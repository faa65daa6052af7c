"""Autoencoders of Gemma Scope: ``params.npz`` (the first release) or ``params.safetensors`` with ``config.json`` (the
second) in a folder. JumpReLU, no bias subtracted from the input (arXiv 2408.05147).

Tensors: ``W_enc`` [D, C], ``b_enc`` [C], ``W_dec`` [C, D], ``b_dec`` [D], ``threshold`` [C]; a lower-case w in
the second.
"""

from __future__ import annotations

import re
from pathlib import Path

from cocomix.concepts.sae import SparseAutoencoder, Threshold, Weights
from cocomix.concepts.sae_files import check_tensors, length, read_tensors
from cocomix.errors import UserError
from cocomix.files import read_json, sha256_file


def load_gemma_scope(path: Path) -> SparseAutoencoder:
    """The autoencoder in ``path``; raises :class:`UserError` that names what does not fit.

    Block and L0 are read from the release's folder names (``layer_12/width_16k/average_l0_82``), where they are kept.
    """
    place = path.resolve().parent
    if "embedding" in place.parts or _is_transcoder(path.parent / "config.json"):
        raise UserError(f"{path} is on embeddings or between modules: use one on a block's output (resid_post)")
    t = {re.sub("^w_", "W_", name): tensor for name, tensor in read_tensors(path).items()}
    latents, width = length(t, "b_enc", path), length(t, "b_dec", path)
    wanted = {
        "W_enc": (width, latents),
        "b_enc": (latents,),
        "W_dec": (latents, width),
        "b_dec": (width,),
        "threshold": (latents,),
    }
    check_tensors(t, wanted, path)
    layer, l0 = (re.search(rf"{word}_(\d+)", "/".join(place.parts[-4:])) for word in ("layer", "average_l0"))
    return SparseAutoencoder(
        Weights(t["W_enc"].float(), t["b_enc"].float(), t["W_dec"].float(), t["b_dec"].float()),
        Threshold(t["threshold"].float()),
        subtract_b_dec=False,
        fingerprint=sha256_file(path),
        block=int(layer[1]) if layer else None,
        stated_l0=float(l0[1]) if l0 else None,
    )


def _is_transcoder(path: Path) -> bool:
    return path.is_file() and "hf_hook_point_out" in read_json(path, "a Gemma Scope configuration")
