"""Text to a dataset folder: which document is held out, tokens, shards; goes on after an interruption.

While it works, ``prepare.json`` in the folder says what is being made and which shards are complete; a
shard counts once it stands there. A later run reads the source from its beginning, passes over the
documents of complete shards without encoding them, and so writes the very bytes that an uninterrupted run
writes. ``dataset.json`` comes last.

Of several ranks the first does all this; the others help it with the encoding, which is nearly all of the work. So the
bytes are the same for any number of ranks, and one number of them goes on where another stopped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cocomix.data.dataset import FORMAT, MANIFEST
from cocomix.data.encoding import EncodingHelper, SharedEncoder, share_cores
from cocomix.data.heldout import HoldOut, divide, fair_hold_out, position_of
from cocomix.data.inplace import is_nanogpt_folder, take_in_place
from cocomix.data.made import STATE, finished
from cocomix.data.settings import PrepareSettings
from cocomix.data.shards import TRAIN, VAL, ShardWriter
from cocomix.data.sources import Source, open_source
from cocomix.data.tokenizer import (
    Encoder,
    load_tokenizer,
    save_tokenizer,
    tokenizer_hash,
    train_tokenizer,
    vocabulary_size,
)
from cocomix.dist.lead import Crew, led
from cocomix.dist.world import current
from cocomix.errors import UserError, explained
from cocomix.files import read_json, write_json
from cocomix.progress import Bar, progress, say
from cocomix.stopping import Stopped, StopRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_CHARACTERS = 1 << 21
BATCH_DOCUMENTS = 2048


@dataclass(frozen=True)
class Placed:
    """A document that is not empty, and where it goes."""

    number: int
    """Its place in the source, from 0, empty documents counted."""
    text: str
    position: float
    """In [0, 1); documents below :attr:`HoldOut.below` are held out."""


def prepare(settings: PrepareSettings) -> dict[str, Any]:
    """Makes the dataset folder ``settings.out`` and returns its manifest, on all ranks that have joined.

    Raises :class:`UserError` for a source that cannot be read, too little text for a window in each split,
    or a folder that holds something made otherwise; :class:`Stopped` after a signal to any rank (run again, it goes
    on, also on another number of ranks).
    """

    def work(crew: Crew) -> dict[str, Any]:
        if is_nanogpt_folder(settings.source):
            return take_in_place(settings)
        return _prepare(open_source(settings), settings, crew)

    share_cores(current())
    return led(work, EncodingHelper())


def prepare_from(source: Source, settings: PrepareSettings) -> dict[str, Any]:
    """:func:`prepare` for an open source, which stands in for ``settings.source``; only rank 0 reads it."""
    share_cores(current())
    return led(lambda crew: _prepare(source, settings, crew), EncodingHelper())


def _prepare(source: Source, settings: PrepareSettings, crew: Crew) -> dict[str, Any]:
    out = Path(settings.out)
    made_of = {"source": source.identity, "settings": settings.choices()}
    manifest = finished(out, made_of)
    if manifest is None:
        return _Preparation(settings, source, out, made_of, crew).run()
    _refuse_changed_tokenizer(settings, manifest)
    return manifest


def _refuse_changed_tokenizer(settings: PrepareSettings, manifest: dict[str, Any]) -> None:
    """A folder of the same name may hold another tokenizer by now."""
    if settings.tokenizer is None or not Path(settings.tokenizer).is_dir():
        return
    if tokenizer_hash(load_tokenizer(settings.tokenizer)) != manifest["tokenizer"]["sha256"]:
        raise UserError(
            f"{settings.out} was made with another tokenizer than tokenizer={settings.tokenizer} holds now: choose "
            "another folder, or delete that one"
        )


class _Preparation:
    """One run of ``prepare``: its state is what ``prepare.json`` holds."""

    def __init__(
        self, settings: PrepareSettings, source: Source, out: Path, made_of: dict[str, Any], crew: Crew
    ) -> None:
        self.settings, self.source, self.out, self.made_of, self.crew = settings, source, out, made_of, crew
        state = read_json(out / STATE, "an unfinished dataset's state") if (out / STATE).exists() else {}
        self.hold_out = HoldOut(**state.get("hold_out", {"below": settings.val_fraction}))
        self.tokenizer_sha256: str | None = state.get("tokenizer_sha256")
        self.shards = {split: ShardWriter(out, split, state.get("shards", {}).get(split, [])) for split in (TRAIN, VAL)}
        self.stop = StopRequest()

    def run(self) -> dict[str, Any]:
        with explained(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        self._save_state()
        with self.stop:
            tokenizer = self._tokenizer()
            self.encoder = SharedEncoder(self.crew, Encoder(tokenizer), self.out / "tokenizer")
            dtype = "uint16" if vocabulary_size(tokenizer) <= 1 << 16 else "uint32"
            counts = self._write_shards(dtype)
            if not all(writer.fills(self.settings.window) for writer in self.shards.values()):
                # Seldom: few or short documents. Which are held out is chosen anew, from the text alone,
                # and all is written again.
                for writer in self.shards.values():
                    writer.discard()
                self._save_state()
                self.hold_out = self._fair_hold_out()
                self._save_state()
                counts = self._write_shards(dtype)
                if not all(writer.fills(self.settings.window) for writer in self.shards.values()):
                    raise UserError(
                        f"{self.settings.source}: its held-out end has too few tokens for a window of "
                        f"{self.settings.window}: set a larger val_fraction=, or a smaller window="
                    )
        return self._finish(tokenizer, dtype, counts)

    def _save_state(self) -> None:
        write_json(
            self.out / STATE,
            {
                "format": FORMAT,
                **self.made_of,
                "tokenizer_sha256": self.tokenizer_sha256,
                "hold_out": self.hold_out._asdict(),
                "shards": {split: writer.records for split, writer in self.shards.items()},
            },
        )

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        folder = self.out / "tokenizer"
        if self.tokenizer_sha256 is not None and folder.is_dir():
            tokenizer = load_tokenizer(str(folder))
            if tokenizer_hash(tokenizer) != self.tokenizer_sha256:
                raise UserError(
                    f"{folder} was changed since this dataset was begun: delete {self.out} and prepare again"
                )
            return tokenizer
        if self.settings.tokenizer is not None:
            tokenizer = load_tokenizer(self.settings.tokenizer)
        else:
            tokenizer = self._trained_tokenizer()
        save_tokenizer(tokenizer, folder)
        # What is on the disk is what all later readers see.
        tokenizer = load_tokenizer(str(folder))
        self.tokenizer_sha256 = tokenizer_hash(tokenizer)
        self._save_state()
        return tokenizer

    def _trained_tokenizer(self) -> PreTrainedTokenizerBase:
        limit, size = self.settings.tokenizer_megabytes * 1_000_000, self.settings.vocab_size

        def texts(bar: Bar) -> Iterator[str]:
            read = 0
            for document in self._documents(bar):
                yield document.text
                read += len(document.text)
                if read >= limit:
                    say(f"the tokenizer is trained on the first {limit // 1_000_000:,} MB of the text")
                    return

        with progress("reading text for a tokenizer, MB", self._megabytes) as bar:
            return train_tokenizer(texts(bar), size)

    @property
    def _megabytes(self) -> int | None:
        return None if self.source.total_bytes is None else -(-self.source.total_bytes // 1_000_000)

    def _documents(self, bar: Bar, note: Callable[[], str] = str) -> Iterator[Placed]:
        """The documents that are not empty, with their places; sets ``self.empty``, stops on request."""
        self.empty, shown = 0, 0
        documents = itertools.islice(self.source.documents(), self.settings.limit_documents)
        for number, document in enumerate(documents):
            if self.stop.requested or self.crew.stop_asked:
                raise Stopped(f"complete shards are in {self.out}; the same command goes on from there")
            done = document.source_bytes // 1_000_000 if self.source.total_bytes is not None else number + 1
            if done > shown:
                bar.advance(done - shown, note())
                shown = done
            if not document.text.strip():
                self.empty += 1
                continue
            if self.hold_out.divide_at is not None:
                head, tail = divide(document.text, self.hold_out.divide_at)
                yield Placed(number, head, 1.0)
                yield Placed(number, tail, 0.0)
            else:
                yield Placed(number, document.text, position_of(document.text, self.settings.seed))

    def _encoded(self, documents: Iterator[Placed]) -> Iterator[tuple[Placed, np.ndarray]]:
        batches = _batches(documents)
        while several := list(itertools.islice(batches, self.crew.size)):
            ids = self.encoder([[d.text for d in batch] for batch in several])
            yield from zip(itertools.chain(*several), ids, strict=True)

    def _write_shards(self, dtype: str) -> dict[str, int]:
        """Brings both splits' shards to their end; returns the number of empty documents."""
        for writer in self.shards.values():
            writer.check()

        def written() -> str:
            return f"{sum(writer.tokens for writer in self.shards.values()):,} tokens"

        def left(bar: Bar) -> Iterator[Placed]:
            for document in self._documents(bar, written):
                if document.number >= self._writer(document).end:
                    yield document

        what = "encoding, documents" if self._megabytes is None else "encoding, MB"
        with progress(what, self._megabytes) as bar:
            for document, ids in self._encoded(left(bar)):
                writer = self._writer(document)
                writer.add(document.number, ids.astype(dtype), len(document.text.encode()))
                if writer.pending_tokens >= self.settings.shard_tokens:
                    writer.write()
                    self._save_state()
            for writer in self.shards.values():
                writer.write()
            self._save_state()
        return {"empty_documents": self.empty}

    def _writer(self, document: Placed) -> ShardWriter:
        return self.shards[VAL if document.position < self.hold_out.below else TRAIN]

    def _fair_hold_out(self) -> HoldOut:
        with progress("choosing the held-out documents, MB", self._megabytes) as bar:
            measured = ((d.position, len(ids), d.text) for d, ids in self._encoded(self._documents(bar)))
            return fair_hold_out(measured, self.settings)

    def _finish(self, tokenizer: PreTrainedTokenizerBase, dtype: str, counts: dict[str, int]) -> dict[str, Any]:
        manifest = {
            "format": FORMAT,
            "window": self.settings.window,
            "dtype": dtype,
            "vocab_size": vocabulary_size(tokenizer),
            "eos_id": self.encoder.eos_id,
            "tokenizer": {"name": self.settings.tokenizer or "trained here", "sha256": self.tokenizer_sha256},
            "splits": {split: writer.manifest() for split, writer in self.shards.items()},
            **counts,
            **self.made_of,
        }
        for writer in self.shards.values():
            writer.remove_strangers()
        write_json(self.out / MANIFEST, manifest)
        (self.out / STATE).unlink(missing_ok=True)
        return manifest


def _batches(documents: Iterator[Placed]) -> Iterator[list[Placed]]:
    """Lists of documents of together a few megabytes: enough to keep all cores busy, little to hold."""
    batch: list[Placed] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
