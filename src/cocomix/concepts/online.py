"""Labels made while a run trains: for one pass over a text that no second run will read."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from jaxtyping import Int

from cocomix.concepts.identity import label_identity
from cocomix.concepts.labelling import Labeller, upstream_costs
from cocomix.concepts.online_source import OnlineSource
from cocomix.concepts.pair import named
from cocomix.concepts.settings import OnlineSettings
from cocomix.data.dataset import Dataset
from cocomix.files import sha256_json


class OnlineLabels(OnlineSource):
    """A column source (see :mod:`cocomix.data.batches`) that asks the teacher each time; keeps nothing.

    What is read twice is labelled and paid for twice. The labels are those that
    :func:`cocomix.concepts.extract.extract` would have written, but for scores that are equal to their last bits:
    there other windows in the same batch decide.
    """

    def __init__(
        self,
        dataset: Dataset,
        labeller: Labeller,
        batch_windows: int,
        identity: dict[str, Any],
        upstream: dict[str, dict[str, float] | None],
    ) -> None:
        super().__init__(labeller.flops_per_token)
        self._splits = {name: dataset.split(name) for name in dataset.manifest["splits"]}
        self._labeller, self._batch_windows = labeller, batch_windows
        self.concepts: int = labeller.sae.latents
        """Size C of the dictionary."""
        self.k: int = labeller.attribution.k
        """Labels a token, K_attr."""
        self.window: int = labeller.window
        self.identity = identity
        """What the labels are of: dataset, window, teacher, block, precision, SAE, attribution."""
        self.fingerprint = sha256_json(identity)
        self.upstream = upstream
        """What the ``teacher`` and the ``sae`` cost to train: {"flops", "seconds"} each, or None."""

    @classmethod
    def open(cls, dataset: Dataset, window: int, settings: OnlineSettings) -> OnlineLabels:
        """Loads teacher and SAE for windows of ``window`` tokens of ``dataset``.

        Raises :class:`UserError` as an extraction does when the parts do not fit. Every rank opens its own; they
        exchange nothing here, so call it in ``world.together()``.
        """
        names = named(settings)
        identity = label_identity(settings, dataset, window, names)
        labeller = Labeller.open(settings, names, dataset, window)
        return cls(dataset, labeller, settings.batch_windows, identity, upstream_costs(names, settings.sae))

    def read(self, split: str, window_ids: Int[np.ndarray, " N"]) -> Int[np.ndarray, "N T K"]:
        """Concept ids, int64, the best label first; −1: no label. ``batch_windows`` windows at once, in their order.

        Raises :class:`UserError` when the teacher's numbers are not finite.
        """
        start = time.perf_counter()
        ids = np.empty((len(window_ids), self.window, self.k), dtype=np.int64)
        for first in range(0, len(window_ids), self._batch_windows):
            part = slice(first, first + self._batch_windows)
            ids[part] = self._labeller.label(self._splits[split], window_ids[part]).ids
        self.seconds += time.perf_counter() - start
        self.tokens += len(window_ids) * self.window
        return ids
