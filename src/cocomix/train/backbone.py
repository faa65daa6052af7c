"""A pretrained model that a run starts from: where it is, what it is, whether its tokenizer made the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig

from cocomix.data.dataset import Dataset
from cocomix.data.gguf import SUFFIX as GGUF
from cocomix.data.gguf import find_gguf, quantisation
from cocomix.data.hub import hub_error
from cocomix.data.tokenizer import first_line, load_tokenizer, tokenizer_hash
from cocomix.errors import UserError
from cocomix.files import read_json, write_json
from cocomix.model.config import CoCoMixConfig
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.places import model_place

OPTION = "model.from_backbone"
KEPT = "backbone.json"
"""What a run's folder keeps of its backbone: with it, resuming and exporting need the backbone no more."""
OF_A_FILE = ("architectures", "dtype", "torch_dtype", "transformers_version")
"""Entries of a configuration that speak of how weights lie in a file, not of the network."""
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout")
"""Set to zero: pretraining is without dropout, continued or not."""
MIXER = ("mixer", "mixing", "insert_at", "slot_base", "slot_positions", "slot_every", "num_concepts", "concept_k",
         "state_size", "state_width")  # fmt: skip


class Source(NamedTuple):
    """What transformers' ``from_pretrained`` is pointed to."""

    where: str
    """A folder, or a hub id."""
    gguf: Path | None
    """The GGUF file in the folder that is read."""

    @property
    def arguments(self) -> dict[str, Any]:
        return {"gguf_file": self.gguf.name} if self.gguf else {}


def backbone_config(name: str, dataset: Dataset, run: Path) -> dict[str, Any]:
    """The configuration of the backbone ``name``: the one that the folder ``run`` kept, or else the model's.

    It is kept in ``run`` then. Raises :class:`UserError` when there is no such model or its tokenizer is another.
    """
    kept = run / KEPT
    known = read_json(kept, "a run's record of its backbone") if kept.is_file() else {}
    if known.get("name") == name:
        return known["config"]
    source = find_backbone(name)
    values = read_config(name, source)
    if tokenizer_hash(load_tokenizer(str(source.gguf or source.where))) != dataset.tokenizer_hash:
        raise UserError(
            f"{OPTION}={name} has another tokenizer than data={dataset.folder}: prepare the text again with "
            f"'cocomix data prepare SOURCE FOLDER tokenizer={source.gguf or source.where}'"
        )
    write_json(kept, {"name": name, "config": values})
    return values


def read_config(name: str, source: Source) -> dict[str, Any]:
    """The configuration of the backbone ``name`` as a run takes it; raises :class:`UserError` where there is none."""
    if source.gguf:
        quantisation(source.gguf)  # says plainly what is wrong with a damaged file
    try:
        config: Any = AutoConfig.from_pretrained(source.where, trust_remote_code=False, **source.arguments)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise _refusal(name, source, error) from error
    if config.get_text_config() is not config:
        raise UserError(
            f"{OPTION}={name} is a {config.model_type}, which reads more than text: give a model of text alone"
        )
    found = config.to_dict().items()
    return {key: 0.0 if key in DROPOUTS else value for key, value in found if key not in OF_A_FILE}


def start_from_backbone(name: str, config: CoCoMixConfig) -> CoCoMixForCausalLM:
    """The backbone's weights in fp32 with a new mixer as ``config`` says; its compression starts at zero.

    Raises :class:`UserError` when the weights cannot be loaded.
    """
    source = find_backbone(name)
    how: dict[str, Any] = {"gguf_file": source.gguf.name} if source.gguf else {"use_safetensors": True}
    how |= {
        "dtype": torch.float32,
        "trust_remote_code": False,
        **{key: 0.0 for key in DROPOUTS if hasattr(config.text_config, key)},
    }
    try:
        return CoCoMixForCausalLM.from_backbone(source.where, how, **{key: getattr(config, key) for key in MIXER})
    except (OSError, SafetensorError) as error:
        raise _refusal(name, source, error) from error


def find_backbone(name: str) -> Source:
    """Where the model ``name`` is: a folder, a run's export, a GGUF file or a folder with one, or else a hub id."""
    path = model_place(name, f"{OPTION}={name}")
    if path is None:
        return Source(name, None)
    if (path / "config.json").is_file():
        return Source(str(path), None)
    gguf = find_gguf(path, f"{OPTION}={name}")
    if gguf is None:
        raise UserError(f"{OPTION}={name} is no model: it holds no config.json and no *{GGUF}")
    return Source(str(gguf.parent), gguf)


def _refusal(name: str, source: Source, error: Exception) -> UserError:
    if Path(source.where).is_dir():
        return UserError(
            f"{OPTION}={name} cannot be loaded ({first_line(error)}): give the folder of a causal language model, "
            "saved with save_pretrained as safetensors"
        )
    return hub_error(OPTION, name, error)
