"""Runs of a sweep, each a process of its own: one that fails or is killed takes no other with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cocomix.config import load_settings
from cocomix.errors import UserError, explained
from cocomix.files import read_json, write_json
from cocomix.progress import progress, say
from cocomix.stopping import EXIT_STOPPED, Stopped, StopRequest
from cocomix.sweep.cases import Case, cases
from cocomix.sweep.settings import SweepSettings
from cocomix.train.settings import TrainSettings

SECONDS_BETWEEN_LOOKS = 0.5
LOG = "log.txt"


def run_sweep(sweep: SweepSettings) -> dict[str, Any]:
    """Makes what the runs share, then runs what is not finished; returns ``{"runs": [{"name", "state", …}], …}``.

    All settings are read before anything is computed, so a mistake in the last run is told at once. A run that fails is
    noted, the others go on. Raises :class:`Stopped` when a signal asked to stop, after the runs in progress have saved
    theirs; :class:`UserError` for settings that do not fit.
    """
    from cocomix.sweep.caches import find_caches

    _check(cases(sweep, find_caches(sweep, make=False)))
    due = cases(sweep, find_caches(sweep, make=True))
    waiting = [case for case in due if not finished(case.folder(sweep))]
    say(f"{sweep.folder}: {len(due)} runs, {len(due) - len(waiting)} finished before")
    failures: dict[str, str] = {}
    with StopRequest() as stop, progress(Path(sweep.folder).name, len(due), len(due) - len(waiting)) as bar:
        running: dict[str, tuple[Case, subprocess.Popen[bytes]]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < sweep.jobs and not stop.requested:
                    case = waiting.pop(0)
                    running[case.name] = case, _start(case, sweep)
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for name, (case, process) in list(running.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del running[name]
                    if code not in (0, EXIT_STOPPED):
                        failures[name] = _last_line(case.folder(sweep) / LOG) or f"exit code {code}"
                        say(f"{name} failed: {failures[name]}")
                    if code != EXIT_STOPPED:
                        bar.advance(1, name)
                if stop.requested:
                    _end([process for _, process in running.values()])
                    raise Stopped(f"the sweep {sweep.folder} is saved; the same command goes on from there")
        finally:
            _end([process for _, process in running.values()])
    result = {
        "folder": sweep.folder,
        "runs": [
            {
                "name": case.name,
                "method": case.row,
                "state": "failed" if case.name in failures else "finished",
                **({"error": failures[case.name]} if case.name in failures else {}),
            }
            for case in due
        ],
        "failed": len(failures),
    }
    write_json(
        Path(sweep.folder) / f"sweep{'' if sweep.part is None else '-' + sweep.part.replace('/', '-')}.json", result
    )
    return result


def finished(folder: Path) -> bool:
    """Whether a run has come to its end."""
    path = folder / "run.json"
    return path.is_file() and bool(read_json(path, "a run's description").get("finished"))


def _check(due: Sequence[Case]) -> None:
    for case in due:
        try:
            load_settings(TrainSettings, case.words)
        except UserError as error:
            raise UserError(f"runs.{case.row}: {error}") from error
    names = [case.name for case in due]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two runs of the sweep are called {name}: give their rows other names")


def _start(case: Case, sweep: SweepSettings) -> subprocess.Popen[bytes]:
    folder = case.folder(sweep)
    threads = sweep.threads or max(1, len(os.sched_getaffinity(0)) // sweep.jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG).open("ab") as log:
            # A session of its own: Ctrl-C reaches the sweep alone, which asks each run to stop.
            return subprocess.Popen(
                [sys.executable, "-m", "cocomix", "train", *case.words, f"threads={threads}"],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True,
            )  # fmt: skip


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()


def _last_line(path: Path) -> str:
    if not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    told = [line for line in lines if line.startswith("error:")]
    return (told or lines or [""])[-1].removeprefix("error: ")
