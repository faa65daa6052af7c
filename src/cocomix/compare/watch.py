"""Runs that are still running, looked at again and again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cocomix.compare.runs import Run, load_run
from cocomix.errors import UserError
from cocomix.files import read_json
from cocomix.progress import say
from cocomix.stopping import Stopped, StopRequest

QUIET_SECONDS = 300.0
"""A run that has written nothing for so long is called quiet: it may have been stopped or killed."""
SLICE_SECONDS = 0.2
PART = re.compile(r"sweep-(\d+)-(\d+)\.json")
"""What part I of N of a sweep writes at its end."""


def run_folders(folders: Sequence[str], told: set[Path] | None = None) -> list[Path]:
    """The run folders that ``folders`` mean: themselves, or all runs in a folder of runs, by name.

    An earlier comparison's folder, which ``runs/*`` matches too, is passed over, and said once for the same ``told``.
    What is neither a run nor holds one is returned as it is: reading it tells the mistake.
    """
    told = set() if told is None else told
    found: list[Path] = []
    for folder in map(Path, folders):
        if (folder / "run.json").is_file():
            found.append(folder)
        elif (folder / "summary.json").is_file():
            if folder not in told:
                say(f"{folder} holds an earlier comparison, no run: passed over")
            told.add(folder)
        else:
            found += _runs_in(folder) or [folder]
    return found


def _runs_in(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob("*/run.json"))


def is_over(folders: Sequence[str], runs: Sequence[Run]) -> bool:
    """Whether nothing will come any more: all runs are finished, and so are the sweeps whose folders were given.

    A folder of runs may get further ones until its sweep has written its ``sweep.json``, or each of N parts its
    ``sweep-I-N.json``. What these call failed or stopped has come to its end as well.
    """
    growing = [Path(f) for f in folders if not (Path(f) / "run.json").is_file() and _runs_in(Path(f))]
    sweeps = [_swept(folder) for folder in growing]
    ended = {folder / name for folder, names in zip(growing, sweeps, strict=True) for name in names or ()}
    return None not in sweeps and all(run.manifest.finished or run.folder in ended for run in runs)


def _swept(folder: Path) -> set[str] | None:
    """The runs that the sweep of a folder of runs, or its parts, told of at its end; None while it goes on."""
    parts: dict[int, dict[int, Path]] = {}
    for file in folder.glob("sweep-*-*.json"):
        if found := PART.fullmatch(file.name):
            parts.setdefault(int(found[2]), {})[int(found[1])] = file
    over = [file for number, files in parts.items() if len(files) == number for file in files.values()]
    if (whole := folder / "sweep.json").is_file():
        over.append(whole)
    if not over:
        return None
    results = [read_json(file, "a sweep's result") for file in over]
    return {run["name"] for result in results for run in result.get("runs", [])}


def is_awaited(folder: Path) -> bool:
    """Whether a folder is there in which no run has begun yet."""
    known = any((folder / name).is_file() for name in ("run.json", "summary.json"))
    return folder.is_dir() and not known and not _runs_in(folder)


@dataclass(frozen=True)
class Look:
    """What is seen of the runs at one time."""

    runs: list[Run]
    news: bool
    """Whether an evaluation, a benchmark, an end or a run has come since the look before."""
    last: bool
    """Whether no other look follows."""


def watch(folders: Sequence[str], seconds: int | float, show: Callable[[Look], None]) -> Look:
    """Calls ``show`` with a look at the runs now and then every ``seconds``, until all are finished or a signal asks to
    stop (Ctrl-C); then once more with ``last`` set, and returns that look. Of a folder that is there the first run is
    waited for.

    Raises :class:`UserError` as reading and comparing the runs does, and :class:`Stopped` when a signal asked to stop
    before a run had begun.
    """
    if seconds < 1:
        raise UserError(f"--watch {seconds:g}: looks are a second apart at least, give 1 or more")
    before: object = None
    said = False
    told: set[Path] = set()
    with StopRequest() as stop:
        while True:
            awaited = [folder for folder in folders if is_awaited(Path(folder))]
            runs = [load_run(folder) for folder in run_folders([f for f in folders if f not in awaited], told)]
            if awaited and not said:
                said = True
                say(f"no run has begun yet in {', '.join(awaited)}: waiting for one")
            if awaited and not runs:
                if stop.requested:
                    raise Stopped(f"no run has begun in {', '.join(awaited)}")
                _wait(seconds, stop)
                continue
            over = (not awaited and is_over(folders, runs)) or stop.requested
            now = [(run.folder, run.manifest, run.evaluations, run.benchmarks) for run in runs]
            look = Look(runs, now != before, over)
            show(look)
            if look.last:
                return look
            before = now
            _wait(seconds, stop)


def _wait(seconds: int | float, stop: StopRequest) -> None:
    end = time.monotonic() + seconds
    # In slices: Python goes on sleeping after a signal's handler has run.
    while not stop.requested and (left := end - time.monotonic()) > 0:
        time.sleep(min(SLICE_SECONDS, left))


def state(run: Run) -> str:
    """``finished``, or how far the run is, and how long it has been quiet."""
    if run.manifest.finished:
        return "finished"
    if run.progress is None:
        return "starting"
    words = f"step {run.progress.step:,}"
    if run.manifest.steps:
        words = f"{min(run.progress.step / run.manifest.steps, 1):.0%}"
    quiet = _quiet(run)
    return words if quiet is None else f"{words}, quiet for {quiet:.0f} min"


def _quiet(run: Run) -> float | None:
    """Minutes since the run last wrote a line, where they are many."""
    try:
        age = time.time() - (run.folder / "metrics.jsonl").stat().st_mtime
    except OSError:
        return None
    return age / 60 if age > QUIET_SECONDS else None
