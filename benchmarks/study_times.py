"""Seconds of a study's work, measured in turn: what its runs took says more about what else the machine did.

Measured are a step of each method and, of the teacher's part, seconds for each operation that is counted: labels,
probabilities, the teacher's training, the autoencoder's. A run's seconds are then its steps, and its teacher's counted
operations, at these speeds; everything on the same number of threads.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from cocomix.compare.runs import Cost, Run, Upstream, load_run
from cocomix.concepts.online import OnlineLabels
from cocomix.concepts.online_teacher import OnlineTeacher
from cocomix.concepts.probabilities import PROBS
from cocomix.concepts.settings import OnlineSettings, OnlineTeacherSettings, SaeTrainSettings
from cocomix.concepts.train_sae import train_sae
from cocomix.config import load_settings
from cocomix.data.dataset import Dataset
from cocomix.files import read_json, write_json
from cocomix.progress import progress
from cocomix.train.run import Run as Training
from cocomix.train.settings import TrainSettings
from cocomix.train.step import train_step

FILE = "times.json"


def finished_runs(stage: Path) -> list[Path]:
    """Runs of a stage that are done, by name."""
    runs = [path.parent for path in sorted(stage.glob("*/run.json"))]
    return [run for run in runs if load_run(run).manifest.finished]


def measure_times(
    study: Path, methods: Mapping[str, Path], threads: int | None, repeats: int = 5, steps: int = 4
) -> dict[str, Any]:
    """``{"threads", "seconds_a_step": {method: s}, "seconds_a_flop": {part: s}}``, medians; kept in ``times.json``.

    ``methods``: a run of each, whose recipe is measured.
    """
    if threads:
        torch.set_num_threads(threads)
    shutil.rmtree(study / "timing", ignore_errors=True)  # what a stopped one left
    work: dict[str, Callable[[int], float]] = {}
    for name, folder in methods.items():
        work[name] = _step(folder, study / "timing", steps)
    teacher, parts = _step(study / "teacher", study / "timing", steps), {}
    flops = _training_flops(study / "teacher") * steps
    parts["teacher"] = lambda round_: teacher(round_) * steps / flops
    parts |= {"labels": _labels(study), "probabilities": _probabilities(study), "sae": _sae(study)}
    found: dict[str, list[float]] = {name: [] for name in [*work, *parts]}
    with progress("times, rounds", repeats + 1) as bar:
        for round_ in range(repeats + 1):
            for name, measured in {**work, **parts}.items():
                value = measured(round_)
                if round_:  # the first warms up
                    found[name].append(value)
            bar.advance()
    shutil.rmtree(study / "timing", ignore_errors=True)
    medians = {name: median(values) for name, values in found.items()}
    times = {
        "threads": torch.get_num_threads(),
        "seconds_a_step": {name: medians[name] for name in work},
        "seconds_a_flop": {name: medians[name] for name in parts},
    }
    write_json(study / FILE, times)
    return times


def timed(run: Run, times: Mapping[str, Any]) -> Run:
    """A run as if its steps and its teacher's part had gone at the speeds of ``times``."""
    step, speed = times["seconds_a_step"][run.method], times["seconds_a_flop"]
    labels = run.manifest.labels
    if labels is not None:
        kind = "labels" if labels.upstream.sae is not None and labels.upstream.sae.flops else "probabilities"
        upstream = Upstream(
            teacher=_cost(labels.upstream.teacher, speed["teacher"]), sae=_cost(labels.upstream.sae, speed["sae"])
        )
        seconds = {"seconds_per_token": labels.flops_per_token * speed[kind], "cached_seconds_per_token": None}
        labels = labels.model_copy(update={**seconds, "upstream": upstream})
    evaluations = tuple(e.model_copy(update={"seconds": e.step * step}) for e in run.evaluations)
    return replace(run, manifest=run.manifest.model_copy(update={"labels": labels}), evaluations=evaluations)


def _cost(cost: Cost | None, seconds_a_flop: float) -> Cost | None:
    return None if cost is None else Cost(flops=cost.flops, seconds=cost.flops * seconds_a_flop)


def _step(run: Path, folder: Path, steps: int) -> Callable[[int], float]:
    """Seconds of a training step, without those that a teacher is asked meanwhile: they are its part."""
    training = Training(load_settings(TrainSettings, [str(run / "recipe.yaml"), f"run={folder}", "threads=null"]))
    training.model.train()
    planned = read_json(run / "run.json", "a run's description")["steps"]  # what its caches cover

    def measured(round_: int) -> float:
        start, asked = time.perf_counter(), training.sources.seconds
        for step in range(round_ * steps, (round_ + 1) * steps):
            batch = training.read_batch(step % planned)
            train_step(training.spread, training.terms, [batch], training.optimizers, training.settings.optimizer.clip)
        return (time.perf_counter() - start - (training.sources.seconds - asked)) / steps

    return measured


def _training_flops(run: Path) -> float:
    described = read_json(run / "run.json", "a run's description")
    return float(described["flops_per_token"]["student"] * described["batch_tokens"])


def _labels(study: Path, windows: int = 32) -> Callable[[int], float]:
    dataset = Dataset.open(study / "data")
    settings = load_settings(OnlineSettings, [], sae=str(study / "teacher-sae"))
    source = OnlineLabels.open(dataset, dataset.window, settings)
    return _asked(source, source.read, windows)


def _probabilities(study: Path, windows: int = 32) -> Callable[[int], float]:
    dataset = Dataset.open(study / "data")
    settings = load_settings(OnlineTeacherSettings, [], name=str(study / "teacher"), k=32)
    source = OnlineTeacher.open(dataset, dataset.window, settings, frozenset({PROBS}))
    return _asked(source, source.sources[PROBS].read, windows)


def _asked(source: Any, read: Callable[[str, np.ndarray], Any], windows: int) -> Callable[[int], float]:
    def measured(round_: int) -> float:
        before, start = source.tokens, time.perf_counter()
        read("train", np.arange(round_ * windows, (round_ + 1) * windows))
        return (time.perf_counter() - start) / ((source.tokens - before) * source.flops_per_token)

    return measured


def _sae(study: Path, steps: int = 64) -> Callable[[int], float]:
    trained = read_json(study / "teacher-sae" / "training.json", "an SAE's training record")["settings"]
    tokens = min(steps * trained["batch_tokens"], trained["tokens"])
    changed = {"teacher": str(study / "teacher" / "export"), "data": str(study / "data"), "tokens": tokens}

    def measured(round_: int) -> float:
        out = str(study / "timing" / f"sae-{round_}")
        record = train_sae(SaeTrainSettings(**{**trained, **changed, "buffer_tokens": tokens, "out": out}))
        return float(record["seconds"] / record["flops"])

    return measured
