"""What each concept does for the next token: the log-probability with it, less that without it.

Shapes: T tokens of a text, N concepts a token, K mixed ones, R rows of a batch.
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
    """In nats, of the tokens that have a next one; above zero: it helped."""

    log_probability: Float[Tensor, " T-1"]
    """log p of the next token, with all concepts."""
    concepts: Float[Tensor, "T-1 N"]
    """log p less that with one concept off at this token alone."""
    together: Float[Tensor, " T-1"]
    """The same with all K off that are mixed (others come in their place)."""


def contributions(
    model: CoCoMixForCausalLM,
    ids: Int[Tensor, " T"],
    concepts: Int[Tensor, "T N"],
    mixed: Int[Tensor, "T K"],
) -> Contributions:
    """Measured token by token: behind the unedited past, kept in a cache, the variants of one token run as a batch.

    T batches of N + 2 rows, where one variant after another would be T·N texts.
    """
    parts = [_pass(model, ids, part, mixed) for part in concepts.split(ROWS - 2, dim=1)]
    return Contributions(parts[0].log_probability, torch.cat([part.concepts for part in parts], 1), parts[0].together)


def _pass(
    model: CoCoMixForCausalLM, ids: Int[Tensor, " T"], concepts: Int[Tensor, "T N"], mixed: Int[Tensor, "T K"]
) -> Contributions:
    found = [torch.empty(0, concepts.shape[1] + 2)]
    cache: dict[str, Any] = {}
    ids = ids.to(model.device)
    with torch.no_grad(), progress("contributions, tokens", len(ids) - 1) as bar:
        for place in range(len(ids) - 1):
            off = [[], mixed[place].tolist(), *([concept] for concept in concepts[place].tolist())]
            with steering(model, [[Edit(concept, "ablate") for concept in variant] for variant in off]):
                output = model(ids[place].expand(len(off), 1), use_cache=True, **cache)
            cache = {CACHE_ARGUMENT: output[CACHE_ARGUMENT]}
            _forget_variants(output[CACHE_ARGUMENT])
            found.append(output.logits[:, -1].float().log_softmax(-1)[:, ids[place + 1]].cpu().unsqueeze(0))
            bar.advance()
    log_probability, rest = torch.cat(found).split([1, concepts.shape[1] + 1], dim=1)
    differences = log_probability - rest
    return Contributions(log_probability[:, 0], differences[:, 1:], differences[:, 0])


def _forget_variants(cache: Any) -> None:
    """The past is what it is without edits: the first row's last entries (two a token above the insertion) for all."""
    for layer in cache.layers:
        for entries in (layer.keys, layer.values):
            entries[1:, :, -2:] = entries[:1, :, -2:]
