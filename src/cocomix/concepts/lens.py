"""A decoder row read as tokens (logit lens)."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.teacher import Teacher

LOGITS_AT_ONCE = 1 << 24


@torch.no_grad()
def promoted_tokens(
    teacher: Teacher, sae: SparseAutoencoder, number: int, occurring: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and scores [C, number] of the tokens that each latent's direction raises most, best first.

    score = (w − w̄) ⊙ γ · (u − ū): w the unit decoder row, w̄ the mean of all rows, γ the final norm's weight (for a
    LayerNorm the row's own mean is taken off first), u a token's unembedding, ū the mean over tokens. ``occurring``
    are the token ids to choose from: the vectors of tokens that no text holds were never trained.
    """
    norm = teacher.final_norm()
    rows = sae.W_dec / sae.W_dec.norm(dim=-1, keepdim=True).clamp(min=1e-8)
    rows = rows - rows.mean(0)
    if isinstance(norm, nn.LayerNorm):
        rows = rows - rows.mean(-1, keepdim=True)
    rows = rows * norm.weight.float()
    unembedding = teacher.model.get_output_embeddings().weight[torch.from_numpy(occurring)].float()
    unembedding = unembedding - unembedding.mean(0)
    size = max(1, LOGITS_AT_ONCE // len(occurring))
    best = [(part @ unembedding.T).topk(min(number, len(occurring)), dim=-1) for part in rows.split(size)]
    ids, scores = (torch.cat([getattr(b, key) for b in best]) for key in ("indices", "values"))
    return occurring[ids.cpu().numpy()], scores.cpu().numpy()
