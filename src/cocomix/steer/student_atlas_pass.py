"""What a model predicts, concept by concept, and whether its teacher's labels say the same: one pass over text.

Shapes: B windows, T tokens, C concepts, K mixed, L labels a token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from cocomix.concepts.atlas_text import LabelledText
from cocomix.model.mixers import ConceptMixer
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.progress import progress

EDGES = np.arange(-32.0, 64.25, 0.5)
"""Edges of the histograms of predicted strengths (logits z), the same for every concept; the outer bins are open."""


@dataclass
class Predicted:
    """Of C concepts, counted over ``tokens`` tokens with labels."""

    tokens: int
    held_out: int
    """Those of them that no run trains on."""
    mixed: Int[np.ndarray, " C"]
    """Tokens at which it is among the K that are mixed."""
    sums: Float[np.ndarray, " C"]
    """Its logits there, added up."""
    histogram: Int[np.ndarray, "C bins"]
    first: Int[np.ndarray, " C"]
    """Tokens at which it is among the L strongest, as many as there are labels."""
    labels: Int[np.ndarray, " C"]
    """Tokens of which it is a label."""
    hits: Int[np.ndarray, " C"]
    """Tokens at which it is both."""
    mixed_hits: int
    """Labels that are among the K that are mixed, of all concepts."""
    norms: Float[np.ndarray, " C"]
    """Of the compression's rows."""
    token_counts: Int[np.ndarray, " V"]


def predict_all(model: CoCoMixForCausalLM, text: Iterable[LabelledText], tokens: int, vocabulary: int) -> Predicted:
    """Reads the text: about ``tokens`` tokens of a vocabulary of that size, labelled with the model's concepts."""
    size, mixer = model.config.num_concepts, model.mixer
    assert isinstance(mixer, ConceptMixer)
    counts = [np.zeros(size, dtype=np.int64) for _ in range(4)]
    mixed, first, of_labels, hits = counts
    sums, histogram = np.zeros(size), np.zeros((size, len(EDGES) - 1), dtype=np.int64)
    token_counts = np.zeros(vocabulary, dtype=np.int64)
    total = held_out = mixed_hits = 0
    with progress("student atlas, tokens", tokens) as bar, torch.no_grad():
        for inputs, ids, is_held_out in text:
            logits = model(input_ids=torch.from_numpy(inputs).to(model.device), logits_to_keep=1).concept_logits
            assert logits is not None
            best = logits.flatten(0, 1).float().topk(model.config.concept_k, dim=-1)
            predicted, strengths = best.indices.cpu().numpy(), best.values.cpu().numpy()
            among = predicted[:, : ids.shape[1]]
            hit = (ids[:, :, None] == among[:, None, :]).any(-1)
            mixed_hits += int((ids[:, :, None] == predicted[:, None, :]).any(-1).sum())
            for count, found in zip(counts, (predicted, among, ids[ids >= 0], ids[hit]), strict=True):
                count += np.bincount(found.reshape(-1), minlength=size)
            sums += np.bincount(predicted.reshape(-1), weights=strengths.reshape(-1), minlength=size)
            histogram += _histograms(predicted.reshape(-1), strengths.reshape(-1), size)
            token_counts += np.bincount(inputs.reshape(-1), minlength=vocabulary)
            total += inputs.size
            held_out += inputs.size * is_held_out
            bar.advance(inputs.size)
    norms = mixer.compress.weight.detach().float().norm(dim=1).cpu().numpy()
    return Predicted(total, held_out, mixed, sums, histogram, first, of_labels, hits, mixed_hits, norms, token_counts)


def _histograms(concepts: np.ndarray, strengths: np.ndarray, size: int) -> np.ndarray:
    bins = len(EDGES) - 1
    at = ((strengths - EDGES[0]) / (EDGES[1] - EDGES[0])).clip(0, bins - 1).astype(np.int64)
    return np.bincount(concepts * bins + at, minlength=size * bins).reshape(size, bins)
