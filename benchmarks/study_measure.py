"""What a study asks its finished students besides their losses: see ``study.py``.

- how well they predict concepts, beside what the labels' frequencies alone would give;
- how well their concepts steer;
- their loss on the held-out documents of each source, for the pair of teachers of which one has not seen some sources.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cocomix.concepts.build_atlas import build_atlas, find_atlas
from cocomix.concepts.labels import Labels
from cocomix.concepts.settings import AtlasSettings
from cocomix.config import load_settings, read_recipe
from cocomix.data.dataset import Dataset, Split
from cocomix.data.heldout import position_of
from cocomix.data.readers import read_jsonl
from cocomix.data.settings import PrepareSettings
from cocomix.evaluate.concept_quality import concept_quality
from cocomix.evaluate.perplexity import evaluate_documents
from cocomix.files import read_json, write_json
from cocomix.model.load import load_concept_model, load_model
from cocomix.progress import progress
from cocomix.report.steering_plot import write_score
from cocomix.steer.score import score, score_folder
from cocomix.steer.score_settings import ScoreSettings
from cocomix.steer.usual import labels_folder

STEERING = Path("steering/steering.json")


def measure_concepts(folders: list[Path], data: Path, windows: int = 128) -> dict[str, dict[str, Any]]:
    """Run's name → concept quality on held-out windows; of each run once, kept in its folder."""
    dataset, found = Dataset.open(data), {}
    with progress("concept prediction, runs", len(folders)) as bar:
        for folder in folders:
            kept = folder / "concept_quality.json"
            labels = read_recipe(folder / "recipe.yaml")["data"].get("labels")
            if labels and not kept.is_file():
                model, _ = load_concept_model(str(folder))
                cache = Labels.open(dataset, labels)
                quality = concept_quality(model, dataset.split("val"), cache, dataset.window, windows)
                write_json(kept, quality.to_json())
            if kept.is_file():
                found[folder.name] = read_json(kept, "a concept quality")
            bar.advance()
    return found


def score_steering(run: Path, concepts: int) -> None:
    """The steering score of a run, in its folder; its labels get an atlas first, where they have none."""
    if (run / STEERING).is_file():
        return
    settings = load_settings(AtlasSettings, [], labels=str(labels_folder(str(run))))
    if find_atlas(settings) is None:
        build_atlas(settings)
    wanted = load_settings(ScoreSettings, [], model=str(run), concepts=concepts)
    write_score(score(wanted), wanted.fluency, score_folder(wanted))


def kept_steering(run: Path) -> dict[str, Any]:
    """Of a run's score what a page tells: all but single concepts and their texts."""
    found = read_json(run / STEERING, "a steering score")
    return {key: found[key] for key in ("rule", "doses", "measured", "summary")}


def measure_sources(
    folders: list[Path], source: Path, data: Path, groups: dict[str, set[str]], documents: int = 60
) -> dict[str, dict[str, float]]:
    """Run's name → nats a token on the first ``documents`` held-out documents of each group of sources ("rest": all
    that no other group names)."""
    split = Dataset.open(data).split("val")
    origin = list(_origins(source, data))
    if len(origin) != sum(1 for _ in split.documents()):
        raise SystemExit(f"{source} is not the text of {data}: its held-out documents are {len(origin):,}")
    named = set().union(*groups.values())
    due = {**groups, "rest": set(origin) - named}
    found: dict[str, dict[str, float]] = {}
    with progress("losses by source, runs", len(folders)) as bar:
        for folder in folders:
            kept = folder / "sources.json"
            if not kept.is_file():
                model, _ = load_model(str(folder))
                losses = {}
                for name, sources in due.items():
                    part: Any = _part(split, [i for i, o in enumerate(origin) if o in sources][:documents])
                    losses[name] = evaluate_documents(model, part, Dataset.open(data).window).loss
                write_json(kept, losses)
            found[folder.name] = read_json(kept, "losses by source")
            bar.advance()
    return found


def _origins(source: Path, data: Path) -> Iterator[str]:
    """The source of each held-out document, in the order of the dataset."""
    settings = read_json(data / "dataset.json", "a dataset")["settings"]
    columns = [
        read_jsonl(source, load_settings(PrepareSettings, [], source=str(source), out="", field=field))
        for field in ("text", "source")
    ]
    for (text, _), (origin, _) in zip(*columns, strict=True):
        if text and position_of(text, settings["seed"]) < settings["val_fraction"]:
            yield origin


def _part(split: Split, chosen: list[int]) -> SimpleNamespace:
    """Some documents of a split, as far as an evaluation asks."""

    def documents() -> Iterator[np.ndarray]:
        wanted = set(chosen)
        return (ids for i, ids in enumerate(split.documents()) if i in wanted)

    return SimpleNamespace(documents=documents, eos_id=split.eos_id, text_bytes=None)
