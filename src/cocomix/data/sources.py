"""Sources of text: files, folders of files, hub datasets; each gives its documents one after another."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cocomix.data import readers
from cocomix.data.settings import PrepareSettings
from cocomix.errors import UserError, explained
from cocomix.files import sha256_json
from cocomix.progress import say

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
SAMPLES = 64
SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True)
class Document:
    """One text, and how much of its source has been read with it."""

    text: str
    source_bytes: int
    """Bytes of the source's files read so far (compressed ones as they lie on the disk); 0 where unknown."""


@runtime_checkable
class Source(Protocol):
    """Something that gives the same documents in the same order each time it is asked."""

    identity: dict[str, Any]
    """What a dataset's manifest says of its source; equal for equal content, wherever it lies."""
    total_bytes: int | None

    def documents(self) -> Iterator[Document]:
        """The documents in order, empty ones too."""
        ...


def open_source(settings: PrepareSettings) -> Source:
    """The source that ``settings.source`` names.

    Raises :class:`UserError` when it is neither a file nor a folder with readable files nor a dataset of
    the hub.
    """
    path = Path(settings.source)
    if path.is_file():
        if readers.reader_for(path) is None:
            raise UserError(f"{path} is of no type that can be read: give {readers.TYPES}")
        return FileSource([path], path.parent, settings)
    if path.is_dir():
        return FileSource(_files_below(path, Path(settings.out).resolve()), path, settings)
    if HUB_ID.match(settings.source) and readers.reader_for(path) is None:
        return HubSource(settings, _hub_revision(settings))
    raise UserError(f"{path} does not exist: give a file ({readers.TYPES}), a folder of such files, or a hub dataset")


def _files_below(folder: Path, out: Path) -> list[Path]:
    files = [p for p in folder.rglob("*") if p.is_file() and not p.resolve().is_relative_to(out) and p.name[0] != "."]
    readable = [p for p in files if readers.reader_for(p) is not None]
    others = Counter(p.suffix or p.name for p in files if readers.reader_for(p) is None)
    told = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
    if not readable:
        found = f"only other files ({told})" if others else "no files"
        raise UserError(f"{folder} holds {found}: give a folder with {readers.TYPES}")
    if others:
        say(f"left out of {folder}, as no text can be read from them: {told}")
    return sorted(readable, key=lambda p: p.relative_to(folder).as_posix())


class FileSource:
    """Files, read in the order of their names."""

    def __init__(self, files: list[Path], folder: Path, settings: PrepareSettings) -> None:
        self._files, self._settings = files, settings
        listing = [[p.relative_to(folder).as_posix(), p.stat().st_size, sampled_hash(p)] for p in files]
        self.total_bytes: int | None = sum(p.stat().st_size for p in files)
        self.identity: dict[str, Any] = {
            "kind": "files",
            "files": len(files),
            "bytes": self.total_bytes,
            "sha256": sha256_json(listing),
        }

    def documents(self) -> Iterator[Document]:
        """The documents of all files."""
        before = 0
        for path in self._files:
            reader = readers.reader_for(path)
            assert reader is not None
            for text, read in reader(path, self._settings):
                yield Document(text, before + read)
            before += path.stat().st_size


def sampled_hash(path: Path) -> str:
    """Hash of a whole file up to 4 MiB, of 64 pieces spread over a larger one: tells files apart fast."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with explained(path), path.open("rb") as file:
        step = max(SAMPLE_BYTES, (size - SAMPLE_BYTES) // (SAMPLES - 1))
        for start in range(0, size, step):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


class HubSource:
    """A dataset of the Hugging Face hub, streamed, pinned to the revision that it had at first."""

    total_bytes: int | None = None

    def __init__(self, settings: PrepareSettings, revision: str | None) -> None:
        self._settings, self._revision = settings, revision
        self.identity: dict[str, Any] = {
            "kind": "hub",
            "id": settings.source,
            "subset": settings.subset,
            "split": settings.split,
            "revision": revision,
        }

    def documents(self) -> Iterator[Document]:
        """The rows' texts in the hub's order."""
        from datasets import load_dataset

        settings = self._settings
        try:
            rows = load_dataset(
                settings.source,
                settings.subset,
                split=settings.split,
                revision=self._revision,
                streaming=True,
            )
            for number, row in enumerate(rows, start=1):
                yield Document(readers.text_of(row, settings.field, f"{settings.source}, row {number}"), 0)
        except UserError:
            raise
        except Exception as error:  # the clients below raise errors of many libraries
            raise _no_hub(settings, error) from error


def _hub_revision(settings: PrepareSettings) -> str:
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(settings.source, timeout=20).sha)
    except Exception as error:
        raise _no_hub(settings, error) from error


def _no_hub(settings: PrepareSettings, error: Exception) -> UserError:
    named = f" (subset={settings.subset}, split={settings.split})"
    reason = str(error).strip().splitlines() or [""]
    return UserError(
        f"{settings.source} is no file or folder here, and the hub gave no such dataset{named}: "
        f"{type(error).__name__}: {reason[0][:200].rstrip('. ')}; check the name and the network, or "
        f"download the text and give its file or folder"
    )
