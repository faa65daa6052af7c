"""Runs of a sweep, each a process of its own: one that fails or is killed takes no other with it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cocomix.config import load_settings, read_recipe
from cocomix.dist.world import usable_cores
from cocomix.errors import UserError, explained
from cocomix.files import read_json, write_json
from cocomix.progress import progress, say
from cocomix.stopping import EXIT_STOPPED, Stopped, StopRequest
from cocomix.sweep.cases import Case, cases
from cocomix.sweep.settings import SweepSettings
from cocomix.train.settings import FREE_ON_RESUME, TrainSettings, first_difference, recorded

SECONDS_BETWEEN_LOOKS = 0.5
LOG = "log.txt"
OF_THE_RESULT = frozenset({"tokens", "steps", "flops", "seconds", "eval_documents", "precision"})
"""Settings that a run may change when it goes on, but that make a finished one another."""


def run_sweep(sweep: SweepSettings) -> dict[str, Any]:
    """Makes what the runs share, then runs what is not finished; returns ``{"runs": [{"name", "method", "state", …}],
    "failed", "stopped", …}``, a state being ``finished``, ``failed`` (with its ``error``) or ``stopped`` (by a signal
    of its own; the same command goes on).

    All settings are read before anything is computed, so a mistake in the last run is told at once. A run that fails is
    noted, the others go on. Raises :class:`Stopped` when a signal asked to stop, after the runs in progress have saved
    theirs; :class:`UserError` for settings that do not fit, or that are not those of a run that is finished already.
    """
    from cocomix.sweep.caches import find_caches

    planned = cases(sweep, find_caches(sweep, make=False))
    check(planned)
    if not all([_finished_before(case, sweep) for case in planned]):
        _forget_results(sweep)
    due = cases(sweep, find_caches(sweep, make=True))
    waiting = [case for case in due if not _finished_before(case, sweep)]
    say(f"{sweep.folder}: {len(due)} runs, {len(due) - len(waiting)} finished before")
    failures: dict[str, str] = {}
    devices = itertools.cycle(_devices(sweep))
    with StopRequest() as stop, progress(Path(sweep.folder).name, len(due), len(due) - len(waiting)) as bar:
        running: list[_Running] = []
        free = [next(devices) for _ in range(sweep.jobs)]
        try:
            while waiting or running:
                while waiting and len(running) < sweep.jobs and not stop.requested:
                    running.append(_Running.start(waiting.pop(0), sweep, free.pop(0)))
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for run in [run for run in running if run.process.poll() is not None]:
                    running.remove(run)
                    free.append(run.device)
                    if run.process.returncode != EXIT_STOPPED:
                        bar.advance(1, run.case.name)
                        if not finished(run.folder):
                            failures[run.case.name] = run.error()
                            say(f"{run.case.name} failed: {failures[run.case.name]}")
                if stop.requested:
                    _end(running)
                    raise Stopped(f"the sweep {sweep.folder} is saved; the same command goes on from there")
        finally:
            _end(running)
    runs = [_ended(case, sweep, failures.get(case.name)) for case in due]
    states = [run["state"] for run in runs]
    result = {
        "folder": sweep.folder,
        "runs": runs,
        "failed": states.count("failed"),
        "stopped": states.count("stopped"),
    }
    write_json(result_file(sweep), result)
    return result


def result_file(sweep: SweepSettings) -> Path:
    """What the sweep, or its part, writes at its end."""
    return Path(sweep.folder) / f"sweep{'' if sweep.part is None else '-' + sweep.part.replace('/', '-')}.json"


def _forget_results(sweep: SweepSettings) -> None:
    """What earlier sweeps of the folder came to is true no more: who follows this one waits for the new result. Other
    parts of the same number tell of other runs."""
    own = result_file(sweep)
    of = "" if sweep.part is None else sweep.part.partition("/")[2]
    with explained(sweep.folder):
        for file in Path(sweep.folder).glob("sweep*.json"):
            if file == own or not (of and file.match(f"sweep-*-{of}.json")):
                file.unlink(missing_ok=True)


def finished(folder: Path) -> bool:
    """Whether a run has come to its end."""
    path = folder / "run.json"
    return path.is_file() and bool(read_json(path, "a run's description").get("finished"))


def _finished_before(case: Case, sweep: SweepSettings) -> bool:
    """Whether the run is finished; raises :class:`UserError` when that is a run of other settings."""
    folder = case.folder(sweep)
    if not finished(folder):
        return False
    before = recorded(read_recipe(folder / "recipe.yaml"))
    now = load_settings(TrainSettings, case.words).model_dump(mode="json")
    difference = first_difference(before, now, FREE_ON_RESUME - OF_THE_RESULT)
    if difference:
        raise UserError(
            f"{folder} was run with another {difference}: give the sweep another folder, or remove that run's"
        )
    return True


def _ended(case: Case, sweep: SweepSettings, error: str | None) -> dict[str, Any]:
    state = "failed" if error is not None else "finished" if finished(case.folder(sweep)) else "stopped"
    return {"name": case.name, "method": case.row, "state": state, **({} if error is None else {"error": error})}


def check(due: Sequence[Case]) -> None:
    """Raises :class:`UserError` that names the row of a run with settings that are none."""
    for case in due:
        try:
            load_settings(TrainSettings, case.words)
        except UserError as error:
            raise UserError(f"runs.{case.row}: {error}") from error


class _Running(NamedTuple):
    """A run in progress."""

    case: Case
    folder: Path
    process: subprocess.Popen[bytes]
    device: str | None
    """The GPU that it has to itself; None: it sees what the sweep sees."""
    logged: int
    """Bytes of the log before it: what an earlier attempt wrote."""

    @classmethod
    def start(cls, case: Case, sweep: SweepSettings, device: str | None) -> _Running:
        folder = case.folder(sweep)
        threads = sweep.threads or max(1, len(usable_cores()) // sweep.jobs)
        own = load_settings(TrainSettings, case.words).threads
        words = case.words if own else [*case.words, f"threads={threads}"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(own or threads)}
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / LOG).open("ab") as log:
                logged = log.tell()
                # A session of its own: Ctrl-C reaches the sweep alone, which asks each run to stop.
                process = subprocess.Popen(
                    [sys.executable, "-m", "cocomix", "train", *words],
                    stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True,
                )  # fmt: skip
                return cls(case, folder, process, device, logged)

    def error(self) -> str:
        """What it said last: an error, else the signal that ended it, else its last line."""
        with explained(self.folder), (self.folder / LOG).open("rb") as log:
            log.seek(self.logged)
            lines = log.read().decode("utf-8", "replace").strip().splitlines()
        code = self.process.returncode
        told = [line for line in lines if line.startswith("error:")]
        if not told and code < 0:
            return f"killed by signal {-code} ({signal.strsignal(-code)})"
        return (told or lines or [f"exit code {code}"])[-1].removeprefix("error: ")


def _devices(sweep: SweepSettings) -> list[str | None]:
    """GPUs to deal out to runs at a time, as ``CUDA_VISIBLE_DEVICES`` names them; none where they need not be told."""
    if sweep.jobs == 1:
        return [None]
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    return list(names) if count > 1 else [None]


def _end(running: Sequence[_Running]) -> None:
    for run in running:
        if run.process.poll() is None:
            run.process.send_signal(signal.SIGTERM)
    for run in running:
        run.process.wait()
