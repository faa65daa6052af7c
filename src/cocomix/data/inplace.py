"""nanoGPT's ``train.bin`` and ``val.bin`` as a dataset, where they lie."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from cocomix.data.dataset import FORMAT, MANIFEST
from cocomix.data.made import finished
from cocomix.data.settings import PrepareSettings
from cocomix.data.sources import sampled_hash
from cocomix.data.tokenizer import load_tokenizer, save_tokenizer, tokenizer_hash, vocabulary_size
from cocomix.errors import UserError, explained
from cocomix.files import write_json
from cocomix.progress import Bar, progress

FILES = {"train": "train.bin", "val": "val.bin"}
PIECE = 1 << 22


def is_nanogpt_folder(source: str) -> bool:
    """Whether ``source`` is a folder with a ``train.bin``."""
    with explained(source):
        return (Path(source) / FILES["train"]).is_file()


def take_in_place(settings: PrepareSettings) -> dict[str, Any]:
    """Writes ``dataset.json`` and ``tokenizer/`` that refer to the files (uint16 ids) and returns the
    manifest.

    Raises :class:`UserError` for a missing file, one with half an id, ids that the tokenizer does not have.
    """
    source, out = Path(settings.source), Path(settings.out)
    if settings.tokenizer is None:
        raise UserError(f"{source} holds nanoGPT's token files: say which tokenizer made them, e.g. tokenizer=gpt2")
    for name in FILES.values():
        if not (source / name).is_file():
            raise UserError(f"{source} holds {FILES['train']} but no {name}: both are wanted")
    sizes = {split: (source / name).stat().st_size for split, name in FILES.items()}
    hashes = {f"{split}_sha256": sampled_hash(source / name) for split, name in FILES.items()}
    made_of = {"source": {"kind": "nanogpt", **sizes, **hashes}, "settings": settings.choices()}
    manifest = finished(out, made_of)
    if manifest is not None:
        return manifest
    tokenizer = load_tokenizer(settings.tokenizer)
    if vocabulary_size(tokenizer) > 1 << 16:
        raise UserError(
            f"tokenizer={settings.tokenizer} has {vocabulary_size(tokenizer):,} entries, more than the uint16 ids of "
            f"{source / FILES['train']} can tell apart: name the tokenizer that "
            "made the file, or prepare the text itself"
        )
    total = sum(sizes.values())
    with progress("reading token files, MB", -(-total // 1_000_000)) as bar:
        splits = {split: _read(source / name, tokenizer, settings, bar) for split, name in FILES.items()}
    same = out.exists() and out.resolve() == source.resolve()
    for split, name in FILES.items():
        splits[split]["shards"][0]["file"] = name if same else str((source / name).resolve())
    save_tokenizer(tokenizer, out / "tokenizer")
    manifest = {
        "format": FORMAT,
        "window": settings.window,
        "dtype": "uint16",
        "vocab_size": vocabulary_size(tokenizer),
        "eos_id": tokenizer.eos_token_id,
        "tokenizer": {"name": settings.tokenizer, "sha256": tokenizer_hash(tokenizer)},
        "splits": splits,
        **made_of,
    }
    write_json(out / MANIFEST, manifest)
    return manifest


def _read(path: Path, tokenizer: Any, settings: PrepareSettings, bar: Bar) -> dict[str, Any]:
    """The split's entry in the manifest, by one pass over the file; nobody knows how long its text was."""
    size = path.stat().st_size
    if size % 2:
        raise UserError(
            f"{path} has {size:,} bytes, not a whole number of uint16 ids: it is truncated or of another kind"
        )
    if size // 2 <= settings.window:
        raise UserError(
            f"{path} holds {size // 2:,} tokens, too few for window={settings.window}: set a smaller window="
        )
    digest, ends, shown, last, wide = hashlib.sha256(), 0, 0, -1, True
    size_of_vocabulary = vocabulary_size(tokenizer)
    with explained(path), path.open("rb") as file:
        while piece := file.read(PIECE):
            ids = np.frombuffer(piece, dtype=np.uint16)
            if int(ids.max()) >= size_of_vocabulary:
                raise UserError(
                    f"{path} holds the id {int(ids.max())}, but tokenizer={settings.tokenizer} has only "
                    f"{size_of_vocabulary} entries: name the tokenizer that made the file"
                )
            wide = wide and not ids[1::2].any()
            digest.update(piece)
            ends, last = ends + int((ids == tokenizer.eos_token_id).sum()), int(ids[-1])
            done = file.tell() // 1_000_000
            bar.advance(done - shown)
            shown = done
    if wide:
        raise UserError(
            f"every second uint16 of {path} is zero, so its ids are wider (uint32?): write them as uint16, or "
            "prepare the text itself"
        )
    documents = ends + (last != tokenizer.eos_token_id)
    shard = {"file": path.name, "tokens": size // 2, "sha256": digest.hexdigest()}
    return {"shards": [shard], "documents": documents, "text_bytes": None}
