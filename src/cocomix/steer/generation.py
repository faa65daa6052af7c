"""Generation with and without edits from the same random numbers, so that only the edits differ.

A row's random numbers are its own: a text is the same alone, in a batch, and beside other threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cocomix.devices import pick_device
from cocomix.errors import UserError
from cocomix.model.load import load_model
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.progress import progress
from cocomix.steer.edits import Edit, check_edit, check_steers, steering
from cocomix.steer.noise import gumbel, seeded
from cocomix.steer.requests import Request
from cocomix.steer.settings import GenerateSettings
from cocomix.steer.text import continuation, token_ids
from cocomix.steer.usual import in_raw_units, load_usual


def generate(
    settings: GenerateSettings, prompt: str, edits: Sequence[Edit] = (), streamers: Sequence[Any] = (None, None)
) -> dict[str, Any]:
    """Continuations of ``prompt``: ``{"prompt", "edits", "unsteered": [text…], "steered": [text…] | None}``.

    ``streamers``: what is told of the tokens as they come (transformers' streamers), first of the unsteered text.
    Loads the model: a :class:`Generator` keeps it. Raises :class:`UserError` for ``prompts``.
    """
    if settings.prompts is not None:
        raise UserError(
            f"prompts={settings.prompts} beside a prompt: leave one out, or call generate_many(settings, "
            "read_requests(settings.prompts))"
        )
    return Generator(settings).answer([Request(prompt, tuple(edits))], streamers)[0]


def generate_many(settings: GenerateSettings, requests: Sequence[Request]) -> Iterator[dict[str, Any]]:
    """As :func:`generate` for each request, in their order, ``settings.batch`` at once."""
    generator = Generator(settings)
    for request in requests:  # before the first is answered
        generator.check(request)
    with progress("prompts", len(requests)) as bar:
        for first in range(0, len(requests), settings.batch):
            part = requests[first : first + settings.batch]
            yield from generator.answer(part)
            bar.advance(len(part))


class Generator:
    """A model that answers requests."""

    def __init__(self, settings: GenerateSettings) -> None:
        self.settings = settings
        self.model, self.tokenizer = load_model(settings.model, str(pick_device(settings.device)))
        self._usual: Tensor | None = None

    def check(self, request: Request) -> None:
        """Raises :class:`UserError` for what cannot be answered, and says where it stands: a prompt that is too long,
        edits of a model that they do not change, or outside its dictionary."""
        try:
            _prompt_ids(self.model, self.tokenizer, request, self.settings)
            if request.edits:
                check_steers(self.model, f"model={self.settings.model}")
            for edit in request.edits:
                check_edit(edit, self.model.config.num_concepts)
            self._raw(request.edits)
        except UserError as error:
            raise UserError(f"{request.place}{error}") from error

    def answer(self, requests: Sequence[Request], streamers: Sequence[Any] = (None, None)) -> list[dict[str, Any]]:
        """What :func:`generate` returns, of each request."""
        for request in requests:
            self.check(request)
        plain = [Request(request.prompt) for request in requests]
        edited = [Request(r.prompt, tuple(self._raw(r.edits))) for r in requests if r.edits]
        unsteered = continue_all(self.model, self.tokenizer, plain, self.settings, streamers[0])
        steered = iter(continue_all(self.model, self.tokenizer, edited, self.settings, streamers[1]) if edited else ())
        return [
            {
                "prompt": request.prompt,
                "edits": [str(edit) for edit in request.edits],
                "unsteered": texts,
                "steered": next(steered) if request.edits else None,
            }
            for request, texts in zip(requests, unsteered, strict=True)
        ]

    def _raw(self, edits: Sequence[Edit]) -> list[Edit]:
        if self._usual is None and any(edit.unit == "usual" for edit in edits):
            assert isinstance(self.model, CoCoMixForCausalLM)
            self._usual = load_usual(self.settings.model, self.model)
        return in_raw_units(edits, self._usual)


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    settings: GenerateSettings,
    edits: Sequence[Edit] = (),
) -> list[str]:
    """``settings.samples`` continuations (without the prompt) under the edits, whose strengths are raw.

    Raises :class:`UserError` when prompt and continuation do not fit into the model's positions.
    """
    return continue_all(model, tokenizer, [Request(prompt, tuple(edits))], settings)[0]


def continue_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    settings: GenerateSettings,
    streamer: Any = None,
) -> list[list[str]]:
    """:func:`continuations` of several prompts, each under its own edits, in one batch."""
    anything: Any = model
    prompts = [_prompt_ids(model, tokenizer, request, settings) for request in requests]
    each, how = _search(settings)
    ids, mask = _left_padded([p for p in prompts for _ in range(each)])
    end = anything.generation_config.pad_token_id
    how["pad_token_id"] = _end_id(model) if end is None else end
    with torch.no_grad(), _steered(model, tokenizer, requests, [len(prompt) for prompt in prompts]):
        output = anything.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            streamer=streamer,
            **how,
        )
    rows = output[:, ids.shape[1] :].tolist()
    per = len(rows) // len(requests)
    return [
        [continuation(tokenizer, prompt, row) for row in rows[number * per : (number + 1) * per]]
        for number, prompt in enumerate(prompts)
    ]


def _search(settings: GenerateSettings) -> tuple[int, dict[str, Any]]:
    """Rows to make of a prompt beforehand, and what ``generate`` is told."""
    if settings.beams > 1:
        return 1, {"num_beams": settings.beams, "num_return_sequences": settings.samples}
    if settings.temperature == 0:
        return 1, {"logits_processor": LogitsProcessorList()}
    steps = LogitsProcessorList([TemperatureLogitsWarper(settings.temperature)])
    if settings.top_k is not None:
        steps.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        steps.append(TopPLogitsWarper(settings.top_p))
    steps.append(Draw(settings.seed, settings.samples))
    return settings.samples, {"logits_processor": steps}


class Draw(LogitsProcessor):
    """Makes the greatest score a sample of their softmax: Gumbel noise is added, of each row from its own generator."""

    def __init__(self, seed: int, samples: int) -> None:
        self._seed, self._samples = seed, samples
        self._generators: list[torch.Generator] = []

    def __call__(self, input_ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        while len(self._generators) < len(scores):
            sample = len(self._generators) % self._samples
            self._generators.append(seeded(f"{self._seed} {sample}"))
        return scores + gumbel(self._generators, scores.shape[1]).to(scores.device)


def _prompt_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, request: Request, settings: GenerateSettings
) -> list[int]:
    """The prompt's ids; of an empty one the id that ends a text. Raises :class:`UserError` for a prompt that does not
    fit, and edits that do not go with the search."""
    until = next((edit for edit in request.edits if edit.until is not None), None)
    if until is not None and settings.beams > 1:
        raise UserError(f"edit {until} ends at a text, which beams={settings.beams} cannot follow: give beams=1")
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    ids = token_ids(tokenizer, request.prompt, limit, "the prompt") or [_end_id(model)]
    if limit is not None and len(ids) + settings.max_new_tokens > limit:
        raise UserError(
            f"the prompt's {len(ids)} tokens and max_new_tokens={settings.max_new_tokens} exceed the model's "
            f"{limit} positions: shorten one of them"
        )
    return ids


def _end_id(model: Any) -> int:
    ids = model.generation_config.eos_token_id
    found = ids[0] if isinstance(ids, list) else ids
    return 0 if found is None else int(found)


def _left_padded(prompts: Sequence[list[int]]) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    length = max(len(prompt) for prompt in prompts)
    ids, mask = torch.zeros(len(prompts), length, dtype=torch.long), torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    return ids, mask


def _steered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], lengths: list[int]
) -> Any:
    if not any(request.edits for request in requests):
        return contextlib.nullcontext()
    check_steers(model)
    assert isinstance(model, CoCoMixForCausalLM)
    return steering(model, [request.edits for request in requests], lengths, tokenizer)
