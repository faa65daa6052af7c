"""A split's shards while they are written: whole documents, complete files, a record of each."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from cocomix.data.dataset import check_size
from cocomix.errors import UserError
from cocomix.files import atomic_path, sha256_file

TRAIN, VAL = "train", "val"


class ShardWriter:
    """Collects the documents of one split and writes a shard when told."""

    def __init__(self, folder: Path, split: str, records: list[dict[str, Any]]) -> None:
        self._folder, self._split = folder, split
        self.records = records
        """One a complete shard: file, tokens, sha256, itemsize, documents, text_bytes, and ``end``, the
        number in the source of the first document behind it."""
        self._pending: list[np.ndarray] = []
        self.pending_tokens = 0
        self._text_bytes = 0

    @property
    def end(self) -> int:
        """This split's documents before this number in the source are in complete shards."""
        return int(self.records[-1]["end"]) if self.records else 0

    @property
    def tokens(self) -> int:
        """Tokens in complete shards and waiting."""
        return sum(r["tokens"] for r in self.records) + self.pending_tokens

    def check(self) -> None:
        """Raises :class:`UserError` when a complete shard is no longer what was written."""
        for record in self.records:
            path = self._folder / record["file"]
            check_size(path, record["tokens"] * record["itemsize"], "finished token shard")
            if sha256_file(path) != record["sha256"]:
                raise UserError(f"{path} was changed since it was written: delete {self._folder} and prepare again")

    def add(self, number: int, ids: np.ndarray, text_bytes: int) -> None:
        """Takes the ids of the source's document ``number``."""
        self._pending.append(ids)
        self._next = number + 1
        self.pending_tokens += len(ids)
        self._text_bytes += text_bytes

    def write(self) -> None:
        """Writes what waits as a shard; nothing where nothing waits."""
        if not self._pending:
            return
        ids = np.concatenate(self._pending)
        name = f"{self._split}-{len(self.records):05d}.bin"
        data = ids.tobytes()
        with atomic_path(self._folder / name) as path, path.open("wb") as file:
            file.write(data)
        self.records.append(
            {
                "file": name,
                "tokens": len(ids),
                "sha256": hashlib.sha256(data).hexdigest(),
                "itemsize": ids.itemsize,
                "documents": len(self._pending),
                "text_bytes": self._text_bytes,
                "end": self._next,
            }
        )
        self._pending, self.pending_tokens, self._text_bytes = [], 0, 0

    def fills(self, window: int) -> bool:
        """Whether some complete shard holds a window of ``window`` inputs."""
        return any(record["tokens"] > window for record in self.records)

    def discard(self) -> None:
        """Forgets all shards; their files are overwritten or removed at the end."""
        self.records = []

    def remove_strangers(self) -> None:
        """Removes shards of this split that an earlier attempt left and this one did not write."""
        known = {record["file"] for record in self.records}
        for path in self._folder.glob(f"{self._split}-*.bin*"):
            if re.fullmatch(rf"{self._split}-\d{{5,}}\.bin(\.partial)?", path.name) and path.name not in known:
                path.unlink()

    def manifest(self) -> dict[str, Any]:
        """The split's entry in ``dataset.json``."""
        return {
            "shards": [{key: r[key] for key in ("file", "tokens", "sha256")} for r in self.records],
            "documents": sum(r["documents"] for r in self.records),
            "text_bytes": sum(r["text_bytes"] for r in self.records),
        }
