"""Concept prediction: (1/K_attr) Σ_{i ∈ I_t} CE(z_t, i), paper Eq. 2, over labels that have a meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cocomix.data.batches import Batch
from cocomix.model.mixers import NO_LABEL
from cocomix.model.output import CoCoMixOutput


class ConceptLoss:
    """Mean over the labels with a meaning: where every token has K_attr of them, the paper's mean."""

    name = "concept"
    columns: tuple[str, ...] = ("concept_ids",)
    arguments: Mapping[str, Any] = {}
    reads_head = False

    def count(self, batch: Batch) -> int:
        return int((batch.columns["concept_ids"] != NO_LABEL).sum())

    def total(self, output: CoCoMixOutput, batch: Batch) -> Tensor:
        assert output.concept_nll is not None
        return output.concept_nll
