"""Checkpoints that are whole or absent, written by all ranks, readable on any number of ranks.

PyTorch's distributed checkpoint writes each rank's part of the tensors as safetensors (``shard-…safetensors``) into a
folder with a temporary name; ``counters.json`` and, last, ``complete.json`` with every file's size and hash follow, and
then the folder gets its name ``step-NNNNNNNN``. Tensors bear the plain model's names: ``model.<name>``, and
``optimizer.<moment>.<parameter name>``. There is no random state to keep: that of a step is a function of seed, step
and rank, as the data's order is.
"""

from __future__ import annotations

import shutil
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from cocomix.dist.world import World
from cocomix.errors import UserError, explained
from cocomix.files import TEMPORARY_SUFFIX, read_json, sha256_file, sync_folder, write_json
from cocomix.progress import say
from cocomix.train.counters import Counters
from cocomix.train.settings import CheckpointSettings

MARKER, COUNTERS = "complete.json", "counters.json"
FOLDER = "step-????????"
DAMAGED, ASIDE = ".damaged", ".aside"
Optimizers = Sequence[torch.optim.Optimizer]


def checkpoint_folders(run: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob(FOLDER) if (p / MARKER).is_file())


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


class Checkpoints:
    """Writes a run's checkpoints; at most one is being written at a time. All methods are work of all ranks."""

    def __init__(self, run: Path, settings: CheckpointSettings, world: World, background: bool = False) -> None:
        self.run, self.settings, self.world = run, settings, world
        self.background = background
        # The writing thread's messages must not mix with those of training.
        self._group: Any = dist.new_group(backend="gloo") if background and world.size > 1 else None
        self._thread: threading.Thread | None = None
        self._folder: Path | None = None
        self._files: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._counters = Counters()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint was begun and not finished yet."""
        return self._folder is not None

    @property
    def written(self) -> bool:
        """Whether this rank is done with its part of the one that was begun."""
        return self.busy and (self._thread is None or not self._thread.is_alive())

    def begin(self, model: nn.Module, optimizers: Optimizers, counters: Counters, name: str = "checkpoints") -> None:
        """Begins ``<name>/step-NNNNNNNN``; without a background it is all written when this returns.

        Raises :class:`UserError` when the disk refuses; older checkpoints are untouched then.
        """
        self.finish()
        folder = self.run / name / f"step-{counters.step:08d}"
        temporary = folder.with_name(folder.name + TEMPORARY_SUFFIX)
        self.world.once(lambda: _empty(temporary))
        self._folder, self._counters = folder, Counters(**asdict(counters))
        tensors = run_tensors(model, optimizers)
        if self.background:
            tensors = DefaultStager(StagingOptions(False, False, False, False)).stage(dict(tensors))  # type: ignore[assignment]
            self._thread = threading.Thread(target=self._write, args=(tensors, temporary), daemon=True)
            self._thread.start()
        else:
            self._write(tensors, temporary)

    def finish(self) -> Path | None:
        """Waits for the checkpoint that was begun, marks it as whole, removes what is not to be kept.

        Raises :class:`UserError`, on all ranks, when it could not be written; it is removed then, and no other.
        """
        if self._folder is None:
            return None
        if self._thread is not None:
            self._thread.join()
        folder, self._folder, self._thread = self._folder, None, None
        temporary = folder.with_name(folder.name + TEMPORARY_SUFFIX)
        error, self._error = self._error, None
        try:
            with self.world.together(), explained(folder):
                if error is not None:
                    raise error
            files = {name: entry for part in self.world.gather(self._files) for name, entry in part.items()}
            self.world.once(lambda: self._mark(temporary, folder, files))
        except UserError:
            if self.world.first:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        return folder

    def _write(self, tensors: Mapping[str, Any], folder: Path) -> None:
        """This rank's part; an error is kept for :meth:`finish`, where all ranks hear of it."""
        self._files = {}
        try:
            with _quietly():
                writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
                dcp.save(dict(tensors), storage_writer=writer, process_group=self._group)
            own = f"shard-{self.world.rank + 1:05d}-*"
            self._files = {p.name: _entry(p) for p in folder.glob(own)}
        except CheckpointException as error:
            # Of several ranks' troubles the lowest rank's: the same one on all ranks.
            _, (self._error, *_) = min(error.failures.items())
        except Exception as error:
            self._error = error

    def _mark(self, temporary: Path, folder: Path, files: dict[str, Any]) -> None:
        with explained(folder):
            write_json(temporary / COUNTERS, asdict(self._counters))
            files[COUNTERS] = _entry(temporary / COUNTERS)
            write_json(temporary / MARKER, dict(sorted(files.items())))
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
            sync_folder(folder.parent)
            self._prune()

    def _prune(self) -> None:
        every = self.settings.keep_every
        for old in checkpoint_folders(self.run)[: -self.settings.keep]:
            if every is None or step_of(old) % every:
                (old / MARKER).unlink()  # first: a half removed checkpoint does not count
                shutil.rmtree(old)


def last_whole(run: Path, world: World, step: int | None = None) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint whose files are what was written (or that of ``step``), and newer ones that are damaged.

    What is damaged is told. None where there is no checkpoint at all; raises :class:`UserError` when there are some,
    but none is whole, or not that of ``step``.
    """
    folders = world.from_first(checkpoint_folders(run))
    if step is not None:
        folders = [folder for folder in folders if step_of(folder) == step]
        if not folders:
            known = ", ".join(str(step_of(f)) for f in world.from_first(checkpoint_folders(run)))
            raise UserError(f"resume={step}: {run} has no checkpoint of that step, only of {known or 'none'}")
    problems: list[tuple[Path, str]] = []
    for folder in reversed(folders):
        problem = problem_of(folder, world)
        if problem is None:
            for _, what in problems:
                say(f"{what}: the checkpoint {folder.name} before it is taken")
            return folder, [damaged for damaged, _ in problems]
        problems.append((folder, problem))
    if problems:
        raise UserError(
            f"{problems[0][1]}, and no other checkpoint of {run} is whole: restore it, or begin again in another folder"
        )
    return None, []


def problem_of(folder: Path, world: World) -> str | None:
    """What is wrong with a checkpoint, by sizes and hashes of its files, which the ranks share; None: nothing."""
    try:
        files = read_json(folder / MARKER, "a checkpoint's list of files")
    except UserError as error:
        return str(error)
    found = None
    for number, (name, entry) in enumerate(files.items()):
        if number % world.size == world.rank and found is None:
            found = _file_problem(folder / name, entry)
    return next((problem for problem in world.gather(found) if problem is not None), None)


def remove_half_written(run: Path) -> None:
    """Removes what a process left that was killed while it wrote a checkpoint."""
    for folder in (run / "checkpoints").glob(FOLDER + TEMPORARY_SUFFIX):
        shutil.rmtree(folder, ignore_errors=True)


def set_aside(folder: Path, suffix: str) -> None:
    """Renames a checkpoint so that it counts no more; an earlier one of that name is replaced."""
    target = folder.with_name(folder.name + suffix)
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def load_checkpoint(folder: Path, model: nn.Module, optimizers: Optimizers) -> Counters:
    """Puts a whole checkpoint into model and optimizers, on any number of ranks; returns the counters."""
    tensors = _model_tensors(model)
    stored = tensor_sizes(folder)
    _check_names(folder, tensors, stored)
    parameters = dict(model.named_parameters())
    owner = {id(p): optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for optimizer in optimizers:
        optimizer.state.clear()
    for key, size in stored.items():
        kind, _, rest = key.partition(".")
        if kind != "optimizer":
            continue
        moment, _, name = rest.partition(".")
        parameter = parameters.get(name)
        if parameter is None:
            raise UserError(f"{folder} is of another model: its optimizer knows a parameter {name}")
        if len(size) == 0 and parameter.dim() > 0:  # a counter of steps: fused updates want it beside the weights
            value = torch.zeros((), dtype=torch.float32, device=parameter.device)
        else:
            value = torch.zeros_like(parameter.detach())
        owner[id(parameter)].state[parameter][moment] = value
        tensors[key] = value
    _load(folder, tensors)
    return Counters(**read_json(folder / COUNTERS, "a checkpoint's counters"))


def load_weights(folder: Path, model: nn.Module) -> None:
    """Loads the weights alone."""
    tensors = _model_tensors(model)
    _check_names(folder, tensors, tensor_sizes(folder))
    _load(folder, tensors)


def run_tensors(model: nn.Module, optimizers: Optimizers) -> dict[str, Tensor]:
    """All that a checkpoint keeps, by its name there."""
    tensors = _model_tensors(model)
    for name, parameter in model.named_parameters():
        for optimizer in optimizers:
            for moment, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{moment}.{name}"] = value
    return tensors


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All of a checkpoint's tensors, whole, by their names there."""
    tensors = {name: torch.empty(size) for name, size in tensor_sizes(folder).items()}
    _load(folder, tensors)
    return tensors


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state without the second name of a tied tensor."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in unique_tensors(model).items()}


def tensor_sizes(folder: Path) -> dict[str, torch.Size]:
    """Whole shapes of a checkpoint's tensors, by their names there."""
    metadata: Any = HuggingFaceStorageReader(str(folder)).read_metadata()
    return {name: entry.size for name, entry in metadata.state_dict_metadata.items()}


def _check_names(folder: Path, tensors: Mapping[str, Tensor], stored: Mapping[str, torch.Size]) -> None:
    there = {name: tuple(size) for name, size in stored.items() if name.startswith("model.")}
    wanted = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(there.keys() | wanted.keys()):
        if there.get(name) != wanted.get(name):
            raise UserError(
                f"{folder} holds another model: {name.removeprefix('model.')} is {_shape(there.get(name))} there and "
                f"{_shape(wanted.get(name))} in the recipe"
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else f"of shape {list(shape)}"


def _load(folder: Path, tensors: dict[str, Tensor]) -> None:
    with _quietly():
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _file_problem(path: Path, entry: dict[str, Any]) -> str | None:
    if not path.is_file():
        return f"checkpoint file {path} is missing"
    if path.stat().st_size != entry["bytes"]:
        return f"checkpoint file {path} is truncated: {path.stat().st_size:,} bytes of {entry['bytes']:,}"
    return None if sha256_file(path) == entry["sha256"] else f"checkpoint file {path} was altered: its hash differs"


def _empty(folder: Path) -> None:
    with explained(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without PyTorch's warning that no process group is there, which is as it should be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
