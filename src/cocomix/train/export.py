"""A trained run → a folder that ``from_pretrained`` loads.

A run without a mixer is a plain transformers model and is exported as one: no part of this package is needed to use it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from cocomix.errors import UserError, explained
from cocomix.files import TEMPORARY_SUFFIX, read_json, write_json
from cocomix.model.modeling import CoCoMixForCausalLM


def plain_model(model: CoCoMixForCausalLM) -> PreTrainedModel:
    """The transformers model that a network without a mixer is, sharing no memory with it."""
    plain: Any = AutoModelForCausalLM.from_config(model.config.text_config)
    getattr(plain, plain.base_model_prefix).load_state_dict(model.backbone.state_dict())
    if not model.config.tie_word_embeddings:
        plain.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    plain.tie_weights()
    return plain


def export_model(model: CoCoMixForCausalLM, tokenizer_folder: Path, out: Path, training: dict[str, Any]) -> Path:
    """Writes weights (safetensors), configuration, tokenizer and ``training.json`` (costs) to ``out``.

    Raises :class:`UserError` when ``out`` exists and is no earlier export.
    """
    temporary = out.with_name(out.name + TEMPORARY_SUFFIX)
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
            for file in tokenizer_folder.iterdir():
                shutil.copy(file, temporary / file.name)
            write_json(temporary / "training.json", training)
            shutil.rmtree(out, ignore_errors=True)
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return out


def _is_export(folder: Path) -> bool:
    """An SAE's folder has a training.json too; it must not be taken for an export and replaced."""
    record = folder / "training.json"
    return record.is_file() and "run" in read_json(record, "an export's costs")
