"""A loss or gradient that is not finite: told with step, rank and windows; kept; replayed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cocomix.config import load_settings
from cocomix.data.order import window_ids
from cocomix.errors import UserError
from cocomix.files import read_json
from cocomix.testing.ranks import on_ranks
from cocomix.train.checkpoint import checkpoint_folders, read_tensors
from cocomix.train.run import Run
from cocomix.train.settings import TrainSettings
from cocomix.train.verb import train

BACKBONE = "model.backbone={model_type: gpt2, n_embd: 16, n_layer: 2, n_head: 2}"
WORDS = [BACKBONE, "batch_windows=4", "steps=6", "checkpoint.number=3", "checkpoint.keep=9", "evaluations=1",
         "eval_documents=1", "optimizer.lr=1e-3", "schedule.kind=constant", "schedule.warmup=0"]  # fmt: skip


def words(dataset, run: Path, *more: str) -> list[str]:
    return [f"data.path={dataset.folder}", f"run={run}", *WORDS, *more]


def poison(window: int):
    """Makes the loss of one window infinite, as a bad row of data would: its tokens' embeddings overflow."""
    from cocomix.model.modeling import CoCoMixForCausalLM

    real = CoCoMixForCausalLM._nll

    def bad(self, hidden, targets):
        nll = real(self, hidden, targets)
        return nll * float("inf") if bool((targets == POISONED["targets"]).all(-1).any()) else nll

    CoCoMixForCausalLM._nll = bad
    return lambda: setattr(CoCoMixForCausalLM, "_nll", real)


POISONED: dict[str, torch.Tensor] = {}


def run_poisoned(words: list[str], window: int) -> str:
    settings = load_settings(TrainSettings, words)
    from cocomix.data.dataset import Dataset

    data = Dataset.open(settings.data.path)
    ids = data.split("train").read(torch.tensor([window]).numpy(), data.window)
    POISONED["targets"] = torch.from_numpy(ids[0, 1:])
    undo = poison(window)
    try:
        train(settings)
    finally:
        undo()
    return "finished"


def window_of(dataset, step: int, place: int) -> int:
    """The window at a place of a step's batch of four."""
    return int(window_ids(dataset.split("train").count(dataset.window), 0, (step - 1) * 4, 4)[place])


def test_the_step_stops_before_the_update_and_can_be_replayed(dataset, tmp_path, cli):
    run, window = tmp_path / "run", window_of(dataset, 5, 2)
    with pytest.raises(UserError) as caught:
        run_poisoned(words(dataset, run), window)
    windows = ", ".join(str(window_of(dataset, 5, place)) for place in range(4))
    assert str(caught.value).startswith(
        f"step 5, on rank 0: loss ntp is inf on windows {windows}; the weights were not"
    )
    assert [folder.name for folder in checkpoint_folders(run)] == ["step-00000002", "step-00000004"]
    record = read_json(run / "fault.json", "a fault")
    assert record["step"] == 5
    assert window in record["windows"]
    kept, last = read_tensors(run / "faults" / "step-00000004"), read_tensors(checkpoint_folders(run)[-1])
    assert all(torch.equal(kept[name], last[name]) for name in last)
    undo = poison(window)
    try:
        code, out, err = cli("train", *words(dataset, run), "--replay-batch", "--json")
    finally:
        undo()
    assert code == 0, err
    found = json.loads(out)
    assert {entry["window"]: entry["losses"]["ntp"] == "inf" for entry in found["by_window"]} == {
        window_of(dataset, 5, place): place == 2 for place in range(4)
    }
    # Mended (here: the window is no longer poisoned), the same command goes on from the last good checkpoint.
    assert train(load_settings(TrainSettings, words(dataset, run)))["evaluation"]["step"] == 6


def test_of_two_ranks_the_one_with_the_bad_window_is_named(dataset, tmp_path):
    run, window = tmp_path / "run", window_of(dataset, 3, 3)
    outcomes = on_ranks(2, run_poisoned, words(dataset, run), window)
    windows = ", ".join(str(window_of(dataset, 3, place)) for place in (2, 3))
    for outcome in outcomes:
        assert outcome.error.startswith(f"UserError: step 3, on rank 1: loss ntp is inf on windows {windows};")
    assert [folder.name for folder in checkpoint_folders(run)] == ["step-00000002"]
    assert (run / "faults" / "step-00000002" / "complete.json").is_file()


def test_a_gradient_that_overflows_is_told_with_the_first_module_and_sick_weights(dataset, tmp_path):
    run = Run(load_settings(TrainSettings, words(dataset, tmp_path / "run")))
    run.resume()
    with torch.no_grad():
        run.model.backbone.h[1].mlp.c_fc.weight.fill_(float("inf"))
    from cocomix.train.fault import replay
    from cocomix.train.loop import fit

    with pytest.raises(UserError, match=r"step 1, on rank 0: loss ntp is nan"):
        fit(run)
    found = replay(Run(load_settings(TrainSettings, words(dataset, tmp_path / "run"))))
    assert found["weights_not_finite"] == ["backbone.h.1.mlp.c_fc.weight"]
    assert {entry["first_not_finite"] for entry in found["by_window"]} == {"backbone.h.1.mlp.c_fc"}


def test_without_a_fault_there_is_nothing_to_replay(dataset, tmp_path, cli):
    train(load_settings(TrainSettings, words(dataset, tmp_path / "run", "steps=1")))
    code, _, err = cli("train", *words(dataset, tmp_path / "run"), "--replay-batch")
    assert code == 2
    assert "there is nothing to replay" in err
