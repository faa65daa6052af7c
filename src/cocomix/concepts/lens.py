"""A decoder row read as tokens (logit lens), and beside the other rows."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.teacher import Teacher
from cocomix.progress import progress

LOGITS_AT_ONCE = 1 << 24


class Best(NamedTuple):
    """Of each concept n ids, the best first, and how good they are."""

    ids: Int[np.ndarray, "C n"]
    scores: Float[np.ndarray, "C n"]


@torch.no_grad()
def lens_tokens(
    teacher: Teacher, sae: SparseAutoencoder, number: int, occurring: Int[np.ndarray, " W"]
) -> tuple[Best, Best]:
    """The ``number`` tokens that each latent's direction raises most, and those that it lowers most.

    score = (w − w̄) ⊙ γ · (u − ū): w the unit decoder row, w̄ the mean of all rows, γ the final norm's scale (for a
    LayerNorm the row's own mean is taken off first), u a token's unembedding, ū the mean over tokens. ``occurring``
    are the token ids to choose from: the vectors of tokens that no text holds were never trained.
    """
    scale = norm_scale(teacher.final_norm(), teacher.width)
    rows = _unit(sae)
    rows = rows - rows.mean(0)
    if scale.centred:
        rows = rows - rows.mean(-1, keepdim=True)
    rows = rows * scale.gamma.to(rows.device)
    unembedding = teacher.model.get_output_embeddings().weight[torch.from_numpy(occurring)].float()
    unembedding = unembedding - unembedding.mean(0)
    number = min(number, len(occurring))
    raised, lowered = [], []
    with progress("atlas, lens", len(rows)) as bar:
        for part in rows.split(max(1, LOGITS_AT_ONCE // max(len(occurring), 1))):
            logits = part @ unembedding.T
            raised.append(logits.topk(number, dim=-1))
            lowered.append(logits.topk(number, dim=-1, largest=False))
            bar.advance(len(part))
    best = []
    for side in (raised, lowered):
        ids, scores = (torch.cat([getattr(part, key) for part in side]).cpu().numpy() for key in ("indices", "values"))
        best.append(Best(occurring[ids], scores))
    return best[0], best[1]


@torch.no_grad()
def nearest_concepts(sae: SparseAutoencoder, number: int) -> Best:
    """Of each latent the ``number`` others whose decoder rows point its way most: ids and cosines."""
    rows = _unit(sae)
    number = min(number, len(rows) - 1)
    ids, cosines = [], []
    for first in range(0, len(rows), size := max(1, LOGITS_AT_ONCE // len(rows))):
        part = rows[first : first + size] @ rows.T
        part[torch.arange(len(part)), first + torch.arange(len(part))] = -torch.inf
        found = part.topk(number, dim=-1)
        ids.append(found.indices)
        cosines.append(found.values)
    return Best(torch.cat(ids).cpu().numpy(), torch.cat(cosines).cpu().numpy())


class Scale(NamedTuple):
    """What a norm does to a direction, apart from its length."""

    gamma: Float[Tensor, " D"]
    centred: bool
    """Whether its own mean is taken off."""


def norm_scale(norm: nn.Module, width: int) -> Scale:
    """Measured, not read off ``norm.weight``: some families keep γ − 1 there (Gemma), some have no weight (OLMo)."""
    norm = copy.deepcopy(norm).float()
    device = next((p.device for p in norm.parameters()), torch.device("cpu"))

    def odd(x: Tensor) -> Tensor:
        return (norm(x) - norm(-x)) / 2  # without the bias

    ones = torch.ones(width, device=device)
    signs = ones.clone()
    signs[1::2] = -1  # mean 0, root mean square 1
    gamma = odd(signs) * signs
    return Scale(gamma, bool(odd(ones).abs().max() < 1e-3 * gamma.abs().max()))


def _unit(sae: SparseAutoencoder) -> torch.Tensor:
    rows: torch.Tensor = sae.W_dec.float()
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-8)
