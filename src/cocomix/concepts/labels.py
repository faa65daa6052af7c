"""The label cache of a dataset: K_attr concept ids and strengths a token, on disk.

``<dataset>/labels/<name>/labels.json`` is written last and says what the labels are of; beside it lie, for each
token shard, ``<shard>.concept_ids.bin`` and ``<shard>.concept_strengths.bin`` (see :mod:`cocomix.concepts.cache`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cocomix.concepts.cache import UNFINISHED, Kind, TeacherCache
from cocomix.data.columns import Column
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError

MANIFEST = "labels.json"
IDS, STRENGTHS = "concept_ids", "concept_strengths"


def label_columns(concepts: int, k: int) -> tuple[Column, Column]:
    """The two columns of labels: ids (uint16 where the concepts fit, the largest value means no label), strengths."""
    return Column(IDS, id_type(concepts), k), Column(STRENGTHS, "float16", k)


def id_type(entries: int) -> str:
    """NumPy type for the ids of a dictionary and a value that is none of them."""
    return "uint16" if entries <= np.iinfo(np.uint16).max else "uint32"


class Labels(TeacherCache):
    """Concept labels of a dataset's windows."""

    kind = Kind("labels", MANIFEST, "concept labels", "concepts extract", frozenset({"sae", "attribution", "no_label"}))

    def __init__(self, folder: Path, dataset: Dataset, manifest: dict[str, Any]) -> None:
        self.concepts: int = manifest["sae"]["latents"]
        """Size C of the dictionary."""
        self.k: int = manifest["attribution"]["k"]
        """Labels a token, K_attr."""
        self._no_label: int = manifest["no_label"]
        super().__init__(folder, dataset, manifest, list(label_columns(self.concepts, self.k)))

    @classmethod
    def of(cls, folder: Path, dataset: Dataset, manifest: dict[str, Any]) -> Labels:
        return cls(folder, dataset, manifest)

    @property
    def identity(self) -> dict[str, Any]:
        return {name: self.manifest.get(name) for name in ("window", "teacher", "sae", "attribution", "coverage")}

    def read(self, split: str, window_ids: Int[np.ndarray, " N"] | Sequence[int]) -> Int[np.ndarray, "N T K"]:
        """Concept ids, int64, the best label first; −1: no label.

        [n, t] are those of input t of a window, about what comes behind it; the windows are those of ``window`` tokens,
        ``dataset.split(split).read(window_ids, labels.window)``. Where too few latents had a positive score there is no
        label, and nowhere in windows that were left out (``train_windows=``; :attr:`coverage` tells which).
        Raises :class:`IndexError` for windows that the split has not.
        """
        raw = self._columns.read(split, IDS, window_ids)
        ids = raw.astype(np.int64)
        ids[raw == self._no_label] = -1
        return ids

    def strengths(self, split: str, window_ids: Int[np.ndarray, " N"] | Sequence[int]) -> Float[np.ndarray, "N T K"]:
        """The SAE's activations of the labelled latents, float16; 0 where there is no label."""
        return self._columns.read(split, STRENGTHS, window_ids)


def open_labels(folder: Path | str) -> tuple[Labels, Dataset]:
    """The labels in a folder ``<dataset>/labels/<name>``, and that dataset."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file() and not (folder / UNFINISHED).is_file():
        raise UserError(f"labels={folder} holds no {MANIFEST}: give a folder DATASET/labels/NAME")
    dataset = Dataset.open(folder.resolve().parents[1])
    return Labels.open(dataset, str(folder.resolve())), dataset
