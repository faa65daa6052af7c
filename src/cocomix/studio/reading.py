"""A text as a model reads it: how surprising each token is, and which concepts are mixed behind it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.steer.inspection import predict


class Mixed(NamedTuple):
    """A concept that is mixed at a token."""

    id: int
    strength: float
    """The logit z."""
    probability: float


class Token(NamedTuple):
    """A token of a text that was read."""

    piece: str
    surprise: float | None
    """−log p of it, in nats; None: the first has nothing before it."""
    concepts: tuple[Mixed, ...]
    """The K that are mixed behind it, the strongest first."""


class Reading(NamedTuple):
    """A text as the model reads it."""

    tokens: tuple[Token, ...]
    names: dict[int, str]
    """Of all concepts in it."""


def read_tokens(model: CoCoMixForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Token, ...]:
    """The tokens of a text; raises :class:`UserError` for an empty one and for more than the model reads."""
    found = predict(model, tokenizer, text, model.config.concept_k)
    ids = found.ids.to(model.device)
    with torch.no_grad():
        logits = model(input_ids=ids.unsqueeze(0)).logits
    assert logits is not None
    nll = torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[1:], reduction="none")
    rows = zip(found.concepts.tolist(), found.strengths.tolist(), found.probabilities.tolist(), strict=True)
    mixed = [tuple(Mixed(*one) for one in zip(*row, strict=True)) for row in rows]
    return tuple(map(Token, found.pieces, [None, *nll.tolist()], mixed))
