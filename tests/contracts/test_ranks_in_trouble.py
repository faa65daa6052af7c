"""What goes wrong on one rank ends all with a sentence and an exit code; nothing good is lost, and it goes on."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

from cocomix.testing.ranks import on_ranks, values
from cocomix.train.checkpoint import checkpoint_folders, read_tensors
from cocomix.train.metrics import read_lines

WORDS = ["train", "tiny/cocomix", "model.backbone={model_type: gpt2, n_embd: 32, n_layer: 4, n_head: 4}",
         "model.concept_k=8", "data.path=data", "data.labels=concepts", "batch_windows=4", "steps=12",
         "checkpoint.number=4", "evaluations=1", "eval_documents=2", "schedule.kind=constant"]  # fmt: skip
SHARDS = [f"shard-{rank:05d}-model-00001-of-00001.safetensors" for rank in (1, 2)]


def call(words: list[str], trouble: str = "none") -> tuple[int, str, str]:
    """The command line on this rank, and a trouble on rank 1 once five steps are done."""
    from cocomix.cli import run

    if os.environ["RANK"] == "1" and trouble != "none":
        folder = Path(next(word for word in words if word.startswith("run=")).removeprefix("run="))
        TROUBLES[trouble](folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(words)
    return code, out.getvalue(), err.getvalue()


def after_five_steps(folder: Path, act) -> None:
    def wait() -> None:
        while len(read_lines(folder / "metrics.jsonl")) < 5:
            time.sleep(0.005)
        act()

    threading.Thread(target=wait, daemon=True).start()


def die(folder: Path) -> None:
    after_five_steps(folder, lambda: os.kill(os.getpid(), signal.SIGKILL))


def ask_to_stop(number: int):
    return lambda folder: after_five_steps(folder, lambda: os.kill(os.getpid(), number))


def hang(folder: Path) -> None:
    """A read that does not come back for a while, from step 6 on."""
    from cocomix.train.run import Run

    real = Run.read_batch

    def stuck(self, step, rank=None):
        if step == 5:
            time.sleep(7)
        return real(self, step, rank)

    Run.read_batch = stuck


def fail(folder: Path) -> None:
    from cocomix.errors import UserError
    from cocomix.train.run import Run

    real = Run.read_batch

    def broken(self, step, rank=None):
        if step >= 5:
            raise UserError("the disk of this rank cannot be read")
        return real(self, step, rank)

    Run.read_batch = broken


def miss_the_data(folder: Path) -> None:
    """This rank alone does not see the dataset, as on a machine where it is not mounted."""
    from cocomix.data.dataset import Dataset
    from cocomix.errors import UserError

    def unseen(folder):
        raise UserError(f"data={folder} is no dataset on this machine")

    Dataset.open = unseen


TROUBLES = {"misses": miss_the_data, "dies": die, "hangs": hang, "fails": fail, "SIGTERM": ask_to_stop(signal.SIGTERM),
            "SIGINT": ask_to_stop(signal.SIGINT), "SIGUSR1": ask_to_stop(signal.SIGUSR1)}  # fmt: skip


def ends_like_the_straight_run(run: str, *words: str) -> None:
    done = values(on_ranks(2, call, [*WORDS, f"run={run}", *words]))
    assert [code for code, _, _ in done] == [0, 0], done
    assert "resuming at step" in done[0][2]
    ended, due = read_tensors(checkpoint_folders(Path(run))[-1]), straight(words)
    assert ended.keys() == due.keys()
    assert all(torch.equal(ended[name], due[name]) for name in due)


@functools.cache
def straight(words: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The tensors of a run that nothing befell."""
    values(on_ranks(2, call, [*WORDS, "run=straight", *words]))
    return read_tensors(checkpoint_folders(Path("straight"))[-1])


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_to_one_rank_stops_all_behind_a_checkpoint(place: Path, number: str):
    long = [*WORDS, "steps=3000", "checkpoint.number=1", "run=fresh"]
    done = values(on_ranks(2, call, long, number))
    assert [code for code, _, _ in done] == [75, 75]
    step = read_lines(Path("fresh/metrics.jsonl"))[-1]["step"]
    assert (
        done[0][2].splitlines()[-1] == f"stopped: fresh is saved at step {step:,}; the same command goes on from there"
    )
    assert done[1][1:] == ("", "")
    assert [folder.name for folder in checkpoint_folders(Path("fresh"))] == [f"step-{step:08d}"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_rank_that_dies_ends_the_other_with_a_reason(place: Path, strategy: str):
    words = [*WORDS, "run=fresh", "steps=400", "checkpoint.number=100", f"dist.strategy={strategy}"]
    survivor, dead = on_ranks(2, call, words, "dies")
    assert dead.error == "Died: exit code -9"
    code, out, err = survivor.value
    assert (code, out) == (69, "")
    assert "error: rank 0, in step" in err
    assert "another rank is gone" in err
    assert "the same command goes on from the last checkpoint" in err
    assert "Traceback" not in err
    assert checkpoint_folders(Path("fresh"))


def test_a_rank_that_hangs_ends_all_after_the_timeout_and_is_named(place: Path):
    done = on_ranks(2, call, [*WORDS, "run=fresh", "dist.timeout=2"], "hangs")
    code, _, err = done[0].value
    assert code == 69
    assert "another rank does not answer" in err
    assert "rank 1 was last heard of" in err
    assert done[1].value[0] == 69
    ends_like_the_straight_run("fresh")


def test_a_mistake_met_by_one_rank_is_told_with_its_number(place: Path):
    done = on_ranks(2, call, [*WORDS, "run=fresh", "dist.timeout=20"], "fails")
    assert done[1].value[0] == 2
    assert done[1].value[2].splitlines()[-1] == "error: rank 1: the disk of this rank cannot be read"
    assert done[0].value[0] == 69
    ends_like_the_straight_run("fresh")


def test_data_that_one_rank_does_not_see_are_told_before_anything_begins(place: Path):
    done = values(on_ranks(2, call, [*WORDS, "run=fresh", "dist.timeout=20"], "misses"))
    assert [code for code, _, _ in done] == [2, 2]
    assert done[0][2] == "error: data=data is no dataset on this machine\n"
    assert done[1][1:] == ("", "")
    assert not Path("fresh").exists()


@pytest.mark.parametrize("words", [["steps=x"], ["data.path=nowhere-path"], ["batch_windows=3"], ["model.insert_at=9"]])
def test_a_mistake_that_all_ranks_make_is_told_once(place: Path, words: list[str]):
    done = values(on_ranks(2, call, [*WORDS, "run=fresh", *words]))
    assert [code for code, _, _ in done] == [2, 2]
    assert done[0][2].count("error: ") == 1
    assert words[0].split("=")[-1] in done[0][2]
    assert done[1][1:] == ("", "")


def test_a_verb_of_one_process_is_refused_under_torchrun(place: Path):
    done = values(on_ranks(2, call, ["eval", "run"]))
    assert [code for code, _, _ in done] == [2, 2]
    assert done[0][2] == (
        "error: 'cocomix eval' runs in one process, not under torchrun: only data prepare, sae train, concepts extract,"
        " concepts probabilities and train share work\n"
    )


@pytest.mark.parametrize("how", ["missing", "truncated", "altered"])
@pytest.mark.parametrize("shard", SHARDS)
def test_a_damaged_file_of_any_rank_is_named_and_the_checkpoint_before_is_taken(place: Path, shard: str, how: str):
    values(on_ranks(2, call, [*WORDS, "run=fresh"]))
    last = checkpoint_folders(Path("fresh"))[-1] / shard
    if how == "missing":
        last.unlink()
    elif how == "truncated":
        os.truncate(last, last.stat().st_size // 2)
    else:
        content = bytearray(last.read_bytes())
        content[-9] ^= 16
        last.write_bytes(content)
    done = values(on_ranks(2, call, [*WORDS, "run=fresh"]))
    assert [code for code, _, _ in done] == [0, 0]
    assert f"checkpoint file {last} " in done[0][2]
    assert "resuming at step 9 of 12" in done[0][2]
    assert Path(f"{last.parent}.damaged/complete.json").is_file()


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount")
@pytest.mark.parametrize("background", ["true", "false"])
def test_a_disk_that_fills_up_during_a_checkpoint(place: Path, background: str):
    disk = Path("disk").resolve()
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1300k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        words = [*WORDS, "run=disk/run", f"checkpoint.background={background}"]
        done = values(on_ranks(2, call, words))
        assert [code for code, _, _ in done] == [2, 2]
        assert "error: no space left on the disk while writing disk/run" in done[0][2].splitlines()[-1]
        assert [folder.name for folder in checkpoint_folders(Path("disk/run"))] == ["step-00000003"]
        assert not list(disk.rglob("*.partial"))
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        ends_like_the_straight_run("disk/run")
    finally:
        subprocess.run(["umount", "--lazy", disk], check=False)


@pytest.mark.parametrize("file", ["data/train-00001.bin", "data/labels/concepts/train-00001.concept_ids.bin"])
@pytest.mark.parametrize("how", ["truncated", "altered"])
def test_a_damaged_shard_or_label_file_is_named_before_training(place: Path, file: str, how: str):
    path = Path(file)
    if how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        content = bytearray(path.read_bytes())
        content[11] ^= 1
        path.write_bytes(content)
    done = values(on_ranks(2, call, [*WORDS, "run=fresh"]))
    assert [code for code, _, _ in done] == [2, 2]
    told = done[0][2].splitlines()
    assert [line for line in told if line.startswith("error: ")] == told[-1:]
    assert file in told[-1]
    assert path.is_file()
