"""A studio on a run that was trained in this test run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("gradio")

STEPS, DOCUMENTS = (400, 60) if os.environ.get("COCOMIX_PICTURES") else (20, 4)
"""For pictures the models have to have learnt something."""
BACKBONE = "model.backbone={model_type: gpt2, n_embd: 64, n_layer: 4, n_head: 4, initializer_range: 0.1}"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data``, ``teacher``, ``sae``, ``runs/cocomix``, ``runs/ntp``; paths are absolute. The text is the
    factbook's; windows have 64 tokens, which is all that the models read."""
    import torch

    from cocomix.cli import main
    from cocomix.data.dataset import Dataset
    from cocomix.data.factbook import write_factbook
    from cocomix.testing.teachers import tiny_sae, tiny_teacher

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("studio")
    data, sae = folder / "data", folder / "sae"
    write_factbook(folder / "factbook.jsonl")
    prepare = ["data", "prepare", folder / "factbook.jsonl", data, "vocab_size=768", "window=64", "val_fraction=0.25",
               f"limit_documents={DOCUMENTS}"]  # fmt: skip
    assert main([str(word) for word in prepare]) == 0
    dataset = Dataset.open(data)
    tiny_sae(sae, tiny_teacher(folder / "teacher", dataset, steps=STEPS), dataset)
    rest = [f"steps={STEPS}", "batch_windows=8", "checkpoint.number=1", "evaluations=2", "eval_documents=1"]
    cocomix, ntp = folder / "runs" / "cocomix", folder / "runs" / "ntp"
    for words in (
        ["concepts", "extract", f"data={data}", f"sae={sae}", "force=true"],
        ["train", "tiny/cocomix", BACKBONE, "model.concept_k=8", f"data.path={data}", "data.labels=concepts", *rest,
         f"run={cocomix}"],
        ["train", "tiny/ntp", BACKBONE, f"data.path={data}", *rest, f"run={ntp}"],
        ["concepts", "atlas", f"data={data}", f"model={cocomix}"],
    ):  # fmt: skip
        assert main(words) == 0, words
    return folder


@pytest.fixture(scope="session")
def run(trained: Path) -> Path:
    """The run with concepts."""
    return trained / "runs" / "cocomix"


@pytest.fixture(scope="session")
def studio(run: Path):
    """The service; tests that rename put the name back."""
    from cocomix.studio.service import Studio
    from cocomix.studio.settings import StudioSettings

    return Studio(StudioSettings(model=str(run), port=0))


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run with a copy of its labels beside it, to spoil."""
    import shutil

    run = Path(shutil.copytree(trained / "runs" / "cocomix", tmp_path / "runs" / "cocomix"))
    data = Path(shutil.copytree(trained / "data", tmp_path / "data"))
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(trained / "data"), str(data)))
    return run
