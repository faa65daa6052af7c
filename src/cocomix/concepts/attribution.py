"""Target concepts of a token: the latents with the largest effect on the teacher's loss (paper Eq. 1).

Score of latent i at token t: ``a = c_i · ⟨W_dec[i], g_t⟩``, the first-order change of the loss when the latent's
part of the activation grows. For a layer-normed autoencoder the token's σ is left out, as in the reference: it
scales all scores of a token alike and changes no ranking. Or, without a loss, the strongest latents.

Shapes: N tokens, D hidden size, C latents, W the width of what the SAE returns for active latents (zeros pad tokens
with fewer), L labels a token.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cocomix.concepts.own_path import check_own_path, own_path
from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.settings import AttributionSettings
from cocomix.concepts.teacher import Teacher
from cocomix.errors import UserError
from cocomix.ops.topk import topk

NO_LABEL = -1
"""Id of a label without a meaning: too few latents had a score of the wanted sign."""


class NotFinite(ArithmeticError):
    """The teacher's activations or gradients hold NaN or infinities."""


class ConceptLabels(NamedTuple):
    """Labels of N tokens, the best first."""

    ids: Int[Tensor, "N L"]
    strengths: Float[Tensor, "N L"]
    """The SAE's activation of the labelled latent; 0 where there is no label."""
    scores: Float[Tensor, "N L"]
    """What the latent does to the mean NLL of all targets that were given together, nats to first order: texts of
    other lengths have other scales."""


Rank = Callable[[Float[Tensor, "N W"]], Float[Tensor, "N W"]]
ORDERS: dict[str, Rank] = {
    "largest": lambda scores: scores,
    "smallest": lambda scores: -scores,
    "absolute": lambda scores: scores.abs(),
}
"""By name: what is ranked. Only a rank value above zero has a meaning."""

GRADIENTS: dict[str, Callable[[Teacher], AbstractContextManager[None]]] = {
    "sequence": lambda teacher: nullcontext(),
    "next_token": own_path,
}
"""By name: in which the teacher's gradient is taken. In both the loss is the mean over all targets, so the two have
the same scale: a token's gradient differs by what it does to later tokens' losses."""


def check_attribution(teacher: Teacher, sae: SparseAutoencoder, settings: AttributionSettings) -> None:
    """Raises :class:`UserError` when the SAE has not enough latents for the labels, or this teacher's gradient of the
    next token alone cannot be taken."""
    most = sae.latents if settings.latents == "preact" or sae.k is None else sae.k
    if settings.k > most:
        raise UserError(
            f"attribution.k={settings.k} is more than the {most} latents that the SAE has to offer for a token: "
            f"give attribution.k={most} or less"
        )
    if settings.gradient_of == "next_token":
        check_own_path(teacher)


def label_windows(
    teacher: Teacher,
    sae: SparseAutoencoder,
    inputs: Int[Tensor, "B T"],
    targets: Int[Tensor, "B T"],
    settings: AttributionSettings,
) -> ConceptLabels:
    """Labels of B windows, N = B·T tokens in order: one forward pass, one backward pass above the block; for
    ``select: activation`` only the forward pass up to the block.

    Raises :class:`NotFinite` when the teacher's activations or gradients are not: no label could be told from none.
    """
    if settings.select == "activation":
        activation = _finite(teacher.activations(inputs)).flatten(0, 1)
        return label_strongest(sae, activation, settings)
    replace = None
    if settings.at == "reconstruction":
        replace = lambda h: sae.reconstruct(h.flatten(0, 1)).view(h.shape)  # noqa: E731
    with GRADIENTS[settings.gradient_of](teacher):
        result = teacher.loss_and_gradient(inputs, targets, replace)
    _finite(result.activation, result.gradient)
    activation, gradient = result.activation.flatten(0, 1), result.gradient.flatten(0, 1).float()
    if settings.latents == "active":
        return label_active(sae, activation, gradient, settings)
    return label_all(sae, activation, gradient, settings)


def _finite(*tensors: Tensor) -> Tensor:
    """The first of them; one look at all, since each look waits for the device."""
    if not torch.stack([x.isfinite().all() for x in tensors]).all():
        raise NotFinite
    return tensors[0]


def label_strongest(
    sae: SparseAutoencoder, activation: Float[Tensor, "N D"], settings: AttributionSettings
) -> ConceptLabels:
    """Labels by the latents' own values, active or before the SAE's activation; the scores are these values."""
    if settings.latents == "active":
        values, indices = sae.encode(activation)
        return _best(values, values, indices, settings)
    parts = []
    for chunk in sae.chunks(len(activation)):
        pre = sae.pre_activations(activation[chunk])
        parts.append(_best(pre, pre, _every(pre), settings))
    return _joined(parts)


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
    values: Float[Tensor, "N W"],
    indices: Int[Tensor, "N W"],
    gradient: Float[Tensor, "N D"],
) -> Float[Tensor, "N W"]:
    """``(g · W_dec[indices]) ⊙ values``, float32."""
    tokens, width = values.shape
    # What embedding_bag's gradient of its weights is: products with rows that are nowhere gathered.
    rows = torch.arange(tokens, device=values.device)
    effects = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        gradient, sae.W_dec, indices.flatten(), rows * width, rows.repeat_interleave(width), 0
    )
    return effects.view(tokens, width) * values


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
        scores = (sae.W_dec @ gradient[chunk].T).T.mul_(pre)
        parts.append(_best(scores, pre, _every(pre), settings))
    return _joined(parts)


def _every(pre: Float[Tensor, "N C"]) -> Int[Tensor, "N C"]:
    return torch.arange(pre.shape[1], device=pre.device).expand_as(pre)


def _joined(parts: list[ConceptLabels]) -> ConceptLabels:
    return ConceptLabels(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _best(
    scores: Float[Tensor, "N W"],
    values: Float[Tensor, "N W"],
    indices: Int[Tensor, "N W"],
    settings: AttributionSettings,
) -> ConceptLabels:
    """The best of each token; where the SAE returned fewer, the rest are no labels."""
    missing = settings.k - scores.shape[1]
    if missing > 0:  # a score of zero is no label
        scores, values, indices = (F.pad(x, (0, missing)) for x in (scores, values, indices))
    ranks, picked = topk(ORDERS[settings.order](scores), settings.k)
    meaning = ranks > 0
    return ConceptLabels(
        indices.gather(-1, picked).masked_fill(~meaning, NO_LABEL),
        values.gather(-1, picked).masked_fill(~meaning, 0),
        scores.gather(-1, picked).masked_fill(~meaning, 0),
    )
