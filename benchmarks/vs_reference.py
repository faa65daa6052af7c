"""How long a training step and its labels take here, and in the paper's reference implementation, on this CPU.

    python benchmarks/vs_reference.py [--reference FOLDER --reference-python PYTHON] [--json FILE]

Equal shapes, threads and precision (float32), random weights; by default the paper's 69M network with GPT-2 124M and a
TopK autoencoder of 32,768 latents as its teacher. The two sides are processes that stay; one measures while the other
idles, in turn. The floor is what the method's arithmetic (matrix products only, those it cannot do without) takes at
the speed of this machine's matrix products of the same seconds. Without --reference our side is measured alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from statistics import median
from typing import Any

from common import (
    Products,
    floor_seconds,
    machine,
    machine_line,
    medians,
    over_floor,
    ratio,
    table,
    with_peak,
    write,
)
from sides import COMMANDS, Side, Sizes, arguments, sides_of

WORK = {
    "step": "training step, labels at hand",
    "labels": "labels of a batch",
    "step+labels": "training step that makes its labels",
}
COLUMNS = {
    "work": "", "seconds": "ours, s", "tokens_per_second": "tokens/s", "floor": "floor, s", "over_floor": "ours/floor",
    "reference": "reference, s", "reference_over_floor": "reference/floor", "ratio": "reference/ours",
}  # fmt: skip


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints the table, and returns what ``--json`` writes."""
    options = arguments(__doc__)
    given = options.parse_args(words)
    sizes, commands = sides_of(options, given)
    size = 256 if given.tiny else 2048
    with ExitStack() as stack:
        sides = [stack.enter_context(Side(name, command, sizes)) for name, command in commands.items()]
        found, peaks = {}, {}
        products = Products(sizes.threads, size, seconds=0.1 if given.tiny else 3.0)
        for command in COMMANDS:
            calls = {side.name: side.seconds(command) for side in sides}
            found[command], peaks[command] = with_peak(calls, products, given.repeats)
        costs = sides[0].ask("costs")
        losses = {side.name: side.ask("step")["losses"] for side in sides}
    rows = [row(command, found[command], costs["flops"][command], peaks[command], sizes) for command in COMMANDS]
    peak = median(speed for round_ in peaks.values() for speed in round_)
    fastest = median(products.fastest)
    facts = machine()
    print(table(rows, COLUMNS))
    print(
        f"\n{sizes.batch} windows of {sizes.window} tokens, float32, {sizes.threads} threads; "
        f"{costs['parameters'] / 1e6:.1f}M parameters; medians of {given.repeats}, measured in turn; "
        f"matrix products, in turn too, {peak / 1e9:.0f} GFLOP/s (the fastest of each turn {fastest / 1e9:.0f})\n"
        f"{machine_line(facts)}"
    )
    result = {
        "benchmark": "vs_reference",
        "machine": facts,
        "sizes": asdict(sizes),
        "parameters": costs["parameters"],
        "peak_flops_per_second": peak,
        "fastest_flops_per_second": fastest,
        "rows": rows,
        "seconds": found,
        "peaks": peaks,
        "losses": losses,
    }
    write(given.json, result)
    return result


def row(
    command: str, seconds: Mapping[str, Sequence[float]], flops: float, peaks: Sequence[float], sizes: Sizes
) -> dict[str, Any]:
    """One line of the table."""
    middle, floor = medians(seconds), floor_seconds(flops, median(peaks))
    found = {
        "command": command,
        "work": WORK[command],
        "seconds": middle["ours"],
        "tokens_per_second": sizes.tokens / middle["ours"],
        "flops": flops,
        "floor": floor,
        "over_floor": over_floor(seconds["ours"], flops, peaks),
    }
    if "reference" in seconds:
        found["reference"] = middle["reference"]
        found["reference_over_floor"] = over_floor(seconds["reference"], flops, peaks)
        found["ratio"] = ratio(seconds["ours"], seconds["reference"])
    return found


if __name__ == "__main__":
    main()
