"""A trained model from a run folder, an export folder or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cocomix.devices import pick_device
from cocomix.errors import UserError
from cocomix.files import sha256_file, sha256_json

# Registers CoCoMixForCausalLM with the Auto classes.
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.places import model_place


def model_folder(where: str) -> str:
    """The folder of a model, the export of a run's folder, or a hub id.

    Raises :class:`UserError` for a run that has no export yet, and a path that holds no model.
    """
    folder = model_place(where, f"model={where}")
    if folder is None:
        return where
    if not (folder / "config.json").is_file():
        raise UserError(f"model={where} is neither a run nor a model: it holds no recipe.yaml and no config.json")
    return str(folder)


def weights_hash(where: str) -> str:
    """Hash over the weights' files of a run's export or a model's folder: another one, other weights."""
    return sha256_json([sha256_file(file) for file in sorted(Path(model_folder(where)).glob("*.safetensors"))])


def load_model(where: str, device: str = "cpu") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (evaluation mode) and tokenizer from a run folder, an export folder or a hub id; safetensors only.

    Raises :class:`UserError` where there is no such model, or no such device.
    """
    name, place = model_folder(where), pick_device(device)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, SafetensorError) as error:
        there = Path(name).is_dir()
        mend = "its files are damaged, export or save it again" if there else "give a run folder, an export or a hub id"
        reason = (str(error).strip().splitlines() or [""])[0][:200].rstrip(". ")
        what = "cannot be loaded" if there else "is no folder, and the hub gave no such model"
        raise UserError(f"model={where} {what} ({reason}): {mend}") from error
    return model.to(place).eval(), tokenizer


def load_concept_model(where: str, device: str = "cpu") -> tuple[CoCoMixForCausalLM, PreTrainedTokenizerBase]:
    """As :func:`load_model`; raises :class:`UserError` when the model has no concepts to look at or to steer."""
    model, tokenizer = load_model(where, device)
    if not isinstance(model, CoCoMixForCausalLM) or model.config.mixer != "concept":
        raise UserError(f"model={where} predicts no concepts: give a run with model.mixer=concept")
    return model, tokenizer
