"""metrics.jsonl and evals.jsonl: one JSON object a line, cut back to the checkpoint when a run resumes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from cocomix.errors import explained
from cocomix.files import write_text


class JsonLines:
    """A file of JSON lines that a running process appends to."""

    def __init__(self, path: Path, last_step: int) -> None:
        """Opens ``path`` for appending; lines beyond ``last_step`` (and a torn last one) are dropped."""
        self.path = path
        lines = [line for line in read_lines(path) if line["step"] <= last_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        with explained(path):
            self._file = path.open("a", encoding="utf-8")

    def append(self, line: dict[str, Any]) -> None:
        """Adds a line and hands it to the operating system at once."""
        with explained(self.path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_lines(path: Path | str) -> list[dict[str, Any]]:
    """The whole lines of a file; what a killed process left torn at the end is left out.

    Of ``metrics.jsonl``, a line every ``log_every`` steps: ``step``, ``tokens``, ``losses`` by name (training, nats a
    token or label), ``lr``, ``seconds`` and others; of ``evals.jsonl``: held-out ``loss`` and others.
    """
    path = Path(path)
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def measured_peak(device: torch.device, dtype: torch.dtype, size: int | None = None, repeats: int = 5) -> float:
    """FLOP/s of the fastest of a few square matrix products: the peak that utilisation is measured against.

    ``size``: of the matrices; None: what the kind of device needs to reach its peak.
    """
    # A GPU is done with a small product before the next is launched, so there are many large ones between two looks:
    # milliseconds on a large card, a second on a small one.
    size, products = (size or 4096, 20) if device.type == "cuda" else (size or 1024, 1)
    # Constants, not random numbers: training's random state must not notice that it was measured.
    a, b = (torch.full((size, size), 0.5, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(products):
            torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return products * 2 * size**3 / best
