"""A run folder as the comparison reads it, also while it runs."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cocomix.errors import UserError, explained
from cocomix.files import read_json
from cocomix.places import ENVIRONMENT

FORMAT = 1
TAIL_BYTES = 1 << 18
"""A line of the metrics is below a kilobyte."""


class Record(BaseModel):
    """A record that another room wrote: what the comparison needs of it; further keys may come."""

    model_config = ConfigDict(frozen=True, extra="ignore")


R = TypeVar("R", bound=Record)


class Flops(Record):
    """FLOPs since the start: the student's training, and the teacher's for the labels of the windows used."""

    student: float
    teacher: float


class Parameters(Record):
    """Parameters in all, and those that one token touches."""

    total: int
    active: int


class Cost(Record):
    """What something upstream of the run cost once."""

    flops: float
    seconds: float


class Upstream(Record):
    """Training of the teacher and of the SAE behind a run's labels; None where nobody knows it."""

    teacher: Cost | None = None
    sae: Cost | None = None


class Labels(Record):
    """The labels that a run reads, and what a labelled token cost."""

    fingerprint: str
    flops_per_token: float
    seconds_per_token: float
    cached_seconds_per_token: float | None = None
    """What of it comes from caches: the rest is asked while the run trains, and its evaluations tell what that took.
    None where nobody wrote it down."""
    upstream: Upstream = Upstream()
    of: dict[str, Any] | list[dict[str, Any]] | None = None
    """What they are of, one for each source."""

    def makers(self, part: Literal["teacher", "sae"]) -> frozenset[str]:
        """Fingerprints of the teachers or autoencoders behind them; the labels' own where nobody wrote those down."""
        if self.of is None:
            return frozenset([self.fingerprint])
        sources = self.of if isinstance(self.of, list) else [self.of]
        return frozenset(source[part]["fingerprint"] for source in sources if source.get(part))


class Data(Record):
    """The data that a run reads."""

    fingerprint: str
    tokenizer_sha256: str
    vocab_size: int
    window: int


class Manifest(Record):
    """``run.json``."""

    format: int
    name: str
    method: str
    seed: int
    parameters: Parameters
    steps: int | None = None
    """How many are planned; an estimate for budgets in seconds."""
    data: Data
    labels: Labels | None
    finished: bool


class Progress(Record):
    """How far a run is: a line of ``metrics.jsonl``; ``seconds`` are of training only, since the start."""

    step: int
    tokens: int
    flops: Flops
    seconds: float


class Evaluation(Progress):
    """A line of ``evals.jsonl``; ``loss`` in nats a token, None or not finite when the run had diverged."""

    loss: float | None
    label_seconds: float | None = None
    """Spent on teachers that are asked while the run trains, since the start; None where nobody wrote it down."""
    ppl: float | None = None
    bits_per_byte: float | None = None
    documents: int | None = None
    """Held-out documents; ``eval_documents`` of the run limits them."""
    tokens_evaluated: int | None = None
    context: int | None = None
    fingerprint: str | None = None
    """Hash over the documents' ids and the context."""


class Environment(Record):
    """``environment.json``: what a run's seconds were measured on; None where nobody wrote it down."""

    device: str | None = None
    processor: str | None = None
    threads: int | None = None
    ranks: int | None = None


@dataclass(frozen=True)
class Run:
    """One training run, finished or not."""

    folder: Path
    manifest: Manifest
    evaluations: tuple[Evaluation, ...]
    """In the order of steps."""
    progress: Progress | None
    """The last line of the metrics; None before the first."""
    benchmarks: dict[str, Any]
    """What ``benchmarks.json`` in the run folder holds, empty without one."""
    environment: Environment

    @property
    def name(self) -> str:
        """The run's own name."""
        return self.manifest.name

    @property
    def method(self) -> str:
        """The recipe's name of the method."""
        return self.manifest.method

    @property
    def seed(self) -> int:
        """The seed that pairs runs of different methods."""
        return self.manifest.seed

    @property
    def last(self) -> Evaluation | None:
        """The last evaluation: the final one when the run is finished."""
        return self.evaluations[-1] if self.evaluations else None

    @property
    def pays_teacher(self) -> bool:
        """Whether its losses read what a teacher said; labels may be there only to say how many concepts there are."""
        return any(evaluation.flops.teacher > 0 for evaluation in self.evaluations)

    @property
    def comparable(self) -> bool:
        """Whether the run has been evaluated and did not diverge."""
        return self.last is not None and is_finite(self.last.loss)


def is_finite(value: float | None) -> bool:
    """True for a number that is neither missing, infinite nor NaN."""
    return value is not None and math.isfinite(value)


def load_run(folder: Path | str) -> Run:
    """Reads a run folder; a running run's half-written last lines are left out.

    Raises :class:`UserError` when ``folder`` is no run, or a file in it is damaged elsewhere than at its end.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        what = "does not exist" if not folder.exists() else "is no run: it holds no run.json"
        raise UserError(f"{folder} {what}; give the folders that 'cocomix train' wrote")
    values = read_json(folder / "run.json", "a run's description")
    if values.get("format") != FORMAT:
        raise UserError(f"{folder / 'run.json'} has format {values.get('format')}, this version reads {FORMAT}")
    benchmarks, environment = folder / "benchmarks.json", folder / ENVIRONMENT
    there = read_json(environment, "a run's environment") if environment.is_file() else {}
    return Run(
        folder=folder,
        manifest=_parsed(Manifest, values, str(folder / "run.json")),
        evaluations=tuple(_read_lines(folder / "evals.jsonl", Evaluation)),
        progress=_last_line(folder / "metrics.jsonl", Progress),
        benchmarks=read_json(benchmarks, "a run's benchmarks") if benchmarks.is_file() else {},
        environment=_parsed(Environment, there, str(environment)),
    )


def _read_lines(path: Path, record: type[R]) -> list[R]:
    """The records of a JSON-lines file by step; of a resumed run that went back, what was written last."""
    if not path.is_file():
        return []
    with explained(path):
        lines = path.read_bytes().splitlines()
    values: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            step = value["step"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # being written right now, or cut off by a kill
                break
            raise UserError(f"{path}, line {number} is damaged ({error}): restore the file") from error
        while values and values[-1]["step"] >= step:
            values.pop()
        values.append(value)
    return [_parsed(record, value, f"{path}, step {value['step']}") for value in values]


def _last_line(path: Path, record: type[R]) -> R | None:
    """The last whole record of a JSON-lines file. Only its end is read: it may have a line for each of many steps."""
    if not path.is_file():
        return None
    with explained(path), path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, end - TAIL_BYTES))
        lines = file.read().splitlines()[1 if start else 0 :]
    for line in reversed(lines[-2:]):  # of a running run the last may be half written
        try:
            value = json.loads(line)
            return _parsed(record, value, f"{path}, step {value['step']}")
        except (ValueError, KeyError, TypeError):
            continue
    if not any(line.strip(b"\0 ") for line in lines[:-1]):
        return None
    raise UserError(f"{path} is damaged at its end: restore the file")


def _parsed(record: type[R], value: Any, where: str) -> R:
    try:
        return record.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = first["msg"][:1].lower() + first["msg"][1:]
        raise UserError(f"{where}: '{key}' is not as this version reads it ({reason})") from error
