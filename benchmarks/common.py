"""What all benchmarks share: measuring in turn, medians, the arithmetic's floor, one table, one line on the machine.

On a machine that others use too, speeds drift by the minute. So what is compared is measured in turn, a, b, a, b, …,
and the medians of one such run are compared, never numbers of two runs.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any


def alternate(callables: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Calls each in turn, ``repeats`` rounds; each returns what it measured (seconds). One round before is not counted:
    caches, allocators and lazily built kernels are then as they will be."""
    for call in callables.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in callables}
    for _ in range(repeats):
        for name, call in callables.items():
            found[name].append(call())
    return found


def medians(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each name's measurements."""
    return {name: median(values) for name, values in found.items()}


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """How many times ``to`` is ``of``: the median over rounds of the ratio within a round, in which a machine's drift
    cancels."""
    return median(b / a for a, b in zip(of, to, strict=True))


def measured_peak(threads: int, size: int = 2048, repeats: int = 6, device: str = "cpu", bf16: bool = False) -> float:
    """FLOP/s of the fastest of a few matrix products (float32 or bfloat16); it sets torch's threads."""
    import torch

    from cocomix.train import metrics

    torch.set_num_threads(threads)
    kind = torch.bfloat16 if bf16 else torch.float32
    return metrics.measured_peak(torch.device(device), kind, size, repeats)


class Products:
    """Matrix products that go on for about as long as what they are held against, and their speed.

    On a machine whose speed drifts within seconds, the fastest of a few products is a moment's luck that nothing which
    takes seconds can have; the median of many is what the machine gave. Where a machine is quiet, they are the same.
    """

    def __init__(
        self, threads: int, size: int = 2048, seconds: float = 3.0, device: str = "cpu", bf16: bool = False
    ) -> None:
        self.fastest: list[float] = []
        """FLOP/s of the fastest product of each call."""
        self._threads, self._size, self._seconds, self._device, self._bf16 = threads, size, seconds, device, bf16

    def __call__(self) -> float:
        """FLOP/s of the median product of one call."""
        speeds, end = [], time.perf_counter() + self._seconds
        while not speeds or time.perf_counter() < end:
            speeds.append(measured_peak(self._threads, self._size, 1, self._device, self._bf16))
        self.fastest.append(max(speeds))
        return median(speeds)


def synchronised(device: str) -> float:
    """The clock, read when the device has done what it was given."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


PEAK = "peak"
"""The name under which :func:`with_peak` measures."""


def with_peak(
    callables: Mapping[str, Callable[[], float]], peak: Callable[[], float], repeats: int
) -> tuple[dict[str, list[float]], list[float]]:
    """:func:`alternate`, and the peak of each round: a machine's clock drifts, and a floor must drift with it."""
    found = alternate({**callables, PEAK: peak}, repeats)
    return found, found.pop(PEAK)


def over_floor(seconds: Sequence[float], flops: float, peaks: Sequence[float]) -> float:
    """How many times the floor: the median over rounds of seconds over ``flops`` at the round's own peak."""
    return median(s * peak / flops for s, peak in zip(seconds, peaks, strict=True))


def floor_seconds(flops: float, peak: float) -> float:
    """Seconds that ``flops`` operations take at ``peak`` FLOP/s: no arithmetic of this amount is faster."""
    return flops / peak


def machine() -> dict[str, Any]:
    """CPU, cores this process may use, memory, versions, and the day."""
    import torch
    import transformers

    return {
        "cpu": _of_proc("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gb": round(int((_of_proc("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 2**20, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
    }


def machine_line(facts: Mapping[str, Any]) -> str:
    """:func:`machine` as one line under a table."""
    where = f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB"
    if facts["gpu"]:
        where += f", {facts['gpu']}"
    return f"{where}; torch {facts['torch']}, transformers {facts['transformers']}; {facts['date']}"


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows as text. ``columns``: key → heading, in order; a column in which no row has a value is left out.

    Text stands left, numbers right: a thousand and more in full, others with three digits; None is a dash.
    """
    keys = [key for key in columns if any(row.get(key) is not None for row in rows)]
    cells = [[columns[key] for key in keys], *([_cell(row.get(key)) for key in keys] for row in rows)]
    left = [any(isinstance(row.get(key), str) for row in rows) for key in keys]
    widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
    lines = []
    for line in cells:
        padded = [cell.ljust(w) if text else cell.rjust(w) for cell, w, text in zip(line, widths, left, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def write(path: Path | None, result: Mapping[str, Any]) -> None:
    """``result`` as JSON in ``path``, where one was given."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _of_proc(path: str, key: str) -> str | None:
    """A value of Linux' /proc, elsewhere None."""
    if not Path(path).is_file():
        return None
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)
