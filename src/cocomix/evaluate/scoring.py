"""Log-likelihoods of continuations: pairs of texts become ids as lm-evaluation-harness does it, batches go by length.

B: pieces in a batch, T: inputs of the longest, P: predicted positions that are kept, V: vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cocomix.errors import UserError
from cocomix.evaluate.tasks import Request

USUAL_CONTEXT = 2048
"""lm-evaluation-harness' limit for a model that tells none."""


class Score(NamedTuple):
    """What a model says to one request."""

    nats: float
    """Log-likelihood of the continuation, ≤ 0."""
    greedy: bool
    """Whether each of its tokens is the likeliest where it stands."""
    cut: bool
    """Whether tokens were cut from the left because the whole did not fit into the context."""


class Piece(NamedTuple):
    """A stretch of ids that is run at once."""

    request: int
    ids: list[int]
    """The inputs, and the last target behind them."""
    predicted: int
    """How many of the last ids are scored."""


def longest_context(model: Any, tokenizer: Any) -> int:
    """Inputs that a model takes, by its configuration, else its tokenizer, else 2048."""
    config = model.config.get_text_config()
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    told = getattr(tokenizer, "model_max_length", None)
    return int(told) if told and told < 1 << 30 else USUAL_CONTEXT  # transformers says 1e30 for no limit


def encode(tokenizer: Any, request: Request) -> tuple[list[int], list[int]]:
    """Ids of context and continuation.

    Both are encoded together and parted behind as many ids as the context alone has; spaces at the context's end belong
    to the continuation. The tokenizer's own special tokens are added as it does by default; an empty context is its
    beginning-of-text id, or its end-of-text id. Raises :class:`UserError` when no id is left for the continuation.
    """
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    context = request.context.rstrip()
    rest = request.context[len(context) :] + request.continuation
    if not request.context:
        ids = tokenizer.encode(request.continuation, add_special_tokens=False)
        known = 1 if ids[:1] == [prefix] else 0
        before, behind = (ids[:known] or [prefix]), ids[known:]
    else:
        # Spaces alone leave an empty context, and its ids are the special tokens, if any.
        before = _ids(tokenizer, context, prefix)
        behind = _ids(tokenizer, context + rest, prefix)[len(before) :]
    if not behind or not before:
        raise UserError(
            f"the model's tokenizer leaves no ids for {rest[:40]!r} behind {context[-40:]!r}: this task cannot be "
            "scored with it"
        )
    return before, behind


def _ids(tokenizer: Any, text: str, prefix: int | None) -> list[int]:
    """A text that begins with the beginning-of-text token's characters gets no second one."""
    begun = prefix is not None and text.startswith(tokenizer.decode(prefix))
    return tokenizer.encode(text, add_special_tokens=False) if begun else tokenizer.encode(text)


def pieces(number: int, before: list[int], behind: list[int], longest: int) -> Iterator[Piece]:
    """One piece with the end of the context before the continuation; at most ``longest`` inputs.

    A continuation of more than ``longest`` ids comes in several, each with as much before it as there is room for (what
    lm-evaluation-harness does for whole texts; it stops at such a continuation).
    """
    ids = before + behind
    for first in range(len(before), len(ids), longest):
        end = min(first + longest, len(ids))
        yield Piece(number, ids[max(0, end - longest - 1) : end], end - first)


def score(
    model: nn.Module,
    tokenizer: Any,
    requests: Sequence[Request],
    longest: int,
    batch: int = 16,
    advance: Callable[[int], None] = lambda requests: None,
) -> list[Score]:
    """The score of each request, in order. ``longest`` inputs fit into the context.

    The longest pieces come first, ``batch`` at once, padded on the right: under causal attention no id sees what comes
    behind it, so the batch size changes nothing but rounding. The model's mode is restored; no random number is drawn.
    ``advance`` hears of requests begun.
    """
    encoded = [encode(tokenizer, request) for request in requests]
    todo = [piece for number, pair in enumerate(encoded) for piece in pieces(number, *pair, longest)]
    todo.sort(key=lambda piece: (-len(piece.ids), piece.ids))
    nats, greedy, heard = [0.0] * len(requests), [True] * len(requests), set[int]()
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(todo), batch):
            together = todo[first : first + batch]
            for piece, (found, likeliest) in zip(together, _score_batch(model, together, keeps), strict=True):
                nats[piece.request] += found
                greedy[piece.request] &= likeliest
            new = {piece.request for piece in together} - heard
            heard |= new
            advance(len(new))
    finally:
        model.train(was_training)
    cut = [len(before) + len(behind) > longest + 1 for before, behind in encoded]
    return [Score(*entry) for entry in zip(nats, greedy, cut, strict=True)]


@torch.no_grad()
def _score_batch(model: nn.Module, batch: list[Piece], keeps: bool) -> list[tuple[float, bool]]:
    """(log-likelihood in nats, whether it is greedy) of each piece."""
    device = next(model.parameters()).device
    width = len(batch[0].ids) - 1
    inputs: Int[Tensor, "B T"] = torch.zeros((len(batch), width), dtype=torch.long)
    for row, piece in enumerate(batch):
        inputs[row, : len(piece.ids) - 1] = torch.tensor(piece.ids[:-1])
    # The head of a small model is most of its work: only positions behind the shortest context go through it.
    begin = min(len(piece.ids) - 1 - piece.predicted for piece in batch)
    given = {"logits_to_keep": width - begin} if keeps else {}
    logits: Float[Tensor, "B P V"] = model(input_ids=inputs.to(device), use_cache=False, **given).logits
    logits = logits[:, -(width - begin) :]
    results = []
    for row, piece in enumerate(batch):
        end = len(piece.ids) - 1 - begin
        scores = logits[row, end - piece.predicted : end].float().log_softmax(-1)
        targets = torch.tensor(piece.ids[-piece.predicted :], device=device)
        found = scores.gather(1, targets[:, None]).sum()
        results.append((float(found), bool((scores.argmax(-1) == targets).all())))
    return results
