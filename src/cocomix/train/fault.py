"""A loss or gradient that is not finite: what is kept of it, and the step again, looked at closely."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from cocomix.data.order import window_ids
from cocomix.dist.world import launched, shared
from cocomix.errors import UserError
from cocomix.files import read_json, write_json
from cocomix.losses.terms import asked
from cocomix.train.checkpoint import Checkpoints, load_weights
from cocomix.train.run import Run
from cocomix.train.step import NonFinite

FAULTS, RECORD = "faults", "fault.json"
SHOWN = 8


def told(fault: NonFinite, run: Run, checkpoints: Checkpoints) -> UserError:
    """Keeps the state before the step in ``RUN/faults/`` and ``RUN/fault.json``; the sentence for all ranks."""
    step, world = run.counters.step + 1, run.world
    ranks = range(world.size) if fault.rank is None else [fault.rank]
    count, size = run.split.count(run.window), run.share
    firsts = [run.counters.samples + rank * size for rank in ranks]
    windows = [int(w) for first in firsts for w in window_ids(count, run.settings.seed, first, size)]
    record = {"step": step, "rank": fault.rank, "ranks": world.size, "what": fault.what, "windows": windows}
    record["samples"] = run.counters.samples
    try:
        checkpoints.begin(run.model, run.optimizers, run.counters, FAULTS)
        checkpoints.finish()
        world.once(lambda: write_json(run.folder / RECORD, record))
        look = "look at it with the same command and --replay-batch"
    except UserError as error:
        look = f"its state could not be kept ({error})"
    where = "on some rank" if fault.rank is None and world.size > 1 else f"on rank {fault.rank or 0}"
    named = ", ".join(map(str, windows[:SHOWN])) + (f" and {len(windows) - SHOWN} more" if len(windows) > SHOWN else "")
    return shared(
        UserError(
            f"step {step:,}, {where}: {fault.what} on windows {named}; the weights were not changed and the "
            f"checkpoints of {run.folder} are kept; {look}, or try a lower optimizer.lr in another run folder"
        )
    )


def replay(run: Run) -> dict[str, Any]:
    """The step that was not finite once more, window by window, on one process; nothing of the run is changed.

    Returns the record of the fault with, for each window of the step, its losses, the norm of its gradient, and the
    first module whose output is not finite; and the weights that are not finite already. Raises :class:`UserError`
    where no fault was kept.
    """
    if launched()[1] > 1:
        raise UserError("--replay-batch looks at a step on one process: call it without torchrun")
    if not (run.folder / RECORD).is_file():
        raise UserError(f"run={run.folder} met no loss or gradient that is not finite: there is nothing to replay")
    record = read_json(run.folder / RECORD, "the record of a fault")
    state = run.folder / FAULTS / f"step-{record['step'] - 1:08d}"
    if not state.is_dir():
        raise UserError(f"run={run.folder}: the state before step {record['step']:,} was not kept in {state}")
    load_weights(state, run.model)
    sick = [name for name, p in run.model.named_parameters() if not torch.isfinite(p).all()]
    whole = run.read_batch(record["step"] - 1, rank=0)
    parts = whole.to(run.device).split(len(whole.window_ids))
    run.model.train()
    return {**record, "weights_not_finite": sick, "by_window": [_looked_at(run, part) for part in parts]}


def _looked_at(run: Run, batch: Any) -> dict[str, Any]:
    names = {module: name for name, module in run.model.named_modules()}
    first: list[str] = []
    largest: dict[str, float] = {}

    def look(module: nn.Module, args: Any, output: Any) -> None:
        for tensor in _tensors(output):
            if not first and not torch.isfinite(tensor).all():
                first.append(names[module] or type(module).__name__)
        if module in blocks and _tensors(output):
            largest[names[module]] = float(_tensors(output)[0].detach().abs().max())

    blocks = set(run.model.blocks)
    hooks = [module.register_forward_hook(look) for module in run.model.modules()]
    try:
        run.model.zero_grad(set_to_none=True)
        with run.autocast():
            output = run.model(input_ids=batch.inputs, **asked(run.terms, batch))
            totals = {term.name: (term.total(output, batch), max(1, term.count(batch))) for term, _ in run.terms}
        sum(weight * totals[term.name][0] / totals[term.name][1] for term, weight in run.terms).backward()  # type: ignore[union-attr]
    finally:
        for hook in hooks:
            hook.remove()
    norms = {n: float(p.grad.norm()) for n, p in run.model.named_parameters() if p.grad is not None}
    return {
        "window": int(batch.window_ids[0]),
        "losses": {name: _number(float(total.detach()) / count) for name, (total, count) in totals.items()},
        "grad_norm": _number(math.hypot(*norms.values())),
        "first_not_finite": first[0] if first else None,
        "gradients_not_finite": [name for name, norm in norms.items() if not math.isfinite(norm)],
        "largest_activation": {name: _number(value) for name, value in largest.items()},
    }


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = tuple(output.values())
    return [tensor for part in output for tensor in _tensors(part)] if isinstance(output, tuple | list) else []


def _number(value: float) -> float | str:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else str(value)
