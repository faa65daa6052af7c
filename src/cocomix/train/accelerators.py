"""What ``cocomix plan`` knows of GPUs. Imports no torch."""

from __future__ import annotations

import os
from typing import NamedTuple

from cocomix.errors import UserError, near_name


class Gpu(NamedTuple):
    """A GPU as its maker's data sheet has it."""

    title: str
    peak: float
    """Dense bfloat16 matrix products with float32 sums, FLOP/s (the sheets' larger figures are for 2:4 sparsity)."""
    memory: float
    """Bytes, the sheet's GB being 10⁹."""


GPUS = {
    "h100": Gpu("NVIDIA H100 SXM", 989e12, 80e9),
    "h200": Gpu("NVIDIA H200 SXM", 989e12, 141e9),
    "b200": Gpu("NVIDIA B200", 2250e12, 192e9),
    "a100": Gpu("NVIDIA A100 80GB SXM", 312e12, 80e9),
    "a100-40gb": Gpu("NVIDIA A100 40GB SXM", 312e12, 40e9),
    "l40s": Gpu("NVIDIA L40S", 362e12, 48e9),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", 165e12, 24e9),
}
"""By the name that ``--gpu`` takes. From NVIDIA's public data sheets of these products (H100, H200, A100, L40S), the
Blackwell and the Ada GPU architecture papers (B200, RTX 4090)."""

CONTEXT = 1.5e9
"""Bytes that the CUDA context, cuBLAS's and NCCL's buffers hold beside tensors: an allowance, not measured."""
FRAGMENTS = 0.05
"""Share of a GPU's memory that the allocator is allowed to lose to fragments: an allowance, not measured."""


class Machine(NamedTuple):
    """What a run is planned for."""

    title: str
    ranks: int
    peak: float
    """FLOP/s a rank."""
    memory: float
    """Bytes a rank."""
    reserved: float
    """Bytes of it that tensors cannot have."""
    cuda: bool


def find_gpu(name: str) -> Gpu:
    """The GPU of that name; raises :class:`UserError` that lists the known ones."""
    if name.lower() not in GPUS:
        raise UserError(f"--gpu {name} is unknown{near_name(name.lower(), GPUS)}; known: {', '.join(GPUS)}")
    return GPUS[name.lower()]


def machine_of_gpus(name: str, ranks: int) -> Machine:
    """``ranks`` of the GPU ``name``, a process each."""
    gpu = find_gpu(name)
    return Machine(gpu.title, ranks, gpu.peak, gpu.memory, CONTEXT + FRAGMENTS * gpu.memory, True)


def machine_here(peak: float, ranks: int) -> Machine:
    """``ranks`` processes on this machine's processors, which reach ``peak`` FLOP/s together and share its memory."""
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return Machine(
        "a process on this machine's CPU", ranks, peak / ranks, memory / ranks, FRAGMENTS * memory / ranks, False
    )
