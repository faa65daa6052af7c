"""What labels are of: two makings with the same identity give the same labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cocomix.concepts.load_sae import sae_fingerprint
from cocomix.concepts.pair import Names
from cocomix.concepts.settings import AttributionSettings, LabellingSettings, TeacherSettings
from cocomix.concepts.teacher import pick_dtype
from cocomix.concepts.teacher_files import find_teacher
from cocomix.data.dataset import Dataset
from cocomix.devices import pick_device
from cocomix.errors import UserError


def label_identity(settings: LabellingSettings, dataset: Dataset, window: int, names: Names) -> dict[str, Any]:
    """Dataset, window, teacher, SAE and attribution by hash and value, as they stand in ``labels.json``."""
    of = probability_identity(settings, names.teacher, dataset, window)
    return {
        **of,
        "teacher": {**of["teacher"], "block": names.block},
        "sae": {"fingerprint": sae_fingerprint(settings.sae)},
        "attribution": settings.attribution.model_dump(mode="json"),
    }


def probability_identity(settings: TeacherSettings, teacher: str, dataset: Dataset, window: int) -> dict[str, Any]:
    """The same of what needs no SAE."""
    return {
        "dataset": dataset.fingerprint,
        "tokenizer": dataset.tokenizer_hash,
        "window": window,
        "teacher": {
            "fingerprint": find_teacher(teacher).fingerprint(),
            "dtype": pick_dtype(settings.dtype, pick_device(settings.device)),
        },
    }


def refuse_other(folder: Path, what: str, found: dict[str, Any], identity: dict[str, Any], dtype: str) -> None:
    """Raises :class:`UserError` when ``what`` was ``found`` in a folder (labels) is not that of ``identity``.

    ``dtype`` is the setting: where it is ``auto``, the teacher's precision is what it was.
    """
    difference = differs(found, identity, dtype)
    if difference is not None:
        raise UserError(f"{folder} holds {what} with another {difference}: give another name=… or delete that folder")


def differs(found: dict[str, Any], identity: dict[str, Any], dtype: str) -> str | None:
    """The first part of ``identity`` that is another in ``found``, with both values; None: the same contents."""
    for key, now in identity.items():
        old = found[key]
        if key == "attribution":  # labels from before a setting was there have its default
            old = AttributionSettings().model_dump(mode="json") | old
        pairs = [(f"{key}.{k}", old.get(k), v) for k, v in now.items()] if isinstance(now, dict) else [(key, old, now)]
        for name, before, after in pairs:
            if before != after and not (name == "teacher.dtype" and dtype == "auto"):
                return f"{name} ({_short(before)}, now {_short(after)})"
    return None


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)
