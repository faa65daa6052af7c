"""What a concept does to the next token when it is mixed at its mean strength, measured on held-out text.

Shapes: B windows of T tokens, V vocabulary; R concepts at a time, N tokens of a part of the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.steer.edits import Edit, steering

LOGITS_AT_ONCE = 1 << 25
"""Next-token logits held at a time (128 MB in float32, a few times that in all)."""
TOGETHER = 32
"""Concepts for which the text is read without edits once."""


class Effect(NamedTuple):
    """Of one concept."""

    concept: int
    size: float
    """Mean over tokens of KL(next token without the edit ‖ with it), nats."""
    change: Float[Tensor, " V"]
    """Mean over tokens of the change of each next token's log-probability, nats."""


def effects(
    model: CoCoMixForCausalLM, text: Int[Tensor, "B T"], concepts: Sequence[int], strengths: Sequence[float]
) -> Iterator[Effect]:
    """For each concept: what happens when its logit is set to its strength at every token of ``text``."""
    edits = [[Edit(c, "set", z)] for c, z in zip(concepts, strengths, strict=True)]
    for first in range(0, len(edits), TOGETHER):
        yield from _measured(model, text, edits[first : first + TOGETHER])


def _measured(
    model: CoCoMixForCausalLM, text: Int[Tensor, "B T"], requests: Sequence[Sequence[Edit]]
) -> Iterator[Effect]:
    """Effects of a few concepts, part by part of the text."""
    vocabulary = model.config.text_config.vocab_size
    sizes = torch.zeros(len(requests), dtype=torch.double)
    changes = torch.zeros(len(requests), vocabulary, device=model.device)
    with torch.no_grad():
        for part in text.to(model.device).split(max(1, LOGITS_AT_ONCE // (text.shape[1] * vocabulary))):
            before = _logits(model, part).log_softmax(-1)
            share = before.exp()
            at_once = max(1, LOGITS_AT_ONCE // before.numel())
            for first in range(0, len(requests), at_once):
                here = requests[first : first + at_once]
                with steering(model, here):
                    after = _logits(model, part.repeat(len(here), 1)).view(len(here), *before.shape)
                for place, edited in enumerate(after, first):
                    change = edited.log_softmax(-1) - before
                    sizes[place] -= float((share * change).sum())
                    changes[place] += change.sum(0)
    for request, size, change in zip(requests, (sizes / text.numel()).tolist(), changes / text.numel(), strict=True):
        yield Effect(request[0].concept, max(size, 0.0), change.cpu())


def _logits(model: CoCoMixForCausalLM, text: Int[Tensor, "B T"]) -> Float[Tensor, "N V"]:
    logits = model(input_ids=text).logits
    assert logits is not None
    return logits.float().flatten(0, 1)
