"""`cocomix eval` as a function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cocomix.config import read_recipe
from cocomix.data.dataset import Dataset
from cocomix.data.tokenizer import tokenizer_hash
from cocomix.errors import UserError
from cocomix.evaluate.perplexity import Perplexity, evaluate_documents
from cocomix.evaluate.settings import EvalSettings
from cocomix.evaluate.text_bytes import text_bytes
from cocomix.model.load import load_model, model_folder
from cocomix.places import model_place, recorded_path
from cocomix.progress import progress


def dataset_of(model: str) -> Path:
    """The dataset that a run was trained on, where it lies now; raises :class:`UserError` when nothing says it."""
    run = Path(model).expanduser()
    if not (run / "recipe.yaml").is_file():
        what = "is no run that names its dataset"
        if model_place(model, f"model={model}") is None:
            what = "is no folder here; a model of the hub names no dataset"
        raise UserError(f"{model} {what}: give a run folder, or data=FOLDER as well")
    recorded = str(read_recipe(run / "recipe.yaml")["data"]["path"])
    found = recorded_path(run, recorded)
    if found is None:
        raise UserError(f"{model} was trained on data.path={recorded}, which is not there: add data=FOLDER")
    return found


def evaluate(settings: EvalSettings) -> Perplexity:
    """Perplexity as ``settings`` say; refuses a dataset that another tokenizer made, and ``tasks``."""
    if settings.tasks is not None:
        raise UserError("tasks= asks for benchmarks: call cocomix.evaluate.benchmarks.run_benchmarks, or leave it out")
    dataset = Dataset.open(settings.data or dataset_of(settings.model))
    model, tokenizer = load_model(settings.model, settings.device)
    if tokenizer_hash(tokenizer) != dataset.tokenizer_hash:
        raise UserError(
            f"data={dataset.folder} was made with another tokenizer than model={settings.model} has: prepare the text "
            f"again with tokenizer={model_folder(settings.model)}"
        )
    context = settings.context or dataset.window
    config: Any = model.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and context > limit:
        raise UserError(f"context={context} is longer than the model's {limit} positions: choose context={limit}")
    split = dataset.split(settings.split)
    total = None if settings.documents else split.tokens
    with progress(f"evaluating on {settings.split}", total) as bar:
        return evaluate_documents(
            model,
            split,
            context,
            settings.documents,
            text_bytes(dataset, settings.split, settings.documents),
            settings.batch_windows,
            advance=bar.advance,
        )
