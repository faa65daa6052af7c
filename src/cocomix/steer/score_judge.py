"""What is said of a text by a teacher and its autoencoder, by the tokens that a concept promotes, and by counting.

Shapes: B texts of T tokens, the last M of them written by a model; N concepts, C latents, S tokens of held-out text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cocomix.concepts.nll import IGNORED
from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.teacher import Teacher


class Match(NamedTuple):
    """The judge's latent for a concept."""

    latent: int
    correlation: float
    """Of its activation with the concept's, over tokens of held-out text; 1 where the judge is the labels' own."""
    usual: float
    """Its mean activation where it is active there; not a number: nowhere."""


class Judge(NamedTuple):
    """A teacher and its autoencoder."""

    teacher: Teacher
    sae: SparseAutoencoder
    batch: int
    """Texts that are read at once."""

    def active(self, texts: Int[Tensor, "B T"]) -> Iterator[tuple[Float[Tensor, "b T W"], Int[Tensor, "b T W"]]]:
        """Values and indices of the active latents, on the CPU, a part of the texts at a time."""
        with torch.no_grad():
            for part in texts.split(self.batch):
                found = self.sae.encode(self.teacher.activations(part).flatten(0, 1).float())
                values, indices = (column.unflatten(0, part.shape).cpu() for column in found)
                yield values, indices

    def strengths(self, texts: Int[Tensor, "B T"], latents: Sequence[int]) -> Float[Tensor, "N B T"]:
        """Activation of some latents at every token, 0 where one is not active."""
        parts = [
            torch.stack([(values * (indices == latent)).sum(-1) for latent in latents])
            for values, indices in self.active(texts)
        ]
        return torch.cat(parts, 1)

    def usual(self, texts: Int[Tensor, "B T"]) -> Float[Tensor, " C"]:
        """Per latent the mean activation over the tokens where it is active; not a number where it never is."""
        total, times = (torch.zeros(self.sae.latents, dtype=torch.double) for _ in range(2))
        for values, indices in self.active(texts):
            total.index_add_(0, indices.flatten(), values.flatten().double())
            times.index_add_(0, indices.flatten(), (values > 0).flatten().double())
        return (total / times).float()

    def nll(self, texts: Int[Tensor, "B T"], written: int) -> float:
        """Mean NLL in nats of the last ``written`` tokens, each after all before it."""
        targets = texts[:, 1:].clone()
        targets[:, : targets.shape[1] - written] = IGNORED
        total = 0.0
        for inputs, due in zip(texts[:, :-1].split(self.batch), targets.split(self.batch), strict=True):
            total += float(self.teacher.cross_entropy(inputs, due)) * len(inputs)
        return total / len(texts)


def matches(
    judge: Judge, own: Judge, concepts: Sequence[int], texts: Int[Tensor, "B T"], usual: Float[Tensor, " C"]
) -> list[Match]:
    """For each concept of ``own`` the latent of ``judge`` whose activation over the texts correlates most with its own.

    ``usual``: of the judge's latents. Sums are in double precision.
    """
    if judge is own:
        return [Match(concept, 1.0, float(usual[concept])) for concept in concepts]
    wanted = own.strengths(texts, concepts).flatten(1).double()
    sums, squares = (torch.zeros(judge.sae.latents, dtype=torch.double) for _ in range(2))
    products, first = torch.zeros(len(concepts), judge.sae.latents, dtype=torch.double), 0
    for values, indices in judge.active(texts):
        values, indices = values.flatten(0, 1).double(), indices.flatten(0, 1)
        sums.index_add_(0, indices.flatten(), values.flatten())
        squares.index_add_(0, indices.flatten(), values.flatten() ** 2)
        for row, strengths in zip(products, wanted[:, first : first + len(values)], strict=True):
            row.index_add_(0, indices.flatten(), (values * strengths.unsqueeze(1)).flatten())
        first += len(values)
    tokens = wanted.shape[1]
    spread = (squares / tokens - (sums / tokens) ** 2).clamp(min=0).sqrt()
    means = wanted.mean(1, keepdim=True)
    covariance = products / tokens - means * sums / tokens
    scale = wanted.std(1, correction=0, keepdim=True) * spread
    correlation = torch.where(scale > 0, covariance / scale.clamp(min=1e-30), 0)
    best = correlation.max(1)
    return [
        Match(latent, value, float(usual[latent]))
        for latent, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def counted(written: Int[Tensor, "B M"], promoted: Sequence[int]) -> dict[str, float]:
    """Of texts: the share of ``promoted`` tokens; means over texts of distinct-1, distinct-2 (different n-grams over
    all, Li et al. 2016, arXiv 1510.03055) and of the share of 4-grams that stood before in the same text."""
    rows = written.tolist()
    return {
        "promoted": float(torch.isin(written, torch.tensor(promoted)).double().mean()),
        "distinct_1": sum(distinct(row, 1) for row in rows) / len(rows),
        "distinct_2": sum(distinct(row, 2) for row in rows) / len(rows),
        "repeated_4": sum(1 - distinct(row, 4) for row in rows) / len(rows),
    }


def distinct(tokens: Sequence[int], n: int) -> float:
    """Different n-grams over all n-grams of a text."""
    grams = [tuple(tokens[first : first + n]) for first in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams)
