"""Which concepts the teacher has at the tokens of a text."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cocomix.concepts.labels import open_labels
from cocomix.concepts.pair import Names, load_pair
from cocomix.concepts.settings import ExtractSettings
from cocomix.errors import UserError
from cocomix.steer.usual import labels_folder


def teacher_strengths(
    run: str, ids: Int[Tensor, " T"], concepts: Int[Tensor, "T N"], device: str = "auto"
) -> Float[Tensor, "T N"]:
    """The SAE's activation of each concept at its token, 0 where it is not active.

    Teacher and SAE are those of the labels that the run learnt from. Raises :class:`UserError` when the run has none,
    they are not to be had, are others by now, or the text is longer than the teacher reads.
    """
    folder = labels_folder(run)
    if folder is None:
        raise UserError(f"model={run} is no run with concept labels, which name its teacher: leave teacher=true out")
    labels, dataset = open_labels(folder)
    manifest = labels.manifest
    names = Names(manifest["teacher"]["name"], manifest["teacher"]["block"])
    pair = ExtractSettings(data=str(dataset.folder), sae=manifest["sae"]["folder"], device=device)
    teacher, sae = load_pair(pair, names, dataset, labels.window)
    for name, found, due in (
        (f"teacher={names.teacher}", teacher.fingerprint, manifest["teacher"]["fingerprint"]),
        (f"sae={pair.sae}", sae.fingerprint, manifest["sae"]["fingerprint"]),
    ):
        if found != due:
            raise UserError(f"{name} is not what the labels {folder} were made with: put that back, or extract again")
    context = getattr(teacher.config, "max_position_embeddings", None)
    if context is not None and len(ids) > context:
        raise UserError(f"the text has {len(ids)} tokens, the teacher reads {context}: shorten it")
    with torch.no_grad():
        values, active = sae.encode(teacher.activations(ids.unsqueeze(0))[0].float())
    same = active.cpu().unsqueeze(1) == concepts.cpu().unsqueeze(2)
    return (same * values.cpu().unsqueeze(1)).amax(-1)
