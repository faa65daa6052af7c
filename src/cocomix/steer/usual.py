"""The usual strength of each concept of a run: the unit in which edits of different concepts compare."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cocomix.concepts.atlas_text import held_out_split
from cocomix.concepts.labels import open_labels
from cocomix.config import read_recipe
from cocomix.errors import UserError
from cocomix.files import atomic_path
from cocomix.model.load import load_concept_model, weights_hash
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.places import recorded_path
from cocomix.progress import say
from cocomix.steer.effect import usual_strengths
from cocomix.steer.notation import Edit

FILE = "usual.safetensors"
WINDOWS = 64
"""Held-out windows that are read, the first ones; training's where none is held out."""

_making = threading.Lock()


def in_raw_units(edits: Sequence[Edit], usual: Float[Tensor, " C"] | None) -> list[Edit]:
    """The edits with all strengths in units of z; ``usual`` is wanted where one is in units of the usual strength.

    Raises :class:`UserError` for a concept without a usual strength, or that the table has not.
    """
    raw = []
    for edit in edits:
        if edit.unit == "usual":
            assert usual is not None, "an edit in units of usual strengths wants their table"
            if edit.concept >= len(usual):
                raise UserError(f"concept {edit.concept} is outside the dictionary: ids go from 0 to {len(usual) - 1}")
            edit = edit.in_raw_units(float(usual[edit.concept]))
        raw.append(edit)
    return raw


def load_usual(run: str, model: CoCoMixForCausalLM | None = None, labels: Path | None = None) -> Float[Tensor, " C"]:
    """Usual strengths of a run's concepts (see :func:`cocomix.steer.effect.usual_strengths`), not a number where one
    is never mixed: from ``usual.safetensors`` in its folder, made there from held-out windows on first use and
    whenever the weights are others.

    ``model``: that of the run, where it is loaded already. ``labels``: those beside whose text is measured, in place of
    the run's own, which may be lost; what is measured there is not kept. Raises :class:`UserError` for what is no run
    with labels.
    """
    folder, text = run_folder(run), labels if labels is not None else labels_folder(run)
    if text is None:
        raise UserError(
            f"model={run} is no run with concept labels, so there is no text to measure usual strengths on: give the "
            "run's folder, or strengths without u"
        )
    kept, weights = None if folder is None else folder / FILE, weights_hash(run)
    with _making:
        found = None if kept is None else _read(kept, weights)
        if found is not None:
            return found
        say(f"{kept or run}: usual strengths are measured, once")
        found = _measure(model if model is not None else load_concept_model(run)[0], text)
        if kept is not None and labels is None:
            with atomic_path(kept) as temporary:
                save_file({"usual": found}, temporary, metadata={"weights": weights})
        return found


def run_folder(model: str) -> Path | None:
    """The run that a model is, or is the export of; None: a model from elsewhere."""
    path = Path(model).expanduser()
    for folder in (path, path.parent):
        if (folder / "recipe.yaml").is_file():
            return folder
    return None


def labels_folder(model: str) -> Path | None:
    """The labels which a run learnt from, where they lie on the disk; where they do not, that is said."""
    run = run_folder(model)
    data = read_recipe(run / "recipe.yaml")["data"] if run is not None else {}
    if run is None or data.get("labels") is None:
        return None
    dataset = recorded_path(run, data["path"]) or Path(data["path"])
    named = dataset / "labels" / data["labels"]
    folder = named if named.is_dir() else recorded_path(run, data["labels"])
    if folder is None or not folder.is_dir():
        _say_missing(str(run), str(named))
        return None
    return folder


@functools.cache
def _say_missing(run: str, labels: str) -> None:
    say(f"{run} learnt from labels that are not at {labels}: no names and no usual strengths without them")


def _read(path: Path, weights: str) -> Tensor | None:
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("usual") if (file.metadata() or {}).get("weights") == weights else None
    except (OSError, SafetensorError):
        return None  # not there, or damaged: it is made again


def _measure(model: CoCoMixForCausalLM, labels: Path) -> Tensor:
    found, dataset = open_labels(labels)
    window = min(found.window, model.config.text_config.max_position_embeddings)
    split = held_out_split(dataset, window)
    windows = split.read(np.arange(min(WINDOWS, split.count(window))), window)
    return usual_strengths(model, torch.from_numpy(windows[:, :-1])).contiguous()
