from __future__ import annotations

from pathlib import Path

import pytest

from cocomix.data.dataset import Dataset
from cocomix.testing.models import tiny_model
from cocomix.train.export import export_model

POSITIONS = 256
"""Inputs that fit into the tiny models: the longest items of the benchmarks do not, in the tiny tokenizer's words."""


@pytest.fixture(scope="session")
def export(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network with a mixer as it is exported, with random weights."""
    model = tiny_model(mixing="insert", backbone={"vocab_size": dataset.vocab_size, "n_positions": POSITIONS})
    folder = tmp_path_factory.mktemp("benchmarked") / "export"
    export_model(model, dataset.tokenizer_folder, folder, {"run": "tiny", "tokens": 0})
    return folder
