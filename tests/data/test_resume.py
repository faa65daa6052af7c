from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.data.made import STATE
from cocomix.data.prepare import prepare, prepare_from
from cocomix.data.settings import PrepareSettings
from cocomix.data.sources import Document, Source, open_source
from cocomix.errors import UserError
from cocomix.files import write_text
from cocomix.stopping import Stopped
from cocomix.testing.text import english_like

DOCUMENTS = 40


class Killed(BaseException):
    """Ends a run at once, as a kill does: nothing may catch it."""


class Breaking:
    """A source that ends the run before its n-th document; the reading of a tokenizer's text counts too."""

    def __init__(self, source: Source, documents: int) -> None:
        self.identity, self.total_bytes = source.identity, source.total_bytes
        self._source, self._left = source, documents

    def documents(self) -> Iterator[Document]:
        for document in self._source.documents():
            if self._left == 0:
                raise Killed
            self._left -= 1
            yield document


def settings_for(folder: Path, out: str, **more: Any) -> PrepareSettings:
    given = {"vocab_size": 300, "window": 16, "val_fraction": 0.2, "shard_tokens": 2000, **more}
    return PrepareSettings.model_validate({"source": str(folder / "a.jsonl"), "out": str(folder / out), **given})


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    texts = [*english_like(DOCUMENTS), "", "end"]
    write_text(folder / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare(settings_for(folder, "straight"))
    return folder


@given(first=st.integers(0, 2 * DOCUMENTS), others=st.lists(st.integers(0, DOCUMENTS), max_size=3))
@settings(max_examples=20)
def test_killed_and_resumed_run_writes_the_same_bytes(
    folder: Path, small_batches: None, first: int, others: list[int]
) -> None:
    wanted = settings_for(folder, f"broken-{len(list(folder.iterdir()))}")
    for end in (first, *others):
        with pytest.raises(Killed):
            prepare_from(Breaking(open_source(wanted), end), wanted)
        assert not (Path(wanted.out) / "dataset.json").exists()
    prepare(wanted)
    assert content(Path(wanted.out)) == content(folder / "straight")


@pytest.fixture(scope="module")
def small_batches() -> Iterator[None]:
    """Small batches, so that shards are completed between the documents of so short a text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cocomix.data.prepare.BATCH_DOCUMENTS", 3)
        yield


def test_complete_shards_are_not_encoded_again(folder: Path, small_batches: None) -> None:
    wanted = settings_for(folder, "kept")
    with pytest.raises(Killed):
        prepare_from(Breaking(open_source(wanted), DOCUMENTS + 34), wanted)
    shard = folder / "kept" / "train-00002.bin"
    written = shard.stat()
    prepare(wanted)
    assert (shard.stat().st_mtime_ns, shard.stat().st_ino) == (written.st_mtime_ns, written.st_ino)


def test_run_that_chooses_the_held_out_documents_anew_resumes_too(folder: Path, small_batches: None) -> None:
    """Three passes of so many documents: the tokenizer, one that leaves validation empty, the choice, the
    real one."""
    more = {"val_fraction": 0.0001}
    prepare(settings_for(folder, "anew-straight", **more))
    for end in range(5, 4 * (DOCUMENTS + 2), 31):
        wanted = settings_for(folder, f"anew-{end}", **more)
        with pytest.raises(Killed):
            prepare_from(Breaking(open_source(wanted), end), wanted)
        prepare(wanted)
        assert content(folder / f"anew-{end}") == content(folder / "anew-straight")


def test_unfinished_dataset_of_other_settings_is_refused_by_name(folder: Path, small_batches: None) -> None:
    wanted = settings_for(folder, "other")
    with pytest.raises(Killed):
        prepare_from(Breaking(open_source(wanted), DOCUMENTS + 30), wanted)
    with pytest.raises(
        UserError, match="an unfinished dataset made with seed=0 where this command has seed=5: choose another"
    ):
        prepare(settings_for(folder, "other", seed=5))


def test_nothing_but_a_tokenizer_does_not_bind_to_its_settings(folder: Path) -> None:
    wanted = settings_for(folder, "begun")
    with pytest.raises(Killed):
        prepare_from(Breaking(open_source(wanted), DOCUMENTS + 3), wanted)
    assert json.loads((folder / "begun" / STATE).read_text())["tokenizer_sha256"]
    prepare(settings_for(folder, "begun", vocab_size=290))
    prepare(settings_for(folder, "straight-290", vocab_size=290))
    assert content(folder / "begun") == content(folder / "straight-290")


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_damaged_complete_shard_is_named_before_going_on(folder: Path, small_batches: None, damage: str) -> None:
    wanted = settings_for(folder, damage)
    with pytest.raises(Killed):
        prepare_from(Breaking(open_source(wanted), DOCUMENTS + 30), wanted)
    shard = folder / damage / "train-00001.bin"
    data = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(data[:-2] if damage == "truncated" else bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(UserError, match=r"train-00001\.bin"):
        prepare(wanted)


def test_shards_of_an_earlier_attempt_are_removed_and_other_files_are_not(folder: Path) -> None:
    out = folder / "strangers"
    for name in ("train-00077.bin", "val-00003.bin.partial", "train-notes.bin", "notes.txt"):
        write_text(out / name, "x")
    prepare(settings_for(folder, "strangers"))
    assert content(out).keys() - content(folder / "straight").keys() == {"train-notes.bin", "notes.txt"}


PROGRAM = """
import sys, time
from cocomix.cli import main
import cocomix.data.prepare as preparing
preparing.BATCH_DOCUMENTS = 1
real = preparing.ShardWriter.write
def slowly(writer):
    real(writer)
    time.sleep(0.2)
preparing.ShardWriter.write = slowly
sys.exit(main(["data", "prepare", *sys.argv[1:]]))
"""
"""The real verb with a pause behind each shard, so that a signal meets it at work."""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_signal_leaves_a_folder_that_the_same_command_completes(
    folder: Path, number: signal.Signals, code: int
) -> None:
    out = folder / f"signal-{number}"
    words = ["vocab_size=300", "window=16", "val_fraction=0.2", "shard_tokens=2000"]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder / "a.jsonl"), str(out), *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )
    while not (out / "train-00001.bin").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, told = process.communicate()
    assert process.returncode == code, told
    assert not (out / "dataset.json").exists()
    if code == 75:
        assert "stopped: complete shards are in" in told
    prepare(settings_for(folder, out.name))
    assert content(out) == content(folder / "straight")


def test_stop_request_reaches_the_training_of_a_tokenizer(folder: Path) -> None:
    class Stopping(Breaking):
        def documents(self) -> Iterator[Document]:
            for document in self._source.documents():
                os.kill(os.getpid(), signal.SIGTERM)
                yield document
                break
            yield from self._source.documents()

    wanted = settings_for(folder, "stopped")
    with pytest.raises(Stopped):
        prepare_from(Stopping(open_source(wanted), 0), wanted)
    prepare(wanted)
    assert content(folder / "stopped") == content(folder / "straight")
