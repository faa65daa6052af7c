"""What each concept does for the next token: the log-probability with it, less that without it.

Shapes: T tokens of a text, M measured ones, N concepts a token, K mixed ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cocomix.model.adapters import CACHE_ARGUMENT
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.progress import progress
from cocomix.steer.edits import Edit, steering

ROWS = 34
"""Variants of a token that run at once; more concepts take another pass over the text."""


class Contributions(NamedTuple):
    """In nats, of the tokens from the first measured one that have a next one; above zero: it helped."""

    log_probability: Float[Tensor, " M"]
    """log p of the next token, with all concepts."""
    concepts: Float[Tensor, "M N"]
    """log p less that with one concept off at this token alone."""
    together: Float[Tensor, " M"]
    """The same with all K off that are mixed (others come in their place)."""


def contributions(
    model: CoCoMixForCausalLM,
    ids: Int[Tensor, "... T"],
    concepts: Int[Tensor, "... T N"] | None = None,
    mixed: Int[Tensor, "... T K"] | None = None,
    first: int = 0,
) -> Contributions:
    """Measured token by token: behind the unedited past, kept in a cache, the variants of one token run as a batch.

    ``ids`` of one text, [T] or [1, T]; ``mixed``: the concepts that are mixed at each token, asked of the model where
    not given; ``concepts``: those to measure, by default the mixed ones; one that is not mixed gets 0. Row t is about
    token ``first`` + t and the one behind it, M = T − 1 − ``first``; tokens before ``first`` are only read. Results are
    float32 on the CPU. M batches of N + 2 rows, where one variant after another would be M·N texts. Raises
    :class:`ValueError` for several texts.
    """
    ids = _of_one_text(ids, 1, "ids")
    if mixed is None:
        with torch.no_grad():
            logits = model(input_ids=ids.to(model.device).unsqueeze(0), logits_to_keep=1).concept_logits
        assert logits is not None
        mixed = logits.topk(model.config.concept_k, dim=-1).indices
    mixed = _of_one_text(mixed, 2, "mixed")
    concepts = mixed if concepts is None else _of_one_text(concepts, 2, "concepts")
    parts = [_pass(model, ids, part, mixed, first) for part in concepts.split(ROWS - 2, dim=1)]
    return Contributions(parts[0].log_probability, torch.cat([part.concepts for part in parts], 1), parts[0].together)


def _of_one_text(given: Tensor, dimensions: int, name: str) -> Tensor:
    if given.dim() == dimensions + 1 and len(given) == 1:
        given = given[0]
    if given.dim() != dimensions:
        raise ValueError(f"{name} of one text are wanted, {dimensions} dimensions; these are {list(given.shape)}")
    return given


def _pass(
    model: CoCoMixForCausalLM,
    ids: Int[Tensor, " T"],
    concepts: Int[Tensor, "T N"],
    mixed: Int[Tensor, "T K"],
    first: int,
) -> Contributions:
    rows = concepts.shape[1] + 2
    found = [torch.empty(0, rows)]
    cache: dict[str, Any] = {}
    ids = ids.to(model.device)
    with torch.no_grad(), progress("contributions, tokens", len(ids) - 1 - first) as bar:
        if first > 0:
            past = model(ids[:first].unsqueeze(0), use_cache=True)[CACHE_ARGUMENT]
            past.batch_repeat_interleave(rows)
            cache = {CACHE_ARGUMENT: past}
        for place in range(first, len(ids) - 1):
            off = [[], mixed[place].tolist(), *([concept] for concept in concepts[place].tolist())]
            with steering(model, [[Edit(concept, "ablate") for concept in variant] for variant in off]):
                output = model(ids[place].expand(len(off), 1), use_cache=True, **cache)
            cache = {CACHE_ARGUMENT: output[CACHE_ARGUMENT]}
            _forget_variants(output[CACHE_ARGUMENT])
            found.append(output.logits[:, -1].float().log_softmax(-1)[:, ids[place + 1]].cpu().unsqueeze(0))
            bar.advance()
    log_probability, rest = torch.cat(found).split([1, rows - 1], dim=1)
    differences = log_probability - rest
    return Contributions(log_probability[:, 0], differences[:, 1:], differences[:, 0])


def _forget_variants(cache: Any) -> None:
    """The past is what it is without edits: the first row's last entries (two a token above the insertion) for all."""
    for layer in cache.layers:
        for entries in (layer.keys, layer.values):
            entries[1:, :, -2:] = entries[:1, :, -2:]
