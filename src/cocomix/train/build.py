"""Settings → model, optimizer, learning rate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from cocomix.data.dataset import Dataset
from cocomix.errors import UserError
from cocomix.model.adapters import adapter_for
from cocomix.model.config import CoCoMixConfig
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.train.backbone import OF_A_FILE, start_from_backbone
from cocomix.train.settings import ModelSettings, OptimizerSettings, ScheduleSettings, TrainSettings


def model_config(
    settings: ModelSettings,
    dataset: Dataset,
    window: int,
    num_concepts: int | None,
    pretrained: dict[str, Any] | None = None,
    state_size: int | None = None,
) -> CoCoMixConfig:
    """The network's configuration; vocabulary, end-of-text id and context are the dataset's where not given.

    ``pretrained`` is the configuration of ``settings.from_backbone``. Raises :class:`UserError` for a configuration
    that does not fit together.
    """
    backbone = _backbone_settings(settings, dataset, window) if pretrained is None else pretrained
    where = "model.backbone" if pretrained is None else "model.from_backbone"
    with _told(where, backbone):
        adapter_for(backbone["model_type"])
        config = CoCoMixConfig(
            text_config=backbone,
            mixer=settings.mixer,
            mixing=settings.mixing,
            insert_at=settings.insert_at,
            slot_base=settings.slot_base,
            slot_positions=settings.slot_positions,
            slot_every=settings.slot_every,
            num_concepts=num_concepts or 1,
            concept_k=settings.concept_k,
            state_size=settings.state_size or state_size or 1,
            state_width=settings.state_width,
        )
        config.check()
    text = config.text_config
    if text.vocab_size < dataset.vocab_size:
        raise UserError(f"{where}.vocab_size={text.vocab_size} is smaller than the dataset's {dataset.vocab_size}")
    known = type(text)(**{}).to_dict()
    unknown = [name for name in settings.backbone if name not in known and name not in text.attribute_map]
    if unknown:
        raise UserError(f"model.backbone.{unknown[0]} is no setting of {backbone['model_type']} in transformers")
    if text.max_position_embeddings < window:
        raise UserError(
            f"{where}: its {text.max_position_embeddings} positions are fewer than data.window={window}: set "
            f"data.window={text.max_position_embeddings} or less"
        )
    return config


def _backbone_settings(settings: ModelSettings, dataset: Dataset, window: int) -> dict[str, Any]:
    """The backbone's configuration as the recipe has it, with what the data say."""
    backbone: dict[str, Any] = {
        "model_type": "gpt2",
        "vocab_size": dataset.vocab_size,
        "bos_token_id": dataset.eos_id,
        "eos_token_id": dataset.eos_id,
        "pad_token_id": None,
        **settings.backbone,
    }
    positions = "n_positions" if backbone["model_type"] == "gpt2" else "max_position_embeddings"
    backbone.setdefault(positions, window)
    if backbone["model_type"] == "gpt2":
        # Pretraining is without dropout, as in the paper's runs; transformers' own default is 0.1.
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            backbone.setdefault(name, 0.0)
    return backbone


def build_model(config: CoCoMixConfig, seed: int, backbone: str | None = None) -> CoCoMixForCausalLM:
    """The network, its weights random by ``seed`` alone, or those of ``backbone`` with a mixer that is random by it."""
    torch.manual_seed(seed)
    with _told("model.from_backbone" if backbone else "model.backbone", config.text_config.to_diff_dict()):
        return start_from_backbone(backbone, config) if backbone else CoCoMixForCausalLM(config)


@contextmanager
def _told(where: str, backbone: dict[str, Any]) -> Iterator[None]:
    """What PyTorch and transformers raise for values that make no network, as a sentence."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"model: {_line(error)}") from error
    except (TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError, StrictDataclassError) as error:
        if "memory" in str(error):
            raise UserError(f"model: the network does not fit into memory ({_line(error)}): make it smaller") from error
        values = ", ".join(f"{key}={value}" for key, value in backbone.items() if key not in OF_A_FILE)
        raise UserError(
            f"{where} makes no {backbone.get('model_type')} network ({type(error).__name__}: {_line(error)}): mend "
            f"what is wrong of {values}"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def build_optimizers(model: CoCoMixForCausalLM, settings: OptimizerSettings) -> list[torch.optim.Optimizer]:
    """Fused AdamW for all, or Muon (torch's own) for the matrices of the blocks before it.

    With ``decay: matrices`` biases, norms and single vectors do not decay. Each group keeps its peak learning rate as
    ``peak``.
    """
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2] if settings.kind == "muon" else []
    taken = {id(p) for p in matrices}
    decays: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        if id(parameter) not in taken:
            decays[settings.decay == "all" or parameter.dim() >= 2].append(parameter)
    groups = [
        {"params": parameters, "weight_decay": settings.weight_decay if decay else 0.0, "peak": settings.lr}
        for decay, parameters in decays.items()
        if parameters
    ]
    adamw = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)
    if not matrices:
        return [adamw]
    group = {"params": matrices, "peak": settings.muon_lr}
    muon = torch.optim.Muon(
        [group],
        lr=settings.muon_lr,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, adamw]


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], share: float) -> None:
    """Sets every group to ``share`` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak"]


def learning_rate(step: int, steps: int, peak: float, schedule: ScheduleSettings) -> float:
    """Learning rate of step ``step`` (0-based) of ``steps``: linear warm-up, then cosine, constant, or constant and a
    linear decay (WSD, arXiv 2404.06395)."""
    warmup = max(1, round(schedule.warmup * steps)) if schedule.warmup else 0
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    match schedule.kind:
        case "constant":
            return peak
        case "wsd":
            decay = max(1, round(schedule.decay * steps))
            left = min(1.0, max(0.0, (steps - step) / decay))
            return peak * (schedule.final + (1 - schedule.final) * left)
        case _:
            return peak * (schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * progress)))


def windows_at_once(settings: TrainSettings, ranks: int) -> int:
    """Windows of a rank's micro-batch; raises :class:`UserError` where a step's windows cannot be dealt evenly."""
    parts = ranks * settings.micro_batches
    if settings.batch_windows % parts:
        raise UserError(
            f"batch_windows={settings.batch_windows} must be a multiple of {ranks} ranks × "
            f"micro_batches={settings.micro_batches}: give a multiple of {parts}, or another number of ranks"
        )
    return settings.batch_windows // parts


def checkpoint_activations(model: CoCoMixForCausalLM) -> None:
    """Keeps only each block's input for the backward pass, where the block is run again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated in transformers 5.24; 5.17 has no other
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
