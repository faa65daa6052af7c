"""Which concepts a model predicts at each token of a text, and what they do.

Shapes: T tokens, C concepts, N shown a token, K mixed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from cocomix.concepts.atlas import Atlas
from cocomix.concepts.atlas_format import FILE
from cocomix.concepts.labels import open_labels
from cocomix.devices import pick_device
from cocomix.errors import UserError
from cocomix.model.load import load_concept_model
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.progress import say
from cocomix.steer.contributions import contributions
from cocomix.steer.edits import check_steers
from cocomix.steer.settings import InspectSettings
from cocomix.steer.teacher_view import TeacherView
from cocomix.steer.text import refuse_unreadable
from cocomix.steer.usual import labels_folder


class Prediction(NamedTuple):
    """A text's tokens and their strongest concepts."""

    ids: Int[Tensor, " T"]
    pieces: list[str]
    """The part of the text that each token is; empty where it goes on with a character that one before it began."""
    concepts: Int[Tensor, "T N"]
    """The strongest first."""
    strengths: Float[Tensor, "T N"]
    """The logits z that are mixed."""
    probabilities: Float[Tensor, "T N"]
    """Their softmax over all C."""
    mixed: Int[Tensor, "T K"]
    surprise: Float[Tensor, " T-1"]
    """−log p of each token after the first, in nats."""


def atlas_path(model: str, given: str | None) -> Path | None:
    """Where the atlas lies that names a model's concepts: the one given, or that of the labels which the run learnt
    from, made or not; None: the model is no run with labels."""
    if given is not None:
        path = Path(given)
        return path / FILE if path.is_dir() else path
    folder = labels_folder(model)
    return folder / FILE if folder is not None else None


def atlas_of(model: str, given: str | None, concepts: int) -> Atlas | None:
    """The atlas at :func:`atlas_path`; None: none was given, and none made. Says so where it is of other labels.

    Raises :class:`UserError` for an atlas of another number of concepts than the model's.
    """
    path = atlas_path(model, given)
    if path is None or (given is None and not path.is_file()):
        return None
    atlas = Atlas.open(path)
    if atlas.concepts != concepts:
        raise UserError(
            f"atlas={atlas.path} is of {atlas.concepts} concepts, model={model} predicts {concepts}: give the atlas of "
            "the labels that it learnt from"
        )
    _tell_others(atlas, model)
    return atlas


def _tell_others(atlas: Atlas, model: str) -> None:
    """Says so where the atlas is not of the labels that a run learnt from, as far as these are to be had."""
    folder = labels_folder(model)
    with contextlib.suppress(UserError):
        if folder is not None and open_labels(folder)[0].fingerprint != atlas.labels_fingerprint:
            say(f"{atlas.path} is not of the labels {folder}, which model={model} learnt from: names may be wrong")


def inspect(settings: InspectSettings, text: str) -> dict[str, Any]:
    """``{"text", "tokens": [{"token", "concepts": [{"id", "name", "strength", "probability"}…]}…]}``.

    With ``contributions`` a concept has ``contribution``, a token has ``log_probability`` of its next token and the
    ``contribution`` of all that are mixed, in nats (None at the last token); with ``teacher`` a concept has
    ``teacher``, its strength there, 0 where it is not active. Raises :class:`UserError` for ``picture``.
    """
    if settings.picture is not None:
        raise UserError(
            f"picture={settings.picture} is the command line's: leave it out and call "
            "cocomix.report.inspection.write_inspection with the tokens"
        )
    model, tokenizer = load_concept_model(settings.model, str(pick_device(settings.device)))
    if settings.contributions:
        check_steers(model, f"contributions=true: model={settings.model}")
    atlas = atlas_of(settings.model, settings.atlas, model.config.num_concepts)
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
        output = model(input_ids=ids.to(model.device).unsqueeze(0))
    logits = output.concept_logits
    assert logits is not None
    assert output.logits is not None
    surprise = cross_entropy(output.logits[0, :-1].float(), ids[1:].to(model.device), reduction="none")
    mixed = logits[0].topk(model.config.concept_k, dim=-1)
    shown, strengths = mixed.indices[:, :top], mixed.values[:, :top]
    probabilities = (strengths.float() - logits[0].float().logsumexp(-1, keepdim=True)).exp()
    found = (shown.cpu(), strengths.float().cpu(), probabilities.cpu(), mixed.indices.cpu(), surprise.cpu())
    return Prediction(ids, _pieces(text, spans), *found)


def _pieces(text: str, spans: Iterable[tuple[int, int]]) -> list[str]:
    """The text cut into tokens. One that is some bytes of a character spans all of it: the first one gets it."""
    pieces, shown = [], 0
    for start, end in spans:
        pieces.append(text[max(start, shown) : end])
        shown = max(shown, end)
    return pieces


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
    names = atlas.names(found.concepts.unique().tolist()) if atlas else {}
    return [
        {
            "token": piece,
            "concepts": [
                {
                    "id": concept,
                    "name": names[concept] if atlas else f"concept {concept}",
                    "strength": strength,
                    "probability": probability,
                }
                for concept, strength, probability in zip(*row, strict=True)
            ],
        }
        for piece, row in zip(found.pieces, rows, strict=True)
    ]
