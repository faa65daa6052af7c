"""What the concept labels of a planned run will cost: of labels that are there, or of a teacher's shape alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cocomix.concepts.costs import activation_flops, forward_flops, label_flops
from cocomix.concepts.labels import label_columns
from cocomix.concepts.probabilities import probability_columns
from cocomix.concepts.sae import SparseAutoencoder, TopK, Weights
from cocomix.concepts.settings import AttributionSettings
from cocomix.concepts.teacher import Teacher
from cocomix.data.columns import Column
from cocomix.data.gguf import find_gguf
from cocomix.data.hub import hub_error
from cocomix.errors import UserError
from cocomix.places import model_place

ACTIVE = 32
"""Latents that an autoencoder keeps a token, where none is known: OpenAI's v5-32k."""


class LabelCosts(NamedTuple):
    """Costs of labels, a token."""

    teacher: str
    """Whose they are, in words."""
    flops: dict[str, float]
    """Operations, by part where it is known, and their ``total``."""
    k: int
    """Labels a token."""
    bytes: int
    """On the disk, ids and strengths."""
    teacher_numbers: int = 0
    """Weights of the teacher, not a token, in all; of extracted labels nobody asks."""
    sae_numbers: int = 0


def costs_of_labels(manifest: dict[str, Any]) -> LabelCosts:
    """Of extracted labels, as their ``labels.json`` has it."""
    k, flops = manifest["attribution"]["k"], manifest["cost"]["flops_per_token"]
    return LabelCosts(manifest["teacher"]["name"], {"total": flops}, k, _bytes(manifest["sae"]["latents"], k))


def costs_of_teacher(
    name: str | None,
    block: int | None,
    concepts: int,
    window: int,
    attribution: AttributionSettings,
    option: str = "--teacher",
) -> LabelCosts:
    """Of labels still to be made, from the model ``name`` (none: GPT-2 124M) and an autoencoder of ``concepts`` latents
    on its ``block`` (none: the last below its middle, 5 of 12 as in the paper).

    ``option`` is how the user named the model. Raises :class:`UserError` where there is none, or no such block.
    """
    config: Any = AutoConfig.for_model("gpt2") if name is None else _config(name, option)
    depth = config.get_text_config().num_hidden_layers
    block = depth // 2 - 1 if block is None else block
    active = min(ACTIVE, concepts)
    with torch.device("meta"):
        teacher = Teacher(AutoModelForCausalLM.from_config(config), block, name or "GPT-2 124M")
        width = teacher.width
        weights = Weights(*(torch.empty(shape) for shape in ((width, concepts), concepts, (concepts, width), width)))
        sae = SparseAutoencoder(weights, TopK(active))
    flops = label_flops(teacher, sae, attribution, window, float(active))
    return LabelCosts(
        f"{teacher.name}, read behind block {block} by an autoencoder of {concepts:,} latents",
        {**flops._asdict(), "total": flops.total},
        attribution.k,
        _bytes(concepts, attribution.k),
        sum(p.numel() for p in teacher.model.parameters()),
        sum(tensor.numel() for tensor in weights),
    )


def costs_of_cache(manifest: dict[str, Any]) -> LabelCosts:
    """Of cached probabilities, as their ``probabilities.json`` has it."""
    k, flops = manifest["k"], manifest["cost"]["flops_per_token"]
    return LabelCosts(
        manifest["teacher"]["name"], {"total": flops}, k, _sum(probability_columns(manifest["vocabulary"], k))
    )


def costs_of_asking(
    name: str | None,
    block: int | None,
    k: int | None,
    vocabulary: int,
    window: int,
    probabilities: bool,
    states: bool,
    option: str,
) -> tuple[LabelCosts, int]:
    """Of a teacher's probabilities and states still to be made, by the model ``name`` (none: GPT-2 124M); its width."""
    config: Any = AutoConfig.for_model("gpt2") if name is None else _config(name, option)
    block = config.get_text_config().num_hidden_layers // 2 if block is None else block
    with torch.device("meta"):
        teacher = Teacher(AutoModelForCausalLM.from_config(config), block, name or "GPT-2 124M")
    flops = {}
    if probabilities:
        flops["forward"] = forward_flops(teacher, window)
    if states:
        flops["states"] = activation_flops(teacher, window)
    numbers = sum(p.numel() for p in teacher.model.parameters())
    size = 0 if k is None else _sum(probability_columns(vocabulary, k))
    return LabelCosts(teacher.name, {**flops, "total": sum(flops.values())}, k or 0, size, numbers), teacher.width


def _sum(columns: Sequence[Column]) -> int:
    """Bytes a token."""
    return sum(np.dtype(column.dtype).itemsize * column.width for column in columns)


def _bytes(concepts: int, k: int) -> int:
    return _sum(label_columns(concepts, k))


def _config(name: str, option: str) -> Any:
    place = model_place(name, f"{option}={name}")
    gguf = None if place is None or (place / "config.json").is_file() else find_gguf(place, f"{option}={name}")
    try:
        if gguf is not None:
            return AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        return AutoConfig.from_pretrained(place or name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if place is None:
            raise hub_error(option, name, error) from error
        raise UserError(
            f"{option}={name}: it holds no configuration of a model: give a model's folder or hub id"
        ) from error
