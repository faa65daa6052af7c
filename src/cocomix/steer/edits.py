"""Edits of predicted concepts, put on a model from outside: before TopK, on the concept logits z."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cocomix.errors import UserError
from cocomix.model.mixers import ConceptMixer
from cocomix.model.modeling import CoCoMixForCausalLM

FORM = re.compile(r"^\s*(\d+)\s*=\s*(?:[x×*](?P<scale>\S+)|set:(?P<set>\S+)|(?P<add>[+-]\S+)|(?P<ablate>off))\s*$")


@dataclass(frozen=True)
class Edit:
    """One change of one concept's logit at every position."""

    concept: int
    kind: str
    """``scale``: z·value; ``set``: value; ``add``: z + value; ``ablate``: never among the K that are mixed."""
    value: float = 0.0

    def __str__(self) -> str:
        how = {
            "scale": f"×{self.value:g}",
            "set": f"set to {self.value:g}",
            "add": f"{self.value:+g}",
            "ablate": "off",
        }
        return f"concept {self.concept} {how[self.kind]}"


def parse_edit(text: str) -> Edit:
    """``12=x5`` (or ``×5``) scales, ``12=set:4`` sets, ``12=+3`` and ``12=-3`` add, ``12=off`` ablates.

    Raises :class:`UserError` for anything else, not-a-number and infinity included.
    """
    match = FORM.match(text)
    forms = "write ID=x5 (scale), ID=set:4, ID=+3 or ID=-3 (add), ID=off (ablate)"
    if match is None:
        raise UserError(f"--steer {text!r} is no edit: {forms}")
    kind, number = next((k, v) for k, v in match.groupdict().items() if v is not None)
    if kind == "ablate":
        return Edit(int(match[1]), kind)
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"--steer {text!r}: {number!r} is no finite number; {forms}")
    return Edit(int(match[1]), kind, value)


@contextmanager
def steering(model: CoCoMixForCausalLM, edits: Sequence[Edit]) -> Iterator[None]:
    """Within the context the model runs with the edits; no edits leave it exactly as it is.

    Raises :class:`UserError` for a concept outside the model's dictionary.
    """
    mixer = model.mixer
    if not isinstance(mixer, ConceptMixer):
        raise UserError("this model predicts no concepts: there is nothing to steer")
    size = model.config.num_concepts
    for edit in edits:
        if not 0 <= edit.concept < size:
            raise UserError(f"concept {edit.concept} is outside the dictionary: ids go from 0 to {size - 1}")
    if not edits:
        yield
        return

    def change(module: Any, inputs: Any, logits: Tensor) -> Tensor:
        changed = logits.clone()
        for edit in edits:
            changed[..., edit.concept] = _edited(logits[..., edit.concept], edit)
        return changed

    handle = mixer.edit_point.register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def _edited(logit: Tensor, edit: Edit) -> Tensor:
    match edit.kind:
        case "scale":
            return logit * edit.value
        case "set":
            return torch.full_like(logit, edit.value)
        case "add":
            return logit + edit.value
        case _:
            # Below every finite logit, yet finite: −inf times a zero weight would be no number.
            return torch.full_like(logit, torch.finfo(logit.dtype).min)
