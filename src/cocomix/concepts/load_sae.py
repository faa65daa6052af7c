"""A folder or a release's name → its sparse autoencoder, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.sae_dictionary_learning import load_dictionary_learning
from cocomix.concepts.sae_files import SUFFIXES, tensor_names
from cocomix.concepts.sae_gemma_scope import load_gemma_scope
from cocomix.concepts.sae_llama_scope import load_llama_scope
from cocomix.concepts.sae_openai import load_openai
from cocomix.concepts.sae_release import is_release, load_release, release_fingerprint
from cocomix.concepts.sae_saelens import load_saelens
from cocomix.concepts.sae_sparsify import load_sparsify
from cocomix.errors import UserError
from cocomix.files import sha256_file


class Format(NamedTuple):
    """A file format: a file is of it when it holds one of its ``own`` names and none that is ``foreign``."""

    name: str
    suffixes: tuple[str, ...]
    own: frozenset[str]
    foreign: frozenset[str]
    load: Callable[[Path], SparseAutoencoder]
    """From the file with the weights; what else it needs lies beside."""


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


PICKLED = (".pt", ".pth")

LOADERS: list[Format] = [
    Format(
        "SAELens",
        (".safetensors",),
        _names("W_enc b_enc b_gate threshold"),
        _names("w_enc w_dec W_E W_D"),
        load_saelens,
    ),
    Format("Gemma Scope", (".npz",), _names("W_enc W_dec w_enc w_dec"), frozenset(), load_gemma_scope),
    Format("Gemma Scope 2", (".safetensors",), _names("w_enc w_dec"), _names("W_enc"), load_gemma_scope),
    Format(
        "sparsify",
        (".safetensors",),
        _names("encoder.weight encoder.bias"),
        _names("decoder.weight decoder.bias"),
        load_sparsify,
    ),
    Format(
        "Llama Scope",
        (".safetensors",),
        _names("decoder.weight decoder.bias W_E b_E W_D b_D"),
        frozenset(),
        load_llama_scope,
    ),
    Format("OpenAI", PICKLED, _names("pre_bias latent_bias"), frozenset(), load_openai),
    Format(
        "dictionary_learning",
        PICKLED,
        _names("encoder.weight decoder.weight W_enc W_dec"),
        _names("pre_bias latent_bias"),
        load_dictionary_learning,
    ),
]
"""One row a format; a new one is a file with its loader, and its row."""


def check_folder(name: Path | str) -> None:
    """Raises :class:`UserError` when ``name`` is neither a release's name nor a folder that is there."""
    if not is_release(str(name)) and not Path(name).is_dir():
        raise UserError(
            f"sae={name} is no folder: train one with 'cocomix sae train', or give a folder or saelens:RELEASE/SAE_ID"
        )


def load_sae(name: Path | str, device: torch.device | str = "cpu") -> SparseAutoencoder:
    """The autoencoder in a folder of any format, or of a release ``saelens:RELEASE/SAE_ID``, on ``device``.

    Raises :class:`UserError` when the folder is in no known format, when it holds two autoencoders, or when its files
    do not fit together.
    """
    check_folder(name)
    if is_release(str(name)):
        return load_release(str(name)).to(device)
    form, path = find(Path(name))
    return form.load(path).to(device)


def sae_fingerprint(name: Path | str) -> str:
    """SHA-256 of the weights' file, without loading it; of a release, of its tensors."""
    check_folder(name)
    return release_fingerprint(str(name)) if is_release(str(name)) else sha256_file(find(Path(name))[1])


def find(folder: Path) -> tuple[Format, Path]:
    """The format of a folder and its file with the weights, by what the files hold.

    Raises :class:`UserError` when there is none or more than one, or the only candidate cannot be read.
    """
    found: list[tuple[Format, Path]] = []
    unreadable: list[UserError] = []
    for path in sorted([*folder.iterdir(), folder / "checkpoints" / "final.safetensors"]):
        if path.suffix not in SUFFIXES or not path.is_file():
            continue
        try:
            names = tensor_names(path)
        except UserError as error:
            unreadable.append(error)
            continue
        found += [
            (form, path)
            for form in LOADERS
            if path.suffix in form.suffixes and form.own & names and not form.foreign & names
        ]
    if len(found) > 1:
        files = " and ".join(f"{path.name} ({form.name})" for form, path in found)
        raise UserError(f"sae={folder} holds more than one autoencoder, {files}: give a folder with one of them")
    if found:
        return found[0]
    if unreadable:
        raise unreadable[0]
    raise UserError(
        f"sae={folder} holds no sparse autoencoder in a known format: wanted are the files of one by SAELens "
        "(cfg.json and sae_weights.safetensors), OpenAI (.pt), sparsify (cfg.json and sae.safetensors), "
        "dictionary_learning (ae.pt), Gemma Scope (params.npz) or Llama Scope"
    )
