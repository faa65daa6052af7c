"""A run in its folder: built from settings, resumed from its last whole checkpoint, described, exported."""

from __future__ import annotations

import contextlib
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cocomix import __version__
from cocomix.config import dump_yaml, read_recipe, validated
from cocomix.data.batches import Batch, sample_batch
from cocomix.data.dataset import Dataset
from cocomix.devices import pick_device
from cocomix.dist.parallel import check_replicas, put_over
from cocomix.dist.world import World, current
from cocomix.errors import UserError
from cocomix.files import read_json, write_json, write_text
from cocomix.losses.terms import loss_terms, reads_head
from cocomix.model.config import CoCoMixConfig
from cocomix.model.costs import count_flops, count_parameters
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.places import ENVIRONMENT, recorded_path
from cocomix.progress import say
from cocomix.train.backbone import backbone_config
from cocomix.train.budget import Budget
from cocomix.train.build import build_model, build_optimizers, checkpoint_activations, model_config, windows_at_once
from cocomix.train.checkpoint import (
    ASIDE,
    DAMAGED,
    checkpoint_folders,
    last_whole,
    load_checkpoint,
    remove_half_written,
    set_aside,
    step_of,
    unique_tensors,
)
from cocomix.train.counters import Counters
from cocomix.train.export import export_model
from cocomix.train.inputs import check_inputs
from cocomix.train.settings import TrainSettings, first_difference, recorded, resolved_precision
from cocomix.train.sources import CONCEPTS, Sources
from cocomix.train.step import whole


class Run:
    """A training run, on this process or on all ranks of ``world``."""

    def __init__(self, settings: TrainSettings, world: World | None = None) -> None:
        self.settings, self.world = settings, world or current()
        self.folder = Path(settings.run)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        # What one rank may fail at and what ranks exchange take turns: nobody waits for one that has failed.
        with self.world.together():
            concepts = self._open()
        self.config = self.world.in_turn(partial(self._config, concepts))
        begun = self.world.from_first(bool(checkpoint_folders(self.folder)))
        with self.world.together():
            self._build(begun)
        self._put_over_ranks()
        self.optimizers = build_optimizers(self.model, settings.optimizer)
        self.counters = Counters()

    def _open(self) -> int | None:
        """Data, labels and losses; returns the number of concepts."""
        settings = self.settings
        self.device = _device(settings.device, self.world)
        self.dataset = Dataset.open(settings.data.path)
        self.window = settings.data.window or self.dataset.window
        self.split = self.dataset.split("train")
        self.windows = self.split.count(self.window)
        if not self.windows:
            raise UserError(
                f"data={settings.data.path}: its {self.split.tokens} training tokens are fewer than a window of "
                f"{self.window} and its target; give more text or a smaller data.window"
            )
        self.share = windows_at_once(settings, self.world.size) * settings.micro_batches
        """Windows of a step that are this rank's."""
        self.terms = loss_terms(settings.losses)
        wanted = frozenset(column for term, _ in self.terms for column in term.columns)
        self.sources = Sources(self.dataset, self.window, settings.data, wanted)
        labels, size = self.sources.labels, self.sources.state_size
        concepts = settings.model.num_concepts or (labels.concepts if labels else None)
        if settings.model.mixer == "hidden" and not (settings.model.state_size or size):
            raise UserError("model.state_size is needed where no data.teacher is asked: add model.state_size=…")
        if size and settings.model.state_size not in (None, size):
            raise UserError(
                f"model.state_size={settings.model.state_size} differs from the teacher's {size}: leave it out"
            )
        if settings.model.mixer == "concept" and concepts is None:
            raise UserError("model.num_concepts is needed where no labels are given: add model.num_concepts=…")
        if labels is not None and CONCEPTS in self.sources.columns and concepts != labels.concepts:
            raise UserError(f"model.num_concepts={concepts} differs from the labels' {labels.concepts}: leave it out")
        return concepts

    def _config(self, concepts: int | None) -> CoCoMixConfig:
        name = self.settings.model.from_backbone
        backbone = None if name is None else backbone_config(name, self.dataset, self.folder)
        return model_config(self.settings.model, self.dataset, self.window, concepts, backbone, self.sources.state_size)

    def _build(self, begun: bool) -> None:
        """The model on this rank, and what a step costs. A run that has ``begun`` brings all weights in a checkpoint:
        the backbone that they began with is needed no more."""
        settings = self.settings
        check_replicas(settings.dist, self.world.size)
        self.model: Any = build_model(self.config, settings.seed, None if begun else settings.model.from_backbone)
        self.parameters = count_parameters(self.model)
        self.flops_per_token = count_flops(self.model, self.window).training
        self.step_tokens = settings.batch_windows * self.window
        self.budget = Budget(settings, self.step_tokens, self.flops_per_token * self.step_tokens)
        if self.sources.read:
            reads = self.budget.expected_steps(Counters()) * settings.batch_windows
            self.sources.check_covers(self.split, settings.seed, reads)
        self.precision = resolved_precision(settings.precision, self.device.type == "cuda")
        self.dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32

    def _put_over_ranks(self) -> None:
        """Activation checkpointing, compilation and ranks: all from outside, in this order."""
        settings, model = self.settings, self.model
        if settings.activation_checkpointing == "blocks":
            checkpoint_activations(model)
        if settings.compile == "blocks":
            for block in model.blocks:
                block.compile()  # in place: names stay the plain model's
        if self.world.size == 1 or settings.dist.strategy == "ddp":
            model.to(self.device)  # what is sharded moves a part at a time
        mixer = [] if model.mixer is None else [model.mixer]
        unused = model.mixer is not None and (self.config.mixing == "none" or not reads_head(self.terms))
        # On a CPU norms want weights of their input's type, autocast or not: nothing is gathered in bfloat16 there.
        half = self.dtype == torch.bfloat16 and self.device.type == "cuda"
        self.spread = put_over(model, list(model.blocks), mixer, settings.dist, self.world, self.device, half, unused)

    def read_batch(self, step: int, rank: int | None = None) -> Batch:
        """The windows of step ``step`` (0-based) that are a rank's (default: this one's), on the CPU."""
        rank = self.world.rank if rank is None else rank
        settings = self.settings
        first = step * settings.batch_windows + rank * self.share
        return sample_batch(self.split, self.window, settings.seed, first, self.share, self.sources.columns)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context in which forward passes run."""
        if self.dtype == torch.bfloat16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def describe(self, finished: bool) -> dict[str, Any]:
        """run.json: what the run is, for comparisons."""
        settings = self.settings
        return {
            "format": 1,
            "name": self.folder.name,
            "method": settings.method,
            "seed": settings.seed,
            "precision": self.precision,
            "parameters": {"total": self.parameters.total, "active": self.parameters.active},
            "flops_per_token": {"student": self.flops_per_token},
            "batch_tokens": self.step_tokens,
            "steps": self.budget.expected_steps(self.counters),
            "data": {
                "fingerprint": self.dataset.fingerprint,
                "tokenizer_sha256": self.dataset.tokenizer_hash,
                "vocab_size": self.dataset.vocab_size,
                "window": self.window,
            },
            "labels": self.sources.describe(self.world.size),
            "finished": finished,
        }

    def resume(self) -> None:
        """Goes on from the last whole checkpoint, or begins, as the setting ``resume`` says.

        Raises :class:`UserError` when the folder's run computed something else, and when no checkpoint is whole.
        """
        recipe, wanted, world = self.folder / "recipe.yaml", self.settings.resume, self.world
        there = world.from_first(bool(checkpoint_folders(self.folder)))
        if there and wanted == "never":
            raise UserError(f"run={self.folder} holds checkpoints and resume=never: choose another run folder")
        if not there and wanted not in ("auto", "never"):
            raise UserError(f"run={self.folder} holds no checkpoint and resume={wanted}: begin with resume=auto")
        with world.together():
            if there:
                self._refuse_another(read_recipe(recipe) if recipe.is_file() else {})
            elif (self.folder / "metrics.jsonl").is_file() and not recipe.is_file():
                raise UserError(f"run={self.folder} holds files of something else: choose another folder")
        if self.settings.data.verify:
            check_inputs(self.dataset, self.sources.caches, world)
        if there:
            self._go_on(wanted if isinstance(wanted, int) else None)
        with world.together():
            if world.first:
                remove_half_written(self.folder)
                write_text(recipe, dump_yaml(self.settings))
                write_json(self.folder / ENVIRONMENT, _environment(self.device, self.settings, world))
                if not (there and self.budget.over(self.counters)):  # what is finished stays so
                    write_json(self.folder / "run.json", self.describe(False))

    def _go_on(self, step: int | None) -> None:
        folder, damaged = last_whole(self.folder, self.world, step)
        assert folder is not None
        for other in damaged:
            self.world.once(partial(set_aside, other, DAMAGED))
        with self.world.together():
            self.counters = load_checkpoint(folder, self.model, self.optimizers)
            self.sources.resume(self.counters.label_seconds, self.counters.tokens // self.world.size)
        if step is not None:
            later = [f for f in self.world.from_first(checkpoint_folders(self.folder)) if step_of(f) > step]
            for other in later:
                self.world.once(partial(set_aside, other, ASIDE))
        over = self.budget.over(self.counters)
        steps = self.budget.expected_steps(self.counters)
        say(f"{self.folder}: {'finished at' if over else 'resuming at'} step {self.counters.step:,} of {steps:,}")

    def _precision_before(self, recipe: dict[str, Any]) -> str | None:
        """What a run of a version that did not record it computed in, as far as its recipe and device tell."""
        path, said = self.folder / ENVIRONMENT, recipe.get("precision", "auto")
        if said != "auto" or not path.is_file():
            return None if said == "auto" else str(said)
        device = read_json(path, "a run's environment").get("device")
        return None if device is None else resolved_precision(said, device != "cpu")

    def _refuse_another(self, recipe: dict[str, Any]) -> None:
        difference = first_difference(recorded(recipe) if recipe else {}, self.settings.model_dump(mode="json"))
        if difference:
            raise UserError(
                f"run={self.folder} was started with another {difference}: choose another run folder or remove it"
            )
        known, now = read_json(self.folder / "run.json", "a run's description"), self.describe(False)
        before = known.get("precision") or self._precision_before(recipe)
        if before not in (None, now["precision"]):
            raise UserError(
                f"run={self.folder} computed in {before} so far, precision={self.settings.precision} means "
                f"{now['precision']} on {self.device.type}: add precision={before}, or choose another run folder"
            )
        for part in ("data", "labels"):
            before, today = known[part] or {}, now[part] or {}
            if before.get("fingerprint") == today.get("fingerprint"):
                continue
            names = [n for n in ("tokenizer_sha256", "vocab_size", "window", "of") if before.get(n) != today.get(n)]
            name = names[0] if names else "fingerprint"
            what = first_difference({name: before.get(name)}, {name: today.get(name)}, prefix=f"{part}.") or part
            raise UserError(
                f"run={self.folder}: its {part} changed since it began, {what}: restore them or choose another run"
            )

    def export(self, out: Path) -> None:
        """Writes the model as it stands to ``out``, with what it cost; work of all ranks."""
        training = {
            "run": self.folder.name,
            "tokens": self.counters.tokens,
            "flops": self.counters.flops["student"],
            "seconds": self.counters.seconds,
        }
        model = self._whole_model()
        with self.world.together():
            if model is not None:
                export_model(model, self.dataset.tokenizer_folder, out, training)

    def _whole_model(self) -> CoCoMixForCausalLM | None:
        """The model with all its weights, on rank 0; None elsewhere."""
        if not self.spread.sharded:
            return self.model if self.world.first else None
        tensors = {}
        for name, tensor in unique_tensors(self.model).items():
            full = whole(tensor)  # one at a time, on all ranks
            if self.world.first:
                tensors[name] = full.cpu()
        if not self.world.first:
            return None
        model = build_model(self.config, self.settings.seed)
        model.load_state_dict(tensors, strict=False)
        return model

    def finish(self) -> None:
        """Exports the model, if that is not done, and marks the run as finished."""
        made = self.folder / "export" / "training.json"
        done = made.is_file() and read_json(made, "an export's costs")["tokens"] == self.counters.tokens
        if not self.world.from_first(done):
            self.export(self.folder / "export")
        with self.world.together():
            if self.world.first:
                write_json(self.folder / "run.json", self.describe(True))


def open_run(folder: str, **changes: Any) -> Run:
    """The run of a folder as its recipe says, to train on: its weights are random until :meth:`Run.resume`. A trained
    model comes from :func:`cocomix.model.load.load_model`, a checkpoint's from :func:`cocomix.train.verb.export_run`.

    Reseeds torch. Raises :class:`UserError` where there is no run.
    """
    recipe = Path(folder) / "recipe.yaml"
    if not recipe.is_file():
        raise UserError(f"{folder} is no run: give a folder that 'cocomix train' wrote")
    settings = validated(TrainSettings, {**read_recipe(recipe), "run": folder, **changes})
    found = recorded_path(Path(folder), settings.data.path)
    if found is not None:
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"path": str(found)})})
    return Run(settings)


def _device(name: str, world: World) -> torch.device:
    """The setting's device; of several GPUs the one that is this rank's."""
    if world.size > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        name = f"cuda:{world.local_rank}"
    return pick_device(name)


def _environment(device: torch.device, settings: TrainSettings, world: World) -> dict[str, Any]:
    import transformers

    return {
        "cocomix": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "directory": str(Path.cwd()),
        "ranks": world.size,
        "strategy": settings.dist.strategy if world.size > 1 else None,
    }
