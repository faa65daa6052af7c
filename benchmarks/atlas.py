"""How long does an atlas of 10 million labelled tokens take, how much memory, and how quick is a search in it?

    python benchmarks/atlas.py [--tokens 10000000] [--concepts 32768] [--width 768] [--threads 2]
                               [--keep FOLDER] [--json FILE] [--tiny]

The cache is made up and lies in the real formats: 50,257 tokens of which r-th frequent ones occur with 1/r, four labels
a token, seven in ten of them from sixteen concepts that the token has to itself, the others any; teacher and
autoencoder are random and as wide as GPT-2 124M. The command 'cocomix concepts atlas' runs as a process of its own: its
seconds are wall-clock from start to end, imports included, its memory is the highest resident size (ru_maxrss).
Searches are timed in this process, the first one with a file that was just opened. Goals: 180 s, 2 GB, 50 ms.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.concepts.atlas import Atlas
from cocomix.concepts.labels import MANIFEST, label_columns
from cocomix.concepts.load_sae import load_sae
from cocomix.concepts.teacher_files import find_teacher
from cocomix.data.columns import ColumnWriter
from cocomix.data.dataset import Dataset
from cocomix.data.shards import ShardWriter
from cocomix.data.tokenizer import tokenizer_hash, train_tokenizer
from cocomix.files import write_json
from cocomix.testing.teachers import write_sae
from common import machine, machine_line, table, write

VOCABULARY, K, WINDOW = 50_257, 4, 1024
OWN_CONCEPTS, OWN_SHARE = 16, 0.7
SEARCHES = 50
GOALS = {"seconds": 180.0, "gigabytes": 2.0, "search_ms": 50.0}
COLUMNS = {"name": "what", "value": "measured", "goal": "goal"}
SYLLABLES = [c + v for c in (*"bcdfghjklmnprstvwz", "br", "ch", "gr", "st", "tr") for v in "aeiou"]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", type=int, default=10_000_000)
    options.add_argument("--concepts", type=int, default=32_768)
    options.add_argument("--width", type=int, default=768, help="of teacher and autoencoder")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--keep", type=Path, help="make the cache here, or find it from the last time")
    options.add_argument("--json", type=Path)
    options.add_argument("--tiny", action="store_true", help="seconds instead of minutes: does it run?")
    given = options.parse_args()
    if given.tiny:
        given.tokens, given.concepts, given.width = 50_000, 512, 64
    with nullcontext(given.keep) if given.keep else tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "data" / "labels" / "made"
        if not (folder / MANIFEST).is_file():
            make_cache(Path(place), given.tokens, given.concepts, given.width)
        seconds, gigabytes = build(folder, given.threads)
        atlas = Atlas.open(folder)
        searches = timed_searches(atlas)
        size = atlas.path.stat().st_size
    found = {"seconds": seconds, "gigabytes": gigabytes, "search_ms": 1e3 * max(searches)}
    names = {"seconds": "build, s", "gigabytes": "highest memory, GB", "search_ms": "slowest search, ms"}
    rows: list[dict[str, Any]] = [{"name": names[k], "value": found[k], "goal": GOALS[k]} for k in GOALS]
    rows += [
        {"name": "median search, ms", "value": 1e3 * median(searches)},
        {"name": "first search, ms", "value": 1e3 * searches[0]},
        {"name": "atlas.sqlite, MB", "value": size / 1e6},
    ]
    facts, sizes = machine(), {key: getattr(given, key) for key in ("tokens", "concepts", "width", "threads")}
    dictionary = f"{given.concepts:,} concepts of width {given.width}, {K} labels a token"
    print(f"{given.tokens:,} tokens, {dictionary}, {given.threads} threads")
    print(table(rows, COLUMNS))
    print(f"load average {os.getloadavg()[0]:.1f}\n{machine_line(facts)}")
    write(given.json, {"benchmark": "atlas", "machine": facts, "rows": rows, **sizes, "searches": searches})
    return 0


def build(folder: Path, threads: int) -> tuple[float, float]:
    """Seconds and gigabytes of the command."""
    command = [sys.executable, "-m", "cocomix", "concepts", "atlas", str(folder), "--json"]
    start = time.perf_counter()
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9


def timed_searches(atlas: Atlas) -> list[float]:
    """Seconds of each of :data:`SEARCHES`: words and beginnings of words of its names and contexts, common and rare,
    two words, signs, and what is not there."""
    draw = random.Random(1)
    texts = ["the", "a", ".", "no such thing", *(draw.choice(SYLLABLES) for _ in range(10))]
    while len(texts) < SEARCHES:
        context = draw.choice(atlas.concept(draw.randrange(atlas.concepts))["contexts"] or [{"before": "ba"}])["before"]
        words = context.split()
        texts.append(" ".join(draw.sample(words, min(len(words), draw.choice((1, 2))))))
    return [_seconds(atlas, text) for text in texts]


def _seconds(atlas: Atlas, text: str) -> float:
    start = time.perf_counter()
    atlas.search(text)
    return time.perf_counter() - start


def make_cache(place: Path, tokens: int, concepts: int, width: int) -> None:
    """Dataset, teacher, autoencoder and labels in ``place``."""
    data = place / "data"
    tokenizer = train_tokenizer(_made_up_words(), VOCABULARY)
    tokenizer.save_pretrained(str(data / "tokenizer"))
    draw = np.random.default_rng(0)
    weights = 1.0 / np.arange(1, len(tokenizer) + 1)
    order, writer = draw.permutation(len(tokenizer)), ShardWriter(data, "train", [])
    windows = -(-tokens // WINDOW)
    while writer.pending_tokens <= windows * WINDOW:
        length = draw.integers(200, 2000)
        ids = order[np.searchsorted(weights.cumsum() / weights.sum(), draw.random(length))]
        writer.add(0, np.append(ids, tokenizer.eos_token_id).astype(np.uint16), 0)
    writer.write()
    write_json(
        data / "dataset.json",
        {
            "format": 1, "window": WINDOW, "dtype": "uint16", "vocab_size": len(tokenizer),
            "eos_id": tokenizer.eos_token_id, "splits": {"train": writer.manifest()},
            "tokenizer": {"name": "made up", "sha256": tokenizer_hash(tokenizer)},
        },
    )  # fmt: skip
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=width, n_layer=2, n_head=2, n_positions=WINDOW)
    GPT2LMHeadModel(config).save_pretrained(place / "teacher")
    tokenizer.save_pretrained(str(place / "teacher"))
    decoder = torch.nn.functional.normalize(torch.randn(concepts, width), dim=-1)
    write_sae(place / "sae", decoder.T.contiguous(), torch.zeros(concepts), decoder, torch.zeros(width), 32)
    _write_labels(data, place, concepts, draw)


def _made_up_words() -> list[str]:
    draw = random.Random(0)
    return [" ".join("".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(200)) for _ in range(600)]


def _write_labels(data: Path, place: Path, concepts: int, draw: np.random.Generator) -> None:
    dataset, folder = Dataset.open(data), data / "labels" / "made"
    split = dataset.split("train")
    columns = label_columns(concepts, K)
    no_label = int(np.iinfo(columns[0].dtype).max)
    writers = [ColumnWriter(folder, split.shards[0].path, column, WINDOW) for column in columns]
    for first in range(0, split.count(WINDOW), 256):
        ids = np.arange(first, min(first + 256, split.count(WINDOW)))
        words = split.read(ids, WINDOW)[:, :-1, None]
        own = (words * 2654435761 + draw.integers(0, OWN_CONCEPTS, (*words.shape[:2], K)) * 40503) % concepts
        other = (concepts * draw.random(own.shape) ** 2).astype(np.int64)
        labels = np.sort(np.where(draw.random(own.shape) < OWN_SHARE, own, other), axis=-1)
        labels[..., 1:][labels[..., 1:] == labels[..., :-1]] = no_label
        writers[0].append(labels)
        writers[1].append(draw.lognormal(1.0, 0.5, labels.shape))
    files = {writer.path.name: writer.finish() for writer in writers}
    write_json(
        folder / MANIFEST,
        {
            "format": 1, "dataset": dataset.fingerprint, "window": WINDOW, "files": files, "no_label": no_label,
            "cost": {"flops": 0.0, "seconds": 0.0}, "coverage": {"seed": None, "windows": None},
            "teacher": {"name": str(place / "teacher"), "block": 0,
                        "fingerprint": find_teacher(str(place / "teacher")).fingerprint()},
            "sae": {"folder": str(place / "sae"), "latents": concepts,
                    "fingerprint": load_sae(place / "sae").fingerprint},
            "attribution": {"k": K},
        },
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
