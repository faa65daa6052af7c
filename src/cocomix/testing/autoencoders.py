"""One planted autoencoder in every file format, written by the library that owns it where it is a Python package."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from cocomix.testing.teachers import write_sae


class Planted(NamedTuple):
    """An autoencoder that explains its tokens: each is b_dec and ``k`` atoms. The bias is subtracted from the input."""

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    threshold: torch.Tensor
    """A JumpReLU threshold a latent: active ones pass it, the others do not."""
    k: int
    x: torch.Tensor
    """Tokens [N, D]. Without their bias they have mean 0 and unbiased deviation 1: layer norm changes nothing."""


def planted_sae(biased: bool = True, width: int = 24, latents: int = 20, k: int = 3, tokens: int = 64) -> Planted:
    """Tensors and tokens; decoder rows have norms between 0.5 and 2. ``biased=False``: b_dec is 0."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    ones = torch.ones(width, 1)
    basis = torch.linalg.qr(torch.cat([ones, torch.randn(width, latents, generator=generator)], dim=1)).Q
    atoms = basis[:, 1:].T  # orthonormal, and orthogonal to the vector of ones
    coefficients = torch.zeros(tokens, latents)
    active = torch.rand(tokens, latents, generator=generator).topk(k).indices
    coefficients.scatter_(1, active, uniform(1.0, 2.0, tokens, k))
    coefficients *= (width - 1) ** 0.5 / coefficients.norm(dim=-1, keepdim=True)
    size = uniform(0.5, 2.0, latents, 1)
    b_dec = torch.randn(width, generator=generator) * biased
    return Planted(
        (atoms / size).T.contiguous(),
        torch.full((latents,), -0.01),
        atoms * size,
        b_dec,
        uniform(0.2, 0.4, latents),
        k,
        coefficients @ atoms + b_dec,
    )


P = planted_sae()
C, D = P.W_dec.shape
UNSUBTRACTED = P.b_enc - P.b_dec @ P.W_enc
"""The planted encoder's bias where a format does not subtract b_dec from the input."""

Reconstruct = Callable[[torch.Tensor], torch.Tensor]


class Made(NamedTuple):
    """A folder in a format, its file with the weights, and what the library that owns it reconstructs."""

    path: Path
    owner: Reconstruct | None = None

    @property
    def folder(self) -> Path:
        """What is given as ``sae=``."""
        return self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path.parent


@lru_cache
def dictionary_learning() -> dict[str, Any]:
    """Its classes by name. The package's own ``__init__`` wants nnsight, which nothing here needs: it is left out."""
    found = importlib.util.find_spec("dictionary_learning")
    assert found is not None, "installed by make test"
    package = types.ModuleType("dictionary_learning")
    package.__path__ = list(found.submodule_search_locations or [])
    sys.modules["dictionary_learning"] = package
    names: dict[str, Any] = {}
    for module in ("dictionary", "trainers.top_k", "trainers.batch_top_k", "trainers.matryoshka_batch_top_k"):
        names |= vars(importlib.import_module(f"dictionary_learning.{module}"))
    return names


def _linear(ae: Any, b_enc: torch.Tensor) -> None:
    ae.encoder.weight.data, ae.encoder.bias.data = P.W_enc.T.clone(), b_enc.clone()
    ae.decoder.weight.data = P.W_dec.T.clone()


def _parameters(ae: Any, b_enc: torch.Tensor) -> None:
    for name, value in {"W_enc": P.W_enc, "b_enc": b_enc, "W_dec": P.W_dec, "b_dec": P.b_dec}.items():
        getattr(ae, name).data = value.clone()


def _dictionary_learning(name: str, folder: Path) -> Made:
    sizes = (D, C, P.k) if "TopK" in name else (D, C)
    ae = dictionary_learning()[name](*sizes, **({"group_sizes": [5, 5, C - 10]} if name.startswith("Matry") else {}))
    if name in ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"):
        _parameters(ae, UNSUBTRACTED if name == "JumpReluAutoEncoder" else P.b_enc)
    elif name == "GatedAutoEncoder":
        ae.encoder.weight.data, ae.decoder.weight.data = P.W_enc.T.clone(), P.W_dec.T.clone()
        ae.decoder_bias.data, ae.mag_bias.data = P.b_dec.clone(), P.b_enc.clone()
        ae.r_mag.data, ae.gate_bias.data = torch.linspace(-0.01, 0.01, C), -P.threshold
    else:
        _linear(ae, UNSUBTRACTED if name == "AutoEncoderNew" else P.b_enc)
        bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(name, "b_dec")
        ae.get_parameter(bias).data = P.b_dec.clone()
    if "Batch" in name:
        ae.threshold.fill_(0.3)
    if name == "JumpReluAutoEncoder":
        ae.threshold.data = P.threshold.clone()
    torch.save(ae.state_dict(), folder / "ae.pt")
    trainer = {"dict_class": name, "layer": 2, "submodule_name": "resid_post_layer_2", "lm_name": "tiny"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 8}}))
    return Made(folder / "ae.pt", lambda x: ae(x).detach())


DICTIONARIES = ("AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
                "JumpReluAutoEncoder", "GatedAutoEncoder")  # fmt: skip


def _sparsify(folder: Path) -> Made:
    sparsify: Any = importlib.import_module("sparsify")
    coder = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(k=P.k, num_latents=C))
    coder.encoder.weight.data, coder.encoder.bias.data = P.W_enc.T.clone(), P.b_enc.clone()
    coder.W_dec.data, coder.b_dec.data = P.W_dec.clone(), P.b_dec.clone()
    coder.save_to_disk(folder)
    return Made(folder / "sae.safetensors", lambda x: coder(x).sae_out.detach())


def _openai(version: str, folder: Path) -> Made:
    relu = {"activation": "ReLU", "activation_state_dict": {}}
    topk = {"activation": "TopK", "activation_state_dict": {"k": P.k, "postact_fn": "ReLU"}}
    state = {
        "pre_bias": P.b_dec,
        "latent_bias": P.b_enc,
        "encoder.weight": P.W_enc.T.contiguous(),
        "decoder.weight": P.W_dec.T.contiguous(),
        "stats_last_nonzero": torch.zeros(C, dtype=torch.long),
        **(relu if version == "v1" else topk),
    }
    torch.save(state, folder / "5.pt")
    return Made(folder / "5.pt")


def _gemma(folder: Path) -> Made:
    np.savez(
        folder / "params.npz",
        W_enc=P.W_enc.numpy(),
        b_enc=UNSUBTRACTED.numpy(),
        W_dec=P.W_dec.numpy(),
        b_dec=P.b_dec.numpy(),
        threshold=P.threshold.numpy(),
    )
    return Made(folder / "params.npz")


def _gemma_2(folder: Path) -> Made:
    tensors = {"w_enc": P.W_enc, "b_enc": UNSUBTRACTED, "w_dec": P.W_dec, "b_dec": P.b_dec, "threshold": P.threshold}
    save_file(tensors, folder / "params.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"architecture": "jump_relu", "hf_hook_point_in": "model.layers.2.output"})
    )
    return Made(folder / "params.safetensors")


NORM = 7.0
SCALE = D**0.5 / NORM


def _llama(folder: Path) -> Made:
    """In units of x·SCALE, decoder columns of any norm."""
    (folder / "checkpoints").mkdir()
    tensors = {
        "encoder.weight": P.W_enc.T.contiguous(),
        "encoder.bias": UNSUBTRACTED * SCALE,
        "decoder.weight": P.W_dec.T.contiguous(),
        "decoder.bias": P.b_dec * SCALE,
    }
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    config = {
        "d_model": D, "d_sae": C, "act_fn": "jumprelu", "jump_relu_threshold": 0.5, "top_k": P.k,
        "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": NORM, "out": NORM},
        "sparsity_include_decoder_norm": True, "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False,
        "hook_point_in": "blocks.2.hook_resid_post", "hook_point_out": "blocks.2.hook_resid_post",
    }  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(config))
    return Made(folder / "checkpoints" / "final.safetensors")


def _llama_later(folder: Path) -> Made:
    hook = "blocks.2.hook_resid_post"
    tensors = {
        "W_E": P.W_enc.contiguous(),
        "b_E": UNSUBTRACTED * SCALE,
        "W_D": P.W_dec.contiguous(),
        "b_D": P.b_dec * SCALE,
        "activation_function.log_jumprelu_threshold": (0.5 * SCALE * torch.ones(C)).log(),
        f"dataset_average_activation_norm.{hook}": torch.tensor(NORM),
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {"d_model": D, "act_fn": "jumprelu", "hook_point_in": hook, "hook_point_out": hook}
    (folder / "config.json").write_text(json.dumps(config))
    return Made(folder / "sae_weights.safetensors")


def _saelens(folder: Path) -> Made:
    write_sae(folder, P.W_enc, P.b_enc, P.W_dec, P.b_dec, P.k)
    return Made(folder / "sae_weights.safetensors")


MAKERS: dict[str, Callable[..., Made]] = {
    "sparsify": _sparsify,
    "openai v1": lambda folder: _openai("v1", folder),
    "openai v5": lambda folder: _openai("v5", folder),
    "gemma scope": _gemma,
    "gemma scope 2": _gemma_2,
    "llama scope": _llama,
    "llama scope, later": _llama_later,
    "saelens": _saelens,
}
FORMATS = [*MAKERS, *DICTIONARIES]
"""Names of all."""

TOPK = ("sparsify", "openai v5", "saelens", "AutoEncoderTopK")
"""Those with TopK; in the others a threshold decides."""


def make_format(name: str, folder: Path) -> Made:
    """Writes the planted autoencoder in a format into ``folder``, which must be there."""
    return _dictionary_learning(name, folder) if name in DICTIONARIES else MAKERS[name](folder)
