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
from cocomix.concepts.sae_saelens import block_of
from cocomix.errors import UserError
from cocomix.files import read_json, sha256_file

ELSEWHERE = re.compile(
    r"embedding|(?:.*[-_])?(?:mlp_out|attn_out|transcoders?|clt)(?:[-_].*)?|.*gemma-scope.*-(?:mlp|att)(?:-.*)?"
)
"""A folder or repository of the releases with what is no block's output."""


def load_gemma_scope(path: Path) -> SparseAutoencoder:
    """The autoencoder in ``path``; raises :class:`UserError` that names what does not fit.

    The block is read from the configuration, or else, and the L0 always, from the release's folder names
    (``layer_12/width_16k/average_l0_82``), where they are kept.
    """
    place = path.parent.resolve()  # the folder's: in the hub's cache the file itself is a link to elsewhere
    block = _block(path, place)
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
    l0 = _last_number("average_l0", place)
    return SparseAutoencoder(
        Weights(t["W_enc"].float(), t["b_enc"].float(), t["W_dec"].float(), t["b_dec"].float()),
        Threshold(t["threshold"].float()),
        subtract_b_dec=False,
        fingerprint=sha256_file(path),
        block=block,
        stated_l0=None if l0 is None else float(l0),
    )


def _block(path: Path, place: Path) -> int | None:
    where = path.parent / "config.json"
    config = read_json(where, "a Gemma Scope configuration") if where.is_file() else {}
    hook = config.get("hf_hook_point_in")
    block = block_of(hook, where)
    other = config.get("hf_hook_point_out") not in (None, hook)
    # A hub's cache keeps the repository's name six folders up.
    if other or (block is None and any(ELSEWHERE.fullmatch(part) for part in place.parts[-6:])):
        raise UserError(f"{path} is on embeddings or between modules: use one on a block's output (resid_post)")
    return _last_number("layer", place) if block is None else block


def _last_number(word: str, place: Path) -> int | None:
    found = re.findall(rf"{word}_(\d+)", "/".join(place.parts[-4:]))
    return int(found[-1]) if found else None
