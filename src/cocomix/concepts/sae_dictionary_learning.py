"""Autoencoders of dictionary_learning: ``ae.pt``, a state dict, and mostly ``config.json`` in a folder.

The class decides the convention, and the files name it only in ``config.json``. Where there is none, the names of the
tensors tell most classes apart; AutoEncoderTopK and BatchTopKSAE have the same names, so one of them is not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cocomix.concepts.sae import SparseAutoencoder, Text, Threshold, TopK, Weights
from cocomix.concepts.sae_files import check_tensors, length, read_tensors, whole_number
from cocomix.concepts.sae_saelens import block_of, no_block, of_kind, ungated
from cocomix.errors import UserError, near_name
from cocomix.files import read_json, sha256_file

CONFIG = "config.json"

LINEAR = {"encoder.weight": "CD", "encoder.bias": "C", "decoder.weight": "DC"}
PARAMETERS = {"W_enc": "DC", "b_enc": "C", "W_dec": "CD", "b_dec": "D"}


class Layout(NamedTuple):
    """A class of dictionary_learning in the file."""

    shapes: dict[str, str]
    """Tensors and their dimensions: C latents, D hidden size."""
    latent_bias: str
    bias: str
    """The decoder's bias."""
    subtract: bool
    """Whether the bias is subtracted from the input."""
    activation: Callable[[dict[str, Any], Path], TopK | Threshold]
    plain: tuple[str, ...] = ()
    """Numbers beside the tensors."""


def _k(state: dict[str, Any], path: Path) -> int:
    if isinstance(state.get("k"), Tensor) and state["k"].numel() == 1:
        return whole_number({"k": state["k"].item()}, "k", path)
    raise UserError(f"{path} lacks k, and no {CONFIG} beside it says it: save it again, or download both again")


def _stated_k(state: dict[str, Any], trainer: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The configuration's k, as a state dict of later versions holds it."""
    if "k" not in trainer:
        return {}
    k = whole_number(trainer, "k", path.parent / CONFIG)
    if "k" in state and _k(state, path) != k:
        raise UserError(
            f"{path} has k={_k(state, path)}, its {CONFIG} k={k}: one of them is wrong, download both again"
        )
    return {"k": torch.tensor(k)}


def _topk(state: dict[str, Any], path: Path) -> TopK | Threshold:
    k, latents = _k(state, path), len(state["encoder.bias"])
    if k > latents:
        raise UserError(f"{path}: k={k} does not fit its {latents} latents: download it again")
    return TopK(k)


def _batch_topk(state: dict[str, Any], path: Path) -> TopK | Threshold:
    threshold = state.get("threshold")
    if not isinstance(threshold, Tensor) or threshold.numel() != 1 or float(threshold) < 0:
        raise UserError(
            f"{path}: its threshold was never estimated, so that it decides nothing: train it past "
            "threshold_start_step, or choose a finished one"
        )
    return Threshold(float(threshold))


CLASSES: dict[str, Layout] = {
    "AutoEncoder": Layout({**LINEAR, "bias": "D"}, "encoder.bias", "bias", True, lambda *_: Threshold()),
    "AutoEncoderNew": Layout(
        {**LINEAR, "decoder.bias": "D"}, "encoder.bias", "decoder.bias", False, lambda *_: Threshold()
    ),
    "AutoEncoderTopK": Layout({**LINEAR, "b_dec": "D"}, "encoder.bias", "b_dec", True, _topk, ("k", "threshold")),
    "BatchTopKSAE": Layout({**LINEAR, "b_dec": "D"}, "encoder.bias", "b_dec", True, _batch_topk, ("k", "threshold")),
    "MatryoshkaBatchTopKSAE": Layout(
        PARAMETERS, "b_enc", "b_dec", True, _batch_topk, ("k", "threshold", "group_sizes")
    ),
    "JumpReluAutoEncoder": Layout(
        {**PARAMETERS, "threshold": "C"},
        "b_enc",
        "b_dec",
        False,
        lambda state, _: Threshold(state["threshold"].float()),
    ),
    "GatedAutoEncoder": Layout(
        {
            "encoder.weight": "CD",
            "decoder.weight": "DC",
            "decoder_bias": "D",
            "r_mag": "C",
            "mag_bias": "C",
            "gate_bias": "C",
        },
        "mag_bias",
        "decoder_bias",
        True,
        lambda state, _: Threshold(_gate(state)[2]),
    ),
}


def load_dictionary_learning(path: Path) -> SparseAutoencoder:
    """The autoencoder in ``path``, with ``config.json`` beside where there is one; raises :class:`UserError` that
    names what does not fit."""
    state = read_tensors(path)
    trainer, buffer = (_part(path.parent / CONFIG, part) for part in ("trainer", "buffer"))
    name = _class(state, trainer, path)
    layout = CLASSES[name]
    state |= _stated_k(state, trainer, path) if "k" in layout.plain else {}
    sizes = {"C": length(state, layout.latent_bias, path), "D": length(state, layout.bias, path)}
    wanted = {tensor: tuple(sizes[d] for d in dims) for tensor, dims in layout.shapes.items()}
    check_tensors(state, wanted, path, ignored=layout.plain)
    tensors = {tensor: state[tensor].float() for tensor in wanted}
    activation = layout.activation(state, path)
    W_enc = tensors["W_enc"] if "W_enc" in tensors else tensors["encoder.weight"].t()
    W_dec = tensors["W_dec"] if "W_dec" in tensors else tensors["decoder.weight"].t()
    if name == "GatedAutoEncoder":
        W_enc = _gate(state)[0]
    weights = Weights(W_enc.contiguous(), tensors[layout.latent_bias], W_dec.contiguous(), tensors[layout.bias])
    return SparseAutoencoder(
        weights,
        activation,
        subtract_b_dec=layout.subtract,
        fingerprint=sha256_file(path),
        block=_block(trainer, buffer, path.parent / CONFIG),
        text=Text(of_kind(str, trainer, "lm_name"), context_size=of_kind(int, buffer, "ctx_len")),
        stated_l0=float(_k(state, path)) if "k" in state and activation.k is None else None,
    )


def _gate(state: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    names = ("encoder.weight", "r_mag", "mag_bias", "gate_bias")
    W_enc, r_mag, mag_bias, gate_bias = (state[name].float() for name in names)
    return ungated(W_enc.t(), r_mag, mag_bias, gate_bias)


def _part(path: Path, part: str) -> dict[str, Any]:
    found = read_json(path, "a dictionary_learning configuration").get(part) if path.is_file() else None
    return found if isinstance(found, dict) else {}


def _class(state: dict[str, Any], trainer: dict[str, Any], path: Path) -> str:
    """The class that the configuration names, or the one that the tensors' names tell."""
    if (name := trainer.get("dict_class")) is not None:
        if name not in CLASSES:
            raise UserError(
                f"{path.parent / CONFIG}: dict_class={name!r} is not supported{near_name(str(name), CLASSES)}, only "
                f"{', '.join(CLASSES)}: choose one of those"
            )
        return str(name)
    differences = {name: len({*layout.shapes, *layout.plain} ^ set(state)) for name, layout in CLASSES.items()}
    least = min(differences.values())
    likely = [name for name, difference in differences.items() if difference == least]
    if likely == ["AutoEncoderTopK", "BatchTopKSAE"] and "threshold" in state:
        raise UserError(
            f"{path} may be an AutoEncoderTopK or a BatchTopKSAE: put the {CONFIG} that dictionary_learning wrote for "
            "it beside"
        )
    return likely[0]  # without a threshold it is of a time before BatchTopKSAE


def _block(trainer: dict[str, Any], buffer: dict[str, Any], where: Path) -> int | None:
    """Named only where the activations are said to be a residual stream's; raises :class:`UserError` where they are
    said to be something else: a module's input, or a part of a block."""
    name = str(trainer.get("submodule_name") or "")
    if buffer.get("io") == "in":
        raise no_block(f"the input of {name or 'a module'}", where)
    if re.search(r"mlp|attn|attention|resid_(?:pre|mid)", name):
        raise no_block(name, where)
    if name.startswith("resid_post") and isinstance(trainer.get("layer"), int):
        return int(trainer["layer"])
    return block_of(name, where)
