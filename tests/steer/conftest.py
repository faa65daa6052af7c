"""A run with concepts, made once: of a second, with labels, teacher and SAE beside it."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def steered_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder; beside it ``data``, ``teacher``, ``sae``. Its model reads 32 tokens and has 64 concepts."""
    from cocomix.cli import main
    from cocomix.testing.teachers import tiny_sae, tiny_teacher
    from cocomix.testing.text import tiny_dataset

    folder = tmp_path_factory.mktemp("steered")
    data, run = folder / "data", folder / "run"
    dataset = tiny_dataset(data, documents=30)
    sae = tiny_sae(folder / "sae", tiny_teacher(folder / "teacher", dataset, steps=10), dataset)
    backbone = "model.backbone={model_type: gpt2, n_embd: 32, n_layer: 4, n_head: 4, initializer_range: 0.2}"
    for words in (
        ["concepts", "extract", f"data={data}", f"sae={sae}"],
        ["train", "tiny/cocomix", backbone, "model.concept_k=8", f"data.path={data}", "data.labels=concepts", "steps=4",
         "batch_windows=4", "checkpoint.number=1", "evaluations=1", "eval_documents=2", f"run={run}"],
    ):  # fmt: skip
        assert main(words) == 0
    return run
