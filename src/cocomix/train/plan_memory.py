"""Whether a step fits into a rank's memory, and what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator

from cocomix.dist.settings import DistSettings
from cocomix.train.accelerators import Machine
from cocomix.train.build import windows_at_once
from cocomix.train.footprint import Footprint, Work, footprint
from cocomix.train.plan_known import Known
from cocomix.train.settings import TrainSettings, resolved_precision

TEACHER = "teacher"
"""With data.online, a part of a rank's memory besides those of a step."""


def step_memory(settings: TrainSettings, machine: Machine, known: Known) -> Footprint:
    """What rank 0 holds in a step of ``settings``; with ``dist.offload`` on the device alone."""
    work = Work(
        windows_at_once(settings, machine.ranks),
        known.window,
        settings.micro_batches,
        known.widths,
        resolved_precision(settings.precision, machine.cuda) == "bf16",
        settings.activation_checkpointing == "blocks",
        machine.cuda,
    )
    found = footprint(known.config, known.terms, settings.optimizer, settings.dist, machine.ranks, work)
    return found._replace(parts={**found.parts, TEACHER: _teacher(settings, machine, known)})


def _teacher(settings: TrainSettings, machine: Machine, known: Known) -> int:
    """Weights of the teacher and, in float32, of the autoencoder that make labels while training. What labelling takes
    besides is given back before a step."""
    total = 0
    for asked, costs in ((settings.data.online, known.labels), (settings.data.teacher, known.teacher)):
        if asked is not None and costs is not None:
            half = asked.dtype == "bfloat16" or (asked.dtype == "auto" and machine.cuda)
            total += (2 if half else 4) * costs.teacher_numbers + 4 * costs.sae_numbers
    return total


def fits(memory: Footprint, machine: Machine) -> bool:
    """Whether the step's fullest moment leaves what the machine reserves."""
    return memory.peak <= machine.memory - machine.reserved


def mend(settings: TrainSettings, machine: Machine, known: Known) -> list[str] | None:
    """The mildest change of settings that lets a step fit, as words of the command line; None where none does.

    More micro-batches cost nothing but gaps between kernels, sharding costs traffic, checkpointing costs arithmetic:
    tried in this order.
    """
    whole = settings.batch_windows // machine.ranks
    for words, changed in _changes(settings, machine.ranks):
        ways = [n for n in range(settings.micro_batches, whole + 1) if whole % n == 0]
        if not fits(_in_parts(changed, ways[-1], machine, known), machine):
            continue
        for parts in ways:
            if fits(_in_parts(changed, parts, machine, known), machine):
                return [*words, f"micro_batches={parts}"] if parts != settings.micro_batches else words
    return None


def _changes(settings: TrainSettings, ranks: int) -> Iterator[tuple[list[str], TrainSettings]]:
    """The settings as they are, and with less memory for everything but the number of micro-batches."""
    strategies: list[tuple[list[str], DistSettings]] = [([], settings.dist)]
    if ranks > 1 and settings.dist.strategy != "fsdp":
        strategies.append((["dist.strategy=fsdp"], settings.dist.model_copy(update={"strategy": "fsdp"})))
    kinds: list[tuple[list[str], str]] = [([], settings.activation_checkpointing)]
    if settings.activation_checkpointing != "blocks":
        kinds.append((["activation_checkpointing=blocks"], "blocks"))
    for kind_words, kind in kinds:
        for words, dist in strategies:
            changed = settings.model_copy(update={"dist": dist, "activation_checkpointing": kind})
            yield [*words, *kind_words], changed


def _in_parts(settings: TrainSettings, micro_batches: int, machine: Machine, known: Known) -> Footprint:
    return step_memory(settings.model_copy(update={"micro_batches": micro_batches}), machine, known)
