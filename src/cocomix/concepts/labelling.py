"""Windows → labels: a teacher and its SAE, loaded and checked, for a cache and for a run that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from cocomix.concepts.attribution import NotFinite, check_attribution, label_windows
from cocomix.concepts.costs import label_flops
from cocomix.concepts.labels import label_columns
from cocomix.concepts.pair import Fit, Names, check_fit, load_pair, refuse_bad_fit, refuse_other_teacher
from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.settings import AttributionSettings, LabellingSettings
from cocomix.concepts.teacher import Teacher
from cocomix.concepts.teacher_files import find_teacher, training_record
from cocomix.data.columns import Column
from cocomix.data.dataset import Dataset, Split
from cocomix.errors import UserError

FIT_WINDOWS = 16
LARGEST_STRENGTH = float(np.finfo(np.float16).max)


class WindowLabels(NamedTuple):
    """Labels of N windows, the best of each token first."""

    ids: Int[np.ndarray, "N T K"]
    """int64; −1: no label."""
    strengths: Float[np.ndarray, "N T K"]
    """The SAE's activation of the labelled latent, float16; 0 where there is no label."""


class Labeller:
    """A teacher and an SAE that fits it."""

    def __init__(
        self, teacher: Teacher, sae: SparseAutoencoder, attribution: AttributionSettings, window: int, fit: Fit
    ) -> None:
        self.teacher, self.sae, self.attribution = teacher, sae, attribution
        self.window, self.fit = window, fit

    @classmethod
    def open(cls, settings: LabellingSettings, names: Names, dataset: Dataset, window: int) -> Labeller:
        """Loads both on the settings' device; raises :class:`UserError` when they do not fit each other, the dataset
        or the attribution."""
        teacher, sae = load_pair(settings, names, dataset, window)
        check_attribution(teacher, sae, settings.attribution)
        fit = check_fit(teacher, sae, dataset, window, FIT_WINDOWS, settings.batch_windows)
        if not settings.force:
            refuse_other_teacher(teacher, settings.sae)
            refuse_bad_fit(fit, sae, settings.sae, settings.max_fvu)
        return cls(teacher, sae, settings.attribution, window, fit)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Ids and strengths, as a cache holds them."""
        return label_columns(self.sae.latents, self.attribution.k)

    @property
    def entries(self) -> int:
        """Size C of the dictionary."""
        return self.sae.latents

    def make(self, split: Split, windows: Int[np.ndarray, " N"]) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`label` in the columns' types: −1 becomes the largest value of the unsigned one, "no label"."""
        found = self.label(split, windows)
        return found.ids.astype(self.columns[0].dtype), found.strengths

    @property
    def flops_per_token(self) -> float:
        """What labelling costs a token."""
        active = self.fit.l0 if self.sae.k is None else float(self.sae.k)
        return label_flops(self.teacher, self.sae, self.attribution, self.window, active).total

    def label(self, split: Split, windows: Int[np.ndarray, " N"]) -> WindowLabels:
        """Labels of windows by their numbers, all of them through the teacher at once (the loss is the mean over all,
        so that who goes with whom changes a score's last bits).

        Raises :class:`UserError` when the teacher's activations or gradients are not finite.
        """
        tokens = torch.from_numpy(split.read(windows, self.window))
        try:
            labels = label_windows(self.teacher, self.sae, tokens[:, :-1], tokens[:, 1:], self.attribution)
        except NotFinite as error:
            raise not_finite("activations or gradients", split, windows) from error
        shape = (len(windows), self.window, self.attribution.k)
        strengths = labels.strengths.clamp(-LARGEST_STRENGTH, LARGEST_STRENGTH).half()
        return WindowLabels(labels.ids.cpu().numpy().reshape(shape), strengths.cpu().numpy().reshape(shape))


def not_finite(what: str, split: Split, windows: Int[np.ndarray, " N"]) -> UserError:
    """What to say of a teacher whose numbers are no numbers."""
    return UserError(
        f"the teacher's {what} are not finite at windows {windows[0]} … {windows[-1]} of {split.name}: "
        "try dtype=float32"
    )


def upstream_costs(names: Names, sae: str) -> dict[str, dict[str, float] | None]:
    """FLOPs and seconds of the ``teacher``'s and the ``sae``'s training, as their records tell; None: no record."""
    return {"teacher": teacher_cost(names.teacher), "sae": _cost(sae)}


def teacher_cost(name: str) -> dict[str, float] | None:
    """FLOPs and seconds of a teacher's training, as its record tells; None: no record."""
    return _cost(find_teacher(name).folder)


def _cost(folder: Path | str) -> dict[str, float] | None:
    record: dict[str, Any] | None = training_record(folder)
    return None if record is None else {"flops": record["flops"], "seconds": record["seconds"]}
