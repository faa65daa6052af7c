"""Random numbers that are somebody's own: of a sample, a prompt, a concept, whatever else is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def seeded(whose: str) -> torch.Generator:
    """A generator that is the same for the same words."""
    digest = hashlib.sha256(whose.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def gumbel(generators: Sequence[torch.Generator], size: int) -> Float[Tensor, "N size"]:
    """Gumbel noise, a row from each generator: the greatest of logits and noise is a sample of the logits' softmax."""
    return -torch.stack([torch.empty(size).exponential_(generator=own) for own in generators]).log()
