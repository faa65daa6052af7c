"""The label cache of a dataset: K_attr concept ids and strengths a token, on disk.

``<dataset>/labels/<name>/labels.json`` is written last and says what the labels are of; beside it lie, for each
token shard, ``<shard>.concept_ids.bin`` and ``<shard>.concept_strengths.bin`` (see :mod:`cocomix.data.columns`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cocomix.concepts.coverage import Coverage
from cocomix.data.columns import Column, Columns
from cocomix.data.dataset import Dataset, Split
from cocomix.errors import UserError, near_name
from cocomix.files import read_json, sha256_file, sha256_json

MANIFEST = "labels.json"
UNFINISHED = "extraction.json"
FORMAT = 1
IDS, STRENGTHS = "concept_ids", "concept_strengths"


def label_columns(concepts: int, k: int) -> tuple[Column, Column]:
    """The two columns of labels: ids (uint16 where the concepts fit, the largest value means no label), strengths."""
    dtype = "uint16" if concepts <= np.iinfo(np.uint16).max else "uint32"
    return Column(IDS, dtype, k), Column(STRENGTHS, "float16", k)


class Labels:
    """Concept labels of a dataset's windows."""

    def __init__(self, folder: Path, dataset: Dataset, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.concepts: int = manifest["sae"]["latents"]
        """Size C of the dictionary."""
        self.k: int = manifest["attribution"]["k"]
        """Labels a token, K_attr."""
        self.window: int = manifest["window"]
        self.cost: dict[str, float] = manifest["cost"]
        """flops, seconds, flops_per_token, seconds_per_token of the extraction."""
        columns = label_columns(self.concepts, self.k)
        self._no_label: int = manifest["no_label"]
        self._columns = Columns(folder, dataset, manifest, list(columns), "concept labels")

    @classmethod
    def open(cls, dataset: Dataset, name_or_path: str) -> Labels:
        """The labels ``name`` of the dataset, or those in a folder.

        Raises :class:`UserError` when there are none, they are unfinished, of another dataset, or truncated.
        """
        folder = dataset.folder / "labels" / name_or_path
        if not (folder / MANIFEST).is_file() and (Path(name_or_path) / MANIFEST).is_file():
            folder = Path(name_or_path)
        if (folder / UNFINISHED).is_file() and not (folder / MANIFEST).is_file():
            raise UserError(
                f"labels={name_or_path}: the extraction in {folder} is not finished: run the same "
                "'cocomix concepts extract' again, it goes on"
            )
        if not (folder / MANIFEST).is_file():
            known = sorted(path.parent.name for path in (dataset.folder / "labels").glob(f"*/{MANIFEST}"))
            raise UserError(
                f"labels={name_or_path}: {dataset.folder} has no such labels{near_name(name_or_path, known)}, only "
                f"{', '.join(known) or 'none at all'}: make them with 'cocomix concepts extract'"
            )
        return cls(folder, dataset, read_manifest(folder))

    @property
    def upstream(self) -> dict[str, Any]:
        """What the ``teacher`` and the ``sae`` cost to train: {"flops", "seconds"} each, or None."""
        return self.manifest.get("upstream", {"teacher": None, "sae": None})

    @property
    def identity(self) -> dict[str, Any]:
        """What they are of, besides the dataset."""
        return {name: self.manifest.get(name) for name in ("window", "teacher", "sae", "attribution", "coverage")}

    @property
    def fingerprint(self) -> str:
        """Hash over the dataset and every label file's hash: the same one means the same labels."""
        return sha256_json({"dataset": self.manifest["dataset"], "files": self.manifest["files"]})

    def read(self, split: str, window_ids: Int[np.ndarray, " N"]) -> Int[np.ndarray, "N T K"]:
        """Concept ids, int64, the best label first; −1: no label."""
        raw = self._columns.read(split, IDS, window_ids)
        ids = raw.astype(np.int64)
        ids[raw == self._no_label] = -1
        return ids

    def strengths(self, split: str, window_ids: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N T K"]:
        """The SAE's activations of the labelled latents, float16; 0 where there is no label."""
        return self._columns.read(split, STRENGTHS, window_ids)

    @property
    def coverage(self) -> Coverage:
        """Which windows have labels."""
        return Coverage(**self.manifest["coverage"])

    def check_covers(self, split: Split, seed: int, samples: int) -> None:
        """Raises :class:`UserError` when a run of ``samples`` windows with ``seed`` reads windows without labels."""
        covered, count = self.coverage, split.count(self.window)
        if covered.windows is None or covered.windows >= count:
            return
        if covered.seed != seed or covered.windows < samples:
            raise UserError(
                f"labels={self.folder.name} cover the first {covered.windows:,} windows of runs with seed "
                f"{covered.seed}, this run reads {samples:,} with seed {seed}: extract under another name with "
                "train_windows to fit, or without it"
            )

    def verify(self) -> list[str]:
        """Re-hashes every file; one sentence for each that is not what was written."""
        return [
            f"{self.folder / name} is not what was written: its hash is {found[:12]}…, the manifest says "
            f"{due[:12]}…: extract the labels again"
            for name, due in self.manifest["files"].items()
            if (found := sha256_file(self.folder / name)) != due
        ]


def read_manifest(folder: Path) -> dict[str, Any]:
    """``labels.json`` of a folder; raises :class:`UserError` when it is none of this version."""
    manifest = read_json(folder / MANIFEST, "a manifest of concept labels")
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{folder / MANIFEST} has format {manifest.get('format')}, this version reads {FORMAT}: extract again"
        )
    missing = {"dataset", "window", "sae", "attribution", "files", "cost", "no_label", "coverage"} - manifest.keys()
    if missing:
        raise UserError(f"{folder / MANIFEST} lacks {', '.join(sorted(missing))}: extract the labels again")
    return manifest


def open_labels(folder: Path | str) -> tuple[Labels, Dataset]:
    """The labels in a folder ``<dataset>/labels/<name>``, and that dataset."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file() and not (folder / UNFINISHED).is_file():
        raise UserError(f"labels={folder} holds no {MANIFEST}: give a folder DATASET/labels/NAME")
    dataset = Dataset.open(folder.resolve().parents[1])
    return Labels.open(dataset, str(folder.resolve())), dataset
