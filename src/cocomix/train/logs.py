"""Metrics to TensorBoard and Weights & Biases, beside metrics.jsonl; extras: ``pip install -e '.[logs]'``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cocomix.errors import UserError
from cocomix.files import read_json, write_json


@runtime_checkable
class Log(Protocol):
    """Where lines of metrics go."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """The numbers of one step."""

    def close(self) -> None:
        """After the last line."""


def open_logs(names: list[str], run: Path, settings: dict[str, Any], step: int) -> list[Log]:
    """The logs of a run that goes on behind ``step``; raises :class:`UserError` where a package is missing."""
    return [LOGS[name](run, settings, step) for name in names]


class TensorBoard:
    """Event files in RUN/tensorboard; what a killed run wrote beyond its checkpoint is hidden."""

    def __init__(self, run: Path, settings: dict[str, Any], step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", error) from error
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """One run of Weights & Biases a run folder, however often it is resumed; its own environment variables hold."""

    def __init__(self, run: Path, settings: dict[str, Any], step: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb", error) from error
        kept = run / "wandb.json"
        known = read_json(kept, "the record of a W&B run")["id"] if kept.is_file() else None
        try:
            self._run = wandb.init(
                dir=str(run), name=run.name, id=known, resume="allow", config=settings, settings={"silent": True}
            )
        except wandb.errors.Error as error:
            raise UserError(f"logs=[wandb]: {error}; log in, set WANDB_MODE=offline, or leave it out") from error
        write_json(kept, {"id": self._run.id})

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


LOGS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WandB}


def numbers(line: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a line of metrics by slash-separated names: ``losses/ntp``."""
    flat: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            flat |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            flat[prefix + key] = float(value)
    return flat


def _missing(package: str, error: ImportError) -> UserError:
    return UserError(
        f"logs=[{package}] needs the package {package} ({error}): pip install -e '.[logs]' in cocomix's checkout"
    )
