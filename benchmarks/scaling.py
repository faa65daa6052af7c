"""How does the cost of training grow? Time a token against batch, context, concepts, width, and the length of a run.

    python benchmarks/scaling.py [--method insert] [--repeats 3] [--plot FILE.png] [--json FILE] [--tiny]

Four series of training steps (float32, random tokens), each around the paper's 69M size, the points of a series
measured in turn. Beside the time of a token: its counted arithmetic, and the time over what this takes in the machine's
fastest matrix product. A curve that climbs away from its floor shows a cost that the method does not have.

Then a run of a small model that goes on in one process, in sixteen parts, and at the same time as each part a fresh run
of as many steps, since a machine that others use too drifts within seconds; each has half of the threads. The time of a
step over the fresh run's, in the last parts over that in the first, should be 1, and so should the peak memory after
all parts over that after one: what a step costs must not depend on how many went before.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from common import alternate, floor_seconds, machine, machine_line, measured_peak, medians, table, write
from faults import prepare
from networks import METHODS, TINY, Sizes, network, stepper
from sides import HERE, Side
from sides import Sizes as Sides

PARTS, TINY_PARTS = 16, 2
COLUMNS = {
    "series": "series",
    "value": "value",
    "microseconds": "us/token",
    "megaflops": "MFLOP/token",
    "over_floor": "x floor",
    "over_first": "us x first",
    "flops_over_first": "FLOPs x first",
}


class Point(NamedTuple):
    """What a training step is measured with."""

    sizes: Sizes
    windows: int
    tokens: int


def main(words: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--method", choices=list(METHODS), default="insert")
    options.add_argument(
        "--steps", type=int, default=200, help="steps of the short run; the long one has 16 times more"
    )
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--plot", type=Path, help="PNG file")
    options.add_argument("--json", type=Path)
    options.add_argument("--tiny", action="store_true", help="seconds instead of minutes: does it run?")
    given = options.parse_args(words)
    steps = 4 if given.tiny else given.steps

    peak = measured_peak(given.threads, 256 if given.tiny else 2048)
    measured = {
        name: measure(points, given.method, given.repeats)
        for name, points in (tiny_series() if given.tiny else paper_series()).items()
    }
    peak = max(peak, measured_peak(given.threads, 256 if given.tiny else 2048))
    rows = [row for name, found in measured.items() for row in series_rows(name, found, peak)]
    length = against_length(steps, TINY_PARTS if given.tiny else PARTS, max(1, given.threads // 2))

    facts = machine()
    print(f"method {given.method}, {given.threads} threads, float32, median of {given.repeats}")
    print(table(rows, COLUMNS))
    print(
        f"a run of {length['steps']:,} steps: beside fresh runs, a step in its last quarter takes "
        f"{length['seconds_ratio']:.3f} times one in its first; its peak memory is {length['memory_ratio']:.3f} "
        f"times that after {steps:,}; "
        f"{100 * length['waited_for_data']:.2f} % of its time it waited for data"
    )
    print(machine_line(facts))
    if given.plot is not None:
        draw(given.plot, rows, length, given.method)
    result = {"benchmark": "scaling", "machine": facts, "method": given.method, "peak_flops": peak, "rows": rows}
    write(given.json, {**result, "length": length})
    return 0


def paper_series() -> dict[str, dict[int, Point]]:
    """Each series by the quantity that grows, everything else as in the 69M setting."""
    base = Sizes()
    return {
        "windows of 256 tokens": {n: Point(base, n, 256) for n in (1, 2, 4, 8)},
        "context, 1024 tokens a step": {t: Point(base, 1024 // t, t) for t in (128, 256, 512, 1024)},
        "concepts": {c: Point(base._replace(concepts=c), 1, 512) for c in (4096, 8192, 16384, 32768)},
        "width": {w: Point(base._replace(width=w, heads=w // 64), 1, 512) for w in (128, 256, 512, 768)},
    }


def tiny_series() -> dict[str, dict[int, Point]]:
    """The same, two points each, small."""
    return {
        "windows of 16 tokens": {n: Point(TINY, n, 16) for n in (1, 2)},
        "context, 64 tokens a step": {t: Point(TINY, 64 // t, t) for t in (32, 64)},
        "concepts": {c: Point(TINY._replace(concepts=c), 1, 32) for c in (64, 128)},
        "width": {w: Point(TINY._replace(width=w), 1, 32) for w in (32, 64)},
    }


def measure(points: dict[int, Point], method: str, repeats: int) -> dict[int, tuple[float, float]]:
    """Value → (seconds, training operations) a token."""
    from cocomix.model.costs import count_flops

    steps, flops = {}, {}
    for value, point in points.items():
        model = network(point.sizes, method)
        steps[str(value)] = stepper(model, point.sizes, method, point.windows, point.tokens)
        flops[value] = count_flops(model, point.tokens).training
    seconds = medians(alternate(steps, repeats))
    return {
        value: (seconds[str(value)] / (point.windows * point.tokens), flops[value]) for value, point in points.items()
    }


def series_rows(name: str, found: dict[int, tuple[float, float]], peak: float) -> Iterator[dict[str, Any]]:
    """The table's rows of one series."""
    first_seconds, first_flops = next(iter(found.values()))
    for value, (seconds, flops) in found.items():
        yield {
            "series": name,
            "value": value,
            "microseconds": 1e6 * seconds,
            "megaflops": flops / 1e6,
            "floor_microseconds": 1e6 * floor_seconds(flops, peak),
            "over_floor": seconds / floor_seconds(flops, peak),
            "over_first": seconds / first_seconds,
            "flops_over_first": flops / first_flops,
        }


def against_length(steps: int, count: int, threads: int) -> dict[str, Any]:
    """Step times of a run that goes on and on, each part of ``steps`` steps beside a fresh run of as many, each on
    ``threads``; the peak memory of the long run over a fresh one's."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder / "made")
        parts = []
        sizes = Sides(threads=threads, batch=steps)
        command = [sys.executable, str(HERE / "long_side.py"), str(folder)]
        with Side("long", command, sizes) as long, ThreadPoolExecutor(1) as aside:
            for part in range(count):
                answer = aside.submit(long.ask, "part")
                fresh = folder / f"fresh-{part}"
                peak = train(folder, steps, threads, fresh)
                found = {"fresh": median(step_seconds(fresh)), "fresh_megabytes": peak}
                parts.append({**answer.result(), **found})
        waited = waited_share(folder / "long")
    ratios = [part["seconds"] / part["fresh"] for part in parts]
    quarter = max(1, count // 4)
    first, last = parts[0], parts[-1]
    return {
        "steps": count * steps,
        "parts": parts,
        "ratios": ratios,
        "seconds_ratio": median(ratios[-quarter:]) / median(ratios[:quarter]),
        "waited_for_data": waited,
        "memory_ratio": last["megabytes"] / first["megabytes"],
    }


def train(folder: Path, steps: int, threads: int, run: Path) -> float:
    """Runs 'cocomix train' in ``run``; returns the process's peak memory in MB."""
    words = [sys.executable, "-m", "cocomix", "train", "tiny/cocomix", f"data.path={folder / 'made/data'}"]
    words += ["data.labels=concepts", f"steps={steps}", f"threads={threads}", "checkpoint.number=1", "evaluations=1"]
    words += ["eval_documents=1", f"run={run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    log = run.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(words, env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    return usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def step_seconds(run: Path) -> list[float]:
    """Seconds of each step but the first, which warms up."""
    from cocomix.train.metrics import read_lines

    clock = [line["seconds"] for line in read_lines(run / "metrics.jsonl")]
    return [after - before for before, after in pairwise(clock)]


def waited_share(run: Path) -> float:
    """The share of a run's seconds in which it waited for a batch."""
    from cocomix.train.metrics import read_lines

    last = list(read_lines(run / "metrics.jsonl"))[-1]
    return last["waited"]["data"] / last["seconds"]


def draw(path: Path, rows: list[dict[str, Any]], length: dict[str, Any], method: str) -> None:
    """A panel a series, time and floor a token; and the step's time along the long run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row["series"] for row in rows))
    figure, panels = plt.subplots(1, len(names) + 1, figsize=(4 * (len(names) + 1), 3.6), layout="constrained")
    for panel, name in zip(panels, names, strict=False):
        own = [row for row in rows if row["series"] == name]
        values = [row["value"] for row in own]
        panel.plot(values, [row["microseconds"] for row in own], "o-", label="measured")
        panel.plot(values, [row["floor_microseconds"] for row in own], "--", color="grey", label="arithmetic alone")
        panel.set(title=name, ylabel="microseconds a token", xscale="log", ylim=(0, None))
        panel.set_xticks(values, [f"{value:,}" for value in values], minor=False)
        panel.minorticks_off()
    panels[0].legend(frameon=False)
    count = len(length["ratios"])
    steps = [(i + 0.5) / count * length["steps"] for i in range(count)]
    panels[-1].plot(steps, length["ratios"], "o-")
    panels[-1].set(title="along a run", xlabel="step", ylabel="a step's time over a fresh run's", ylim=(0, None))
    figure.suptitle(f"Cost of training, {method}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
