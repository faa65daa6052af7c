"""The dataset folder: a manifest ``dataset.json``, a tokenizer, shards of token ids; read without a copy.

Tokens of all documents follow each other, each document ends with the end-of-text id. A *window* of length T
is T inputs and their T targets: T + 1 ids, consecutive windows T apart, so that every token but a shard's
first is predicted once. Windows do not cross shards. Their numbering depends on the shards and T alone;
labels rely on it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from cocomix.errors import UserError
from cocomix.files import read_json, sha256_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MANIFEST = "dataset.json"
FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """One file of token ids."""

    path: Path
    tokens: int
    sha256: str


class Split:
    """The shards of one split (``train`` or ``val``), read through memory maps."""

    def __init__(self, name: str, shards: list[Shard], dtype: np.dtype[Any], eos_id: int, text_bytes: int | None):
        self.name = name
        self.shards = tuple(shards)
        self.eos_id = eos_id
        self.text_bytes = text_bytes
        """UTF-8 bytes of the documents' text; None where nobody counted them: no bits per byte then."""
        self._dtype = dtype

    @property
    def tokens(self) -> int:
        """Number of token ids, ends of documents included."""
        return sum(shard.tokens for shard in self.shards)

    @functools.cached_property
    def _maps(self) -> list[np.ndarray]:
        return [np.memmap(s.path, dtype=self._dtype, mode="r") if s.tokens else np.empty(0) for s in self.shards]

    def windows_per_shard(self, length: int) -> list[int]:
        """Number of windows of ``length`` inputs in each shard."""
        return [max(0, (shard.tokens - 1) // length) for shard in self.shards]

    def count(self, length: int) -> int:
        """Number of windows of ``length`` inputs in the split."""
        return sum(self.windows_per_shard(length))

    def read(self, window_ids: Int[np.ndarray, " N"], length: int) -> Int[np.ndarray, "N {length}+1"]:
        """The ids of the windows, int64 [N, length + 1]: inputs are ``[:, :-1]``, targets ``[:, 1:]``."""
        ends = np.cumsum(self.windows_per_shard(length))
        shard_of = np.searchsorted(ends, window_ids, side="right")
        out = np.empty((len(window_ids), length + 1), dtype=np.int64)
        for row, (window, shard) in enumerate(zip(window_ids, shard_of, strict=True)):
            first = (int(window) - (int(ends[shard - 1]) if shard else 0)) * length
            out[row] = self._maps[shard][first : first + length + 1]
        return out

    def documents(self) -> Iterator[Int[np.ndarray, " L"]]:
        """The documents' ids one after another, int64, each with its end-of-text id (if the shard has it)."""
        for ids in self._maps:
            start = 0
            # In pieces: a mask over a whole shard of nanoGPT's would be gigabytes.
            for first in range(0, len(ids), 1 << 24):
                for end in first + 1 + np.flatnonzero(ids[first : first + (1 << 24)] == self.eos_id):
                    yield np.asarray(ids[start:end], dtype=np.int64)
                    start = int(end)
            if start < len(ids):
                yield np.asarray(ids[start:], dtype=np.int64)


class Dataset:
    """A dataset folder. Opening checks for missing and truncated files, ``cocomix data verify`` hashes."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.vocab_size: int = manifest["vocab_size"]
        self.eos_id: int = manifest["eos_id"]
        self.window: int = manifest["window"]
        self.tokenizer_hash: str = manifest["tokenizer"]["sha256"]
        self.dtype = np.dtype(manifest["dtype"])

    @classmethod
    def read(cls, folder: Path | str) -> Dataset:
        """Reads only the manifest of ``folder``; raises :class:`UserError` where it is missing or foreign."""
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise UserError(
                f"data={folder} is no dataset: it holds no {MANIFEST}; make one with "
                f"'cocomix data prepare SOURCE {folder}'"
            )
        manifest = read_json(folder / MANIFEST, "a dataset manifest")
        missing = {"format", "tokenizer", "vocab_size", "eos_id", "dtype", "window", "splits"} - set(manifest)
        if missing:
            raise UserError(f"{folder / MANIFEST} lacks {', '.join(sorted(missing))}: prepare the dataset again")
        if manifest["format"] != FORMAT:
            raise UserError(f"{folder / MANIFEST} has format {manifest['format']}, this version reads {FORMAT}")
        return cls(folder, manifest)

    @classmethod
    def open(cls, folder: Path | str) -> Dataset:
        """Opens ``folder``; raises :class:`UserError` that names a missing, foreign or truncated file."""
        dataset = cls.read(folder)
        for split in dataset.manifest["splits"]:
            for shard in dataset.split(split).shards:
                check_size(shard.path, shard.tokens * dataset.dtype.itemsize, "token shard")
        return dataset

    def split(self, name: str) -> Split:
        """The split ``train`` or ``val``."""
        splits = self.manifest["splits"]
        if name not in splits:
            raise UserError(f"{self.folder} has no split {name!r}, only {', '.join(splits)}")
        entry = splits[name]
        shards = [Shard(self.folder / s["file"], s["tokens"], s["sha256"]) for s in entry["shards"]]
        return Split(name, shards, self.dtype, self.eos_id, entry.get("text_bytes"))

    @property
    def fingerprint(self) -> str:
        """Hash over tokenizer, dtype and every shard's hash: the same one means the same tokens."""
        shards = {n: [s["sha256"] for s in e["shards"]] for n, e in self.manifest["splits"].items()}
        return sha256_json({"tokenizer": self.tokenizer_hash, "dtype": self.dtype.name, "shards": shards})

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of the tokenizer that made the tokens."""
        return self.folder / "tokenizer"

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that made the tokens."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(self.tokenizer_folder), trust_remote_code=False)


def check_size(path: Path, expected: int, what: str) -> None:
    """Raises :class:`UserError` when a file is absent or not ``expected`` bytes long."""
    if not path.is_file():
        raise UserError(f"{what} {path} is missing: restore it, or make it again in another folder")
    found = path.stat().st_size
    if found != expected:
        raise UserError(
            f"{what} {path} has {found:,} bytes where {expected:,} are due: it is truncated or foreign, "
            "restore it, or make it again in another folder"
        )
