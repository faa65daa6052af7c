"""What a concept does to the next token when it is mixed at its usual strength, measured on held-out text.

Shapes: R concepts at a time, N tokens of text, V vocabulary.
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
    text = text.to(model.device)
    with torch.no_grad():
        plain = model(input_ids=text).logits
        assert plain is not None
        before = plain.float().flatten(0, 1).log_softmax(-1)
        share = before.exp()
        at_once = max(1, LOGITS_AT_ONCE // before.numel())
        for first in range(0, len(concepts), at_once):
            here = slice(first, first + at_once)
            requests = [[Edit(c, "set", z)] for c, z in zip(concepts[here], strengths[here], strict=True)]
            with steering(model, requests):
                logits = model(input_ids=text.repeat(len(requests), 1)).logits
            assert logits is not None
            after = logits.float().view(len(requests), *before.shape)
            for request, edited in zip(requests, after, strict=True):
                change = edited.log_softmax(-1) - before
                size = -(share * change).sum(-1).mean()
                yield Effect(request[0].concept, max(float(size), 0.0), change.mean(0).cpu())
