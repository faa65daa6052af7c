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
from cocomix.model.load import load_model
from cocomix.progress import progress


def dataset_of(model: str) -> str:
    """The dataset that a run was trained on."""
    recipe = Path(model) / "recipe.yaml"
    if not recipe.is_file():
        raise UserError(f"{model} is no run that names its dataset: give a run folder, or data=FOLDER as well")
    return str(read_recipe(recipe)["data"]["path"])


def evaluate(settings: EvalSettings) -> Perplexity:
    """Perplexity as ``settings`` say; refuses a dataset that another tokenizer made."""
    dataset = Dataset.open(settings.data or dataset_of(settings.model))
    model, tokenizer = load_model(settings.model, settings.device)
    if tokenizer_hash(tokenizer) != dataset.tokenizer_hash:
        raise UserError(
            f"data={dataset.folder} was made with another tokenizer than model={settings.model} has: prepare the text "
            f"again with tokenizer={settings.model}"
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
