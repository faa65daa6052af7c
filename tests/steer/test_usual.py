"""Usual strengths, and on which text they are measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from cocomix.data.dataset import Dataset
from cocomix.steer.usual import load_usual


def test_held_out_text_that_is_short_of_a_window_is_told_or_that_of_training_taken(
    steered_run: Path, tmp_path: Path, cli: Any
) -> None:
    data = Path(shutil.copytree(steered_run.parent / "data", tmp_path / "data"))
    other = Path(shutil.copytree(steered_run, tmp_path / "run", ignore=shutil.ignore_patterns("usual.safetensors")))
    shorten(data)
    labels = data / "labels" / "concepts"
    code, out, err = cli("steer", "score", other, f"labels={labels}", f"out={tmp_path / 'score'}")
    assert (code, out) == (2, "")
    assert f"the held-out text of {data} has no window of 32 tokens" in err
    assert load_usual(str(other), labels=labels).isfinite().any()
    assert not (other / "usual.safetensors").exists()


def shorten(data: Path) -> None:
    """Leaves ten tokens of the held-out text, and labels that say that they are of it."""
    before, described = Dataset.open(data).fingerprint, json.loads((data / "dataset.json").read_text())
    shard = described["splits"]["val"]["shards"][0]
    with (data / shard["file"]).open("r+b") as file:
        file.truncate(10 * np.dtype(described["dtype"]).itemsize)
    described["splits"]["val"] |= {"tokens": 10, "shards": [{**shard, "tokens": 10}]}
    (data / "dataset.json").write_text(json.dumps(described))
    labels = data / "labels" / "concepts" / "labels.json"
    labels.write_text(labels.read_text().replace(before, Dataset.open(data).fingerprint))
