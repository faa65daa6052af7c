"""What the sources that are asked while a run trains have in common."""

from __future__ import annotations

from cocomix.concepts.coverage import Coverage
from cocomix.data.dataset import Split


class OnlineSource:
    """Costs that are counted as it is asked; every window can be asked about."""

    def __init__(self, flops_per_token: float) -> None:
        self.flops_per_token = flops_per_token
        self.tokens = 0
        """Tokens that it was asked about so far; a resumed run sets it, like ``seconds``, to what it had counted."""
        self.seconds = 0.0
        """Time spent on answers so far."""

    @property
    def cost(self) -> dict[str, float]:
        """``flops_per_token``, counted, and ``seconds_per_token``, measured so far (0 before the first window)."""
        return {"flops_per_token": self.flops_per_token, "seconds_per_token": self.seconds / max(self.tokens, 1)}

    @property
    def coverage(self) -> Coverage:
        """Every window has an answer."""
        return Coverage()

    def check_covers(self, split: Split, seed: int, samples: int) -> None:
        """A run may read what it likes."""
