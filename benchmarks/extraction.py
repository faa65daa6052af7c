"""How close are labels to the arithmetic they need? label_windows, and 'cocomix concepts extract' end to end.

    python benchmarks/extraction.py [--repeats 5] [--threads 2] [--json FILE] [--tiny]

A teacher of GPT-2's size (124M) with random weights, an autoencoder of 32,768 latents of which 32 are active, float32.
The floor is the operations that cocomix counts for labels (concepts/costs.py: matrix products and attention, forward
and backward above the block) at the speed of the matrix products measured here. Memory is what the process grew by
at its highest (Linux only), beside the weights.

End to end, the command loads and hashes the files and checks the autoencoder's fit before the first label: that is in
its seconds, but not in the rate that it writes down in labels.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.concepts.attribution import label_windows
from cocomix.concepts.costs import label_flops
from cocomix.concepts.sae import SparseAutoencoder, TopK, Weights
from cocomix.concepts.settings import AttributionSettings
from cocomix.concepts.teacher import Teacher
from cocomix.data.dataset import Dataset
from cocomix.testing.teachers import write_sae
from cocomix.testing.text import tiny_dataset
from common import (
    Products,
    floor_seconds,
    machine,
    machine_line,
    medians,
    over_floor,
    synchronised,
    table,
    with_peak,
    write,
)

COLUMNS = {
    "name": "what",
    "tokens": "tokens",
    "seconds": "s",
    "tokens_per_second": "tokens/s",
    "floor_seconds": "floor, s",
    "over_floor": "x floor",
    "megabytes": "MB more",
}


class Sizes(NamedTuple):
    """Of the teacher (GPT-2's by default), the autoencoder, the batches and the dataset."""

    config: dict[str, int]
    latents: int
    k: int
    batches: tuple[tuple[int, int], ...]
    """(windows, tokens of a window)"""
    train_windows: int


PAPER = Sizes({}, 32768, 32, ((2, 512), (1, 1024)), 16)
TINY = Sizes({"n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": 1000, "n_positions": 128}, 512, 8, ((2, 32),), 8)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--device", default="cpu", help="cpu or cuda, of label_windows and the command")
    options.add_argument("--json", type=Path)
    options.add_argument("--tiny", action="store_true", help="seconds instead of minutes: does it run?")
    given = options.parse_args()
    sizes, side = (TINY, 256) if given.tiny else (PAPER, 2048)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**sizes.config))
    block = len(model.transformer.h) // 2 - 1
    with tempfile.TemporaryDirectory() as place:
        # what the command reads; before the measurements, since they may change parts of the model
        data, teacher_folder, sae_folder = _folders(Path(place), model, sizes)
        teacher, sae = Teacher(model.to(given.device), block), _autoencoder(model.config.n_embd, sizes).to(given.device)
        settings = AttributionSettings()
        calls = {f"label_windows, {b} x {t}": _labels(teacher, sae, settings, b, t) for b, t in sizes.batches}
        found, peaks = with_peak(
            calls, Products(given.threads, side, 0.1 if given.tiny else 2.0, given.device), given.repeats
        )
        rows: list[dict[str, Any]] = []
        for (name, seconds), (windows, window) in zip(medians(found).items(), sizes.batches, strict=True):
            flops = label_flops(teacher, sae, settings, window, float(sizes.k)).total
            row = _row(name, windows * window, seconds, flops, _growth(calls[name]))
            rows.append({**row, "over_floor": over_floor(found[name], row["flops"], peaks)})
        del model, teacher, sae, calls
        before = time.perf_counter()
        manifest = _extract(data, teacher_folder, sae_folder, block, sizes, given)
        total, cost = time.perf_counter() - before, manifest["cost"]
        flops = cost["flops_per_token"]
        rows.append(_row("concepts extract, labelling", manifest["tokens"], cost["seconds"], flops, None))
        rows.append(_row("concepts extract, the command", manifest["tokens"], total, flops, None))
    peak = median(peaks)
    for row in rows:
        row["floor_seconds"] = floor_seconds(row["flops"], peak)
        row.setdefault("over_floor", row["seconds"] / row["floor_seconds"])
    facts = machine()
    print(f"{given.threads} threads, float32, median of {given.repeats}; the command once")
    print(table(rows, COLUMNS))
    print(f"matrix products at {peak / 1e9:.0f} GFLOP/s; load average {os.getloadavg()[0]:.1f}")
    print(machine_line(facts))
    write(
        given.json, {"benchmark": "extraction", "machine": facts, "peak_flops": peak, "rows": rows, "measured": found}
    )
    return 0


def _row(name: str, tokens: int, seconds: float, flops_per_token: float, megabytes: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "flops": tokens * flops_per_token,
        "megabytes": megabytes,
    }


def _labels(
    teacher: Teacher, sae: SparseAutoencoder, settings: AttributionSettings, windows: int, window: int
) -> Callable[[], float]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, teacher.config.vocab_size, (windows, window + 1), generator=generator)

    def label() -> float:
        start = synchronised(str(teacher.device))
        label_windows(teacher, sae, tokens[:, :-1], tokens[:, 1:], settings)
        return synchronised(str(teacher.device)) - start

    return label


def _growth(call: Callable[[], float]) -> float | None:
    """MB that this process' resident memory grows by at its highest."""
    marks = Path("/proc/self/clear_refs")
    if not marks.is_file():
        return None
    marks.write_text("5")  # the highest mark is the present size
    before = _resident("VmRSS")
    call()
    return (_resident("VmHWM") - before) / 1e6


def _resident(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def _weights(width: int, sizes: Sizes) -> tuple[torch.Tensor, ...]:
    """An autoencoder's tensors: it explains nothing, but costs what a trained one costs."""
    decoder = torch.nn.functional.normalize(torch.randn(sizes.latents, width), dim=-1)
    return decoder.T.contiguous(), 0.1 * torch.randn(sizes.latents), decoder, torch.zeros(width)


def _autoencoder(width: int, sizes: Sizes) -> SparseAutoencoder:
    return SparseAutoencoder(Weights(*_weights(width, sizes)), TopK(sizes.k))


def _folders(place: Path, model: GPT2LMHeadModel, sizes: Sizes) -> tuple[Path, Path, Path]:
    """A dataset of made-up English, and teacher and autoencoder on disk."""
    window = sizes.batches[0][1]
    documents = 40 + sizes.train_windows * window // 400
    data: Dataset = tiny_dataset(place / "data", documents=documents, window=window)
    model.save_pretrained(place / "teacher")
    data.tokenizer().save_pretrained(str(place / "teacher"))
    return data.folder, place / "teacher", write_sae(place / "sae", *_weights(model.config.n_embd, sizes), sizes.k)


def _extract(
    data: Path, teacher: Path, sae: Path, block: int, sizes: Sizes, given: argparse.Namespace
) -> dict[str, Any]:
    words = [
        f"sae={sae}",
        f"teacher={teacher}",
        f"block={block}",
        "name=timed",
        "force=true",
        f"device={given.device}",
        "dtype=float32",
    ]
    words += [f"train_windows={sizes.train_windows}", f"batch_windows={sizes.batches[0][0]}"]
    command = [sys.executable, "-m", "cocomix", "concepts", "extract", f"data={data}", *words, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": str(given.threads)}
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    manifest: dict[str, Any] = json.loads((data / "labels" / "timed" / "labels.json").read_text(encoding="utf-8"))
    return manifest


if __name__ == "__main__":
    sys.exit(main())
