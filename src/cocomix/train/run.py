"""A run: folder, resume, the loop's counters, evaluation, export."""

from __future__ import annotations

import contextlib
import math
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cocomix import __version__
from cocomix.concepts.labels import Labels
from cocomix.config import dump_yaml, read_recipe, validated
from cocomix.data.batches import ColumnSource, sample_batch
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError
from cocomix.evaluate.perplexity import evaluate_documents
from cocomix.files import read_json, write_json, write_text
from cocomix.losses.terms import loss_terms
from cocomix.model.costs import count_flops, count_parameters
from cocomix.progress import progress, say
from cocomix.stopping import Stopped, StopRequest
from cocomix.train.build import build_model, build_optimizer, learning_rate, model_config
from cocomix.train.checkpoint import (
    Counters,
    checkpoint_folders,
    load_checkpoint,
    save_checkpoint,
)
from cocomix.train.export import export_model
from cocomix.train.metrics import JsonLines, measured_peak, read_lines
from cocomix.train.settings import FREE_ON_RESUME, TrainSettings
from cocomix.train.step import train_step


class Run:
    """A training run in its folder: built from settings, resumed from the last whole checkpoint if there is one."""

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.folder = Path(settings.run)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.device = _device(settings.device)
        self.dataset = Dataset.open(settings.data.path)
        self.window = settings.data.window or self.dataset.window
        self.split = self.dataset.split("train")
        self.windows = self.split.count(self.window)
        if not self.windows:
            raise UserError(
                f"data={settings.data.path}: its {self.split.tokens} training tokens are fewer than a window of "
                f"{self.window} and its target; give more text or a smaller data.window"
            )
        self.terms = loss_terms(settings.losses)
        self.labels = Labels.open(self.dataset, settings.data.labels) if settings.data.labels else None
        if self.labels is not None and self.labels.window != self.window:
            raise UserError(
                f"data.labels={settings.data.labels} was extracted for windows of {self.labels.window} tokens, the run "
                f"has data.window={self.window}: set data.window={self.labels.window} or extract again"
            )
        self.columns = self._columns()
        concepts = settings.model.num_concepts or (self.labels.concepts if self.labels else None)
        if settings.model.mixer == "concept" and concepts is None:
            raise UserError("model.num_concepts is needed where no labels are given: add model.num_concepts=…")
        if self.labels is not None and "concept" in settings.losses and concepts != self.labels.concepts:
            raise UserError(
                f"model.num_concepts={concepts} differs from the labels' {self.labels.concepts}: leave it out"
            )
        config = model_config(settings.model, self.dataset, self.window, concepts, self.folder)
        # A checkpoint brings all weights: the backbone that they began with is needed no more.
        backbone = None if checkpoint_folders(self.folder) else settings.model.from_backbone
        self.model: Any = build_model(config, settings.seed, backbone).to(self.device)  # type: ignore[arg-type]
        self.optimizer = build_optimizer(self.model, settings.optimizer)
        self.step_tokens = settings.batch_windows * self.window
        self.steps = settings.steps or math.ceil((settings.tokens or 0) / self.step_tokens)
        if self.labels is not None and self.columns:
            self.labels.check_covers(self.split, settings.seed, self.steps * settings.batch_windows)
        self.flops_per_token = count_flops(self.model, self.window).training
        bf16 = settings.precision == "bf16" or (settings.precision == "auto" and self.device.type == "cuda")
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        self.counters = Counters()

    def _columns(self) -> dict[str, ColumnSource]:
        wanted = {column for term, _ in self.terms for column in term.columns}
        available: dict[str, ColumnSource | None] = {"concept_ids": self.labels}
        return {name: source for name in sorted(wanted) if (source := available.get(name)) is not None}

    def describe(self, finished: bool) -> dict[str, Any]:
        """run.json: what the run is, for comparisons."""
        settings, parameters = self.settings, count_parameters(self.model)
        return {
            "format": 1,
            "name": self.folder.name,
            "method": settings.method,
            "seed": settings.seed,
            "parameters": {"total": parameters.total, "active": parameters.active},
            "flops_per_token": {"student": self.flops_per_token},
            "batch_tokens": self.step_tokens,
            "steps": self.steps,
            "data": {
                "fingerprint": self.dataset.fingerprint,
                "tokenizer_sha256": self.dataset.tokenizer_hash,
                "vocab_size": self.dataset.vocab_size,
                "window": self.window,
            },
            "labels": None if self.labels is None else self._label_costs(self.labels),
            "finished": finished,
        }

    @staticmethod
    def _label_costs(labels: Labels) -> dict[str, Any]:
        cost = labels.cost
        return {
            "fingerprint": labels.fingerprint,
            "flops_per_token": cost["flops_per_token"],
            "seconds_per_token": cost["seconds_per_token"],
            "upstream": labels.manifest.get("upstream", {"teacher": None, "sae": None}),
        }

    def resume(self) -> None:
        """Goes on from the last checkpoint; refuses a folder whose run computed something else."""
        recipe = self.folder / "recipe.yaml"
        folders = checkpoint_folders(self.folder)
        if recipe.is_file() and folders:
            difference = _first_difference(read_recipe(recipe), self.settings.model_dump(mode="json"))
            if difference:
                raise UserError(
                    f"run={self.folder} was started with another {difference}: choose another run folder or remove it"
                )
            known = read_json(self.folder / "run.json", "a run's description")
            for part, now in (
                ("data", self.describe(False)["data"]),
                ("labels", self.describe(False)["labels"]),
            ):
                if (known[part] or {}).get("fingerprint") != (now or {}).get("fingerprint"):
                    raise UserError(
                        f"run={self.folder}: its {part} changed since it began: restore them or choose another run"
                    )
            self.counters = load_checkpoint(folders[-1], self.model, self.optimizer)
            there = f"step {self.counters.step:,} of {self.steps:,}"
            say(f"{self.folder}: {'finished at' if self.counters.step >= self.steps else 'resuming at'} {there}")
        elif (self.folder / "metrics.jsonl").is_file() and not recipe.is_file():
            raise UserError(f"run={self.folder} holds files of something else: choose another folder")
        write_text(recipe, dump_yaml(self.settings))
        write_json(self.folder / "environment.json", _environment(self.device))
        write_json(self.folder / "run.json", self.describe(False))

    def fit(self) -> None:
        """Trains to the end of the budget, with checkpoints and evaluations on the way.

        Raises :class:`Stopped` after a checkpoint when a signal asked to stop.
        """
        settings, counters = self.settings, self.counters
        metrics = JsonLines(self.folder / "metrics.jsonl", counters.step)
        evals = JsonLines(self.folder / "evals.jsonl", counters.step)
        peak = measured_peak(self.device, self.dtype)
        evaluate_at, save_at = (
            _marks(self.steps, settings.evaluations),
            _marks(self.steps, settings.checkpoints),
        )
        autocast = (
            torch.autocast(self.device.type, dtype=torch.bfloat16)
            if self.dtype == torch.bfloat16
            else contextlib.nullcontext()
        )
        self.model.train()
        with StopRequest() as stop, progress(self.folder.name, self.steps, counters.step) as bar:
            while counters.step < self.steps:
                start = time.perf_counter()
                batch = sample_batch(
                    self.split,
                    self.window,
                    settings.seed,
                    counters.samples,
                    settings.batch_windows,
                    self.columns,
                ).to(self.device)
                rate = learning_rate(counters.step, self.steps, settings.optimizer.lr, settings.schedule)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                result = train_step(
                    self.model,
                    self.terms,
                    batch.split(settings.micro_batches),
                    self.optimizer,
                    settings.optimizer.clip,
                    autocast,
                )
                seconds = time.perf_counter() - start
                self._count(seconds)
                if counters.step % settings.log_every == 0 or counters.step == self.steps:
                    metrics.append(
                        {
                            **asdict(counters),
                            "losses": result.losses,
                            "lr": rate,
                            "grad_norm": result.grad_norm,
                            "tokens_per_second": self.step_tokens / seconds,
                            "mfu": self.flops_per_token * self.step_tokens / seconds / peak,
                        }
                    )
                bar.advance(1, " ".join(f"{name} {value:.3f}" for name, value in result.losses.items()))
                if counters.step in evaluate_at:
                    evals.append(self._evaluate())
                if counters.step in save_at or stop.requested:
                    save_checkpoint(self.folder, self.model, self.optimizer, counters, settings.keep)
                if stop.requested and counters.step < self.steps:
                    raise Stopped(
                        f"{self.folder} is saved at step {counters.step:,}; the same command goes on from there"
                    )
        metrics.close()
        evals.close()

    def _count(self, seconds: float) -> None:
        counters = self.counters
        counters.step += 1
        counters.samples += self.settings.batch_windows
        counters.tokens += self.step_tokens
        counters.seconds += seconds
        counters.flops["student"] += self.flops_per_token * self.step_tokens
        if self.labels is not None and self.columns:
            # A window's labels are extracted once, however often a run reads them.
            labelled = min(counters.samples, self.windows) * self.window
            counters.flops["teacher"] = labelled * self.labels.cost["flops_per_token"]

    def _evaluate(self) -> dict[str, Any]:
        result = evaluate_documents(
            self.model, self.dataset.split("val"), self.window, limit=self.settings.eval_documents
        )
        return {**asdict(self.counters), **result.to_json()}

    def export(self, out: Path) -> None:
        """Writes the model as it stands to ``out``, with what it cost."""
        training = {
            "run": self.folder.name,
            "tokens": self.counters.tokens,
            "flops": self.counters.flops["student"],
            "seconds": self.counters.seconds,
        }
        export_model(self.model, self.dataset.tokenizer_folder, out, training)

    def finish(self) -> None:
        """Exports the model, if that is not done, and marks the run as finished."""
        made = self.folder / "export" / "training.json"
        if not made.is_file() or read_json(made, "an export's costs")["tokens"] != self.counters.tokens:
            self.export(self.folder / "export")
        write_json(self.folder / "run.json", self.describe(True))


def train(settings: TrainSettings) -> dict[str, Any]:
    """Runs or resumes a training; a finished one returns soon. Returns the run's description and last evaluation."""
    run = Run(settings)
    run.resume()
    if run.counters.step < run.steps:
        flops = run.flops_per_token * run.step_tokens * run.steps
        say(
            f"{run.folder}: {settings.method}, {count_parameters(run.model).active:,} active parameters, "
            f"{run.steps:,} steps of {run.step_tokens:,} tokens, {flops / 1e12:.1f} TFLOP"
        )
        run.fit()
    run.finish()
    lines = read_lines(run.folder / "evals.jsonl")
    return {**run.describe(True), "folder": str(run.folder), "evaluation": lines[-1] if lines else None}


def export_run(folder: str, out: str | None) -> dict[str, Any]:
    """Exports a run's last checkpoint to ``out`` (default: its ``export/``), finished or not."""
    recipe, folders = Path(folder) / "recipe.yaml", checkpoint_folders(Path(folder))
    if not recipe.is_file() or not folders:
        raise UserError(f"{folder} is no run with a checkpoint: give a folder that 'cocomix train' wrote")
    run = Run(validated(TrainSettings, {**read_recipe(recipe), "run": folder}))
    run.counters = load_checkpoint(folders[-1], run.model, run.optimizer)
    target = Path(out) if out else run.folder / "export"
    run.export(target)
    name = read_json(target / "config.json", "a model's configuration")["architectures"][0]
    return {"folder": str(target), "class": name, "tokens": run.counters.tokens}


def _marks(steps: int, number: int) -> set[int]:
    """``number`` steps spread evenly over a run, the last at its end."""
    return {max(1, round(steps * (i + 1) / number)) for i in range(number)}


def _first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str | None:
    for key in sorted(set(old) | set(new)):
        name = prefix + key
        if name in FREE_ON_RESUME:
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if found := _first_difference(a, b, f"{name}."):
                return found
        elif a != b:
            return f"{name} ({a}, now {b})"
    return None


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name!r} is no device of PyTorch: use cpu, cuda or auto") from error


def _environment(device: torch.device) -> dict[str, Any]:
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
    }
