"""Checkpoints of the reference implementation (facebookresearch/RAM, projects/cocomix) as networks of ours.

Its training writes a log folder: ``config.yaml`` (all of its settings), ``step_N/`` and, at the end, ``last/``. Each of
these is what ``save_pretrained`` wrote (config.json of a GPT-2, model.safetensors, sharded where it is large) beside
pickles of the optimizer and the scheduler, which are not read. Names carry prefixes of what the model was wrapped in.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from cocomix.errors import UserError, explained
from cocomix.files import read_json
from cocomix.model.config import CoCoMixConfig
from cocomix.model.modeling import CoCoMixForCausalLM

NAMES = {
    "transformer.concept_predictor.weight": "mixer.predict.weight",
    "transformer.concept_predictor.bias": "mixer.predict.bias",
    "transformer.compress_layer.weight": "mixer.compress.weight",
    "transformer.compress_layer.bias": "mixer.compress_bias",
    "transformer.pre_bias": "mixer.pre_bias",
    "lm_head.weight": "lm_head.weight",
}
"""Reference name → ours; every other ``transformer.X`` is the backbone's ``X``."""
TRANSPOSED = "mixer.compress.weight"
"""Kept there as a Linear [D, C], here a row a concept."""
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module")
"""What DistributedDataParallel, torch.compile and FSDP put into names."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
HEAD = "lm_head.weight"


def our_tensor(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Name and layout in our network of a reference tensor."""
    name = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    ours = NAMES.get(name, "backbone." + name.removeprefix("transformer."))
    return ours, tensor.t().contiguous() if ours == TRANSPOSED else tensor


def reference_name(ours: str) -> str:
    """The reference's name of a tensor of ours."""
    back = {mine: theirs for theirs, mine in NAMES.items()}
    return back.get(ours, "transformer." + ours.removeprefix("backbone."))


def checkpoint_of(folder: Path) -> Path:
    """``folder`` itself where it holds weights, or else its ``last/``, or its highest ``step_N/``."""
    if not folder.is_dir():
        raise UserError(f"--from-reference: there is no folder {folder}")
    steps = [p for p in folder.glob("step_*") if re.fullmatch(r"step_\d+", p.name)]
    ordered = [folder, folder / "last", *sorted(steps, key=lambda p: -int(p.name.removeprefix("step_")))]
    for candidate in ordered:
        if any(_files(candidate, name) for name in WEIGHTS):
            return candidate
    raise UserError(
        f"--from-reference: neither {folder} nor a last/ or step_N/ in it holds {' or '.join(WEIGHTS)}: give the log "
        "folder of a training, or one of its checkpoints"
    )


def read_reference(checkpoint: Path) -> CoCoMixForCausalLM:
    """The network of a checkpoint folder; a training in mode ``ntp`` has no mixer.

    Raises :class:`UserError` that names what is missing, foreign, left over or of another shape.
    """
    state = dict(our_tensor(name, tensor) for name, tensor in read_tensors(checkpoint).items())
    head, embedding = state.get(HEAD), state.get("backbone.wte.weight")
    # FSDP hands out both names of a tied tensor.
    tied = head is None or (embedding is not None and torch.equal(head, embedding))
    model = CoCoMixForCausalLM(_config(checkpoint, tied, concepts=any(name.startswith("mixer.") for name in state)))
    wanted = model.state_dict()
    if tied:
        state.pop(HEAD, None)
        wanted.pop(HEAD)
    problems = [f"lacks {reference_name(name)}" for name in wanted if name not in state]
    problems += [f"has {reference_name(name)}, which no such model has" for name in state if name not in wanted]
    problems += [
        f"has {reference_name(name)} of shape {list(tensor.shape)} where {list(wanted[name].shape)} is due"
        for name, tensor in state.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more like these" if len(problems) > 3 else ""
        raise UserError(
            f"{checkpoint} does not fit its config.yaml and config.json: it {'; it '.join(problems[:3])}{more}"
        )
    model = model.to(next(iter(state.values())).dtype)  # type: ignore[arg-type]
    model.load_state_dict(state, strict=not tied)
    model.tie_weights()
    return model.eval()


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint under the names that they are stored with; no code in a file is run."""
    for name in WEIGHTS:
        if files := _files(checkpoint, name):
            return {key: tensor for file in files for key, tensor in _read(file).items()}
    raise UserError(f"{checkpoint} holds no {' or '.join(WEIGHTS)}")


def _files(checkpoint: Path, name: str) -> list[Path]:
    """The file ``name`` of a checkpoint, or the parts that its index lists."""
    if (checkpoint / name).is_file():
        return [checkpoint / name]
    index = checkpoint / f"{name}.index.json"
    if not index.is_file():
        return []
    parts = sorted(set(read_json(index, "a list of weight files").get("weight_map", {}).values()))
    return [checkpoint / Path(part).name for part in parts]


def _read(file: Path) -> dict[str, Tensor]:
    try:
        with explained(file):
            if file.suffix == ".safetensors":
                return load_file(file)
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise UserError(f"{file} is truncated or damaged: copy it again") from error
    except pickle.UnpicklingError as error:
        raise UserError(_more_than_tensors(file)) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(_more_than_tensors(file))
    return found


def _more_than_tensors(file: Path) -> str:
    return (
        f"{file} holds more than named tensors, and what else a pickle holds could be code, so it is not loaded: save "
        "the model's state_dict alone, best as model.safetensors"
    )


def _config(checkpoint: Path, tied: bool, concepts: bool) -> CoCoMixConfig:
    values = read_json(checkpoint / "config.json", "the configuration of a GPT-2")
    if values.get("model_type") != "gpt2":
        raise UserError(f"{checkpoint / 'config.json'} has model_type={values.get('model_type')!r}, gpt2 is wanted")
    foreign = {"architectures", "transformers_version", "torch_dtype", "dtype"}
    text = AutoConfig.for_model(**{key: value for key, value in values.items() if key not in foreign})
    text.tie_word_embeddings = tied
    if not concepts:
        return CoCoMixConfig(text_config=text, mixer="none")
    path, settings = _settings(checkpoint)
    numbers: dict[str, Any] = {}
    for theirs, ours in (
        ("insert_layer_index", "insert_at"),
        ("concept_dim", "num_concepts"),
        ("concept_num", "concept_k"),
    ):
        value = settings.get(theirs)
        if not isinstance(value, int):
            raise UserError(f"{path} has {theirs}={json.dumps(value, default=str)}: set it to the training's number")
        numbers[ours] = value
    config = CoCoMixConfig(text_config=text, mixer="concept", mixing="insert", **numbers)
    try:
        config.check()
    except ValueError as error:
        raise UserError(f"{path} and {checkpoint / 'config.json'}: {error}") from error
    return config


def _settings(checkpoint: Path) -> tuple[Path, dict[str, Any]]:
    """The training's config.yaml: beside the weights, or a folder above them."""
    for path in (checkpoint / "config.yaml", checkpoint.resolve().parent / "config.yaml"):
        if not path.is_file():
            continue
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(settings, dict):
            raise UserError(f"{path} is no training's settings: a mapping is wanted")
        return path, settings
    raise UserError(
        f"there is no config.yaml beside {checkpoint} or in it: it says where concepts enter and how many are kept "
        "(insert_layer_index, concept_num, concept_dim), copy it from the training's log folder"
    )
