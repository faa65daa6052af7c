"""Where slots stand: behind every s-th token of a text (``slot_every``), token 0 being the first of s.

Two layouts give the same states. *Laid close*, a stream holds only the slots that there are: in training, where all
texts of a batch begin together. *Laid double*, each token has a place for a slot, and keys of those that are none are
hidden: with a cache, with padding, where rows differ, and under a sliding window, which counts tokens.
Shapes: B batch, T new tokens, N tokens whose keys are shown, S positions of a stream, D hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cocomix.model.adapters import interleave


class Close(NamedTuple):
    """The close layout of T tokens."""

    order: Int[Tensor, " S"]
    """What stands at each place: token t as t, the slot of token t as T + (number of slots before it)."""
    read: Int[Tensor, " T"]
    """The place from which a token's next-token logits are read: its slot's where it has one, else its own."""


def close(tokens: int, every: int, device: torch.device) -> Close:
    """The close layout."""
    token = torch.arange(tokens, device=device)
    with_slot = token[every - 1 :: every]
    order = torch.cat((2 * token, 2 * with_slot + 1)).argsort()
    place = order.argsort()
    read = place[:tokens].clone()
    read[with_slot] = place[tokens:]
    return Close(order, read)


def with_slots(
    tokens: Float[Tensor, "B T D"] | Int[Tensor, "B T"],
    slots: Float[Tensor, "B T D"] | Int[Tensor, "B T"],
    every: int,
    order: Int[Tensor, " S"],
) -> Tensor:
    """Tokens and the slots of every s-th in close layout [B, S, …]; ``slots`` hold one a token."""
    return torch.cat((tokens, slots[:, every - 1 :: every]), dim=1)[:, order]


def slot_marks(
    padding: Bool[Tensor, "B N"] | None,
    past_tokens: Tensor | int,
    keys: int,
    new: int,
    every: int,
    device: torch.device,
) -> tuple[Bool[Tensor, "_ S"], Bool[Tensor, "_ T"]]:
    """In double layout: which keys are real tokens or slots, and which new tokens have a slot.

    Tokens are counted from the first that is no padding. Without padding ``keys`` = N.
    """
    if padding is None:
        count = torch.arange(keys, device=device)[None]
        own = (torch.arange(new, device=device) + past_tokens)[None]
        real = torch.ones_like(count, dtype=torch.bool)
    else:
        count, real = padding.long().cumsum(-1) - 1, padding
        own = count[:, -new:]
    return interleave(real, real & ((count + 1) % every == 0), dim=1), (own + 1) % every == 0
