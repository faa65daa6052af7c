"""The text on which a model is asked for an atlas: with its labels, the held-out part first. Imports no torch.

Shapes: B windows, T tokens, L labels a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from cocomix.concepts.labels import Labels
from cocomix.data.dataset import Dataset, Split
from cocomix.errors import UserError


class LabelledText(NamedTuple):
    """A few windows."""

    inputs: Int[np.ndarray, "B T"]
    ids: Int[np.ndarray, "B*T L"]
    """Concepts, −1: no label."""
    held_out: bool


def labelled_text(labels: Labels, dataset: Dataset, tokens: int, windows_at_once: int) -> Iterator[LabelledText]:
    """At least ``tokens`` tokens, as far as there are labels: of the held-out split, then of training's.

    Where a part of a split is enough, its windows are spread over all of it: neighbours are often of one document.
    """
    left = -(-tokens // labels.window)
    for name in ("val", "train"):
        if name not in dataset.manifest["splits"]:
            continue
        split = dataset.split(name)
        there = np.flatnonzero(labels.coverage.mask(split, labels.window))
        taken = min(left, len(there))
        chosen = there[np.arange(taken) * len(there) // max(taken, 1)]
        left -= taken
        for first in range(0, taken, windows_at_once):
            windows = chosen[first : first + windows_at_once]
            ids = labels.read(name, windows).reshape(-1, labels.k)
            yield LabelledText(split.read(windows, labels.window)[:, :-1], ids, name == "val")


def held_out_split(dataset: Dataset, window: int) -> Split:
    """The split on which a model is measured: training's where none is held out, or none of a window's length.

    Raises :class:`UserError` where no split has a whole window.
    """
    splits = (dataset.split(name) for name in ("val", "train") if name in dataset.manifest["splits"])
    for split in splits:
        if split.count(window):
            return split
    raise UserError(f"{dataset.folder} has no window of {window} tokens to measure on: prepare more text")


def held_out_text(dataset: Dataset, window: int, tokens: int, longest: int) -> Int[np.ndarray, "B T"]:
    """At least ``tokens`` held-out tokens, as far as there are: the first ``longest`` tokens, at most, of windows that
    are spread over the split (:func:`held_out_split`)."""
    split = held_out_split(dataset, window)
    length, count = min(window, longest), split.count(window)
    number = min(-(-tokens // length), count)
    return split.read(np.arange(number) * count // number, window)[:, :length]
