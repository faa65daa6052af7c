"""An autoencoder of any format → a folder as SAELens 6 writes it."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from cocomix.concepts.check import CHECK
from cocomix.concepts.load_sae import find, load_sae
from cocomix.concepts.sae import SparseAutoencoder, TopK
from cocomix.concepts.sae_release import is_release
from cocomix.concepts.sae_saelens import SAELENS_CONFIG, SAELENS_WEIGHTS
from cocomix.concepts.settings import SaeConvertSettings
from cocomix.concepts.teacher_files import training_record
from cocomix.errors import UserError, explained
from cocomix.files import TEMPORARY_SUFFIX, read_json, sync_folder, write_json

FACTS = ("latents", "k", "tokens", "flops", "seconds", "rank_seconds", "teacher", "teacher_fingerprint", "block", "fit",
         "dead_share")  # fmt: skip
"""What of ``training.json`` is true of the converted autoencoder too: it computes the same."""


def convert_sae(settings: SaeConvertSettings) -> dict[str, Any]:
    """Writes the folder ``out``, whole or not at all, and returns what was converted.

    Weights are float32. What the source's ``training.json`` (costs, teacher, block) and ``check.json`` say of the
    autoencoder itself is kept. Raises :class:`UserError` when ``out`` holds something, or like ``load_sae``.
    """
    out = Path(settings.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out} is there already: give a new folder, or remove it")
    sae = load_sae(settings.sae)
    source = None if is_release(settings.sae) else Path(settings.sae)
    record = (training_record(source) if source else None) or {}
    config = saelens_config(sae, settings.sae, record)
    temporary = out.with_name(out.name + TEMPORARY_SUFFIX)
    try:
        with explained(out):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            save_file(saelens_tensors(sae, config["architecture"]), temporary / SAELENS_WEIGHTS)
            with (temporary / SAELENS_WEIGHTS).open("rb+") as file:
                os.fsync(file.fileno())
            write_json(temporary / SAELENS_CONFIG, config)
            if record:
                write_json(temporary / "training.json", {key: record[key] for key in FACTS if key in record})
            if source and (source / CHECK).is_file():
                write_json(temporary / CHECK, read_json(source / CHECK, "an SAE's check"))
            temporary.replace(out)
            sync_folder(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {
        "sae": settings.sae,
        "out": str(out),
        "format": find(source)[0].name if source else "SAELens' release",
        "architecture": config["architecture"],
        "latents": sae.latents,
        "width": sae.width,
        "k": sae.k,
        "normalize_activations": config["normalize_activations"],
        "block": sae.block,
    }


def saelens_config(sae: SparseAutoencoder, name: str, record: dict[str, Any]) -> dict[str, Any]:
    """SAELens 6's ``cfg.json`` of an autoencoder. Centring is told as SAELens tells it: by the arguments with which
    TransformerLens should load the model."""
    threshold = sae.activation
    architecture = "topk" if isinstance(threshold, TopK) else "jumprelu" if threshold.threshold.any() else "standard"
    block = sae.block if sae.block is not None else record.get("block")
    metadata: dict[str, Any] = {"sae_lens_version": version("sae-lens"), "converted_from": name}
    if block is not None:
        metadata["hook_name"] = f"blocks.{block}.hook_resid_post"
    metadata |= {key: fact for key, fact in sae.text._asdict().items() if fact is not None}
    if sae.stated_l0 is not None:
        metadata["stated_l0"] = sae.stated_l0
    if "teacher" in record:
        metadata["model_name"] = record["teacher"]
    if sae.normalise == "centre":
        metadata["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    return {
        "architecture": architecture,
        "d_in": sae.width,
        "d_sae": sae.latents,
        **({"k": sae.k, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtract_b_dec,
        "normalize_activations": "none" if sae.normalise == "centre" else sae.normalise,
        "reshape_activations": "none",
        "metadata": metadata,
    }


def saelens_tensors(sae: SparseAutoencoder, architecture: str) -> dict[str, Any]:
    """The tensors of ``sae_weights.safetensors``."""
    tensors = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if architecture == "jumprelu" and not isinstance(sae.activation, TopK):
        tensors["threshold"] = sae.activation.threshold.expand(sae.latents)
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
