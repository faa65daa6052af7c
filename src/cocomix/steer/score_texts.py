"""Continuations of the same length from the same random numbers, by any model that transformers generates with.

Shapes: P prompts, R requests (doses) at once, L prompt tokens, M new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from cocomix.steer.noise import gumbel, seeded
from cocomix.steer.score_settings import ScoreSettings

NO_END = 2**31 - 1
"""No token: a text goes on behind its end, so that all have the same number of tokens."""


class DrawByPrompt(LogitsProcessor):
    """Makes the greatest score a sample of their softmax. The noise is the prompt's own: of two texts of a prompt only
    what was done to the model differs, whatever else is in the batch."""

    def __init__(self, seed: int, prompts: int, vocabulary: int) -> None:
        self._prompts, self._vocabulary = prompts, vocabulary
        self._generators = [seeded(f"text {seed} {prompt}") for prompt in range(prompts)]

    def __call__(self, input_ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        assert len(scores) % self._prompts == 0, "a batch holds whole sets of prompts"
        noise = gumbel(self._generators, self._vocabulary).to(scores.device)
        drawn = scores[:, : self._vocabulary] + noise.repeat(len(scores) // self._prompts, 1)
        # What lies beyond the dataset's vocabulary is padding of the head: no text holds it.
        return scores.new_full(scores.shape, -torch.inf).index_copy_(
            1, torch.arange(self._vocabulary, device=scores.device), drawn.to(scores.dtype)
        )


def write(
    model: Any, prompts: Int[Tensor, "P L"], requests: int, vocabulary: int, settings: ScoreSettings
) -> Int[Tensor, "R_P T"]:
    """Each prompt and its continuation, on the CPU, ``requests`` times over: row r·P + p is of prompt p.

    What is done to the model is put on from outside. The device and the batch may change the last bits of logits.
    """
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(settings.temperature)]
    if settings.top_k is not None:
        warpers.append(TopKLogitsWarper(min(settings.top_k, vocabulary)))
    ids = prompts.repeat(requests, 1).to(model.device)
    with torch.no_grad(), _without_habits(model):
        written: Tensor = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            eos_token_id=NO_END,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([*warpers, DrawByPrompt(settings.seed, len(prompts), vocabulary)]),
        )
    return written.cpu()


@contextmanager
def _without_habits(model: Any) -> Iterator[None]:
    """Within the context the model's files say nothing of how it generates, such as a penalty of repetitions: what a
    call leaves open would be taken from there, by the one model and not by the other."""
    habits, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = habits


def at_once(doses: Sequence[float], settings: ScoreSettings) -> list[Sequence[float]]:
    """The doses in parts whose texts fit into a batch; at least one dose a part."""
    size = max(1, settings.batch // settings.prompts)
    return [doses[first : first + size] for first in range(0, len(doses), size)]
