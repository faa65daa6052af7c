"""What the upper blocks run on: a stream's masks and arguments, and a memory's keys and values in a cache's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from transformers.cache_utils import DynamicLayer

from cocomix.model.adapters import Arguments, KeysValues, interleave


class Stream(NamedTuple):
    """What the blocks that a stream runs through want besides its states, by kind of layer."""

    masks: dict[str, Any]
    arguments: dict[str, Arguments]


class TwoATokenLayer(DynamicLayer):
    """A cache's layer with two entries a token: assisted decoding takes tokens back."""

    def crop(self, tokens_to_remove: Any) -> None:  # an int or, with older versions of transformers, a tensor
        super().crop(2 * tokens_to_remove)


def hold_two_a_token(cache: Any, first: int) -> None:
    """Makes the growing layers of a cache from block ``first`` on count in tokens."""
    for place, layer in enumerate(cache.layers):
        if place >= first and type(layer) is DynamicLayer:
            cache.layers[place] = TwoATokenLayer()
            vars(cache.layers[place]).update(vars(layer))


class MemoryKeys:
    """Stands where a block expects a cache: lays the memory's keys and values before the block's own, token by
    token, and hands both to the real cache if there is one (which then holds two entries a token, as with slots).
    They are made when the block asks, so inside its forward pass: where its weights are sharded, they are here then.
    """

    def __init__(self, memory: Callable[[], KeysValues], cache: Any) -> None:
        self._memory = memory
        self._cache = cache

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> KeysValues:
        memory_keys, memory_values = self._memory()
        keys = interleave(memory_keys, keys, dim=2)
        values = interleave(memory_values, values, dim=2)
        if self._cache is None:
            return keys, values
        return self._cache.update(keys, values, layer_idx, *args, **kwargs)
