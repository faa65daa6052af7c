"""A trained run → a folder that ``from_pretrained`` loads.

A run without a mixer is a plain transformers model and is exported as one. One with a mixer takes the network's code
with it (standalone.py). No part of this package is needed to use either.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from cocomix.data.tokenizer import load_tokenizer, save_tokenizer
from cocomix.errors import UserError, explained
from cocomix.files import TEMPORARY_SUFFIX, read_json, write_json
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.model.reference import checkpoint_of, read_reference
from cocomix.train.settings import ReferenceSettings
from cocomix.train.standalone import add_code

TRAINING, REFERENCE = "training.json", "reference.json"
"""What says of a folder that it is an export: of a run, with its costs; of a checkpoint of the reference."""


def plain_model(model: CoCoMixForCausalLM) -> PreTrainedModel:
    """The transformers model that a network without a mixer is, sharing no memory with it."""
    plain: Any = AutoModelForCausalLM.from_config(model.config.text_config, dtype=model.dtype)
    getattr(plain, plain.base_model_prefix).load_state_dict(model.backbone.state_dict())
    if not model.config.tie_word_embeddings:
        plain.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    plain.tie_weights()
    return plain


def export_model(
    model: CoCoMixForCausalLM, tokenizer_folder: Path, out: Path, record: dict[str, Any], record_name: str = TRAINING
) -> Path:
    """Writes weights (safetensors), configuration, the network's code, tokenizer and ``record`` to ``out``.

    ``record`` says under ``run`` what was exported; of a run also its costs. Raises :class:`UserError` when ``out``
    exists and is no earlier export, or is the working directory.
    """
    if out.resolve() == Path.cwd():
        raise UserError(f"out={out} is the working directory, which cannot be replaced: name a folder in it")
    temporary = out.parent / f"{out.resolve().name}{TEMPORARY_SUFFIX}"  # ".." has no name of its own
    with explained(out):
        if out.exists() and any(out.iterdir()) and not _is_export(out):
            raise UserError(f"out={out} exists and is no export: choose an empty folder")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            network = plain_model(model) if model.mixer is None else model
            text = model.config.text_config
            network.generation_config = GenerationConfig(
                bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.eos_token_id
            )
            network.save_pretrained(temporary)
            if network is model:
                add_code(temporary)
            shutil.copytree(tokenizer_folder, temporary, dirs_exist_ok=True)
            write_json(temporary / record_name, record)
            shutil.rmtree(out, ignore_errors=True)
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return out


def export_reference(folder: str, out: str, settings: ReferenceSettings) -> dict[str, Any]:
    """A checkpoint of the reference implementation as an export at ``out``.

    ``folder`` is a training's log folder (its last checkpoint is taken) or one checkpoint. Raises :class:`UserError`
    for files that do not fit together, and where the tokenizer is not to be had.
    """
    checkpoint = checkpoint_of(Path(folder))
    model = read_reference(checkpoint)
    tokenizer = load_tokenizer(settings.tokenizer)
    vocabulary = model.config.text_config.vocab_size
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"tokenizer={settings.tokenizer} has {len(tokenizer):,} entries, the model knows {vocabulary:,}: give the "
            "tokenizer that the model was trained with"
        )
    with tempfile.TemporaryDirectory() as place:
        save_tokenizer(tokenizer, Path(place) / "tokenizer")
        record = {"run": checkpoint.name, "source": "facebookresearch/RAM, projects/cocomix"}
        export_model(model, Path(place) / "tokenizer", Path(out), record, REFERENCE)
    name = read_json(Path(out) / "config.json", "a model's configuration")["architectures"][0]
    return {"folder": out, "class": name, "checkpoint": str(checkpoint)}


def _is_export(folder: Path) -> bool:
    """An SAE's folder has a training.json too; it must not be taken for an export and replaced."""
    records = [folder / name for name in (TRAINING, REFERENCE) if (folder / name).is_file()]
    return any("run" in read_json(record, "an export's record") for record in records)
