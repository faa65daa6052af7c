"""Checkpoints that are whole or absent: a folder written under a temporary name, its manifest last, then renamed.

Everything is safetensors: the model's tensors under the plain model's names, the optimizer's moments as
``<moment>.<parameter name>``. Counters and random state lie beside them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cocomix.errors import UserError, explained
from cocomix.files import TEMPORARY_SUFFIX, read_json, sha256_file, sync_folder, write_json

MARKER = "complete.json"


@dataclass
class Counters:
    """Where a run stands; all of it lives in the checkpoint."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    flops: dict[str, float] = field(default_factory=lambda: {"student": 0.0, "teacher": 0.0})


def checkpoint_folders(run: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-????????") if (p / MARKER).is_file())


def save_checkpoint(
    run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, counters: Counters, keep: int
) -> Path:
    """Writes ``checkpoints/step-NNNNNNNN`` and then removes all but the last ``keep``.

    Raises :class:`UserError` when the disk refuses; older checkpoints are untouched then.
    """
    folder = run / "checkpoints" / f"step-{counters.step:08d}"
    temporary = folder.with_name(folder.name + TEMPORARY_SUFFIX)
    try:
        with explained(folder):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            _save(unique_tensors(model), temporary / "model.safetensors")
            _save(_optimizer_tensors(model, optimizer), temporary / "optimizer.safetensors")
            _save({"torch": torch.get_rng_state()}, temporary / "random.safetensors")
            write_json(temporary / "counters.json", asdict(counters))
            files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in sorted(temporary.iterdir())}
            write_json(temporary / MARKER, files)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in checkpoint_folders(run)[:-keep]:
        (old / MARKER).unlink()
        shutil.rmtree(old)
    return folder


def check_checkpoint(folder: Path) -> None:
    """Raises :class:`UserError` that names a missing, truncated or altered file."""
    for name, entry in read_json(folder / MARKER, "a checkpoint's list of files").items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"checkpoint file {path} is missing: remove {folder} to go on from the one before")
        if path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
            raise UserError(
                f"checkpoint file {path} is truncated or altered: remove {folder} to go on from the one before"
            )


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Counters:
    """Puts a checked checkpoint into model, optimizer and random state; returns the counters."""
    check_checkpoint(folder)
    load_weights(folder, model)
    _load_optimizer(model, optimizer, load_file(folder / "optimizer.safetensors"))
    torch.set_rng_state(load_file(folder / "random.safetensors")["torch"])
    return Counters(**json.loads((folder / "counters.json").read_text()))


def load_weights(folder: Path, model: nn.Module) -> None:
    """Loads the weights alone; tied tensors are stored once."""
    missing, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    missing = [name for name in missing if name in unique_tensors(model)]
    if missing or unexpected:
        raise UserError(f"{folder} holds another model: {(missing + unexpected)[0]} does not match the recipe's")


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state without the second name of a tied tensor."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{moment}.{name}": value
        for name, parameter in model.named_parameters()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in tensors.items():
        moment, _, name = key.partition(".")
        if name not in parameters:
            raise UserError(f"the checkpoint's optimizer state is of another model: it knows a parameter {name}")
        target: Any = parameters[name]
        # AdamW's step counter stays on the CPU unless the update is captured or fused on the device itself.
        optimizer.state[target][moment] = value.to(target.device)
