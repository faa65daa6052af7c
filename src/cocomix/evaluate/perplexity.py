"""Cross-entropy on whole held-out documents: nats a token, perplexity a token, bits a byte of text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F

from cocomix.data.dataset import Split
from cocomix.dist.world import World
from cocomix.model.modeling import IGNORED, CoCoMixForCausalLM

BATCH_WINDOWS = 16
"""Pieces of documents at once, where that many fit; the result does not depend on it."""


@dataclass(frozen=True)
class Perplexity:
    """Result over a set of documents."""

    loss: float
    """Mean negative log-likelihood in nats a token, ends of documents included."""
    ppl: float
    """exp(loss): perplexity a token of the dataset's tokenizer."""
    bits_per_byte: float | None
    """All nats over ln 2 over the documents' UTF-8 bytes: comparable between tokenizers; None for unknown bytes."""
    documents: int
    tokens_evaluated: int
    context: int
    """Longest context in tokens: a longer document is cut into consecutive pieces, each predicted from its start."""
    fingerprint: str
    """Hash over the documents' ids and the context: results with the same one are comparable."""

    def to_json(self) -> dict[str, Any]:
        """The fields as a plain dictionary."""
        return asdict(self)


def evaluate_documents(
    model: nn.Module,
    split: Split,
    context: int,
    limit: int | None = None,
    text_bytes: int | None = None,
    batch_windows: int = BATCH_WINDOWS,
    advance: Callable[[int], None] = lambda tokens: None,
    world: World | None = None,
) -> Perplexity:
    """Perplexity of ``model`` on the first ``limit`` (or all) documents of a split.

    ``text_bytes`` are those of these documents, where they are known (text_bytes.py); without a limit the split's own.
    Every token of a document, its first and its end included, is predicted once: the first from an end-of-text id.
    The ranks of ``world`` share the batches; all get the whole result, the same for any number of ranks.
    The mode of the model is restored afterwards; no random number is drawn. ``advance`` hears of tokens done.
    """
    pieces, digest, documents = [], hashlib.sha256(str(context).encode()), 0
    for ids in split.documents():
        if documents == limit:
            break
        documents += 1
        digest.update(ids.tobytes())
        pieces += list(_pieces(np.concatenate(([split.eos_id], ids)), context))
    # Pieces of like length share a batch: less padding. The sum does not depend on who shares a batch with whom.
    pieces.sort(key=len, reverse=True)
    device = next(model.parameters()).device
    batches = [pieces[first : first + batch_windows] for first in range(0, len(pieces), batch_windows)]
    world = world or World()
    was_training, tokens = model.training, sum(len(piece) - 1 for piece in pieces)
    by_batch = [0.0] * len(batches)
    model.eval()
    try:
        with torch.no_grad():
            for first in range(0, len(batches), world.size):
                # A model whose weights are shared out is called by all ranks or by none: one without a batch of its
                # own repeats the last one, and that does not count.
                own = first + world.rank
                inputs, targets = _padded(batches[min(own, len(batches) - 1)], split.eos_id)
                nll = float(_nll(model, inputs.to(device), targets.to(device)))
                if own < len(batches):
                    by_batch[own] = nll
                advance(int((targets != IGNORED).sum()))
    finally:
        model.train(was_training)
    nats = sum(sum(column) for column in zip(*world.table(by_batch), strict=True))
    loss = nats / max(tokens, 1)
    if limit is None:
        text_bytes = split.text_bytes
    return Perplexity(
        loss=loss,
        ppl=math.exp(min(loss, 700.0)),
        bits_per_byte=nats / math.log(2) / text_bytes if text_bytes else None,
        documents=documents,
        tokens_evaluated=tokens,
        context=context,
        fingerprint=digest.hexdigest()[:16],
    )


def _nll(model: nn.Module, inputs: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]) -> Tensor:
    """Summed NLL of the targets that count, of our models or of any causal model of transformers."""
    if isinstance(model, CoCoMixForCausalLM):
        nll = model(input_ids=inputs, targets=targets).nll
        assert nll is not None
        return nll
    logits = model(input_ids=inputs).logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def _pieces(ids: Int[np.ndarray, " N"], context: int) -> Iterator[Int[np.ndarray, " P"]]:
    """Consecutive pieces of at most ``context`` inputs and their targets."""
    for start in range(0, len(ids) - 1, context):
        yield ids[start : start + context + 1]


def _padded(pieces: list[np.ndarray], filler: int) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Inputs and targets, padded on the right: under causal attention a token never sees what comes behind it."""
    longest = max(len(piece) for piece in pieces) - 1
    inputs = torch.full((len(pieces), longest), filler, dtype=torch.long)
    targets = torch.full((len(pieces), longest), IGNORED, dtype=torch.long)
    for row, piece in enumerate(pieces):
        inputs[row, : len(piece) - 1] = torch.from_numpy(piece[:-1])
        targets[row, : len(piece) - 1] = torch.from_numpy(piece[1:])
    return inputs, targets
