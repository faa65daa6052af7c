"""A run stopped behind a checkpoint and resumed equals the straight run bit for bit: concepts and cached labels here,
dropout, plain models and damaged files in ``tests/train/test_run.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cocomix.config import load_settings
from cocomix.data.dataset import Dataset
from cocomix.train.checkpoint import Checkpoints, checkpoint_folders, read_tensors
from cocomix.train.metrics import read_lines
from cocomix.train.settings import TrainSettings
from cocomix.train.verb import train

CLOCK = ("seconds", "tokens_per_second", "mfu", "waited")


class Killed(Exception):
    pass


def settings(run: str, recipe: str, batch: int) -> TrainSettings:
    backbone = "model.backbone={model_type: gpt2, n_embd: 32, n_layer: 4, n_head: 4, resid_pdrop: 0.1}"
    words = [recipe, backbone, "model.concept_k=8", "data.path=data"]
    words += ["data.labels=concepts", f"batch_windows={batch}", "steps=8", "checkpoint.number=8", "evaluations=2"]
    return load_settings(TrainSettings, [*words, "eval_documents=2", f"run={run}"])


def without_clock(run: str, file: str) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_lines(Path(run) / file)]


@pytest.mark.parametrize("batch", [4, 128], ids=["within-an-epoch", "behind-its-end"])
@pytest.mark.parametrize("recipe", ["tiny/cocomix", "tiny/cocomix_memory", "tiny/cocomix_add"])
def test_stopped_and_resumed_equals_straight(place: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, batch: int):
    data = Dataset.open("data")
    assert (5 * batch > data.split("train").count(data.window)) == (batch == 128)
    train(settings("straight", recipe, batch))
    real = Checkpoints.finish

    def finish_and_die(self):
        folder = real(self)
        if folder is not None and folder.name == "step-00000005":
            raise Killed
        return folder

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "finish", finish_and_die)
        with pytest.raises(Killed):
            train(settings("broken", recipe, batch))
    train(settings("broken", recipe, batch))
    for file in ("metrics.jsonl", "evals.jsonl"):
        assert without_clock("broken", file) == without_clock("straight", file)
    assert [line["step"] for line in without_clock("straight", "metrics.jsonl")] == list(range(1, 9))
    straight, broken = (read_tensors(checkpoint_folders(Path(run))[-1]) for run in ("straight", "broken"))
    assert straight.keys() == broken.keys()
    assert any(name.startswith("optimizer.exp_avg_sq.") for name in straight)
    for name in straight:
        assert torch.equal(straight[name], broken[name]), name
