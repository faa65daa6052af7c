"""How much each concept counts in the continuous concept: norms of the compression's weights (paper, figure 6c).

``ĉ = W·TopK(z) + b``: what concept c adds is its logit times W's part for c. Where that part has shrunk to nothing, the
model has learned to leave the concept out. Read from the safetensors files alone; no model is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cocomix.errors import UserError
from cocomix.evaluate.weights_settings import WeightsSettings
from cocomix.files import read_json
from cocomix.places import model_place

TENSOR = "mixer.compress.weight"
"""Of shape (C, d): a row a concept."""
QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)
EXTREMES = 10


def concept_weights(settings: WeightsSettings) -> dict[str, Any]:
    """The norms and what they show: ``norms`` (L2, one a concept, in its order), ``concepts``, ``width`` (d),
    ``bound``, ``below`` (how many norms are smaller), ``share_below``, ``mean``, ``quantiles``, and the ``smallest``
    and ``largest`` with their ids.

    Raises :class:`UserError` for a model without a concept mixer, and files that are not whole.
    """
    weights = compression(settings.model)
    norms = weights.double().norm(dim=1)
    if unsound := int((~norms.isfinite()).sum()):
        raise UserError(
            f"model={settings.model}: the weights of {unsound} concepts are no numbers, the run has diverged: "
            "give another"
        )
    order = norms.argsort()
    below = int((norms < settings.bound).sum())
    return {
        "model": settings.model,
        "concepts": weights.shape[0],
        "width": weights.shape[1],
        "bound": settings.bound,
        "below": below,
        "share_below": below / len(norms),
        "mean": float(norms.mean()),
        "quantiles": {f"{q:g}": float(norms.quantile(q)) for q in QUANTILES},
        "smallest": [{"id": int(i), "norm": float(norms[i])} for i in order[:EXTREMES]],
        "largest": [{"id": int(i), "norm": float(norms[i])} for i in order.flip(0)[:EXTREMES]],
        "norms": norms.tolist(),
    }


def results_folder(settings: WeightsSettings) -> Path:
    """Where the verb writes: ``out``, or the run's or the model's folder."""
    return settings.out if settings.out is not None else Path(settings.model).expanduser()


def compression(model: str) -> Float[Tensor, "C D"]:
    """The compression's weights, a row a concept, of a run's export or of an export folder.

    Raises :class:`UserError` when ``model`` is neither, has no concept mixer or mixes nothing in, or its files are not
    whole.
    """
    folder = model_place(model, f"model={model}")
    if folder is None or not (folder / "config.json").is_file():
        raise UserError(f"model={model} is no folder with a config.json: give a run folder or an export folder")
    config = read_json(folder / "config.json", "a model's configuration")
    if config.get("mixer") != "concept":
        raise UserError(f"model={model} predicts no concepts: give a run with model.mixer=concept")
    if config.get("mixing") == "none":
        raise UserError(
            f"model={model} mixes no concepts in (mixing none), so these weights were never trained: give a run with "
            "another model.mixing"
        )
    try:
        with safe_open(_file(folder), framework="pt") as file:
            return file.get_tensor(TENSOR)
    except (OSError, SafetensorError) as error:
        raise UserError(f"model={model}: its weights cannot be read ({error}): export it again") from error


def _file(folder: Path) -> Path:
    """The safetensors file that holds the compression: the only one, or that of the index."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return folder / "model.safetensors"
    return folder / read_json(index, "an index of weights").get("weight_map", {}).get(TENSOR, "model.safetensors")
