"""Training a TopK autoencoder: SAELens' trainer, fed with a teacher's activations on our shards.

Of several ranks the first trains; the others help it with the activations.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cocomix.allocator import keep_freed_memory
from cocomix.concepts.activations import ActivationBatches
from cocomix.concepts.costs import activation_flops, sae_step_flops
from cocomix.concepts.load_sae import load_sae
from cocomix.concepts.pair import measure_fit
from cocomix.concepts.sae_saelens import SAELENS_CONFIG, SAELENS_WEIGHTS
from cocomix.concepts.settings import SaeTrainSettings
from cocomix.concepts.shared_activations import ActivationHelper, Open, SharedBatches
from cocomix.concepts.teacher import Teacher, load_teacher, pick_dtype
from cocomix.concepts.teacher_files import find_teacher, model_place
from cocomix.data.dataset import Dataset
from cocomix.devices import pick_device
from cocomix.dist.lead import Crew, led
from cocomix.errors import UserError, explained
from cocomix.files import TEMPORARY_SUFFIX, read_json, sync_folder, write_json, write_text
from cocomix.progress import progress, say
from cocomix.stopping import Stopped, StopRequest

RECORD = "training.json"
STATE = "state.json"
STEPS_BETWEEN_NOTES = 20
FREE = {"out", "device", "dtype", "checkpoint_seconds", "batch_windows"}
"""Settings that a resumed training may change. What ``dtype`` comes to on a device may not: that is compared itself."""


def train_sae(settings: SaeTrainSettings) -> dict[str, Any]:
    """Trains, or goes on, or returns at once when finished. Returns ``training.json``, on all ranks that have joined.

    ``out`` becomes a folder in SAELens 6's inference layout, with activations scaled to norm √d in training and
    the scale folded into the weights at the end. The weights do not depend on the number of ranks. ``seconds`` of the
    record is the time that training took, ``rank_seconds`` the time that ranks worked on it, added up. Raises
    :class:`UserError` when settings do not fit or ``out`` holds another training, :class:`Stopped` after a checkpoint
    when a signal asked any rank to stop.
    """
    keep_freed_memory()
    helper = ActivationHelper(lambda: _batches(settings, Dataset.open(settings.data)))
    return led(lambda crew: _train(settings, crew), helper)


def _train(settings: SaeTrainSettings, crew: Crew) -> dict[str, Any]:
    out = Path(settings.out)
    dataset = Dataset.open(settings.data)
    identity: dict[str, Any] = {
        "dataset": dataset.fingerprint,
        "settings": settings.model_dump(mode="json", exclude=FREE) | {"data": None},
    }
    if (out / RECORD).is_file():
        record = read_json(out / RECORD, "an SAE's training record")
        _refuse_other(out, record, identity | _teacher_now(settings))
        say(f"{out}: finished already")
        return record
    if out.is_dir() and any(out.iterdir()) and not list(out.glob("checkpoint-*")):
        raise UserError(f"out={out} holds files of something else: choose another folder")
    crew.deal([Open()] * crew.helpers)
    batches = SharedBatches(**vars(_batches(settings, dataset)), crew=crew)
    crew.collect()
    teacher = batches.teacher
    identity |= {"teacher_fingerprint": teacher.fingerprint, "teacher_dtype": teacher.dtype, "window": batches.window}
    training = _Training(settings, batches, identity, out)
    with explained(out):  # a folder that cannot be written to is told before the work, not after it
        out.mkdir(parents=True, exist_ok=True)
    training.resume()
    training.fit()
    return training.finish()


def _teacher_now(settings: SaeTrainSettings) -> dict[str, Any]:
    """What tells the teacher from that of another training, where it is here: it need not be loaded for it."""
    now: dict[str, Any] = {} if settings.dtype == "auto" else {"teacher_dtype": settings.dtype}
    try:
        if model_place(settings.teacher, f"teacher={settings.teacher}") is not None:
            now["teacher_fingerprint"] = find_teacher(settings.teacher).fingerprint()
    except UserError:
        pass  # it is gone, or damaged: no reason to refuse what is finished
    return now


def _batches(settings: SaeTrainSettings, dataset: Dataset) -> ActivationBatches:
    """Loads the teacher onto this rank's device."""
    window, device, split = settings.window or dataset.window, pick_device(settings.device), dataset.split("train")
    dtype = pick_dtype(settings.dtype, device)
    teacher = load_teacher(settings.teacher, settings.block, dataset, window, device, dtype)
    if not split.count(window):
        raise UserError(f"window={window} is longer than every shard of {dataset.folder}: give a smaller window")
    return ActivationBatches(
        teacher,
        split,
        window,
        settings.batch_tokens,
        min(settings.buffer_tokens, settings.tokens),
        settings.batch_windows,
        settings.seed,
    )


class _Training:
    """SAELens' trainer, driven step by step."""

    def __init__(self, settings: SaeTrainSettings, batches: SharedBatches, identity: dict[str, Any], out: Path) -> None:
        self.settings, self.teacher, self.batches = settings, batches.teacher, batches
        self.identity, self.out = identity, out
        self.steps = settings.tokens // settings.batch_tokens
        self.seconds = self.seconds_of_helpers = 0.0
        self.trainer: Any = _saelens_trainer(settings, self.teacher, self.steps)

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.trainer.n_training_steps)

    def resume(self) -> None:
        """Loads the last checkpoint, or sets the scale and the decoder's bias from the first buffer."""
        found = sorted(self.out.glob("checkpoint-*[0-9]"))
        if found:
            state = read_json(found[-1] / STATE, "the state of an SAE's training")
            _refuse_other(self.out, state, self.identity)
            self.trainer.sae.load_weights_from_checkpoint(found[-1])
            self.trainer.load_trainer_state(found[-1])
            self.seconds = state["seconds"]
            self.seconds_of_helpers = state.get("rank_seconds", self.seconds) - self.seconds
            say(f"{self.out}: going on at step {self.step:,} of {self.steps:,}")
            self.batches.expect([*self._buffers_left(), 0])
            return
        self.batches.expect([0, *self._buffers_left(), 0])  # the first for the scale, the last for the fit
        first = self._first_buffer()
        scale = float(self.teacher.width**0.5 / first.norm(dim=-1).mean())
        self.trainer.activation_scaler.scaling_factor = scale
        self.trainer.sae.b_dec.data.copy_(first.mean(0) * scale)

    def _first_buffer(self) -> Float[Tensor, "N D"]:
        """Made before the steps for the scale and behind them for the fit; its time is part of the training's."""
        start, helped = time.perf_counter(), self.batches.seconds_of_helpers
        first = self.batches.buffer(0)
        self.seconds += time.perf_counter() - start
        self.seconds_of_helpers += self.batches.seconds_of_helpers - helped
        return first

    def _buffers_left(self) -> range:
        """The buffers that the steps from here to the end are taken from."""
        size = self.batches.batches_per_buffer
        return range(self.step // size, -(-self.steps // size) if self.step < self.steps else 0)

    def fit(self) -> None:
        """Steps to the end, with checkpoints on the way."""
        settings, note = self.settings, ""
        source = self.batches.batches(self.step)
        clock = saved = time.perf_counter()
        helped = self.seconds_of_helpers - self.batches.seconds_of_helpers
        tokens = self.steps * settings.batch_tokens
        with StopRequest() as stop, progress("SAE, tokens", tokens, self.step * settings.batch_tokens) as bar:
            while self.step < self.steps:
                output = self.trainer.step(next(source))
                self.trainer.n_training_steps += 1
                if self.step % STEPS_BETWEEN_NOTES == 0:
                    note = _note(output, self.trainer)
                bar.advance(settings.batch_tokens, note)
                now = time.perf_counter()
                self.seconds, clock = self.seconds + now - clock, now
                self.seconds_of_helpers = helped + self.batches.seconds_of_helpers
                stopping = (stop.requested or self.batches.crew.stop_asked) and self.step < self.steps
                # Also at the end: what comes then may meet a full disk, and the steps are not lost.
                if stopping or now - saved > settings.checkpoint_seconds or self.step == self.steps:
                    self._save()
                    saved = clock = time.perf_counter()
                if stopping:
                    raise Stopped(f"{self.out} is saved at step {self.step:,}; the same command goes on from there")

    def _save(self) -> None:
        """Writes ``checkpoint-NNNNNNNN``, whole or not at all, and removes those before it."""
        folder = self.out / f"checkpoint-{self.step:08d}"
        temporary = folder.with_name(folder.name + TEMPORARY_SUFFIX)
        try:
            with explained(folder):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                self.trainer.sae.save_model(temporary)
                self.trainer.save_trainer_state(temporary)
                write_json(temporary / STATE, {**self.identity, **self._times()})
                _sync_files(temporary)
                temporary.replace(folder)
                sync_folder(self.out)
                for old in self.out.glob("checkpoint-*"):
                    if old != folder:
                        shutil.rmtree(old)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _times(self) -> dict[str, float]:
        return {"seconds": self.seconds, "rank_seconds": self.seconds + self.seconds_of_helpers}

    def finish(self) -> dict[str, Any]:
        """Folds the scale, writes the inference layout, then ``training.json``, and measures the fit."""
        settings, trainer, window = self.settings, self.trainer, self.batches.window
        trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        trainer.set_final_sae_metadata()
        temporary = self.out / f"inference{TEMPORARY_SUFFIX}"
        try:
            with explained(self.out):
                trainer.sae.save_inference_model(temporary)
                _order_keys(temporary / SAELENS_CONFIG)
                _sync_files(temporary)
                for name in (SAELENS_WEIGHTS, SAELENS_CONFIG):
                    (temporary / name).replace(self.out / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        fit = measure_fit(load_sae(self.out, self.teacher.device), self._first_buffer())
        tokens = self.steps * settings.batch_tokens
        # The teacher runs for whole buffers: the few activations that fill no batch are counted too, and the first
        # buffer, which the scale and the fit want once more each.
        buffers = -(-self.steps // self.batches.batches_per_buffer) + 2
        read = buffers * self.batches.buffer_windows * window
        record = {
            **self.identity,
            "teacher": settings.teacher,
            "teacher_quantisation": self.teacher.quantisation,
            "block": settings.block,
            "latents": settings.latents,
            "k": settings.k,
            "tokens": tokens,
            "flops": activation_flops(self.teacher, window) * read
            + sae_step_flops(self.teacher.width, settings.latents) * tokens,
            **self._times(),
            "fit": fit._asdict(),
            "dead_share": float(trainer.dead_neurons.float().mean()),
        }
        write_json(self.out / RECORD, record)
        for folder in self.out.glob("checkpoint-*"):
            shutil.rmtree(folder)
        return record


def _saelens_trainer(settings: SaeTrainSettings, teacher: Teacher, steps: int) -> Any:
    # Imported here: it takes seconds, and nothing else of this package needs it.
    from sae_lens import LoggingConfig, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata

    torch.manual_seed(settings.seed)
    device = str(teacher.device)
    config = TopKTrainingSAEConfig(
        d_in=teacher.width,
        d_sae=settings.latents,
        k=settings.k,
        device=device,
        normalize_activations="expected_average_only_in",
        metadata=SAEMetadata(
            model_name=settings.teacher,
            hook_name=f"blocks.{settings.block}.hook_resid_post",
            context_size=settings.window,
            prepend_bos=False,
        ),
    )
    return SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * settings.batch_tokens,
            train_batch_size_samples=settings.batch_tokens,
            lr=settings.learning_rate,
            lr_end=settings.learning_rate,
            lr_warm_up_steps=int(settings.warm_up * steps),
            lr_decay_steps=int(settings.decay * steps),
            device=device,
            dead_feature_window=settings.dead_steps or min(1000, max(1, steps // 10)),
            feature_sampling_window=steps + 1,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        TopKTrainingSAE(config),
        data_provider=iter(()),
    )


@torch.no_grad()
def _note(output: Any, trainer: Any) -> str:
    error = (output.sae_out - output.sae_in).square().sum()
    variance = (output.sae_in - output.sae_in.mean(0)).square().sum()
    return f"fvu {float(error / variance):.3f} dead {float(trainer.dead_neurons.float().mean()):.0%}"


def _refuse_other(out: Path, found: dict[str, Any], identity: dict[str, Any]) -> None:
    if "settings" not in found:
        raise UserError(f"out={out} holds an SAE that was not trained here: choose another folder")
    for key, now in identity["settings"].items():
        if found["settings"].get(key) != now:
            raise UserError(
                f"out={out} holds an SAE trained with another {key} ({found['settings'].get(key)}, now {now}): choose "
                "another folder or delete that one"
            )
    if found["dataset"] != identity["dataset"]:
        raise UserError(f"out={out} holds an SAE trained on another dataset: choose another folder")
    for key, mend in (("teacher_fingerprint", ""), ("teacher_dtype", "add dtype={}, "), ("window", "add window={}, ")):
        before, now = found.get(key), identity.get(key)
        if None not in (before, now) and before != now:  # older ones do not tell all
            told = "other weights than it has" if not mend else f"{key} {before}, {now}"
            raise UserError(
                f"out={out} holds an SAE of teacher={identity['settings']['teacher']} with {told} now: "
                f"{mend.format(before)}choose another folder or delete that one"
            )


def _order_keys(path: Path) -> None:
    """SAELens writes them in another order each time; equal trainings shall give equal bytes."""
    config = read_json(path, "an SAE's configuration")
    write_text(path, json.dumps(config, sort_keys=True, indent=1) + "\n")


def _sync_files(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
