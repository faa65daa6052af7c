"""Columns beside a dataset's shards: a value, or a few, for each token of each window; one raw file a shard.

A column's file ``<shard>.<column>.bin`` holds [windows, window, width] values in C order, windows in the
shard's own order. What the columns belong to (dataset, window length) stands in a manifest beside them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int, Shaped

from cocomix.data.dataset import Dataset, Split, check_size
from cocomix.errors import UserError, explained
from cocomix.files import TEMPORARY_SUFFIX, sha256_file, sync_folder


@dataclass(frozen=True)
class Column:
    """Name, NumPy dtype and values a token of a column."""

    name: str
    dtype: str
    width: int

    def file(self, shard: Path) -> str:
        """Name of the file that belongs to a token shard."""
        return f"{shard.stem}.{self.name}.bin"

    def window_bytes(self, window: int) -> int:
        """Bytes of one window of ``window`` tokens."""
        return window * self.width * np.dtype(self.dtype).itemsize


class ColumnWriter:
    """One column of one shard while it is written: append windows, ``sync`` now and then, ``finish``.

    Goes on behind the first ``windows`` windows that an earlier writer made durable; what follows them (a torn
    tail of a killed process) is cut off. Raises :class:`UserError` when fewer than ``windows`` are there.
    """

    def __init__(self, folder: Path, shard: Path, column: Column, window: int, windows: int = 0) -> None:
        self.path = folder / column.file(shard)
        self._column, self._window = column, window
        self._temporary = self.path.with_name(self.path.name + TEMPORARY_SUFFIX)
        size = windows * column.window_bytes(window)
        with explained(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.is_file():  # renamed already, but nobody has noted it yet
                self.path.rename(self._temporary)
            self._file: BinaryIO = self._temporary.open("r+b" if self._temporary.is_file() else "w+b")
            found = self._file.seek(0, os.SEEK_END)
            if found < size:
                raise UserError(
                    f"{self._temporary} has {found:,} bytes where {size:,} were written: "
                    f"delete the folder {folder} and start again"
                )
            self._file.truncate(size)
            self._file.seek(size)

    def append(self, values: Shaped[np.ndarray, "N T W"]) -> None:
        """Writes whole windows behind what is there."""
        assert values.shape[1:] == (self._window, self._column.width), values.shape
        with explained(self.path):
            self._file.write(np.ascontiguousarray(values, dtype=self._column.dtype).data)

    def sync(self) -> None:
        """Makes all that was appended durable."""
        with explained(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self) -> str:
        """Flushes, gives the file its name, and returns its SHA-256."""
        self.sync()
        self.close()
        with explained(self.path):
            self._temporary.replace(self.path)
            sync_folder(self.path.parent)
        return sha256_file(self.path)

    def close(self) -> None:
        """Leaves the file as it is, to be gone on with later."""
        self._file.close()


class Columns:
    """Reads columns through memory maps, for windows by their number in the split.

    ``manifest`` (of the file ``source``, for errors) says what the columns belong to: ``dataset`` (fingerprint),
    ``window``. Raises :class:`UserError` when that is not ``dataset``, or a file is missing or truncated.
    """

    def __init__(
        self, folder: Path, dataset: Dataset, manifest: dict[str, Any], columns: list[Column], what: str
    ) -> None:
        if manifest["dataset"] != dataset.fingerprint:
            raise UserError(
                f"{what} {folder} belong to another dataset (fingerprint {manifest['dataset'][:12]}…) than "
                f"{dataset.folder} ({dataset.fingerprint[:12]}…): extract them again for this one"
            )
        self.window: int = manifest["window"]
        self._splits: dict[str, tuple[np.ndarray, list[Path]]] = {}
        self._columns = {column.name: column for column in columns}
        self._folder = folder
        self._maps: dict[tuple[str, str], list[np.ndarray]] = {}
        for name in dataset.manifest["splits"]:
            split = dataset.split(name)
            counts = split.windows_per_shard(self.window)
            self._splits[name] = np.cumsum(counts), [shard.path for shard in split.shards]
            for column in columns:
                self._maps[name, column.name] = self._open(split, column, counts, what)

    def _open(self, split: Split, column: Column, counts: list[int], what: str) -> list[np.ndarray]:
        maps = []
        for shard, count in zip(split.shards, counts, strict=True):
            shape = (count, self.window, column.width)
            path = self._folder / column.file(shard.path)
            if not count:
                maps.append(np.empty(shape, column.dtype))
                continue
            check_size(path, count * column.window_bytes(self.window), f"file of the {what}")
            maps.append(np.memmap(path, dtype=column.dtype, mode="r", shape=shape))
        return maps

    def count(self, split: str) -> int:
        """Windows of a split."""
        ends, _ = self._splits[split]
        return int(ends[-1]) if len(ends) else 0

    def read(
        self, split: str, column: str, window_ids: Int[np.ndarray, " N"] | Sequence[int]
    ) -> Shaped[np.ndarray, "N T W"]:
        """The column's values for windows of ``split``, [N, window, width], in the column's dtype."""
        if split not in self._splits:
            raise UserError(f"there is no split {split}: {self._folder} has {', '.join(self._splits)}")
        window_ids = np.asarray(window_ids, dtype=np.int64)
        ends, _ = self._splits[split]
        maps = self._maps[split, column]
        if len(window_ids) and not 0 <= window_ids.min() <= window_ids.max() < (ends[-1] if len(ends) else 0):
            raise IndexError(f"window ids {window_ids.min()} … {window_ids.max()} of {ends[-1]} in {split}")
        shard_of = np.searchsorted(ends, window_ids, side="right")
        spec = self._columns[column]
        out = np.empty((len(window_ids), self.window, spec.width), dtype=spec.dtype)
        for shard in np.unique(shard_of):
            here = shard_of == shard
            out[here] = maps[shard][window_ids[here] - (ends[shard - 1] if shard else 0)]
        return out
