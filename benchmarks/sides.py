"""A side of a comparison: a process that keeps its models, measures itself when told to, and idles in between.

Both sides speak this: a command a line on stdin, an object of JSON a line on stdout. The file imports nothing but the
standard library, since the other side runs under another interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """What both sides build: by default the paper's 69M network, GPT-2 124M as its teacher, and OpenAI's v5-32k SAE."""

    batch: int = 2
    window: int = 512
    threads: int = 2
    seed: int = 0
    vocab: int = 50257
    positions: int = 1024
    width: int = 512
    layers: int = 8
    heads: int = 8
    insert_at: int = 3
    concepts: int = 32768
    kept: int = 32
    """Active concepts of the student, and active latents of the SAE."""
    labels: int = 4
    teacher_width: int = 768
    teacher_layers: int = 12
    teacher_heads: int = 12
    block: int = 5
    """The SAE reads the output of this block of the teacher."""
    learning_rate: float = 6e-4
    concept_weight: float = 0.1

    @property
    def tokens(self) -> int:
        """Tokens of a batch."""
        return self.batch * self.window


TINY: dict[str, int] = {
    "vocab": 500, "positions": 128, "width": 32, "layers": 4, "heads": 4, "insert_at": 2, "concepts": 256, "kept": 8,
    "teacher_width": 48, "teacher_layers": 3, "teacher_heads": 4, "block": 1,
}  # fmt: skip
"""Sizes that show in a second that all of it works."""

COMMANDS = ("step", "labels", "step+labels")
"""What is measured: a training step whose labels are there already; labelling a batch; both."""


class Side:
    """A process that measures."""

    def __init__(self, name: str, command: Sequence[str], sizes: Sizes) -> None:
        """Starts ``command`` with the sizes behind it; nothing is built before a first :meth:`ask`."""
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        threads = {"OMP_NUM_THREADS": str(sizes.threads), "MKL_NUM_THREADS": str(sizes.threads)}
        self._process = subprocess.Popen(
            [*command, json.dumps(asdict(sizes))],
            env={**os.environ, **threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, command: str) -> dict[str, Any]:
        """The answer to a command; ends the program with what the process said when it died of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            said = "".join(self._log.readlines()[-25:])
            raise SystemExit(f"the {self.name} side ended at '{command}' with {self._process.wait()}:\n{said}")
        return json.loads(line)

    def seconds(self, command: str) -> Callable[[], float]:
        """A callable that measures ``command``."""
        return lambda: float(self.ask(command)["seconds"])

    def close(self) -> None:
        """Ends the process."""
        with suppress(BrokenPipeError):
            self._process.communicate("quit\n")
        self._log.close()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


HERE = Path(__file__).parent


def arguments(about: str) -> argparse.ArgumentParser:
    """The options that both benchmarks have."""
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--reference", type=Path, help="a checkout of projects/cocomix of facebookresearch/RAM")
    options.add_argument("--reference-python", default=sys.executable, help="the interpreter that has what it needs")
    options.add_argument("--batch", type=int, default=2, help="windows of a batch")
    options.add_argument("--window", type=int, default=512, help="tokens of a window")
    options.add_argument("--threads", type=int, default=2, help="CPU threads of either side")
    options.add_argument("--repeats", type=int, default=5, help="measurements, of which the median counts")
    options.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    options.add_argument("--tiny", action="store_true", help="tiny sizes: does it work?")
    return options


def sides_of(options: argparse.ArgumentParser, given: argparse.Namespace) -> tuple[Sizes, dict[str, list[str]]]:
    """The sizes, and by name what starts a side: ours, and the reference's where a checkout is given."""
    sizes = Sizes(batch=given.batch, window=given.window, threads=given.threads)
    if given.tiny:
        sizes = Sizes(batch=2, window=32, threads=given.threads, **TINY)
    if sizes.window > sizes.positions:
        options.error(f"--window {sizes.window} is more than the networks' {sizes.positions} positions")
    commands = {"ours": [sys.executable, str(HERE / "our_side.py")]}
    if given.reference is not None:
        step = given.reference / "train" / "train_func" / "cocomix.py"
        if not step.is_file():
            options.error(
                f"--reference {given.reference} has no {step.relative_to(given.reference)}: give a checkout "
                "of projects/cocomix of facebookresearch/RAM"
            )
        commands["reference"] = [given.reference_python, str(HERE / "reference_side.py"), str(given.reference)]
    return sizes, commands


def given_sizes(text: str) -> Sizes:
    """The sizes on a side's own command line."""
    return Sizes(**json.loads(text))


def serve(commands: dict[str, Callable[[], dict[str, Any]]]) -> None:
    """Answers commands until told to quit; ``memory`` and ``forget`` are known besides the given ones."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    known = {**commands, "memory": memory, "forget": forget}
    for line in sys.stdin:
        if line.strip() == "quit":
            return
        answers.write(json.dumps(known[line.strip()]()) + "\n")
        answers.flush()


def timed(work: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    """What ``work`` returns, and its ``seconds``."""
    start = time.perf_counter()
    result = work() or {}
    return {"seconds": time.perf_counter() - start, **result}


def memory() -> dict[str, Any]:
    """Resident bytes of this process: now, and at their highest since it began or :func:`forget` (Linux's /proc)."""
    return {"resident": _status("VmRSS"), "highest": _status("VmHWM")}


def forget() -> dict[str, Any]:
    """Lets the highest resident size begin anew; the resident bytes now (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
    return {"resident": _status("VmRSS")}


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])
