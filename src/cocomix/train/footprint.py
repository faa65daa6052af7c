"""What a training step takes of one rank's memory, found by running it on tensors that have shapes and no contents.

The step is the real one (:func:`cocomix.train.step.train_step`, its optimizers, FSDP2 over as many ranks as wanted);
only the arithmetic is left out (PyTorch's FakeTensorMode), so that 1.4 billion parameters take seconds on a laptop,
while :class:`cocomix.train.live_bytes.LiveBytes` counts what exists at each moment. Counted are tensors' bytes: not
what an allocator loses to fragments, nor what a device's libraries hold for themselves; nothing is taken off for what
torch.compile saves.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cocomix.data.batches import Batch
from cocomix.dist.parallel import Spread, mesh_of, shard
from cocomix.dist.settings import DistSettings
from cocomix.errors import UserError
from cocomix.losses.terms import Term
from cocomix.model.config import CoCoMixConfig
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.ops.heads import chunks_as_on
from cocomix.train.build import build_optimizers, checkpoint_activations
from cocomix.train.live_bytes import GRADIENTS, OPTIMIZER, LiveBytes, local
from cocomix.train.settings import OptimizerSettings
from cocomix.train.step import train_step

WEIGHTS = "weights"


class Work(NamedTuple):
    """What one rank does in a step."""

    windows: int
    """Windows of a micro-batch."""
    window: int
    """Tokens of a window."""
    micro_batches: int
    widths: dict[str, int]
    """Values a token of each column of the batch: concept labels, a teacher's probabilities."""
    bf16: bool
    checkpointing: bool
    cuda: bool
    """Whether heads work in chunks of a GPU's size."""


class State(NamedTuple):
    """Bytes that a rank holds at a step's end; all but the gradients stay."""

    weights: int
    gradients: int
    optimizer: int


class Footprint(NamedTuple):
    """One rank's memory."""

    state: State
    parts: dict[str, int]
    """Bytes at the fullest moment of a step, by part: weights, and :data:`cocomix.train.live_bytes.PARTS`."""
    host: int
    """Bytes in the CPU's memory, with offloading."""
    checkpoint: int
    """Bytes of weights and optimizer state of all ranks together."""

    @property
    def peak(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def footprint(
    config: CoCoMixConfig,
    terms: Sequence[tuple[Term, float]],
    optimizer: OptimizerSettings,
    dist: DistSettings,
    ranks: int,
    work: Work,
) -> Footprint:
    """The footprint of rank 0 of ``ranks``, the fullest; raises :class:`UserError` when the ranks do not divide."""
    sharded = dist.strategy == "fsdp" and ranks > 1
    chunks = chunks_as_on("cuda" if work.cuda else "cpu")
    with warnings.catch_warnings(), simulated_ranks(ranks if sharded else 1), chunks:
        mesh = mesh_of(dist, ranks, "cpu") if sharded else None  # made of real numbers: not under the fake mode
        with FakeTensorMode():
            model = CoCoMixForCausalLM(config).train()
            if work.checkpointing:
                checkpoint_activations(model)
            if mesh is not None:
                others = [model.mixer] if model.mixer is not None else []
                # Where weights are offloaded to makes no difference to their number.
                kept = dist.model_copy(update={"offload": False})
                shard(model, list(model.blocks), others, kept, mesh, work.bf16)
            found = _dry_run(Spread(model, model, ranks), terms, build_optimizers(model, optimizer), work)
    return _offloaded(found) if sharded and dist.offload else found


def _dry_run(
    spread: Spread, terms: Sequence[tuple[Term, float]], optimizers: list[torch.optim.Optimizer], work: Work
) -> Footprint:
    model: Any = spread.plain
    buckets = spread.ranks > 1 and not spread.sharded
    # From the second micro-batch on nothing changes but that the last one ends the summing. Under DDP gradients lie in
    # buckets that stay from step to step: as if there always were a micro-batch before.
    number = 2 if buckets else min(work.micro_batches, 2)
    batch = _batch(terms, work)

    def step(micro_batches: int) -> None:
        autocast = torch.autocast("cpu", torch.bfloat16) if work.bf16 else contextlib.nullcontext()
        train_step(spread, terms, [batch] * micro_batches, optimizers, 1.0, autocast)

    with LiveBytes(model, work.windows * work.window) as live:
        step(1)  # after it optimizers have their state
        live.begin(optimizers)
        step(number)
    weights = [local(p) for p in model.parameters()]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    state = [v for o in optimizers for entry in o.state.values() for v in entry.values() if isinstance(v, Tensor)]
    own = State(
        _bytes(weights), _bytes(weights) if buckets else _bytes(map(local, gradients)), _bytes(map(local, state))
    )
    parts = {WEIGHTS: own.weights, **live.fullest}
    if buckets:
        parts[GRADIENTS] = own.weights
    return Footprint(own, parts, 0, _bytes(model.parameters()) + _bytes(state))


def _offloaded(found: Footprint) -> Footprint:
    """A rank's own weights, optimizer state and sharded gradients lie with the CPU; the device keeps the rest."""
    return found._replace(parts={**found.parts, WEIGHTS: 0, OPTIMIZER: 0}, host=sum(found.state))


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def _batch(terms: Sequence[tuple[Term, float]], work: Work) -> Batch:
    shape = (work.windows, work.window)
    columns = {}
    for name in sorted({name for term, _ in terms for name in term.columns}):
        if name in work.widths:
            kind = torch.float32 if name in ("teacher_probs", "teacher_state") else torch.long
            columns[name] = torch.zeros(*shape, work.widths[name], dtype=kind)
    ids = torch.zeros(shape, dtype=torch.long)
    return Batch(np.arange(work.windows), ids, ids.clone(), columns)


@contextlib.contextmanager
def simulated_ranks(ranks: int) -> Iterator[None]:
    """A process group in which this process is rank 0 of ``ranks`` and what it exchanges goes nowhere."""
    if ranks == 1:
        yield
        return
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise UserError("--gpus: 'cocomix plan' simulates the ranks itself: run it as one process, without torchrun")
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # of in-place work on its output
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
