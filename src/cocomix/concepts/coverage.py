"""Which windows have labels: all, or those that a run reads first. A run of one pass or less need not pay for more."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from cocomix.data.dataset import Split
from cocomix.data.order import window_ids


class Coverage(NamedTuple):
    """The first ``windows`` samples of a run with ``seed``; None for both: every window."""

    seed: int | None = None
    windows: int | None = None

    def mask(self, split: Split, window: int) -> Bool[np.ndarray, " N"]:
        """True for the windows of a split that have labels. Held-out windows always do."""
        count = split.count(window)
        if self.windows is None or self.seed is None or split.name != "train" or self.windows >= count:
            return np.ones(count, dtype=bool)
        mask = np.zeros(count, dtype=bool)
        mask[window_ids(count, self.seed, 0, self.windows)] = True
        return mask
