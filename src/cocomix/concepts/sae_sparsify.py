"""Autoencoders of EleutherAI's sparsify (formerly ``sae``): ``cfg.json`` and ``sae.safetensors`` in a folder.

Tensors: ``encoder.weight`` [C, D], ``encoder.bias`` [C], ``W_dec`` [C, D] (rows are latents, unlike a decoder's
``nn.Linear``), ``b_dec`` [D]. The bias is subtracted from the input; ReLU comes before TopK, which is the same as
behind it. ``normalize_decoder`` and ``multi_topk`` concern training only.
"""

from __future__ import annotations

from pathlib import Path

from cocomix.concepts.sae import SparseAutoencoder, TopK, Weights
from cocomix.concepts.sae_files import check_tensors, read_tensors, whole_number
from cocomix.concepts.sae_saelens import block_of
from cocomix.errors import UserError
from cocomix.files import read_json, sha256_file

CONFIG = "cfg.json"

REFUSED = {
    "transcode": "it predicts a module's output from its input",
    "skip_connection": "part of its output passes its latents by",
    "signed": "its latents may be negative",
}
"""Settings under which it is no sparse autoencoder of one activation."""


def load_sparsify(path: Path) -> SparseAutoencoder:
    """The autoencoder in ``path`` with ``cfg.json`` beside; raises :class:`UserError` that names what does not fit."""
    where = path.parent / CONFIG
    config = read_json(where, "a sparsify configuration")
    for key, reason in REFUSED.items():
        if config.get(key):
            raise UserError(f"{where}: {key}=true: {reason}; choose one without, or train one with 'cocomix sae train'")
    if config.get("activation", "topk") != "topk":
        raise UserError(f"{where}: activation={config['activation']!r} is not supported, only topk: choose such a one")
    width, k = whole_number(config, "d_in", where), whole_number(config, "k", where)
    latents = config.get("num_latents") or width * whole_number(config, "expansion_factor", where)
    if k > latents:
        raise UserError(f"{where}: k={k} is more than its {latents} latents: the file is wrong, save it again")
    tensors = read_tensors(path)
    wanted = {
        "encoder.weight": (latents, width),
        "encoder.bias": (latents,),
        "W_dec": (latents, width),
        "b_dec": (width,),
    }
    check_tensors(tensors, wanted, path)
    weights = Weights(
        W_enc=tensors["encoder.weight"].float().t().contiguous(),
        b_enc=tensors["encoder.bias"].float(),
        W_dec=tensors["W_dec"].float(),
        b_dec=tensors["b_dec"].float(),
    )
    # A hook point is a folder's name: "layers.5" is that module's output.
    block = block_of(path.parent.resolve().name, path.parent)
    return SparseAutoencoder(weights, TopK(k), fingerprint=sha256_file(path), block=block)
