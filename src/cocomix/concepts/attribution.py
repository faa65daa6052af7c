"""Target concepts of a token: the latents with the largest effect on the teacher's loss (paper Eq. 1).

Score of latent i at token t: ``a = c_i · ⟨W_dec[i], g_t⟩``, the first-order change of the loss when the latent's
part of the activation grows. For a layer-normed autoencoder the token's σ is left out, as in the reference: it
scales all scores of a token alike and changes no ranking.

Shapes: N tokens, D hidden size, C latents, K the SAE's active latents, L labels a token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.settings import AttributionSettings
from cocomix.concepts.teacher import Teacher
from cocomix.errors import UserError

NO_LABEL = -1
"""Id of a label without a meaning: too few latents had a score of the wanted sign."""

DECODER_VALUES_AT_ONCE = 1 << 23
"""Gathered decoder values held at a time (32 MB)."""


class ConceptLabels(NamedTuple):
    """Labels of N tokens, the best first."""

    ids: Int[Tensor, "N L"]
    strengths: Float[Tensor, "N L"]
    """The SAE's activation of the labelled latent; 0 where there is no label."""
    scores: Float[Tensor, "N L"]


Select = Callable[[Float[Tensor, "N K"]], Float[Tensor, "N K"]]
ORDERS: dict[str, Select] = {
    "largest": lambda scores: scores,
    "smallest": lambda scores: -scores,
    "absolute": lambda scores: scores.abs(),
}
"""By name: what is ranked. Only a rank value above zero has a meaning."""


def check_attribution(sae: SparseAutoencoder, settings: AttributionSettings) -> None:
    """Raises :class:`UserError` when the SAE has not enough latents for the labels."""
    most = sae.k if settings.latents == "active" else sae.latents
    if settings.k > most:
        raise UserError(
            f"attribution.k={settings.k} is more than the {most} latents that the SAE has to offer for a token: "
            f"give attribution.k={most} or less"
        )


def label_windows(
    teacher: Teacher,
    sae: SparseAutoencoder,
    inputs: Int[Tensor, "B T"],
    targets: Int[Tensor, "B T"],
    settings: AttributionSettings,
) -> ConceptLabels:
    """Labels of B windows, N = B·T tokens in order: one forward pass, one backward pass above the block."""
    replace = None
    if settings.at == "reconstruction":
        replace = lambda h: sae.reconstruct(h.flatten(0, 1)).view(h.shape)  # noqa: E731
    result = teacher.loss_and_gradient(inputs, targets, replace)
    activation, gradient = (t.flatten(0, 1).float() for t in (result.activation, result.gradient))
    if settings.latents == "active":
        return label_active(sae, activation, gradient, settings)
    return label_all(sae, activation, gradient, settings)


def label_active(
    sae: SparseAutoencoder,
    activation: Float[Tensor, "N D"],
    gradient: Float[Tensor, "N D"],
    settings: AttributionSettings,
) -> ConceptLabels:
    """Labels among the active latents: only their decoder rows are read, no product over C is made."""
    values, indices = sae.encode(activation)
    scores = active_scores(sae, values, indices, gradient)
    return _best(scores, values, indices, settings)


def active_scores(
    sae: SparseAutoencoder,
    values: Float[Tensor, "N K"],
    indices: Int[Tensor, "N K"],
    gradient: Float[Tensor, "N D"],
) -> Float[Tensor, "N K"]:
    """``(g · W_dec[indices]) ⊙ values``, float32."""
    size = max(1, DECODER_VALUES_AT_ONCE // (sae.k * sae.width))
    effects = [
        torch.bmm(sae.W_dec[part], g.unsqueeze(-1)).squeeze(-1)
        for part, g in zip(indices.split(size), gradient.split(size), strict=True)
    ]
    return torch.cat(effects) * values


def label_all(
    sae: SparseAutoencoder,
    activation: Float[Tensor, "N D"],
    gradient: Float[Tensor, "N D"],
    settings: AttributionSettings,
) -> ConceptLabels:
    """Labels among all latents by their pre-activations (paper Eq. 1: c_pre ⊙ ∂NLL/∂c)."""
    parts = []
    for chunk in sae.chunks(len(activation)):
        pre = sae.pre_activations(activation[chunk])
        scores = (gradient[chunk] @ sae.W_dec.T).mul_(pre)
        everything = torch.arange(sae.latents, device=pre.device).expand_as(pre)
        parts.append(_best(scores, pre, everything, settings))
    return ConceptLabels(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _best(
    scores: Float[Tensor, "N K"],
    values: Float[Tensor, "N K"],
    indices: Int[Tensor, "N K"],
    settings: AttributionSettings,
) -> ConceptLabels:
    ranks, picked = ORDERS[settings.order](scores).topk(settings.k, dim=-1)
    meaning = ranks > 0
    return ConceptLabels(
        indices.gather(-1, picked).masked_fill(~meaning, NO_LABEL),
        values.gather(-1, picked).masked_fill(~meaning, 0),
        scores.gather(-1, picked).masked_fill(~meaning, 0),
    )
