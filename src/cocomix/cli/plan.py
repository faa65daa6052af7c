"""`cocomix plan`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from cocomix.cli.common import Json, Words, quiet_transformers, show

Gpus = Annotated[int, typer.Option("--gpus", metavar="N", help="Ranks: GPUs, or processes on this machine's CPU.")]
Gpu = Annotated[
    str | None,
    typer.Option("--gpu", metavar="KIND", help="Kind of GPU, e.g. h100; none: this machine's CPU, measured."),
]
Utilisation = Annotated[
    float, typer.Option("--utilisation", metavar="SHARE", help="Share of the peak that is reached.")
]
Teacher = Annotated[
    str | None,
    typer.Option("--teacher", metavar="MODEL", help="Who labels, where no labels are there: folder or hub id."),
]
Block = Annotated[int | None, typer.Option("--block", metavar="I", help="The teacher's block that the SAE reads.")]

ROWS = (
    ("weights", "weights, float32"),
    ("gradients", "gradients"),
    ("optimizer", "optimizer state"),
    ("gathered", "gathered weights, traffic"),
    ("casts", "weights in bfloat16"),
    ("logits", "logits, concept logits"),
    ("activations", "activations"),
    ("working", "backward pass at work"),
    ("teacher", "teacher, autoencoder"),
)
"""Parts of a step's memory, in words."""


def plan(
    words: Words = None,
    gpus: Gpus = 1,
    gpu: Gpu = None,
    utilisation: Utilisation = 0.4,
    teacher: Teacher = None,
    block: Block = None,
    as_json: Json = False,
) -> None:
    """Say what a run will take before it is run: parameters, arithmetic, memory, disk, time, and whether it fits.

    Nothing is trained and no data are needed: run, data.path and data.labels may be left out, what has to be known of
    them is assumed, and said. Memory is that of one rank at the fullest moment of a step, found by a dry run over as
    many simulated ranks. A step that does not fit gets a mend.

    Example:

      cocomix plan 1.38b/cocomix --gpus 64 --gpu h100
    """
    from cocomix.config import validated
    from cocomix.train.plan import plan as make_plan
    from cocomix.train.plan_settings import PlanSettings, recipe_to_plan

    quiet_transformers()
    options = {"gpus": gpus, "gpu": gpu, "utilisation": utilisation, "teacher": teacher, "block": block}
    result = make_plan(recipe_to_plan(words or []), validated(PlanSettings, options))
    show(result, _text(result), as_json)


def _text(result: dict[str, Any]) -> str:
    machine, memory, flops, time = (result[key] for key in ("machine", "memory", "flops_per_token", "time"))
    batch, disk, parameters, ranks = result["batch"], result["disk"], result["parameters"], machine["ranks"]
    by_part = (("lower", "lower blocks"), ("upper", "upper blocks"), ("mixer", "mixer"), ("head", "head"))
    again = f", and {_flop(flops['recomputed'])} when blocks run again" if flops["recomputed"] else ""
    labels = f", {_bytes(disk['labels'])} for the labels" if disk["labels"] else ""
    label_time = f", and {_duration(time['label_seconds'])} for the labels" if time["label_seconds"] else ""
    with_it, without = (_bytes(memory["peak_by_checkpointing"][kind]) for kind in ("blocks", "none"))
    lines = [
        _verdict(result),
        "",
        f"parameters  {parameters['total']:,}, of which {parameters['active']:,} active",
        f"operations  {_flop(flops['training'])} a token, 3 × ({_parts(flops, by_part)}){again}",
        *([f"labels      {_flop(flops['labels']['total'])} a token{_of_labels(flops)}"] if flops["labels"] else []),
        f"step        {batch['tokens']:,} tokens: {ranks} rank{'s' * (ranks > 1)} × {batch['micro_batches']} "
        f"micro-batches × {batch['windows_per_rank']} windows × {batch['window']:,}",
        f"run         {result['tokens']:,} tokens, {result['steps']:,} steps, "
        f"{_flop(flops['training'] * result['tokens'])}",
        "",
        "memory of a rank at the fullest moment of a step",
        *(f"  {words:<26}{_bytes(memory['parts'][part]):>10}" for part, words in ROWS if memory["parts"][part] >= 1000),
        f"  {'together':<26}{_bytes(memory['peak']):>10}   of {_bytes(memory['available'])} that tensors can have",
        *([f"  {'with the CPU':<26}{_bytes(memory['host']):>10}"] if memory["host"] else []),
        "  at a step's end: " + ", ".join(f"{part} {_bytes(size)}" for part, size in memory["state"].items()),
        f"  activation checkpointing: {with_it} with it, {without} without",
        "",
        f"disk        {_bytes(disk['checkpoint'])} a checkpoint, {_bytes(disk['kept'])} for those kept{labels}",
        f"time        at {time['utilisation']:.0%} of {_flop(machine['peak'])}/s a rank: "
        f"{time['tokens_per_second']:,.0f} tokens/s, {_duration(time['seconds'])}{label_time}",
        *(f"assumed     {text}" for text in result["assumed"]),
    ]
    return "\n".join(lines)


def _parts(flops: dict[str, Any], names: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{words} {_flop(flops[part])}" for part, words in names if flops[part])


def _of_labels(flops: dict[str, Any]) -> str:
    """The parts of the labels' cost, where they are known."""
    names = [(name, name) for name in flops["labels"] if name != "total"]
    return f": {_parts(flops['labels'], names)}" if names else ""


def _verdict(result: dict[str, Any]) -> str:
    machine, memory = result["machine"], result["memory"]
    head = f"{result['method']} on {machine['ranks']} × {machine['title']} ({_bytes(machine['memory'])}): "
    if memory["fits"]:
        return head + "fits"
    mend = memory["mend"]
    if mend is None:
        return head + "does not fit, whatever the settings: take more ranks with dist.strategy=fsdp, or larger ones"
    return head + f"does not fit; it does with {' '.join(mend)}"


def _scaled(value: float | int, units: str, base: str) -> str:
    place = 0
    while abs(value) >= 999.5 and place < len(units) - 1:
        value, place = value / 1000, place + 1
    return f"{value:.3g} {units[place].strip()}{base}"


def _bytes(value: float | int) -> str:
    return _scaled(value, " kMGTP", "B")


def _flop(value: float | int) -> str:
    return _scaled(value, " kMGTPEZY", "FLOP")


def _duration(seconds: float | int) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"
