"""A teacher's activations as shuffled batches, a pure function of (seed, step): what an autoencoder is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cocomix.concepts.teacher import Teacher
from cocomix.data.dataset import Split
from cocomix.data.order import window_ids


@dataclass(frozen=True)
class ActivationBatches:
    """Windows come in the run's order of data; the activations of ``buffer_windows`` of them are shuffled together
    and cut into batches. Nothing is carried from one buffer to the next, so any step can be started from."""

    teacher: Teacher
    split: Split
    window: int
    batch_tokens: int
    buffer_tokens: int
    batch_windows: int
    seed: int

    @property
    def buffer_windows(self) -> int:
        """Windows of a buffer, enough for one batch at least."""
        return -(-max(self.buffer_tokens, self.batch_tokens) // self.window)

    @property
    def batches_per_buffer(self) -> int:
        """Whole batches that a buffer gives."""
        return self.buffer_windows * self.window // self.batch_tokens

    def buffer(self, number: int) -> Float[Tensor, "N D"]:
        """The shuffled activations of buffer ``number``, float32."""
        return self.shuffled([self.chunk(ids) for ids in self.chunks(number)], number)

    def chunks(self, number: int) -> list[Int[np.ndarray, " W"]]:
        """The ids of the windows of buffer ``number``, as they go through the teacher."""
        ids = window_ids(self.split.count(self.window), self.seed, number * self.buffer_windows, self.buffer_windows)
        return [ids[first : first + self.batch_windows] for first in range(0, len(ids), self.batch_windows)]

    def chunk(self, ids: Int[np.ndarray, " W"]) -> Float[Tensor, "N D"]:
        """The activations of these windows, in their order, float32."""
        tokens = torch.from_numpy(self.split.read(ids, self.window))
        return self.teacher.activations(tokens[:, :-1]).flatten(0, 1).float()

    def shuffled(self, chunks: list[Tensor], number: int) -> Float[Tensor, "N D"]:
        """The activations of all chunks of buffer ``number`` as that buffer."""
        x = torch.cat(chunks)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % (1 << 63))
        return x[torch.randperm(len(x), generator=generator).to(x.device)]

    def batches(self, step: int) -> Iterator[Float[Tensor, "N D"]]:
        """The batches of steps ``step``, ``step`` + 1, … without end."""
        number, skip = divmod(step, self.batches_per_buffer)
        while True:
            x = self.buffer(number)
            yield from x.split(self.batch_tokens)[skip : self.batches_per_buffer]
            number, skip = number + 1, 0
