"""Is next-token prediction here as fast as with plain code, and what does CoCoMix cost beside it?

    python benchmarks/vs_plain.py [--nanogpt nanoGPT/model.py] [--repeats 5] [--json FILE] [--tiny]

A training step (forward, backward, clipping, fused AdamW, float32, at the paper's 69M size) of this library's
next-token prediction; of transformers' GPT2LMHeadModel; of nanoGPT's model, where its model.py is given (it is not part
of this repository); and of CoCoMix with each mixing over the same backbone. All are measured in turn. "x ntp" is
the time over that of our next-token prediction, round by round; "FLOPs" is what the counted arithmetic says it should
be; "x floor" is the time over the time that this arithmetic takes at the speed of the machine's matrix products, in
turn as well.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from cocomix.allocator import keep_freed_memory
from cocomix.model.costs import count_flops
from common import (
    Products,
    machine,
    machine_line,
    medians,
    over_floor,
    ratio,
    synchronised,
    table,
    with_peak,
    write,
)
from networks import METHODS, TINY, Sizes, autocast, network, random_batch, stepper

OURS = "cocomix: {}"
COLUMNS = {
    "name": "training step",
    "seconds": "seconds",
    "tokens_per_second": "tokens/s",
    "over_ntp": "x ntp",
    "flops_over_ntp": "FLOPs x ntp",
    "over_floor": "x floor",
}


def main(words: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--nanogpt", type=Path, help="nanoGPT's model.py")
    options.add_argument("--windows", type=int, default=1)
    options.add_argument("--tokens", type=int, default=1024, help="tokens of a window")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    options.add_argument("--compile", action="store_true", help="blocks of ours, the plain models whole")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--json", type=Path)
    options.add_argument("--tiny", action="store_true", help="seconds instead of minutes: does it run?")
    given = options.parse_args(words)
    sizes = TINY if given.tiny else Sizes()
    tokens = min(given.tokens, sizes.context)
    keep_freed_memory()  # as cocomix train does; here for all alike
    torch.set_num_threads(given.threads)

    steps: dict[str, Callable[[], float]] = {}
    flops: dict[str, float] = {}
    for method in METHODS:
        model = network(sizes, method)
        how = (given.device, given.bf16, given.compile)
        steps[OURS.format(method)] = stepper(model, sizes, method, given.windows, tokens, *how)
        flops[OURS.format(method)] = count_flops(model, tokens).training * given.windows * tokens
    steps["transformers: ntp"] = _transformers_step(sizes, given, tokens)
    if given.nanogpt is not None:
        steps["nanoGPT: ntp"] = _nanogpt_step(given.nanogpt, sizes, given, tokens)

    side = 256 if given.tiny else 8192 if given.device.startswith("cuda") else 2048
    products = Products(given.threads, side, 0.1 if given.tiny else 2.0, given.device, given.bf16)
    found, peaks = with_peak(steps, products, given.repeats)
    ours = OURS.format("ntp")
    rows = [
        {
            "name": name,
            "seconds": seconds,
            "tokens_per_second": given.windows * tokens / seconds,
            "over_ntp": ratio(found[ours], found[name]),
            # The plain codes do the arithmetic of our next-token prediction.
            "flops_over_ntp": flops.get(name, flops[ours]) / flops[ours],
            "over_floor": over_floor(found[name], flops.get(name, flops[ours]), peaks),
        }
        for name, seconds in medians(found).items()
    ]
    facts = machine()
    where = f"{given.threads} threads" if given.device == "cpu" else given.device
    where += (", bfloat16" if given.bf16 else ", float32") + (", compiled" if given.compile else "")
    print(f"{given.windows} x {tokens} tokens a step, {where}, median of {given.repeats}")
    print(table(rows, COLUMNS))
    print(machine_line(facts))
    write(
        given.json,
        {
            "benchmark": "vs_plain",
            "machine": facts,
            "setting": where,
            "peaks": peaks,
            "fastest": products.fastest,
            "rows": rows,
            "measured": found,
        },
    )
    return 0


def _transformers_step(sizes: Sizes, given: argparse.Namespace, tokens: int) -> Callable[[], float]:
    """transformers' own model and loss, its labels shifted inside (so one target fewer a window)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**sizes.backbone(), use_cache=False)).train()
    ids = random_batch(sizes, "ntp", given.windows, tokens).inputs.to(given.device)
    return _plain_step(model, lambda: model(input_ids=ids, labels=ids).loss, given)


def _nanogpt_step(path: Path, sizes: Sizes, given: argparse.Namespace, tokens: int) -> Callable[[], float]:
    module = _load(path)
    torch.manual_seed(0)
    config = module.GPTConfig(
        block_size=sizes.context,
        vocab_size=sizes.vocabulary,
        n_layer=sizes.depth,
        n_head=sizes.heads,
        n_embd=sizes.width,
        dropout=0.0,
        bias=True,
    )
    model = module.GPT(config).train()
    batch = random_batch(sizes, "ntp", given.windows, tokens).to(torch.device(given.device))
    return _plain_step(model, lambda: model(batch.inputs, batch.targets.contiguous())[1], given)


def _plain_step(model: torch.nn.Module, loss: Callable[[], Any], given: argparse.Namespace) -> Callable[[], float]:
    """Forward, backward, clipping and the same fused AdamW, as a plain training script has them."""
    model.to(given.device)
    if given.compile:
        model.compile()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)

    def step() -> float:
        start = synchronised(given.device)
        optimizer.zero_grad(set_to_none=True)
        with autocast(given.device, given.bf16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return synchronised(given.device) - start

    return step


def _load(path: Path) -> ModuleType:
    """A module by its file's location."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"--nanogpt {path} is no Python file: give nanoGPT's model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
