"""``cocomix data prepare`` and ``cocomix data verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.common import Json, Overrides, plain, show

Source = Annotated[str, typer.Argument(help="File, folder, hub dataset, or folder with nanoGPT's train.bin.")]
Out = Annotated[str, typer.Argument(help="The dataset folder to write.")]
Folder = Annotated[Path, typer.Argument(metavar="DATASET", help="A dataset folder.")]


def prepare(source: Source, out: Out, words: Overrides = None, json: Json = False) -> None:
    """Turn text into a dataset folder: token shards, their tokenizer, and a manifest.

    A document is a .txt file (a long one is cut at blank lines), a line of a .jsonl file, a row of a
    .parquet file or of a hub dataset. About val_fraction of the documents is held out; which ones depends
    on their text alone, so equal documents are never on both sides. Stopped or killed, the same command
    goes on from the shards that are complete. Under torchrun all processes encode; the dataset is the same
    for any number of them.

    Examples:

      cocomix data prepare texts/ data/mine vocab_size=8192 window=512

      cocomix data prepare Skylion007/openwebtext data/owt tokenizer=gpt2 window=1024

      cocomix data prepare nanoGPT/data/openwebtext data/owt tokenizer=gpt2 window=1024

      torchrun --nproc-per-node 8 -m cocomix data prepare texts/ data/mine
    """
    from cocomix.config import load_settings
    from cocomix.data.dataset import Dataset
    from cocomix.data.prepare import prepare as prepare_dataset
    from cocomix.data.settings import PrepareSettings
    from cocomix.dist.lead import LEADER_SECONDS
    from cocomix.dist.world import joined

    settings = load_settings(PrepareSettings, words or [], source=plain("source", source), out=plain("out", out))
    with joined(LEADER_SECONDS, "cpu") as world:
        manifest = prepare_dataset(settings)
    if not world.first:
        return
    dataset = Dataset.open(settings.out)
    splits = {}
    for name, entry in manifest["splits"].items():
        split = dataset.split(name)
        splits[name] = {
            "documents": entry["documents"],
            "tokens": split.tokens,
            "windows": split.count(dataset.window),
            "text_bytes": split.text_bytes,
        }
    result = {
        "dataset": settings.out,
        "fingerprint": dataset.fingerprint,
        "vocab_size": dataset.vocab_size,
        "window": dataset.window,
        "empty_documents": manifest.get("empty_documents", 0),
        "splits": splits,
    }
    lines = [
        f"  {name:<5} {s['documents']:>12,} documents {s['tokens']:>15,} tokens {s['windows']:>12,} windows"
        for name, s in splits.items()
    ]
    head = f"{settings.out}: vocabulary {dataset.vocab_size:,}, window {dataset.window}"
    show(result, "\n".join([head, *lines]), json)


def verify(dataset: Folder, json: Json = False) -> None:
    """Check that a dataset folder is still what was written: shards, tokenizer, labels, probabilities.

    Reads every shard and every finished cache, names all that is wrong, and then exits with code 2.

    Example:

      cocomix data verify data/mine
    """
    from cocomix.concepts.verify import verify_caches
    from cocomix.data.dataset import Dataset
    from cocomix.data.verify import verify as verify_dataset

    verdict, caches = verify_dataset(dataset), verify_caches(Dataset.read(dataset))
    problems = [*verdict.problems, *caches.problems]
    good = f"{dataset} is whole: {verdict.shards} shards, {verdict.tokens:,} tokens, {caches.caches} caches"
    result = verdict.as_json() | {"ok": not problems, "caches": caches.caches, "problems": problems}
    show({"dataset": str(dataset), **result}, "\n".join(problems) or good, json)
    if problems:
        raise typer.Exit(2)
