"""Generation with and without edits from the same random state, so that only the edits differ."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocomix.errors import UserError
from cocomix.model.load import load_model
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.steer.edits import Edit, steering
from cocomix.steer.settings import GenerateSettings


def generate(settings: GenerateSettings, prompt: str, edits: Sequence[Edit] = ()) -> dict[str, Any]:
    """Continuations of ``prompt``: ``{"prompt", "edits", "unsteered": [text…], "steered": [text…] | None}``."""
    model, tokenizer = load_model(settings.model)
    if edits and not isinstance(model, CoCoMixForCausalLM):
        raise UserError(f"model={settings.model} predicts no concepts: leave --steer out, or give a run with concepts")
    return {
        "prompt": prompt,
        "edits": [str(edit) for edit in edits],
        "unsteered": continuations(model, tokenizer, prompt, settings),
        "steered": continuations(model, tokenizer, prompt, settings, edits) if edits else None,
    }


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    settings: GenerateSettings,
    edits: Sequence[Edit] = (),
) -> list[str]:
    """``settings.samples`` continuations (without the prompt) under the edits.

    Raises :class:`UserError` when prompt and continuation do not fit into the model's positions.
    """
    anything: Any = model
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    if ids.shape[1] == 0:
        ids = torch.tensor([[anything.generation_config.eos_token_id]])
    limit = getattr(anything.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and ids.shape[1] + settings.max_new_tokens > limit:
        raise UserError(
            f"the prompt's {ids.shape[1]} tokens and max_new_tokens={settings.max_new_tokens} exceed the model's "
            f"{limit} positions: shorten one of them"
        )
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        sampling = {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_k": settings.top_k or 0,
            "top_p": settings.top_p,
            "num_return_sequences": settings.samples,
        }
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _edited(model, edits):
        torch.manual_seed(settings.seed)
        output = anything.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=settings.max_new_tokens, **sampling
        )
    return tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)


def _edited(model: PreTrainedModel, edits: Sequence[Edit]) -> Any:
    if isinstance(model, CoCoMixForCausalLM) and edits:
        return steering(model, edits)
    return contextlib.nullcontext()
