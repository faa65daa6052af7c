"""How good an autoencoder is on held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cocomix.concepts.pair import load_pair, named, ordinary
from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.sae_release import is_release
from cocomix.concepts.settings import SaeCheckSettings
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError
from cocomix.files import write_json
from cocomix.progress import progress

CHECK = "check.json"


class _Unexplained:
    """Sums over tokens, in float64."""

    def __init__(self, like: Float[Tensor, " D"]) -> None:
        self.tokens, self.squares, self.error = 0, 0.0, 0.0
        self.sum = torch.zeros_like(like, dtype=torch.float64)

    def add(self, x: Float[Tensor, "N D"], error: Float[Tensor, " N"]) -> None:
        self.tokens += len(x)
        self.error += float(error.sum())
        self.sum += x.double().sum(0)
        self.squares += float(x.double().square().sum())

    @property
    def mean(self) -> Float[Tensor, " D"]:
        """Mean activation."""
        return self.sum / self.tokens

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained."""
        return self.error / (self.squares - self.tokens * float(self.mean.square().sum()))


class _Moments:
    """What an autoencoder makes of tokens: of all, and of those without massive activations."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        self.sae, self.active = sae, 0
        self.all, self.ordinary = _Unexplained(sae.b_dec), _Unexplained(sae.b_dec)
        self.fired = torch.zeros(sae.latents, dtype=torch.bool, device=sae.W_enc.device)

    def add(self, h: Float[Tensor, "B T D"]) -> None:
        """Takes the activations of some windows."""
        x = h.flatten(0, 1).float()
        values, indices = self.sae.encode(x)
        error = (self.sae.decode(values, indices, x) - x).double().square().sum(-1)
        kept = ordinary(x.norm(dim=-1))
        self.all.add(x, error)
        self.ordinary.add(x[kept], error[kept])
        self.active += int((values > 0).sum())
        self.fired[indices[values > 0]] = True


def check_sae(settings: SaeCheckSettings) -> dict[str, Any]:
    """Measures on the val split, writes ``check.json`` into the SAE's folder (a release has none) and returns it.

    - ``k``: active latents a token, at most; None where a threshold decides how many.
    - ``l0``: latents above zero, mean over tokens.
    - ``fvu``: fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − m‖², m the mean over all tokens looked at.
    - ``robust_fvu``: the same without tokens whose norm is above ten times their batch's median, m too; None where
      none is left.
    - ``dead_share``: latents that fire on none of them.
    - ``cross_entropy``: the teacher's mean loss (nats a token) with its own activations (``clean``), with x̂ in their
      place (``reconstructed``), with m in their place (``ablated``), and ``recovered`` = (ablated − reconstructed)
      / (ablated − clean): 1 is a perfect SAE, 0 one that is worth no more than the mean.
    """
    dataset = Dataset.open(settings.data)
    window = settings.window or dataset.window
    names = named(settings)
    teacher, sae = load_pair(settings, names, dataset, window)
    split = dataset.split("val")
    count = min(split.count(window), max(1, settings.tokens // window))
    if not count:
        raise UserError(f"the val split of {dataset.folder} holds no window of {window} tokens: give a smaller window")
    batches = np.array_split(np.arange(count), -(-count // settings.batch_windows))
    moments = _Moments(sae)

    def note(h: Tensor) -> Tensor:
        moments.add(h)
        return h

    def reconstruct(h: Tensor) -> Tensor:
        return sae.reconstruct(h.flatten(0, 1)).view(h.shape)

    def ablate(h: Tensor) -> Tensor:
        return moments.all.mean.to(h.dtype).expand(h.shape)

    totals = []
    with progress("SAE check, windows", 3 * count) as bar:
        for replace in (note, reconstruct, ablate):  # the mean is known after the first pass
            total = 0.0
            for ids in batches:
                tokens = torch.from_numpy(split.read(ids, window))
                total += float(teacher.cross_entropy(tokens[:, :-1], tokens[:, 1:], replace)) * len(ids)
                bar.advance(len(ids))
            totals.append(total / count)
    clean, reconstructed, ablated = totals
    result = {
        "latents": sae.latents,
        "k": sae.k,
        "l0": moments.active / moments.all.tokens,
        "fvu": moments.all.fvu,
        "robust_fvu": moments.ordinary.fvu if moments.ordinary.tokens else None,
        "dead_share": 1 - float(moments.fired.float().mean()),
        "cross_entropy": {
            "clean": clean,
            "reconstructed": reconstructed,
            "ablated": ablated,
            "recovered": (ablated - reconstructed) / (ablated - clean) if ablated != clean else None,
        },
        "tokens": moments.all.tokens,
        "teacher": names.teacher,
        "block": names.block,
    }
    if not is_release(settings.sae):
        write_json(Path(settings.sae) / CHECK, result)
    return result
