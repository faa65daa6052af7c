"""What the quickstart asks its CoCoMix model: how well it predicts concepts, which ones, and what steering does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cocomix.concepts.atlas import Atlas
from cocomix.concepts.labels import Labels
from cocomix.data.dataset import Dataset
from cocomix.evaluate.concept_quality import concept_quality
from cocomix.model.load import load_concept_model
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.quickstart.settings import QuickstartSettings
from cocomix.steer.edits import Edit
from cocomix.steer.effect import promotion, usual_strengths
from cocomix.steer.generation import continuations
from cocomix.steer.inspection import predicted_concepts
from cocomix.steer.settings import GenerateSettings
from cocomix.train.metrics import read_lines

CONCEPTS_SHOWN = 10
RARE, COMMON = 2e-4, 2e-2
"""Concepts are shown whose share of the labelled tokens lies between: neither chance nor function words."""
WITH_CONCEPTS = ("cocomix", "cocomix_add")
DOSES = (1, 2, 4, 8)
"""Strengths in multiples of a concept's usual one."""


def look_inside(settings: QuickstartSettings, folder: Path) -> dict[str, Any]:
    """``{"model", "prediction", "concepts", "sentence", "steering"}``: who was asked, and the report's sections.

    Asked is the student with concepts that ended with the lower loss.
    """
    dataset = Dataset.open(folder / "data")
    labels = Labels.open(dataset, "concepts")
    student = min(WITH_CONCEPTS, key=lambda name: read_lines(folder / name / "evals.jsonl")[-1]["loss"])
    model, tokenizer = load_concept_model(str(folder / student))
    atlas = Atlas.open(labels.folder)
    val = dataset.split("val")
    windows = val.read(np.arange(min(32, val.count(settings.window))), settings.window)
    text = torch.from_numpy(windows[:, :-1])
    usual = usual_strengths(model, text)
    shown = _concepts(atlas, usual)
    best = max(shown, key=lambda concept: _measured(model, text, concept, DOSES[1], usual), default=None)
    return {
        "model": student,
        "prediction": concept_quality(model, val, labels, settings.window).to_json(),
        "concepts": shown,
        "sentence": {
            "text": settings.sentence,
            "tokens": predicted_concepts(model, tokenizer, settings.sentence, 3, atlas),
        },
        "steering": _steered(settings, model, tokenizer, text, best, usual) if best else None,
    }


def _concepts(atlas: Atlas, usual: Tensor) -> list[dict[str, Any]]:
    """Frequent enough concepts that the student mixes: those about words first, then by how much they promote."""
    mixed = [c for c in atlas.top(10_000) if torch.isfinite(usual[c["id"]]) and c["promoted"]]
    # In a small dictionary every concept is common.
    found = [concept for concept in mixed if RARE <= concept["frequency"] <= COMMON] or mixed
    found.sort(key=lambda concept: (not _about_words(concept), -concept["promoted"][0]["score"]))
    return found[:CONCEPTS_SHOWN]


def _about_words(concept: dict[str, Any]) -> bool:
    """Whether a reader can tell from its first labelled and promoted tokens what a concept is about."""
    first = [tokens[0]["token"].strip() for tokens in (concept["labelled"], concept["promoted"]) if tokens]
    return len(first) == 2 and all(len(token) >= 3 and token.isalpha() for token in first)


def _edit(concept: dict[str, Any], dose: int, usual: Tensor) -> Edit:
    return Edit(concept["id"], "set", round(dose * float(usual[concept["id"]]), 3))


def _measured(model: CoCoMixForCausalLM, text: Tensor, concept: dict[str, Any], dose: int, usual: Tensor) -> float:
    """By how many nats the edit promotes the concept's own tokens, on held-out text."""
    tokens = [promoted["id"] for promoted in concept["promoted"]]
    return promotion(model, text[:8], [_edit(concept, dose, usual)], tokens)


def _steered(
    settings: QuickstartSettings,
    model: CoCoMixForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    text: Tensor,
    concept: dict[str, Any],
    usual: Tensor,
) -> dict[str, Any]:
    how = GenerateSettings(model="", max_new_tokens=min(60, settings.window // 2), temperature=0.7, seed=settings.seed)
    samples = []
    for dose in DOSES:
        edit = _edit(concept, dose, usual)
        effect = _measured(model, text, concept, dose, usual)
        samples.append(
            {
                "edit": f"{dose}× its usual strength (z = {edit.value:g}); its promoted tokens {effect:+.2f} nats",
                "text": continuations(model, tokenizer, settings.prompt, how, [edit])[0],
            }
        )
    return {
        "prompt": settings.prompt,
        "concept": {"id": concept["id"], "name": concept["name"]},
        "unsteered": continuations(model, tokenizer, settings.prompt, how)[0],
        "samples": samples,
    }
