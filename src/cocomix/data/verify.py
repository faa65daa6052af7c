"""Is a dataset folder still what was written? All that is wrong with it, at once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cocomix.data.dataset import Dataset, Shard, check_size
from cocomix.data.tokenizer import load_tokenizer, tokenizer_hash
from cocomix.errors import UserError, explained
from cocomix.progress import Bar, progress

PIECE = 1 << 22


@dataclass(frozen=True)
class Verdict:
    """What :func:`verify` found."""

    shards: int
    tokens: int
    """As the manifest says."""
    problems: tuple[str, ...]
    """One sentence for each thing that is wrong; empty: the dataset is what was written."""

    def as_json(self) -> dict[str, Any]:
        """The verdict as a JSON object."""
        return {
            "ok": not self.problems,
            "shards": self.shards,
            "tokens": self.tokens,
            "problems": [*self.problems],
        }


def verify(folder: Path | str) -> Verdict:
    """Reads every shard of the dataset in ``folder`` and its tokenizer, and collects all that is wrong.

    Raises :class:`UserError` where there is no dataset or its manifest cannot be read.
    """
    dataset = Dataset.read(folder)
    shards = [shard for split in dataset.manifest["splits"] for shard in dataset.split(split).shards]
    problems: list[str] = []
    size = sum(shard.tokens for shard in shards) * dataset.dtype.itemsize
    with progress("verifying, MB", -(-size // 1_000_000)) as bar:
        for shard in shards:
            problems += _shard_problems(shard, dataset, bar)
    problems += _tokenizer_problems(dataset)
    return Verdict(len(shards), sum(shard.tokens for shard in shards), tuple(problems))


def _shard_problems(shard: Shard, dataset: Dataset, bar: Bar) -> list[str]:
    try:
        check_size(shard.path, shard.tokens * dataset.dtype.itemsize, "token shard")
        digest, largest, shown = hashlib.sha256(), -1, 0
        with explained(shard.path), shard.path.open("rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
                largest = max(largest, int(np.frombuffer(piece, dtype=dataset.dtype).max()))
                done = file.tell() // 1_000_000
                bar.advance(done - shown)
                shown = done
    except UserError as error:
        return [str(error)]
    problems = []
    if digest.hexdigest() != shard.sha256:
        problems.append(
            f"token shard {shard.path} is not what was written: its hash is {digest.hexdigest()[:12]}…, "
            f"the manifest says {shard.sha256[:12]}…"
        )
    if largest >= dataset.vocab_size:
        problems.append(
            f"token shard {shard.path} holds the id {largest}, the vocabulary ends at {dataset.vocab_size - 1}"
        )
    return problems


def _tokenizer_problems(dataset: Dataset) -> list[str]:
    folder = dataset.tokenizer_folder
    if not (folder / "tokenizer.json").is_file():
        return [f"tokenizer {folder / 'tokenizer.json'} is missing: restore it, or prepare the dataset again"]
    try:
        found = tokenizer_hash(load_tokenizer(str(folder)))
    except UserError as error:
        return [f"tokenizer {folder} cannot be loaded: {error}"]
    if found == dataset.tokenizer_hash:
        return []
    return [
        f"tokenizer {folder} is not the one that made the tokens: its hash is {found[:12]}…, the "
        f"manifest says {dataset.tokenizer_hash[:12]}…"
    ]
