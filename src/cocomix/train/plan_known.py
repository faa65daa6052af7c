"""What is known of a run that is planned, and what has to be assumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from cocomix.concepts.labels import MANIFEST, Labels
from cocomix.concepts.online_teacher import STATE
from cocomix.concepts.probabilities import MANIFEST as PROBABILITIES
from cocomix.concepts.probabilities import PROBS, TOKENS, Probabilities
from cocomix.concepts.settings import AttributionSettings, OnlineSettings, ProbabilitySettings
from cocomix.data.dataset import Dataset
from cocomix.losses.terms import Term, loss_terms
from cocomix.model.config import CoCoMixConfig
from cocomix.train.backbone import find_backbone, read_config
from cocomix.train.build import model_config
from cocomix.train.plan_labels import LabelCosts, costs_of_asking, costs_of_cache, costs_of_labels, costs_of_teacher
from cocomix.train.plan_settings import NOT_YET, PlanSettings
from cocomix.train.settings import TrainSettings

VOCABULARY, WINDOW, CONCEPTS = 50257, 1024, 32768
"""Assumed where nothing says otherwise: the paper's."""


class Known(NamedTuple):
    """What the recipe and its data say, with assumptions in the place of what they do not."""

    config: CoCoMixConfig
    terms: list[tuple[Term, float]]
    window: int
    train_tokens: int | None
    """Of the dataset; None where there is none yet."""
    labels: LabelCosts | None
    """None where no loss reads labels."""
    teacher: LabelCosts | None
    """Of a teacher's probabilities or states; None where no loss reads them."""
    widths: dict[str, int]
    """Values a token of each column that is read."""
    assumed: list[str]
    """In words, with the setting that says otherwise."""


def look(settings: TrainSettings, planned: PlanSettings) -> Known:
    """What is known of a run; nothing is read but manifests and configurations.

    Raises :class:`UserError` where the parts of the recipe do not fit together, or what it names is damaged.
    """
    assumed: list[str] = []
    terms = loss_terms(settings.losses)
    model, name = settings.model, settings.model.from_backbone
    backbone = None if name is None else read_config(name, find_backbone(name))
    folder, train_tokens = Path(settings.data.path), None
    if folder.is_dir():
        dataset = Dataset.read(folder)
        train_tokens = sum(shard["tokens"] for shard in dataset.manifest["splits"]["train"]["shards"])
    else:
        if settings.data.path != NOT_YET:
            assumed.append(f"data.path={folder} is not there, so text without an end")
        dataset = _imagined(backbone or model.backbone, settings, assumed)
    window = settings.data.window or dataset.window
    concepts, labels = model.num_concepts, None
    if any("concept_ids" in term.columns for term, _ in terms):
        found = None if settings.data.online else _labels(dataset, settings.data.labels)
        if found is not None:
            concepts, labels = concepts or found.concepts, costs_of_labels(found.manifest)
        else:
            labels = _labels_to_be(settings.data.online, planned, concepts or CONCEPTS, window)
            assumed.append(f"labels by {labels.teacher} (--teacher, --block)")
    if model.mixer == "concept" and concepts is None:
        concepts = CONCEPTS
        assumed.append(f"{CONCEPTS:,} concepts (model.num_concepts)")
    wanted = {column for term, _ in terms for column in term.columns}
    teacher, widths, size = _asked(settings, dataset, planned, window, wanted, assumed)
    if labels is not None:
        widths["concept_ids"] = labels.k
    config = model_config(model, dataset, window, concepts, backbone, size)
    return Known(config, terms, window, train_tokens, labels, teacher, widths, assumed)


def _asked(
    settings: TrainSettings,
    dataset: Dataset,
    planned: PlanSettings,
    window: int,
    wanted: set[str],
    assumed: list[str],
) -> tuple[LabelCosts | None, dict[str, int], int | None]:
    """What the columns of a teacher's probabilities and states cost, their widths, and the width of its state."""
    columns = wanted & {PROBS, TOKENS, STATE}
    if not columns:
        return None, {}, None
    online, name = settings.data.teacher, settings.data.probabilities
    if (
        online is None
        and name is not None
        and any((p / PROBABILITIES).is_file() for p in _places(dataset, name, "probabilities"))
    ):
        cache = Probabilities.open(dataset, name)
        return costs_of_cache(cache.manifest), {TOKENS: cache.k, PROBS: cache.k}, None
    model = planned.teacher if online is None else online.name
    k = ProbabilitySettings.model_fields["k"].default if online is None else online.k
    option = "--teacher" if online is None else "data.teacher.name"
    block = None if online is None else online.block
    costs, size = costs_of_asking(
        model, block, k, dataset.vocab_size, window, PROBS in columns, STATE in columns, option
    )
    if online is None:
        assumed.append(f"probabilities of {k} tokens by {costs.teacher} (--teacher)")
    else:
        costs = costs._replace(bytes=0)
    widths = {STATE: size} if STATE in columns else {}
    if PROBS in columns:
        widths |= {PROBS: dataset.vocab_size} if k is None else {PROBS: k, TOKENS: k}
    return costs, widths, size


def _imagined(backbone: dict[str, Any], settings: TrainSettings, assumed: list[str]) -> Dataset:
    """A dataset that suits the model, without a file. What is no number there is told where the model is made."""
    backbone = {key: value for key, value in backbone.items() if isinstance(value, int)}
    vocabulary = backbone.get("vocab_size")
    if vocabulary is None:
        vocabulary = VOCABULARY
        assumed.append(f"a vocabulary of {VOCABULARY:,} (model.backbone.vocab_size)")
    window = backbone.get("n_positions") or backbone.get("max_position_embeddings")
    if window is None and settings.data.window is None:
        window = WINDOW
        assumed.append(f"windows of {WINDOW:,} tokens (data.window)")
    manifest = {"vocab_size": vocabulary, "eos_id": vocabulary - 1, "window": window, "dtype": "uint16", "splits": {},
                "tokenizer": {"sha256": ""}}  # fmt: skip
    return Dataset(Path(NOT_YET), manifest)


def _labels(dataset: Dataset, name: str | None) -> Labels | None:
    places = _places(dataset, name or "", "labels")
    return Labels.open(dataset, name or "") if any((place / MANIFEST).is_file() for place in places) else None


def _places(dataset: Dataset, name: str, kind: str) -> list[Path]:
    return [dataset.folder / kind / name, Path(name)]


def _labels_to_be(online: OnlineSettings | None, planned: PlanSettings, concepts: int, window: int) -> LabelCosts:
    """Those of a teacher that the command line or, for labels made while training, the recipe names."""
    if online is None:
        return costs_of_teacher(planned.teacher, planned.block, concepts, window, AttributionSettings())
    block = online.block if planned.block is None else planned.block
    name, option = (
        (online.teacher, "data.online.teacher") if planned.teacher is None else (planned.teacher, "--teacher")
    )
    return costs_of_teacher(name, block, concepts, window, online.attribution, option)._replace(bytes=0)
