"""Which concepts a model predicts at each token of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from cocomix.concepts.atlas import Atlas
from cocomix.config import read_recipe
from cocomix.errors import UserError
from cocomix.model.load import load_concept_model
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.steer.settings import InspectSettings


def atlas_of(model: str, given: str | None) -> Atlas | None:
    """The atlas that names a model's concepts: the one given, or that of the labels which the run learnt from."""
    if given is not None:
        return Atlas.open(given)
    recipe = Path(model) / "recipe.yaml"
    if not recipe.is_file():
        return None
    data = read_recipe(recipe)["data"]
    if data.get("labels") is None:
        return None
    named = Path(data["path"]) / "labels" / data["labels"]
    folder = named if named.is_dir() else Path(data["labels"])
    return Atlas.open(folder) if (folder / "atlas.sqlite").is_file() else None


def inspect(settings: InspectSettings, text: str) -> dict[str, Any]:
    """``{"text", "tokens": [{"token", "concepts": [{"id", "name", "strength", "probability"}…]}…]}``."""
    model, tokenizer = load_concept_model(settings.model)
    return {
        "text": text,
        "tokens": predicted_concepts(model, tokenizer, text, settings.top, atlas_of(settings.model, settings.atlas)),
    }


def predicted_concepts(
    model: CoCoMixForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str, top: int, atlas: Atlas | None
) -> list[dict[str, Any]]:
    """Per token the ``top`` concepts by predicted logit: ``strength`` is the logit z that is mixed, ``probability``
    its softmax. Only the K mixed ones count, so at most K come back.
    """
    encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True, add_special_tokens=False)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"][0].tolist()
    if ids.shape[1] == 0:
        raise UserError("the text is empty: give a sentence to look into")
    limit = model.config.text_config.max_position_embeddings
    if ids.shape[1] > limit:
        raise UserError(f"the text has {ids.shape[1]} tokens, the model reads {limit}: shorten it")
    with torch.no_grad():
        logits = model(input_ids=ids).concept_logits
    assert logits is not None
    probabilities = logits[0].softmax(-1)
    kept = logits[0].topk(min(top, model.config.concept_k), dim=-1)
    return [
        {
            "token": text[start:end],
            "concepts": [
                {
                    "id": concept,
                    "name": atlas.name(concept) if atlas else f"concept {concept}",
                    "strength": strength,
                    "probability": float(probabilities[position, concept]),
                }
                for concept, strength in zip(
                    kept.indices[position].tolist(), kept.values[position].tolist(), strict=True
                )
            ],
        }
        for position, (start, end) in enumerate(spans)
    ]
