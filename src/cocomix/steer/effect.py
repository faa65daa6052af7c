"""How strong a concept usually is, and what an edit does to the next token, measured on real text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.steer.edits import Edit, steering

LOGITS_AT_ONCE = 1 << 26
"""Concept logits held at a time (256 MB in float32)."""


def usual_strengths(model: CoCoMixForCausalLM, inputs: Int[Tensor, "B T"], batch: int = 8) -> Float[Tensor, " C"]:
    """Per concept the mean logit at the tokens where it is among the K that are mixed; not a number where it never is.

    The unit in which edits of different concepts compare.
    """
    size = model.config.num_concepts
    total, times = (torch.zeros(size, device=model.device) for _ in range(2))
    at_once = max(1, min(batch, LOGITS_AT_ONCE // (size * inputs.shape[1])))
    with torch.no_grad():
        for part in inputs.split(at_once):
            logits = model(input_ids=part.to(model.device)).concept_logits
            assert logits is not None
            kept = logits.topk(model.config.concept_k, dim=-1)
            total.index_add_(0, kept.indices.flatten(), kept.values.flatten().float())
            times.index_add_(0, kept.indices.flatten(), torch.ones_like(kept.values).flatten().float())
    return (total / times).cpu()


def promotion(
    model: CoCoMixForCausalLM, inputs: Int[Tensor, "B T"], edits: Sequence[Edit], tokens: Sequence[int]
) -> float:
    """By how much the edits raise the log-probability (nats) that the next token is one of ``tokens``.

    The mean over all positions of the inputs of the change of log Σ_{token} p(token).
    """
    chosen = torch.tensor(list(tokens))

    def log_share() -> Float[Tensor, "B T"]:
        logits = model(input_ids=inputs).logits
        assert logits is not None
        return logits[..., chosen].logsumexp(-1) - logits.logsumexp(-1)

    with torch.no_grad():
        plain = log_share()
        with steering(model, edits):
            return float((log_share() - plain).mean())
