"""Which concepts a model predicts at each token of a text, and what they do.

Shapes: T tokens, C concepts, N shown a token, K mixed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cocomix.concepts.atlas import Atlas
from cocomix.concepts.atlas_format import FILE
from cocomix.devices import pick_device
from cocomix.errors import UserError
from cocomix.model.load import load_concept_model
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.steer.contributions import contributions
from cocomix.steer.settings import InspectSettings
from cocomix.steer.teacher_view import TeacherView
from cocomix.steer.text import refuse_unreadable
from cocomix.steer.usual import labels_folder


class Prediction(NamedTuple):
    """A text's tokens and their strongest concepts."""

    ids: Int[Tensor, " T"]
    pieces: list[str]
    """The part of the text that each token is."""
    concepts: Int[Tensor, "T N"]
    """The strongest first."""
    strengths: Float[Tensor, "T N"]
    """The logits z that are mixed."""
    probabilities: Float[Tensor, "T N"]
    """Their softmax over all C."""
    mixed: Int[Tensor, "T K"]


def atlas_path(model: str, given: str | None) -> Path | None:
    """Where the atlas lies that names a model's concepts: the one given, or that of the labels which the run learnt
    from, made or not; None: the model is no run with labels."""
    if given is not None:
        path = Path(given)
        return path / FILE if path.is_dir() else path
    folder = labels_folder(model)
    return folder / FILE if folder is not None else None


def atlas_of(model: str, given: str | None) -> Atlas | None:
    """The atlas at :func:`atlas_path`; None: none was given, and none made."""
    path = atlas_path(model, given)
    return Atlas.open(path) if path is not None and (given is not None or path.is_file()) else None


def inspect(settings: InspectSettings, text: str) -> dict[str, Any]:
    """``{"text", "tokens": [{"token", "concepts": [{"id", "name", "strength", "probability"}…]}…]}``.

    With ``contributions`` a concept has ``contribution``, a token has ``log_probability`` of its next token and the
    ``contribution`` of all that are mixed, in nats (None at the last token); with ``teacher`` a concept has
    ``teacher``, its strength there, 0 where it is not active.
    """
    model, tokenizer = load_concept_model(settings.model, str(pick_device(settings.device)))
    atlas = atlas_of(settings.model, settings.atlas)
    found = predict(model, tokenizer, text, settings.top)
    tokens = _described(found, atlas)
    if settings.teacher:
        add_teacher(tokens, TeacherView(settings.model, settings.device).strengths(found.ids, found.concepts))
    if settings.contributions:
        add_contributions(tokens, model, found)
    return {"text": text, "tokens": tokens}


def predicted_concepts(
    model: CoCoMixForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str, top: int, atlas: Atlas | None
) -> list[dict[str, Any]]:
    """Per token the ``top`` concepts by predicted logit: ``strength`` is the logit z that is mixed, ``probability``
    its softmax. Only the K mixed ones count, so at most K come back.
    """
    return _described(predict(model, tokenizer, text, top), atlas)


def predict(model: CoCoMixForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str, top: int) -> Prediction:
    """The concepts of a text; raises :class:`UserError` for an empty one, and for more tokens than the model reads."""
    limit = model.config.text_config.max_position_embeddings
    refuse_unreadable(tokenizer, text, limit, "the text")
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    ids, spans = torch.tensor(encoded["input_ids"], dtype=torch.long), encoded["offset_mapping"]
    if len(ids) == 0:
        raise UserError("the text is empty: give a sentence to look into")
    if len(ids) > limit:
        raise UserError(f"the text has {len(ids)} tokens, the model reads {limit}: shorten it")
    with torch.no_grad():
        logits = model(input_ids=ids.to(model.device).unsqueeze(0)).concept_logits
    assert logits is not None
    mixed = logits[0].topk(model.config.concept_k, dim=-1)
    shown, strengths = mixed.indices[:, :top], mixed.values[:, :top]
    probabilities = (strengths.float() - logits[0].float().logsumexp(-1, keepdim=True)).exp()
    pieces = [text[start:end] for start, end in spans]
    return Prediction(ids, pieces, shown.cpu(), strengths.float().cpu(), probabilities.cpu(), mixed.indices.cpu())


def add_contributions(tokens: list[dict[str, Any]], model: CoCoMixForCausalLM, found: Prediction) -> None:
    """Measures what the concepts do and writes it into what :func:`predicted_concepts` returned."""
    measured = contributions(model, found.ids, found.concepts, found.mixed)
    for place, token in enumerate(tokens):
        last = place == len(tokens) - 1
        token["log_probability"] = None if last else float(measured.log_probability[place])
        token["contribution"] = None if last else float(measured.together[place])
        for rank, concept in enumerate(token["concepts"]):
            concept["contribution"] = None if last else float(measured.concepts[place, rank])


def add_teacher(tokens: list[dict[str, Any]], strengths: Float[Tensor, "T N"]) -> None:
    """Writes the teacher's strengths into what :func:`predicted_concepts` returned."""
    for token, row in zip(tokens, strengths.tolist(), strict=True):
        for concept, strength in zip(token["concepts"], row, strict=True):
            concept["teacher"] = strength


def _described(found: Prediction, atlas: Atlas | None) -> list[dict[str, Any]]:
    rows = zip(found.concepts.tolist(), found.strengths.tolist(), found.probabilities.tolist(), strict=True)
    return [
        {
            "token": piece,
            "concepts": [
                {
                    "id": concept,
                    "name": atlas.name(concept) if atlas else f"concept {concept}",
                    "strength": strength,
                    "probability": probability,
                }
                for concept, strength, probability in zip(*row, strict=True)
            ],
        }
        for piece, row in zip(found.pieces, rows, strict=True)
    ]
