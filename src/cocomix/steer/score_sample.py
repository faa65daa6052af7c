"""Which concepts and prompts a score is of: drawn by a seed and a rule, before anything is generated."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cocomix.concepts.atlas import Atlas
from cocomix.data.dataset import Split
from cocomix.errors import UserError

POOL = 1024
"""Concepts that are drawn first, whose entries in the atlas are read."""
RULE = (
    "drawn with the seed among the concepts that the model mixes with a mean logit above 0 and the labels' autoencoder "
    f"finds on held-out text, that are a label and have promoted tokens: at most {POOL:,} of them at random, ordered "
    "by how often they are labels and cut into as many parts of equal size as concepts are wanted, one at random from "
    "each part"
)
LISTED = "the ones that were given"


def suitable(strengths: Float[Tensor, " C"], activations: Float[Tensor, " C"]) -> Int[np.ndarray, " n"]:
    """Concepts with a usual strength above 0 in the student and a usual activation in the labels' autoencoder."""
    return torch.nonzero((strengths > 0) & (activations > 0)).flatten().numpy()


def draw_concepts(atlas: Atlas, among: Int[np.ndarray, " n"], wanted: int, seed: int) -> list[dict[str, Any]]:
    """``wanted`` entries of the atlas by :data:`RULE`, or all where there are fewer, the rarest first."""
    random = np.random.default_rng([seed, 1])
    pool = random.permutation(among)[:POOL].tolist()
    entries = [entry for entry in map(atlas.concept, pool) if _usable(entry)]
    if not entries:
        raise UserError(
            f"no concept of {atlas.path} is a label with promoted tokens, mixed by the model with a mean logit above 0 "
            "and found by the labels' autoencoder on held-out text: train the run longer, or prepare the data with a "
            "larger val_fraction"
        )
    entries.sort(key=lambda entry: (entry["count"], entry["id"]))
    edges = np.linspace(0, len(entries), min(wanted, len(entries)) + 1).astype(int)
    return [entries[random.integers(low, high)] for low, high in itertools.pairwise(edges)]


def listed_concepts(
    atlas: Atlas, strengths: Float[Tensor, " C"], activations: Float[Tensor, " C"], ids: list[int]
) -> list[dict[str, Any]]:
    """The entries of ``ids``; raises :class:`UserError` for those that cannot be measured, and says why."""
    entries = [atlas.concept(id) for id in ids]
    bad = [
        f"{entry['id']} {why}"
        for entry in entries
        if (why := _unfit(entry, float(strengths[entry["id"]]), float(activations[entry["id"]])))
    ]
    if bad:
        raise UserError(f"concepts={','.join(map(str, ids))}: {', '.join(bad)}: leave out, or give concepts=N")
    return entries


def _unfit(entry: dict[str, Any], strength: float, activation: float) -> str:
    """Why no dose of a concept can be measured; empty: it can."""
    if math.isnan(strength):
        return "is never mixed by the model on held-out text"
    if strength <= 0:
        return f"is mixed with a mean logit of {strength:.3g}, which is not above 0"
    if not activation > 0:
        return "is never active in the labels' autoencoder on held-out text"
    if entry["count"] == 0:
        return "is no token's label"
    return "" if entry["promoted"] else "has no promoted tokens"


def draw_prompts(split: Split, window: int, number: int, tokens: int, seed: int) -> Int[Tensor, "P L"]:
    """The first ``tokens`` of ``number`` held-out windows, drawn without replacement."""
    there = split.count(window)
    if number > there:
        raise UserError(f"prompts={number} is more than the {there} held-out windows: give prompts={there} or less")
    if tokens > window:
        raise UserError(f"prompt_tokens={tokens} is more than a window of {window} tokens: give {window} or less")
    ids = np.sort(np.random.default_rng([seed, 2]).choice(there, number, replace=False))
    return torch.from_numpy(split.read(ids, window)[:, :tokens].astype(np.int64))


def _usable(entry: dict[str, Any]) -> bool:
    return entry["count"] > 0 and bool(entry["promoted"])
