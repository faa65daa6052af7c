"""How well a model predicts its concept labels, beside the best that ignores the text: the labels' frequencies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cocomix.data.batches import ColumnSource, read_batch
from cocomix.data.dataset import Split
from cocomix.model.mixers import NO_LABEL


@dataclass(frozen=True)
class ConceptQuality:
    """Over held-out windows with labels."""

    loss: float
    """Mean −log softmax(z)[label] in nats a label."""
    marginal_loss: float
    """The same for the labels' frequencies in these windows (their entropy): what a constant can reach."""
    recall: float
    """Share of labels among the K concepts that are mixed."""
    marginal_recall: float
    """The same for the K most frequent labels."""
    labels: int

    def to_json(self) -> dict[str, Any]:
        """The fields as a plain dictionary."""
        return asdict(self)


def concept_quality(
    model: nn.Module,
    split: Split,
    labels: ColumnSource,
    window: int,
    limit: int = 256,
    batch_windows: int = 8,
) -> ConceptQuality:
    """Concept prediction on the first ``limit`` windows of a split."""
    config: Any = model.config
    windows = np.arange(min(limit, split.count(window)))
    counts = np.zeros(config.num_concepts, dtype=np.int64)
    nats, hits, total = 0.0, 0, 0
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for first in range(0, len(windows), batch_windows):
                batch = read_batch(split, window, windows[first : first + batch_windows], {"concept_ids": labels})
                ids = batch.columns["concept_ids"]
                output = model(
                    input_ids=batch.inputs.to(device),
                    targets=batch.targets.to(device),
                    concept_ids=ids.to(device),
                )
                kept = output.concept_logits.topk(config.concept_k, dim=-1).indices.cpu()
                valid = ids != NO_LABEL
                hits += int(((ids.unsqueeze(-1) == kept.unsqueeze(-2)).any(-1) & valid).sum())
                nats += float(output.concept_nll)
                total += int(valid.sum())
                counts += np.bincount(ids[valid].numpy(), minlength=config.num_concepts)
    finally:
        model.train(was_training)
    shares = counts[counts > 0] / max(total, 1)
    return ConceptQuality(
        loss=nats / max(total, 1),
        marginal_loss=float(-(shares * np.log(shares)).sum()),
        recall=hits / max(total, 1),
        marginal_recall=float(np.sort(counts)[::-1][: config.concept_k].sum() / max(total, 1)),
        labels=total,
    )
