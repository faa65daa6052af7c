"""A teacher and an autoencoder that belong together: which they are, and how well they fit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cocomix.concepts.labels import Labels
from cocomix.concepts.load_sae import check_folder, load_sae
from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.settings import Dtype, ExtractSettings
from cocomix.concepts.teacher import Teacher, load_teacher, pick_dtype
from cocomix.concepts.teacher_files import training_record
from cocomix.data.dataset import Dataset
from cocomix.devices import pick_device
from cocomix.errors import UserError
from cocomix.progress import say


@runtime_checkable
class PairSettings(Protocol):
    """What says which teacher and SAE are meant; ``teacher`` and ``block`` may be left to the SAE's record."""

    @property
    def sae(self) -> str: ...
    @property
    def teacher(self) -> str | None: ...
    @property
    def block(self) -> int | None: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...


class Names(NamedTuple):
    """A teacher's name and block."""

    teacher: str
    block: int


class Fit(NamedTuple):
    """How well an autoencoder fits activations."""

    l0: float
    """Latents above zero, mean over tokens."""
    fvu: float
    """Fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − mean(x)‖²."""
    robust_fvu: float
    """The same without tokens of massive activations (:func:`ordinary`), mean included: of them alone a direction
    that most blocks share can explain nearly all."""


def named(settings: PairSettings) -> Names:
    """Teacher and block of the settings, or else of the SAE's ``training.json``.

    Raises :class:`UserError` when neither says it, or the SAE was trained on another block.
    """
    check_folder(settings.sae)
    record = training_record(settings.sae) or {}
    teacher = settings.teacher if settings.teacher is not None else record.get("teacher")
    block = settings.block if settings.block is not None else record.get("block")
    for key, value in (("teacher", teacher), ("block", block)):
        if value is None:
            raise UserError(f"{key}= is missing, and {settings.sae} has no training.json that says it: add {key}=…")
    if record.get("block") not in (None, block):
        raise UserError(
            f"block={block}: {settings.sae} was trained on block {record['block']}: give block={record['block']}, or "
            "leave it out"
        )
    return Names(str(teacher), int(block))  # type: ignore[arg-type]


def load_pair(settings: PairSettings, names: Names, dataset: Dataset, window: int) -> tuple[Teacher, SparseAutoencoder]:
    """Both on the settings' device; raises :class:`UserError` when their widths differ, or the SAE's files name
    another block."""
    device = pick_device(settings.device)
    sae = load_sae(settings.sae, device)
    dtype = pick_dtype(settings.dtype, device)
    teacher = load_teacher(names.teacher, names.block, dataset, window, device, dtype)
    if teacher.width != sae.width:
        raise UserError(
            f"sae={settings.sae} reads activations of width {sae.width}, the teacher {names.teacher} has width "
            f"{teacher.width}: use an SAE that was trained on this teacher"
        )
    if sae.block not in (None, names.block):
        raise UserError(
            f"block={names.block}: the files of {settings.sae} say that it was trained on the output of block "
            f"{sae.block}: give block={sae.block}"
        )
    if sae.normalise == "centre" and has_rms_norms(teacher):
        sae.normalise = "none"  # TransformerLens centres no such model, whatever it was asked for
    for line in differences(sae, dataset.tokenizer(), window):
        say(f"note: sae={settings.sae} {line}")
    return teacher, sae


def has_rms_norms(teacher: Teacher) -> bool:
    """Whether the blocks' norms keep the mean, so that centred weights would make another model."""
    modules = list(teacher.blocks.modules())
    return not any(isinstance(m, nn.LayerNorm) for m in modules) and any("RMSNorm" in type(m).__name__ for m in modules)


def differences(sae: SparseAutoencoder, tokenizer: Any, window: int) -> list[str]:
    """In what windows differ from the text that an autoencoder was trained on, as far as its files say."""
    found = []
    bos, prepended = tokenizer.bos_token_id, sae.text.prepend_bos
    if bos is not None and bos != tokenizer.eos_token_id:
        if prepended is None:
            prepended = bos in tokenizer("a").input_ids[:1]
        if prepended:
            found.append(
                f"and its teacher are used to texts that begin with {tokenizer.bos_token}, and windows have none"
            )
    if sae.text.context_size is not None and window > sae.text.context_size:
        found.append(f"was trained on contexts of {sae.text.context_size} tokens, windows have {window}")
    return found


def load_pair_of(
    labels: Labels,
    dataset: Dataset,
    device: str = "auto",
    dtype: Dtype = "auto",
    teacher: str | None = None,
    sae: str | None = None,
) -> tuple[Teacher, SparseAutoencoder]:
    """The pair that labels were extracted with, from where they say that it lies, or from where it lies now.

    Raises :class:`UserError` when it is not to be had or is another one by now.
    """
    made = labels.manifest
    names = Names(teacher or made["teacher"]["name"], made["teacher"]["block"])
    folder = sae or made["sae"]["folder"]
    settings = ExtractSettings(data=str(dataset.folder), sae=folder, device=device, dtype=dtype)
    pair = load_pair(settings, names, dataset, labels.window)
    for key, given, found in (
        ("teacher", names.teacher, pair[0].fingerprint),
        ("sae", folder, pair[1].fingerprint),
    ):
        if found != made[key]["fingerprint"]:
            raise UserError(
                f"{key}={given} is not what the labels {labels.folder} were extracted with: put that back, or extract "
                "again"
            )
    return pair


def ordinary(norms: Float[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """Tokens whose norm is at most ten times the median: not the attention sinks (arXiv 2402.17762)."""
    return norms <= 10 * norms.median()


def measure_fit(sae: SparseAutoencoder, x: Float[Tensor, "N D"]) -> Fit:
    """L0 and FVU on activations."""
    x = x.float()
    values, indices = sae.encode(x)
    error = (sae.decode(values, indices, x) - x).double().square().sum(-1)
    kept = ordinary(x.norm(dim=-1))
    if not kept.any():  # norms that are no numbers
        kept = torch.ones_like(kept)
    l0 = float((values > 0).sum() / len(x))
    return Fit(l0, _fvu(error, x), _fvu(error[kept], x[kept]))


def _fvu(error: Float[Tensor, " N"], x: Float[Tensor, "N D"]) -> float:
    return float(error.sum() / (x - x.mean(0)).double().square().sum().clamp(min=1e-30))


def check_fit(teacher: Teacher, sae: SparseAutoencoder, dataset: Dataset, window: int, windows: int, batch: int) -> Fit:
    """The fit on the first training windows; raises :class:`UserError` when it is no number."""
    split = dataset.split("train")
    ids = np.arange(min(windows, split.count(window)))
    tokens = torch.from_numpy(split.read(ids, window)[:, :-1])
    found = [teacher.activations(part).flatten(0, 1) for part in tokens.split(batch)]
    fit = measure_fit(sae, torch.cat(found))
    if not math.isfinite(fit.fvu):
        raise UserError(
            f"teacher={teacher.name}: its activations, or what the SAE makes of them, are not finite on the first "
            "training windows: try dtype=float32"
        )
    return fit


def refuse_other_teacher(teacher: Teacher, folder: str) -> None:
    """Raises :class:`UserError` when an SAE's record tells of other weights than this teacher has."""
    record = training_record(folder) or {}
    if record.get("teacher_fingerprint", teacher.fingerprint) != teacher.fingerprint:
        raise UserError(
            f"sae={folder} was trained on other weight files than teacher={teacher.name} has now: train it again with "
            "'cocomix sae train' and another out=, or extract all the same with force=true"
        )


def refuse_bad_fit(fit: Fit, sae: SparseAutoencoder, folder: str | Path, max_fvu: float) -> None:
    """Raises :class:`UserError` when an SAE is sick here: wrong block, teacher, activation, normalisation show so.

    - Robust FVU above ``max_fvu``.
    - TopK: L0 below half of k (it cannot be above).
    - A threshold decides, and the files state an L0: L0 below half of it or above its double.
    - A threshold decides, and nothing is stated: L0 below 1, or above half of the hidden size D (more numbers than
      that are no sparse description of D numbers).
    """
    mend = "check teacher=, block= and the SAE with 'cocomix sae check', or extract all the same with force=true"
    if not fit.robust_fvu <= max_fvu:
        raise UserError(
            f"sae={folder} leaves {fit.robust_fvu:.0%} of the variance of this block unexplained "
            f"(max_fvu={max_fvu}), tokens of massive norm left out: {mend}"
        )
    if sae.k is not None:
        if fit.l0 < sae.k / 2:
            raise UserError(f"sae={folder} has k={sae.k}, but only {fit.l0:.1f} latents a token fire here: {mend}")
        return
    if sae.stated_l0 is not None:
        least, most, due = sae.stated_l0 / 2, sae.stated_l0 * 2, f"its files state {sae.stated_l0:g}"
    else:
        least, most = 1.0, sae.width / 2
        due = f"1 … {most:g} (half of the hidden size) are plausible"
    if not least <= fit.l0 <= most:
        raise UserError(f"sae={folder}: {fit.l0:.1f} latents a token fire here, where {due}: {mend}")
