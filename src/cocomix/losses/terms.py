"""Losses as terms: a sum and a count each, so that 1 or 8 processes and 1 or 4 micro-batches mean the same.

A term asks for its columns by name and says, before anything is computed, over how many items it is a mean. The loop
adds the counts over micro-batches (and processes) first and divides once by the global count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from cocomix.data.batches import Batch
from cocomix.errors import UserError, near_name
from cocomix.losses.concept import ConceptLoss
from cocomix.losses.ntp import NextTokenLoss
from cocomix.losses.z import ZLoss
from cocomix.model.modeling import CoCoMixOutput


@runtime_checkable
class Term(Protocol):
    """One loss."""

    name: str
    columns: tuple[str, ...]
    """Columns of the batch that the model or the term reads."""
    arguments: Mapping[str, bool]
    """What the model is asked for besides: further arguments of its forward pass."""

    def count(self, batch: Batch) -> int:
        """Over how many items of the batch the loss is a mean."""

    def total(self, output: CoCoMixOutput, batch: Batch) -> Tensor:
        """The sum over those items, in nats, with its graph."""


TERMS: dict[str, type[Term]] = {"ntp": NextTokenLoss, "concept": ConceptLoss, "z": ZLoss}
"""Losses by the name that a recipe gives them."""


def loss_terms(weights: Mapping[str, float]) -> list[tuple[Term, float]]:
    """The terms of a recipe's ``losses`` with their weights; raises :class:`UserError` for an unknown name."""
    for name in weights:
        if name not in TERMS:
            raise UserError(f"losses.{name} is unknown{near_name(name, TERMS)}; known: {', '.join(TERMS)}")
    return [(TERMS[name](), weight) for name, weight in weights.items()]
