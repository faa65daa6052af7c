"""How strong a concept usually is, and what an edit does to the next token, measured on real text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.steer.edits import Edit, steering

LOGITS_AT_ONCE = 1 << 26
"""Logits, of concepts and of next tokens, held at a time (256 MB in float32)."""


def usual_strengths(model: CoCoMixForCausalLM, inputs: Int[Tensor, "B T"], batch: int = 8) -> Float[Tensor, " C"]:
    """Per concept the mean logit at the tokens where it is among the K that are mixed; not a number where it never is.

    The unit in which edits of different concepts compare.
    """
    size = model.config.num_concepts
    total, times = (torch.zeros(size, device=model.device) for _ in range(2))
    at_once = max(1, min(batch, LOGITS_AT_ONCE // (size * inputs.shape[1])))
    with torch.no_grad():
        for part in inputs.split(at_once):
            logits = model(input_ids=part.to(model.device), logits_to_keep=1).concept_logits
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
    return next(promotions(model, inputs, [edits], tokens))


def promotions(
    model: CoCoMixForCausalLM, inputs: Int[Tensor, "B T"], variants: Iterable[Sequence[Edit]], tokens: Sequence[int]
) -> Iterator[float]:
    """:func:`promotion` of several lists of edits, one after another; the text is read without edits once."""
    plain = _log_shares(model, inputs, (), tokens)
    for edits in variants:
        yield float((_log_shares(model, inputs, edits, tokens) - plain).mean())


def _log_shares(
    model: CoCoMixForCausalLM, inputs: Int[Tensor, "B T"], edits: Sequence[Edit], tokens: Sequence[int]
) -> Float[Tensor, "B T"]:
    """log Σ_{token} p(token) at every position."""
    chosen = torch.tensor(list(tokens), device=model.device)
    a_window = (model.config.num_concepts + model.config.text_config.vocab_size) * inputs.shape[1]
    found = []
    with torch.no_grad(), steering(model, edits):
        for part in inputs.split(max(1, LOGITS_AT_ONCE // a_window)):
            logits = model(input_ids=part.to(model.device)).logits
            assert logits is not None
            logits = logits.float()
            found.append(logits[..., chosen].logsumexp(-1) - logits.logsumexp(-1))
    return torch.cat(found)
