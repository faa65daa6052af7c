"""Losses as terms: a sum and a count each, so that 1 or 8 processes and 1 or 4 micro-batches mean the same.

A term asks for its columns by name and says, before anything is computed, over how many items it is a mean. The loop
adds the counts over micro-batches (and processes) first and divides once by the global count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from cocomix.data.batches import Batch
from cocomix.errors import UserError, near_name
from cocomix.losses.concept import ConceptLoss
from cocomix.losses.distill import DistillLoss
from cocomix.losses.ntp import NextTokenLoss
from cocomix.losses.state import StateCosine, StateL1, StateL2
from cocomix.losses.z import ZLoss
from cocomix.model.output import CoCoMixOutput


@runtime_checkable
class Term(Protocol):
    """One loss."""

    name: str
    columns: tuple[str, ...]
    """Columns of the batch that the model or the term reads, where the run has them."""
    arguments: Mapping[str, Any]
    """What the model is asked for besides: further arguments of its forward pass."""
    reads_head: bool
    """Whether it is a loss of next-token logits; others say nothing of the head and of blocks above the mixer."""

    def count(self, batch: Batch) -> int:
        """Over how many items of the batch the loss is a mean."""

    def total(self, output: CoCoMixOutput, batch: Batch) -> Tensor:
        """The sum over those items, in nats, with its graph."""


TERMS: dict[str, Callable[[Mapping[str, float]], Term]] = {
    "ntp": lambda _: NextTokenLoss(),
    "concept": lambda _: ConceptLoss(),
    "z": ZLoss,
    "distill": DistillLoss,
    "state_l1": lambda _: StateL1(),
    "state_l2": lambda _: StateL2(),
    "state_cosine": lambda _: StateCosine(),
}
"""Losses by the name that a recipe gives them, made with the weights of all."""


def loss_terms(weights: Mapping[str, float]) -> list[tuple[Term, float]]:
    """The terms of a recipe's ``losses`` with their weights; raises :class:`UserError` for an unknown name."""
    for name in weights:
        if name not in TERMS:
            raise UserError(f"losses.{name} is unknown{near_name(name, TERMS)}; known: {', '.join(TERMS)}")
    return [(TERMS[name](weights), weight) for name, weight in weights.items()]


def reads_head(terms: Sequence[tuple[Term, float]]) -> bool:
    """Whether some term reads next-token logits."""
    return any(term.reads_head for term, _ in terms)


def asked(terms: Sequence[tuple[Term, float]], batch: Batch) -> dict[str, Any]:
    """What the model's forward pass is given besides the ids of ``batch``. What no term reads is not asked for: DDP
    takes all that lies behind an output for something that gets a gradient."""
    arguments = {key: value for term, _ in terms for key, value in term.arguments.items()}
    head = {"targets": batch.targets} if reads_head(terms) else {"logits_to_keep": None}
    return {**head, **arguments, **batch.columns}
