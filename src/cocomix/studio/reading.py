"""A text as a model reads it: how surprising each token is, and which concepts are mixed behind it."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from cocomix.errors import UserError
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.steer.contributions import contributions
from cocomix.steer.inspection import predict
from cocomix.steer.teacher_view import TeacherView


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


class Doing(NamedTuple):
    """What the concepts that are mixed at a token do."""

    next: str | None
    """The next token; None: there is none, and nothing to measure on."""
    log_probability: float | None
    """Of the next token, with all concepts, in nats."""
    together: float | None
    """log p less that with all of them off, in nats; above zero: they helped."""
    alone: tuple[float, ...] | None
    """log p less that with one of them off, in the order of :attr:`Token.concepts`."""
    teacher: tuple[float, ...] | None
    """Their strengths in the teacher, 0: not active; None: it is not to be had."""
    missing: str
    """Why the teacher is not to be had."""


def read_tokens(model: CoCoMixForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Token, ...]:
    """The tokens of a text; raises :class:`UserError` for an empty one and for more than the model reads."""
    found = predict(model, tokenizer, text, model.config.concept_k)
    rows = zip(found.concepts.tolist(), found.strengths.tolist(), found.probabilities.tolist(), strict=True)
    mixed = [tuple(Mixed(*one) for one in zip(*row, strict=True)) for row in rows]
    return tuple(map(Token, found.pieces, [None, *found.surprise.tolist()], mixed))


def measure(
    model: CoCoMixForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    number: int,
    teacher: TeacherView | None,
    missing: str,
) -> Doing:
    """What the concepts mixed behind the text's token ``number`` do, by ablation, and what the teacher has of them."""
    found = predict(model, tokenizer, text, model.config.concept_k)
    strengths = None
    if teacher is not None:
        until = slice(number + 1)  # what comes later is nothing to a teacher, and may be more than it reads
        try:
            strengths = tuple(teacher.strengths(found.ids[until], found.concepts[until])[number].tolist())
        except UserError as error:
            missing = str(error)
    if number == len(found.ids) - 1:
        return Doing(None, None, None, None, strengths, missing)
    ids = found.ids[: number + 2]
    done = contributions(model, ids, found.concepts[: len(ids)], found.mixed[: len(ids)], first=number)
    return Doing(
        found.pieces[number + 1],
        float(done.log_probability[0]),
        float(done.together[0]),
        tuple(done.concepts[0].tolist()),
        strengths,
        missing,
    )
