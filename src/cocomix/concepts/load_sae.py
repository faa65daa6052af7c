"""A folder → its sparse autoencoder, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.sae_openai import load_openai, weights_file
from cocomix.concepts.sae_saelens import SAELENS_CONFIG, SAELENS_WEIGHTS, load_saelens
from cocomix.errors import UserError
from cocomix.files import sha256_file

LOADERS: list[tuple[Callable[[Path], bool], Callable[[Path], SparseAutoencoder]]] = [
    (lambda folder: (folder / SAELENS_CONFIG).is_file() and (folder / SAELENS_WEIGHTS).is_file(), load_saelens),
    (lambda folder: weights_file(folder) is not None, load_openai),
]
"""Formats: whether a folder is of it, and how it is loaded."""


def check_folder(folder: Path | str) -> None:
    """Raises :class:`UserError` when there is no such folder."""
    if not Path(folder).is_dir():
        raise UserError(f"sae={folder} is no folder: train one with 'cocomix sae train', or give its folder")


def load_sae(folder: Path | str, device: torch.device | str = "cpu") -> SparseAutoencoder:
    """The autoencoder in ``folder``, on ``device``.

    Raises :class:`UserError` when the folder is in no known format, or its files do not fit together.
    """
    folder = Path(folder)
    check_folder(folder)
    for recognises, load in LOADERS:
        if recognises(folder):
            return load(folder).to(device)
    raise UserError(
        f"sae={folder} holds no sparse autoencoder in a known format: wanted are SAELens's cfg.json and "
        "sae_weights.safetensors, or one .pt file of OpenAI's GPT-2 layout"
    )


def sae_fingerprint(folder: Path | str) -> str:
    """SHA-256 of the weights' file, without loading it."""
    path = Path(folder) / SAELENS_WEIGHTS
    other = weights_file(Path(folder))
    if not path.is_file() and other is None:
        raise UserError(f"sae={folder} holds no {SAELENS_WEIGHTS}: give the folder of a sparse autoencoder")
    return sha256_file(path if path.is_file() or other is None else other)
