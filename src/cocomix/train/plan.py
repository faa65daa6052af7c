"""What a run will take, before anything is run: parameters, arithmetic, memory of a rank, disk, time.

Parameters and operations are counted from the modules of the recipe's model, built without memory; what a step holds is
found by a dry run of it (:mod:`cocomix.train.footprint`). What has to be known of data that are not there yet is
assumed, and the assumptions are a part of the result.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from cocomix.errors import UserError
from cocomix.model.costs import count_flops, count_parameters
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.train.accelerators import Machine, machine_here, machine_of_gpus
from cocomix.train.build import build_model, windows_at_once
from cocomix.train.footprint import Footprint
from cocomix.train.metrics import measured_peak
from cocomix.train.plan_known import Known, look
from cocomix.train.plan_labels import LabelCosts
from cocomix.train.plan_memory import fits, mend, step_memory
from cocomix.train.plan_settings import PlanSettings
from cocomix.train.settings import TrainSettings


class Arithmetic(NamedTuple):
    """Floating-point operations a token."""

    lower: float
    """Forward, blocks below the mixer."""
    upper: float
    head: float
    mixer: float
    training: float
    """Forward and backward: three times the sum of the parts."""
    recomputed: float
    """Blocks run again for the backward pass, with activation checkpointing."""

    @property
    def run(self) -> float:
        """All that a device does."""
        return self.training + self.recomputed


def plan(settings: TrainSettings, planned: PlanSettings) -> dict[str, Any]:
    """What ``cocomix plan`` prints with ``--json``: bytes, floating-point operations, seconds.

    Raises :class:`UserError` where the recipe's parts, or recipe and ranks, do not fit together.
    """
    known, machine = look(settings, planned), machine_of(settings, planned)
    with torch.device("meta"):
        model = build_model(known.config, settings.seed)
    arithmetic = arithmetic_of(settings, model, known.window)
    rate = machine.ranks * machine.peak * planned.utilisation
    step_tokens = settings.batch_windows * known.window
    steps = steps_of(settings, arithmetic, step_tokens, rate)
    memory = step_memory(settings, machine, known)
    labels, tokens = _together(known), steps * step_tokens
    # A cache holds each window's labels once, labels made while training are made again in each pass.
    asked = settings.data.online is not None or settings.data.teacher is not None
    once = known.train_tokens if known.train_tokens and not asked else tokens
    labelled = min(tokens, once) if labels else 0
    return {
        "method": settings.method,
        "machine": machine._asdict(),
        "assumed": known.assumed + (["torch.compile saves no memory"] if settings.compile != "none" else []),
        "parameters": count_parameters(model)._asdict(),
        "flops_per_token": {**arithmetic._asdict(), "labels": labels.flops if labels else None},
        "batch": {
            "tokens": step_tokens,
            "windows_per_rank": windows_at_once(settings, machine.ranks),
            "micro_batches": settings.micro_batches,
            "window": known.window,
        },
        "steps": steps,
        "tokens": tokens,
        "memory": _memory(settings, machine, known, memory),
        "disk": {
            "labels": labelled * labels.bytes if labels else 0,
            "checkpoint": memory.checkpoint,
            "kept": settings.checkpoint.keep * memory.checkpoint,
        },
        "time": {
            "utilisation": planned.utilisation,
            "tokens_per_second": rate / arithmetic.run,
            "seconds": tokens * arithmetic.run / rate,
            "label_seconds": labelled * labels.flops["total"] / rate if labels else 0.0,
        },
    }


def machine_of(settings: TrainSettings, planned: PlanSettings) -> Machine:
    """The machine that is planned for; without a kind of GPU this one's CPU, whose peak is measured now."""
    if planned.gpu is None:
        return machine_here(measured_peak(torch.device("cpu"), torch.float32), planned.gpus)
    if settings.precision == "fp32":
        raise UserError(f"precision=fp32 with --gpu {planned.gpu}: the peaks known are bfloat16's, leave precision out")
    return machine_of_gpus(planned.gpu, planned.gpus)


def arithmetic_of(settings: TrainSettings, model: CoCoMixForCausalLM, window: int) -> Arithmetic:
    """Operations a token of a training step."""
    forward = count_flops(model, window)
    again = forward.lower + forward.upper if settings.activation_checkpointing == "blocks" else 0.0
    return Arithmetic(forward.lower, forward.upper, forward.head, forward.mixer, forward.training, again)


def steps_of(settings: TrainSettings, arithmetic: Arithmetic, step_tokens: int, rate: float) -> int:
    """Steps of the run's budget; one in seconds buys what ``rate`` FLOP/s do in them."""
    if settings.seconds is not None:
        return max(1, int(settings.seconds * rate / (arithmetic.run * step_tokens)))
    if settings.flops is not None:
        return math.ceil(settings.flops / (arithmetic.training * step_tokens))
    return settings.steps or math.ceil((settings.tokens or 0) / step_tokens)


def _memory(settings: TrainSettings, machine: Machine, known: Known, memory: Footprint) -> dict[str, Any]:
    kind = settings.activation_checkpointing
    other = "blocks" if kind == "none" else "none"
    changed = step_memory(settings.model_copy(update={"activation_checkpointing": other}), machine, known)
    well = fits(memory, machine)
    return {
        "state": memory.state._asdict(),
        "parts": memory.parts,
        "peak": memory.peak,
        "host": memory.host,
        "available": int(machine.memory - machine.reserved),
        "fits": well,
        "peak_by_checkpointing": {kind: memory.peak, other: changed.peak},
        "mend": None if well else mend(settings, machine, known),
    }


def _together(known: Known) -> LabelCosts | None:
    """What all that a run reads of teachers costs, a token."""
    if known.labels is None or known.teacher is None:
        return known.labels or known.teacher
    a, b = known.labels, known.teacher
    total = a.flops["total"] + b.flops["total"]
    return LabelCosts(f"{a.teacher}; {b.teacher}", {"total": total}, a.k, a.bytes + b.bytes)
