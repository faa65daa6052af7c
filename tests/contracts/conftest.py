"""The command line in a folder of one's own, and a shrunken quickstart made once for all contracts."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
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


BACKBONE = "model.backbone={model_type: gpt2, n_embd: 32, n_layer: 4, n_head: 4}"
TRAIN = ["train", "tiny/cocomix", BACKBONE, "model.concept_k=8", "data.path=data", "data.labels=concepts", "steps=4",
         "batch_windows=4", "checkpoint.number=2", "evaluations=1", "eval_documents=2"]  # fmt: skip
"""A run of a second, but for ``run=``."""


@pytest.fixture(scope="session")
def made(call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything, paths relative to it: ``data`` with labels and atlas, ``other`` (another
    tokenizer), ``same`` (the same tokenizer, another text), ``teacher``, ``sae``, ``run``, ``text.jsonl``."""
    from cocomix.testing.teachers import tiny_sae, tiny_teacher
    from cocomix.testing.text import english_like, tiny_dataset

    folder = tmp_path_factory.mktemp("made")
    with contextlib.chdir(folder):
        dataset = tiny_dataset(Path("data"), documents=30)
        tiny_dataset(Path("other"), documents=20, vocab_size=300)
        tiny_sae(Path("sae"), tiny_teacher(Path("teacher"), dataset, steps=10), dataset)
        Path("text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in english_like(20, seed=5)))
    for words in (
        ["data", "prepare", "text.jsonl", "same", "tokenizer=data/tokenizer", "window=32", "val_fraction=0.1"],
        ["concepts", "extract", "data=data", "sae=sae"],
        ["concepts", "atlas", "data=data"],
        [*TRAIN, "run=run"],
    ):
        done = call(folder, words)
        assert done.code == 0, done.err
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``made`` to do as one likes with; the current folder."""
    place = Path(shutil.copytree(made, tmp_path / "place"))
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def refused(cli: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Runs a command line that must be refused: one sentence, exit code 2, nothing on stdout; returns the sentence."""

    def run(*words: object) -> str:
        code, out, err = cli(*words)
        lines = err.splitlines()
        assert (code, out) == (2, ""), err
        assert "Traceback" not in err
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], err
        return lines[-1].removeprefix("error: ")

    return run


@pytest.fixture
def works(cli: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Runs a command line that must work; returns what it printed on stderr."""

    def run(*words: object) -> str:
        code, out, err = cli(*words)
        assert code == 0, err
        assert out
        return err

    return run
