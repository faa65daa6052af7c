"""The command line in a folder of one's own, and a shrunken quickstart made once for all contracts."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest


class Called(NamedTuple):
    """What a command line did."""

    code: int
    out: str
    err: str


Call = Callable[[Path, Sequence[object]], Called]

QUICKSTART = ["quickstart", "documents=12", "window=128", "vocab_size=1024", "latents=64", "teacher_tokens=1024",
              "sae_tokens=2048", "tokens=4096"]  # fmt: skip
"""The quickstart on a few documents and thousands of tokens: half a minute."""


@pytest.fixture(scope="session")
def call() -> Call:
    """Runs a command line in this process with a folder as its current one."""
    from cocomix.cli import main

    def run(folder: Path, words: Sequence[object]) -> Called:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in words])
        return Called(code, out.getvalue(), err.getvalue())

    return run


class Quickstart(NamedTuple):
    """A quickstart that has run."""

    root: Path
    """The folder in which the command was called: ``runs/quickstart`` lies in it."""
    words: list[str]
    """The command line."""
    first: Called

    @property
    def folder(self) -> Path:
        """The quickstart's own folder."""
        return self.root / "runs" / "quickstart"


@pytest.fixture(scope="session")
def quickstart(call: Call, tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    """``cocomix quickstart`` with small budgets; to be read, not to be changed."""
    import torch

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("quickstart")
    done = call(root, [*QUICKSTART, "--json"])
    assert done.code == 0, done.err
    return Quickstart(root, QUICKSTART, done)
