"""A teacher that is asked while a run trains: for its next-token probabilities and its state behind a block."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cocomix.concepts.costs import activation_flops, forward_flops
from cocomix.concepts.identity import probability_identity
from cocomix.concepts.labelling import teacher_cost
from cocomix.concepts.online_source import OnlineSource
from cocomix.concepts.probabilities import PROBS, TOKENS
from cocomix.concepts.settings import OnlineTeacherSettings
from cocomix.concepts.teacher import Teacher, load_teacher, pick_dtype
from cocomix.data.dataset import Dataset
from cocomix.devices import pick_device
from cocomix.errors import UserError
from cocomix.files import sha256_json

STATE = "teacher_state"


class OnlineTeacher(OnlineSource):
    """Sources of the columns that a run's losses read, of one teacher; keeps nothing beyond a batch."""

    def __init__(
        self,
        dataset: Dataset,
        teacher: Teacher,
        window: int,
        settings: OnlineTeacherSettings,
        columns: frozenset[str],
        identity: dict[str, Any],
    ) -> None:
        whole, part = PROBS in columns, STATE in columns
        super().__init__(forward_flops(teacher, window) * whole + activation_flops(teacher, window) * part)
        self._splits = {name: dataset.split(name) for name in dataset.manifest["splits"]}
        self._teacher, self._settings, self._columns = teacher, settings, columns
        self.window = window
        self.width = teacher.width
        """Hidden size of the teacher."""
        self.identity = identity
        self.fingerprint = sha256_json(identity)
        self.upstream: dict[str, Any] = {"teacher": teacher_cost(settings.name), "sae": {"flops": 0.0, "seconds": 0.0}}
        self._last: tuple[str, bytes, dict[str, Tensor]] = ("", b"", {})

    @classmethod
    def open(
        cls, dataset: Dataset, window: int, settings: OnlineTeacherSettings, columns: frozenset[str]
    ) -> OnlineTeacher:
        """Loads the teacher; ``columns``: those that are wanted. Raises :class:`UserError` when it does not fit."""
        device = pick_device(settings.device)
        dtype = pick_dtype(settings.dtype, device)
        teacher = load_teacher(settings.name, settings.block or 0, dataset, window, device, dtype)
        if settings.block is None:
            teacher.block = len(teacher.blocks) // 2
        if settings.k is not None and settings.k > teacher.config.vocab_size:
            raise UserError(
                f"data.teacher.k={settings.k} is more than its {teacher.config.vocab_size} tokens: give fewer"
            )
        identity = probability_identity(settings, settings.name, dataset, window) | {
            "k": settings.k,
            "block": teacher.block if STATE in columns else None,
            "columns": sorted(columns),
        }
        return cls(dataset, teacher, window, settings, columns, identity)

    @property
    def sources(self) -> dict[str, OnlineColumn]:
        """A source for each column that is wanted (see :mod:`cocomix.data.batches`)."""
        given = self._columns if self._settings.k is not None else self._columns - {TOKENS}
        return {name: OnlineColumn(self, name) for name in sorted(given)}

    def read(self, column: str, split: str, window_ids: Int[np.ndarray, " N"]) -> Tensor:
        """The column's values, on the teacher's device; all columns of a batch are made when the first is read."""
        key = (split, window_ids.tobytes())
        if self._last[:2] != key:
            start = time.perf_counter()
            parts = [self._ask(split, window_ids[i : i + self._settings.batch_windows])
                     for i in range(0, len(window_ids), self._settings.batch_windows)]  # fmt: skip
            made = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            self._last = (*key, made)
            self.seconds += time.perf_counter() - start
            self.tokens += len(window_ids) * self.window
        return self._last[2][column]

    def _ask(self, split: str, windows: Int[np.ndarray, " N"]) -> dict[str, Tensor]:
        inputs = torch.from_numpy(self._splits[split].read(windows, self.window))[:, :-1]
        made = {}
        if PROBS in self._columns:
            probs, tokens = self._teacher.probabilities(inputs, self._settings.k)
            made[PROBS] = probs
            if tokens is not None:
                made[TOKENS] = tokens
        if STATE in self._columns:
            made[STATE] = self._teacher.activations(inputs).float()
        return made


class OnlineColumn:
    """One column of a teacher that is asked."""

    def __init__(self, teacher: OnlineTeacher, name: str) -> None:
        self._teacher, self._name = teacher, name

    def read(self, split: str, window_ids: Int[np.ndarray, " N"]) -> Tensor:
        return self._teacher.read(self._name, split, window_ids)
