"""What makes the vector behind each token. Shapes: B batch, T tokens, D hidden, C concepts, K kept, L labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cocomix.ops.heads import concept_head, is_plain_linear

NO_LABEL = -1
"""Concept id of a label without a meaning: it does not count in the loss."""


class Mixed(NamedTuple):
    """What a mixer returns."""

    vector: Float[Tensor, "B T D"]
    """ĉ, one a token."""
    logits: Float[Tensor, "B T C"] | None = None
    """z, the concept logits after edits; None for mixers without concepts."""
    nll: Float[Tensor, ""] | None = None
    """Sum of −log softmax(z)[label] over all labels with a meaning; None where no labels were given."""
    state: Float[Tensor, "B T S"] | None = None
    """The teacher's state as it is guessed; None for mixers that guess none."""


class EditPoint(nn.Module):
    """Where concepts are edited from outside, before TopK: passes z on as it is until somebody sets :attr:`edit`."""

    def __init__(self) -> None:
        super().__init__()
        self.edit: Callable[[Tensor], Tensor] | None = None
        """From z to the edited z. A plain attribute: a compiled network looks at it anew, and does not at hooks."""

    @property
    def idle(self) -> bool:
        """Whether nobody wants to see z."""
        return self.edit is None and not self._forward_hooks

    def forward(self, logits: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        return logits if self.edit is None else self.edit(logits)


class ConceptMixer(nn.Module):
    """Predicts concepts from a state, keeps the K largest logits, compresses them to one vector (paper Eq. 2, 3).

    As the reference implementation does it: the state is layer-normed without weights, x = (h − μ)/(σ + 1e-5) with
    the unbiased σ; z = M(x − pre_bias); signed raw logits are kept; ĉ = (W·TopK(z) + b + pre_bias)·σ + μ.
    """

    def __init__(self, hidden_size: int, num_concepts: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.pre_bias = nn.Parameter(torch.zeros(hidden_size))
        self.predict = nn.Linear(hidden_size, num_concepts)
        self.compress = nn.Embedding(num_concepts, hidden_size)
        """Row i is what concept i adds: stored [C, D] so that K rows are gathered, not C multiplied."""
        self.compress_bias = nn.Parameter(torch.zeros(hidden_size))
        self.edit_point = EditPoint()

    def forward(self, hidden: Float[Tensor, "B T D"], concept_ids: Int[Tensor, "B T L"] | None = None) -> Mixed:
        """``concept_ids``: the labels of each token, :data:`NO_LABEL` where one has no meaning."""
        mean, std = hidden.mean(-1, keepdim=True), hidden.std(-1, keepdim=True)
        normed = (hidden - mean) / (std + 1e-5)
        if self.training and self.edit_point.idle and is_plain_linear(self.predict):
            return self._fused(normed - self.pre_bias, mean, std, concept_ids)
        logits = self.edit_point(self.predict(normed - self.pre_bias))
        kept = logits.topk(self.k, dim=-1, sorted=False)
        values = kept.values
        if self.edit_point.edit is not None:  # what is off weighs nothing, should it be among the K for want of others
            values = values.masked_fill(is_ablated(values), 0)
        mixed = F.embedding_bag(
            kept.indices.flatten(0, 1),
            self.compress.weight,
            per_sample_weights=values.flatten(0, 1).to(self.compress.weight.dtype),
            mode="sum",
        )
        # Under autocast the logits are of lower precision than the rows that they weigh.
        mixed = mixed.view_as(hidden).to(hidden.dtype)
        vector = (mixed + self.compress_bias + self.pre_bias) * std + mean
        return Mixed(vector, logits, None if concept_ids is None else concept_nll(logits, concept_ids))

    def _fused(self, x: Float[Tensor, "B T D"], mean: Tensor, std: Tensor, concept_ids: Tensor | None) -> Mixed:
        """The same without z: in training nobody looks at the logits."""
        labels = x.new_empty(*x.shape[:2], 0, dtype=torch.long) if concept_ids is None else concept_ids
        head = concept_head(
            x.flatten(0, 1),
            self.predict.weight,
            self.predict.bias,
            labels.flatten(0, 1),
            self.compress.weight,
            self.k,
        )
        mixed = head.mixed.view_as(x)
        vector = (mixed + self.compress_bias + self.pre_bias) * std + mean
        return Mixed(vector, None, None if concept_ids is None else head.nll)


def ablated(logits: Tensor) -> Tensor:
    """What the logits of concepts that are off become: below every other, yet finite."""
    return torch.full_like(logits, torch.finfo(logits.dtype).min)


def is_ablated(logits: Tensor) -> Tensor:
    """Which of the logits are of concepts that are off."""
    return logits == torch.finfo(logits.dtype).min


def concept_nll(logits: Float[Tensor, "B T C"], concept_ids: Int[Tensor, "B T L"]) -> Float[Tensor, ""]:
    """Sum over labels with a meaning of the cross-entropy of z against the label (paper Eq. 2, before the mean)."""
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    has_label = concept_ids != NO_LABEL
    chosen = logits.gather(-1, concept_ids.clamp(min=0))
    nll = logits.logsumexp(-1, keepdim=True) - chosen
    return (nll * has_label).sum()


class PauseMixer(nn.Module):
    """One learnable vector behind every token (pause tokens, arXiv 2310.02226, at CoCoMix's place)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden: Float[Tensor, "B T D"], concept_ids: Int[Tensor, "B T L"] | None = None) -> Mixed:
        # A copy, not a view of the weight: where weights are sharded, its memory is gone behind this forward pass.
        return Mixed(self.vector.to(hidden.dtype).expand_as(hidden).clone())


class HiddenMixer(nn.Module):
    """Guesses the teacher's state by regression and compresses the guess: continuous, where concepts are discrete (the
    paper's ablation of concept prediction). Normed and scaled like :class:`ConceptMixer`."""

    def __init__(self, hidden_size: int, state_size: int, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, width)
        self.guess = nn.Linear(width, state_size)
        self.compress = nn.Linear(state_size, hidden_size)

    def forward(self, hidden: Float[Tensor, "B T D"], concept_ids: Int[Tensor, "B T L"] | None = None) -> Mixed:
        mean, std = hidden.mean(-1, keepdim=True), hidden.std(-1, keepdim=True)
        state = self.guess(F.gelu(self.up((hidden - mean) / (std + 1e-5)), approximate="tanh"))
        return Mixed(self.compress(state).to(hidden.dtype) * std + mean, state=state)
