"""What does CoCoMix cost when it writes? generate() with a cache, each mixing beside the same backbone without a mixer.

    python benchmarks/decode.py [--batch 1 8] [--prompt 64] [--new 128] [--repeats 5] [--json FILE] [--tiny]

At the paper's 69M size with 32,768 concepts, random weights, greedy, float32; all measured in turn. A token's floor is
the larger of two times: that of reading from memory what a step must read once (every weight matrix, the cache), at the
speed of the fastest matrix-vector product over a matrix that no cache of the CPU holds; and that of its arithmetic at
the fastest matrix product.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from cocomix.allocator import keep_freed_memory
from cocomix.model.costs import count_flops
from cocomix.model.modeling import CoCoMixForCausalLM
from common import (
    alternate,
    floor_seconds,
    machine,
    machine_line,
    measured_peak,
    medians,
    ratio,
    synchronised,
    table,
    write,
)
from networks import METHODS, TINY, Sizes, network

COLUMNS = {
    "name": "generate()",
    "milliseconds": "ms/step",
    "tokens_per_second": "tokens/s",
    "over_plain": "x plain",
    "megabytes": "MB/step",
    "bytes_over_plain": "MB x plain",
    "megaflops": "MFLOP/step",
    "flops_over_plain": "FLOPs x plain",
    "over_floor": "x floor",
}


class Needs(NamedTuple):
    """What one step of decoding cannot do without."""

    bytes: float
    flops: float


def main(words: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    options.add_argument("--prompt", type=int, default=64)
    options.add_argument("--new", type=int, default=128, help="new tokens")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--bf16", action="store_true", help="weights in bfloat16")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--json", type=Path)
    options.add_argument("--tiny", action="store_true", help="seconds instead of minutes: does it run?")
    given = options.parse_args(words)
    keep_freed_memory()  # as cocomix train does; here for all alike
    sizes, prompt, new = (TINY, 8, 8) if given.tiny else (Sizes(), given.prompt, given.new)
    side = 256 if given.tiny else 8192 if given.device.startswith("cuda") else 2048
    kind = torch.bfloat16 if given.bf16 else torch.float32
    peak = measured_peak(given.threads, side, device=given.device, bf16=given.bf16)
    bandwidth = measured_bandwidth(given.device)
    models = {method: network(sizes, method).eval().to(given.device, kind) for method in METHODS}

    rows: list[dict[str, Any]] = []
    measured: dict[int, dict[str, list[float]]] = {}
    for batch in given.batch:
        calls = {method: _generation(model, batch, prompt, new) for method, model in models.items()}
        measured[batch] = found = alternate(calls, given.repeats)
        bandwidth = max(bandwidth, measured_bandwidth(given.device))
        plain = needs(models["ntp"], batch, prompt, new)
        for method, seconds in medians(found).items():
            need, step = needs(models[method], batch, prompt, new), seconds / new
            floor = max(need.bytes / bandwidth, floor_seconds(need.flops, peak))
            rows.append(
                {
                    "name": f"batch {batch}, {'no mixer' if method == 'ntp' else method}",
                    "batch": batch,
                    "method": method,
                    "milliseconds": 1e3 * step,
                    "tokens_per_second": batch / step,
                    "over_plain": ratio(found["ntp"], found[method]),
                    "megabytes": need.bytes / 1e6,
                    "bytes_over_plain": need.bytes / plain.bytes,
                    "megaflops": need.flops / 1e6,
                    "flops_over_plain": need.flops / plain.flops,
                    "floor_milliseconds": 1e3 * floor,
                    "over_floor": step / floor,
                }
            )
    facts = machine()
    where = f"{given.threads} threads" if given.device == "cpu" else given.device
    where += ", bfloat16" if given.bf16 else ", float32"
    print(f"prompt of {prompt} tokens, {new} new ones, {where}, median of {given.repeats}")
    print(table(rows, COLUMNS))
    print(f"memory read at {bandwidth / 1e9:.1f} GB/s, matrix products at {peak / 1e9:.0f} GFLOP/s")
    print(machine_line(facts))
    result = {
        "benchmark": "decode",
        "machine": facts,
        "setting": where,
        "bandwidth": bandwidth,
        "peak_flops": peak,
        "rows": rows,
    }
    write(given.json, {**result, "measured": measured})
    return 0


def _generation(model: CoCoMixForCausalLM, batch: int, prompt: int, new: int) -> Callable[[], float]:
    anything: Any = model
    vocabulary = model.config.text_config.vocab_size
    ids = torch.randint(0, vocabulary, (batch, prompt), generator=torch.Generator().manual_seed(2)).to(model.device)
    device = str(model.device)
    mask = torch.ones_like(ids)

    def generate() -> float:
        start = synchronised(device)
        text = anything.generate(
            ids, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        seconds = synchronised(device) - start
        assert text.shape == (batch, prompt + new)
        return seconds

    return generate


def needs(model: CoCoMixForCausalLM, batch: int, prompt: int, new: int) -> Needs:
    """Bytes and operations of a step in the middle of ``new`` tokens behind a prompt.

    Each weight matrix is read once for all rows of the batch and both positions of a token; of the compression's rows
    K for each row of the batch; keys and values of the tokens before.
    """
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | Conv1D))
    text, tokens = model.config.text_config, prompt + new / 2
    doubled = len(model.blocks) - model.config.insert_at if model.config.mixing in ("insert", "memory") else 0
    entries = len(model.blocks) + (doubled if model.mixer is not None else 0)
    numbers = matrices + batch * entries * tokens * 2 * text.hidden_size
    if model.mixer is not None:
        numbers += batch * model.config.concept_k * text.hidden_size
    # A window's tokens look at (T + 1)/2 tokens on average, the one in the middle at `tokens`.
    flops = batch * count_flops(model, round(2 * tokens)).total
    return Needs(numbers * model.dtype.itemsize, flops)


def measured_bandwidth(device: str = "cpu", megabytes: int = 256, repeats: int = 6) -> float:
    """Bytes a second of the fastest of a few matrix-vector products over a matrix too large for the CPU's caches."""
    matrix = torch.full((megabytes << 8, 1024), 0.5, device=device)
    vector = torch.ones(1024, device=device)
    best = float("inf")
    for _ in range(repeats):
        start = synchronised(device)
        torch.mv(matrix, vector)
        best = min(best, synchronised(device) - start)
    return matrix.nbytes / best


if __name__ == "__main__":
    sys.exit(main())
