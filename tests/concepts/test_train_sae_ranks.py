"""`sae train` on several ranks: the weights of one, whatever happens on the way."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix.cli import main
from cocomix.concepts.settings import SaeTrainSettings
from cocomix.concepts.teacher import Teacher
from cocomix.concepts.train_sae import train_sae
from cocomix.data.dataset import Dataset
from cocomix.dist.world import joined
from cocomix.testing.ranks import on_ranks, values

SMALL = {"latents": 96, "k": 8, "tokens": 16_000, "batch_tokens": 256, "buffer_tokens": 2048, "block": 1}
"""8 buffers of 64 windows, of 8 chunks each; the last is not used up."""


@pytest.fixture(scope="module")
def words(dataset: Dataset, teacher_path: Path) -> dict[str, Any]:
    return {"teacher": str(teacher_path), "data": str(dataset.folder), **SMALL}


@pytest.fixture(scope="module")
def straight(words: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "sae"
    train_sae(SaeTrainSettings(**words, out=str(out)))
    return out


def content(folder: Path) -> dict[str, Any]:
    """All files' bytes; of training.json what is not measured time."""
    files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    record = json.loads(files.pop("training.json"))
    return files | {key: value for key, value in record.items() if key not in ("seconds", "rank_seconds")}


def train_on(settings: SaeTrainSettings, act: Callable[[int, int], None] | None = None) -> tuple[Any, int]:
    """The record and how many chunks this rank put through the teacher; ``act(rank, chunk)`` before each."""
    chunks, plain = 0, Teacher.activations

    def counted(self: Teacher, tokens: torch.Tensor) -> torch.Tensor:
        nonlocal chunks
        if len(tokens) == 1:  # asked when it is loaded: does it see what comes?
            return plain(self, tokens)
        chunks += 1
        if act is not None:
            act(world.rank, chunks)
        return plain(self, tokens)

    Teacher.activations = counted  # type: ignore[method-assign]
    with joined(timeout=60.0) as world:
        return train_sae(settings), chunks


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_ranks_trains_the_same_weights_and_shares_the_activations(
    words: dict[str, Any], straight: Path, tmp_path: Path, size: int
) -> None:
    done = values(on_ranks(size, train_on, SaeTrainSettings(**words, out=str(tmp_path / "sae"))))
    assert content(tmp_path / "sae") == content(straight)
    record = json.loads((tmp_path / "sae" / "training.json").read_text())
    assert [r for r, _ in done] == [record] * size
    # 8 buffers for the steps, one before them for the scale, one behind them for the fit.
    assert [chunks for _, chunks in done] == [10 * len(range(rank, 8, size)) for rank in range(size)]
    assert record["seconds"] < record["rank_seconds"] < size * record["seconds"] + 1


def test_alone_the_seconds_of_ranks_are_the_seconds(straight: Path) -> None:
    record = json.loads((straight / "training.json").read_text())
    assert 0 < record["seconds"] == record["rank_seconds"]


def signal_helper(rank: int, chunk: int) -> None:
    if (rank, chunk) == (1, 14):  # in the fourth buffer
        os.kill(os.getpid(), signal.SIGTERM)


def signal_leader(rank: int, chunk: int) -> None:
    if (rank, chunk) == (0, 14):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("act", "then"), [(signal_helper, 1), (signal_leader, 3)])
def test_a_signal_to_one_rank_stops_all_and_another_number_of_ranks_goes_on(
    words: dict[str, Any], straight: Path, tmp_path: Path, act: Callable[[int, int], None], then: int
) -> None:
    settings = SaeTrainSettings(**words, out=str(tmp_path / "sae"))
    outcomes = on_ranks(2, train_on, settings, act)
    assert outcomes[0].error == outcomes[1].error
    # Both meet it in the third buffer, whose first step is the last before all stop.
    assert outcomes[0].error == (
        f"Stopped: {tmp_path / 'sae'} is saved at step 17; the same command goes on from there"
    )
    state = json.loads((tmp_path / "sae" / "checkpoint-00000017" / "state.json").read_text())
    assert 0 < state["seconds"] < state["rank_seconds"]
    record = values(on_ranks(then, train_on, settings))[0][0]
    assert content(tmp_path / "sae") == content(straight)
    # What ranks did before the stop counts too.
    assert record["rank_seconds"] - record["seconds"] >= state["rank_seconds"] - state["seconds"] - 1e-9


def kill_helper(rank: int, chunk: int) -> None:
    if (rank, chunk) == (1, 30):
        os._exit(9)


def test_a_killed_rank_ends_all_and_the_same_command_goes_on_from_the_last_checkpoint(
    words: dict[str, Any], straight: Path, tmp_path: Path
) -> None:
    settings = SaeTrainSettings(**words, out=str(tmp_path / "sae"), checkpoint_seconds=1e-6)
    survivor, dead = on_ranks(2, train_on, settings, kill_helper)
    assert dead.error == "Died: exit code 9"
    assert (survivor.error or "").startswith("RankLost: rank 0, in round ")
    assert [path.name for path in (tmp_path / "sae").glob("checkpoint-*[0-9]")] == ["checkpoint-00000048"]
    values(on_ranks(2, train_on, settings))
    assert content(tmp_path / "sae") == content(straight)


def verb(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["sae", "train", *words])
    return code, out.getvalue(), err.getvalue()


def test_the_verb_tells_results_and_mistakes_once(words: dict[str, Any], straight: Path) -> None:
    given = [f"{key}={value}" for key, value in words.items()]
    first, other = values(on_ranks(2, verb, *given, f"out={straight}", "--json"))
    assert json.loads(first[1])["latents"] == 96
    assert (first[0], first[2], other) == (0, f"{straight}: finished already\n", (0, "", ""))
    first, other = values(on_ranks(2, verb, *given, f"out={straight}", "lr=0.1"))
    assert first[:2] == other[:2] == (2, "")
    assert (first[2].count("error: "), "another lr" in first[2], other[2]) == (1, True, "")
    first, other = values(on_ranks(2, verb, *given, f"out={straight.parent / 'new'}", "block=3"))
    assert (first[0], first[2].count("block=3 is outside"), other) == (2, 1, (2, "", ""))


def train_elsewhere(folder: str, settings: SaeTrainSettings) -> None:
    """Rank 1 does not see the data."""
    with joined(timeout=30.0) as world:
        if not world.first:
            os.chdir(folder)
        train_sae(settings)


def test_what_a_helper_cannot_do_ends_all_ranks(
    words: dict[str, Any], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dataset.folder.parent)
    settings = SaeTrainSettings(**{**words, "data": dataset.folder.name}, out=str(tmp_path / "sae"))
    for outcome in on_ranks(2, train_elsewhere, str(tmp_path), settings):
        assert (outcome.error or "").startswith(f"UserError: data={dataset.folder.name} is no dataset: ")
