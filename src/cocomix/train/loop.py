"""The loop: batch, step, counters, metrics, evaluations, checkpoints; stops when any rank is asked to."""

from __future__ import annotations

import functools
import hashlib
import math
import time
from dataclasses import asdict
from typing import Any

import torch

from cocomix.errors import UserError
from cocomix.evaluate.perplexity import BATCH_WINDOWS, evaluate_documents
from cocomix.evaluate.text_bytes import text_bytes
from cocomix.progress import progress
from cocomix.stopping import Stopped, StopRequest
from cocomix.train.budget import passes
from cocomix.train.build import learning_rate, set_learning_rate
from cocomix.train.checkpoint import Checkpoints
from cocomix.train.fault import told
from cocomix.train.logs import numbers, open_logs
from cocomix.train.metrics import JsonLines, measured_peak
from cocomix.train.prefetch import prefetching
from cocomix.train.run import Run
from cocomix.train.step import NonFinite, StepResult, train_step


def fit(run: Run) -> None:
    """Trains to the end of the budget.

    Raises :class:`Stopped`, on all ranks, after a checkpoint when a signal asked one of them to stop; for a loss or
    gradient that is not finite a :class:`UserError` that tells where (see fault.py).
    """
    counters, budget, world = run.counters, run.budget, run.world
    records = Records(run)
    ahead = not run.sources.online  # there reading is computing
    with (
        StopRequest() as stop,
        progress(run.folder.name, budget.steps, counters.step) as bar,
        prefetching(run.read_batch, ahead) as batches,
    ):
        checkpoints = Checkpoints(run.folder, run.settings.checkpoint, world, _background(run))
        last_checkpoint = time.monotonic()
        run.model.train()
        while not budget.over(counters):
            world.beat(f"in step {counters.step + 1:,}")
            before, waited, start = budget.share(counters), batches.waited, time.perf_counter()
            labelling = run.sources.seconds
            step_last = budget.steps is not None and counters.step + 1 >= budget.steps
            batch = batches.get(counters.step, step_last).to(run.device)
            rate = _set_rate(run)
            torch.manual_seed(step_seed(run.settings.seed, counters.step, world.rank))
            try:
                result = train_step(
                    run.spread, run.terms, batch.split(run.settings.micro_batches), run.optimizers,
                    run.settings.optimizer.clip, run.autocast(), world,
                )  # fmt: skip
            except NonFinite as fault:
                raise told(fault, run, checkpoints) from fault
            labelling = run.sources.seconds - labelling
            seconds = time.perf_counter() - start - labelling
            limit = run.settings.checkpoint.seconds
            late = limit is not None and time.monotonic() - last_checkpoint > limit
            # What the clocks and signals say differs from rank to rank: all go by rank 0's clock and anybody's signal.
            rows = world.table(
                [float(stop.requested), float(checkpoints.written), float(records.error is not None), float(late),
                 seconds, batches.waited - waited - labelling, labelling]
            )  # fmt: skip
            stopping, written = any(row[0] for row in rows), all(row[1] for row in rows)
            if any(row[2] for row in rows):
                records.fail()
            _, _, _, late_there, seconds, *waits = rows[0]
            count(run, result, seconds, *waits)
            records.step(result, rate, seconds)
            bar.advance(1, " ".join(f"{name} {value:.3f}" for name, value in result.losses.items()))
            after = budget.share(counters)
            if passes(before, after, run.settings.evaluations):
                records.evaluation(evaluate(run))
            start = time.perf_counter()
            if written:
                checkpoints.finish()
            if passes(before, after, run.settings.checkpoint.number) or late_there or stopping:
                checkpoints.begin(run.model, run.optimizers, counters)
                last_checkpoint = time.monotonic()
            if not checkpoints.background or stopping or budget.over(counters):
                checkpoints.finish()
            counters.waited["checkpoints"] += time.perf_counter() - start
            if stopping and not budget.over(counters):
                records.close()
                # resume=STEP would go back to that step again, resume=never refuse
                how = "" if run.settings.resume in ("auto", "must") else " with resume=auto"
                raise Stopped(
                    f"{run.folder} is saved at step {counters.step:,}; the same command{how} goes on from there"
                )
    records.fail()
    records.close()


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of a step's random numbers (dropout) on a rank: no random state is carried from one step to the next."""
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def count(run: Run, result: StepResult, seconds: float, data_wait: float, labelling: float) -> None:
    """Brings the counters one step on."""
    counters = run.counters
    counters.step += 1
    counters.samples += run.settings.batch_windows
    counters.tokens += run.step_tokens
    counters.seconds += seconds
    counters.waited["data"] += data_wait
    counters.label_seconds += labelling
    counters.flops["student"] += run.flops_per_token * run.step_tokens
    counters.follow(result.losses, run.settings.loss_average)
    if run.sources.read:
        counters.flops["teacher"] = run.sources.flops(counters.samples, run.windows)


def evaluate(run: Run) -> dict[str, Any]:
    """The held-out documents, shared by all ranks."""
    documents = run.settings.eval_documents
    size = text_bytes(run.dataset, "val", documents)
    # Never more at once than a training step has: what fits there fits here.
    at_once = min(BATCH_WINDOWS, run.share // run.settings.micro_batches)
    with run.autocast():
        result = evaluate_documents(
            run.model, run.dataset.split("val"), run.window, documents, size, at_once, world=run.world
        )
    return {**progress_of(run), **result.to_json()}


def progress_of(run: Run) -> dict[str, Any]:
    """Where the run stands, as lines of metrics and evaluations tell it."""
    line = asdict(run.counters)
    line.pop("average")
    return line


_peak = functools.cache(measured_peak)
"""Measured once in a process, whatever it trains."""


class Records:
    """metrics.jsonl, evals.jsonl and other logs: written by rank 0."""

    def __init__(self, run: Run) -> None:
        self.run = run
        # Only who writes it measures it; the others wait for rank 0 at the files below.
        self.peak = _peak(run.device, run.dtype) * run.world.size if run.world.first else math.nan
        self._sinks: list[Any] = []
        self.error: UserError | None = None
        """Why the last line could not be written: all ranks hear of it behind the next step."""
        with run.world.together():
            if run.world.first:
                self._metrics = JsonLines(run.folder / "metrics.jsonl", run.counters.step)
                self._evals = JsonLines(run.folder / "evals.jsonl", run.counters.step)
                settings = run.settings.model_dump(mode="json")
                self._sinks = open_logs(list(run.settings.logs), run.folder, settings, run.counters.step)

    def step(self, result: StepResult, rate: float, seconds: float) -> None:
        """The line of a step, every ``log_every`` steps and at the end."""
        run, counters = self.run, self.run.counters
        if not run.world.first or (counters.step % run.settings.log_every and not run.budget.over(counters)):
            return
        line = {
            **progress_of(run),
            "losses": result.losses,
            "average": dict(counters.average),
            "lr": rate,
            "grad_norm": result.grad_norm,
            "tokens_per_second": run.step_tokens / seconds,
            "mfu": run.flops_per_token * run.step_tokens / seconds / self.peak,
        }
        try:
            self._metrics.append(line)
            for sink in self._sinks:
                sink.write(counters.step, numbers(line))
        except UserError as error:
            self.error = error

    def fail(self) -> None:
        """Raises, on all ranks, the error of the one that could not write; nothing where there was none."""
        with self.run.world.together():
            if self.error is not None:
                raise self.error

    def evaluation(self, line: dict[str, Any]) -> None:
        """The line of an evaluation."""
        with self.run.world.together():
            if self.run.world.first:
                self._evals.append(line)
                for sink in self._sinks:
                    sink.write(self.run.counters.step, numbers({name: line[name] for name in ("loss", "ppl")}, "eval/"))

    def close(self) -> None:
        """After the last line."""
        if self.run.world.first:
            self._metrics.close()
            self._evals.close()
        for sink in self._sinks:
            sink.close()


def _set_rate(run: Run) -> float:
    """Sets the learning rate of the coming step; returns AdamW's."""
    steps = run.budget.expected_steps(run.counters)
    share = learning_rate(run.counters.step, steps, 1.0, run.settings.schedule)
    set_learning_rate(run.optimizers, share)
    return share * run.settings.optimizer.lr


def _background(run: Run) -> bool:
    wanted = run.settings.checkpoint.background
    return run.device.type == "cuda" if wanted == "auto" else wanted
