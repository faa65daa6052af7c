"""The atlas: what each concept is. Made by one pass over the label cache, without running the teacher.

Promoted tokens are a logit lens: the latent's decoder row, through the weight of the teacher's final norm and its
unembedding. Rows are centred over all concepts and unembedding vectors over all tokens, so that tokens which are
likely everywhere do not lead every list; what stays is what this concept raises more than others do.

A concept's name is two labelled tokens and two promoted ones, ``old / ancient → city / town``: the labelled tokens
with the largest count × log-lift (frequent under this concept, and more so than
elsewhere), then the tokens promoted most.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from cocomix.concepts.atlas import FILE, FORMAT, SCHEMA, Atlas
from cocomix.concepts.gather import Gathered, gather
from cocomix.concepts.labels import Labels, open_labels
from cocomix.concepts.lens import promoted_tokens
from cocomix.concepts.pair import Names, load_pair
from cocomix.concepts.pieces import Pieces
from cocomix.concepts.settings import AtlasSettings, ExtractSettings
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError, explained
from cocomix.files import atomic_path
from cocomix.progress import progress, say

BEFORE, AFTER = 12, 6
"""Tokens of a context before and after the labelled one."""


def build_atlas(settings: AtlasSettings) -> Atlas:
    """Writes ``atlas.sqlite`` beside the labels (whole or not at all) and opens it; takes the train split."""
    labels, dataset = open_labels(settings.folder)
    gathered = gather(labels, dataset.split("train"), dataset.vocab_size, settings.tokens, settings.contexts)
    pieces = Pieces(dataset.tokenizer(), dataset.vocab_size)
    promoted = _promoted(settings, labels, dataset, np.flatnonzero(gathered.token_counts))
    with (
        explained(labels.folder),
        atomic_path(labels.folder / FILE) as temporary,
        closing(_new_database(temporary)) as connection,
    ):
        about = {
            "format": FORMAT,
            "concepts": labels.concepts,
            "tokens": gathered.tokens,
            "labels": labels.fingerprint,
        }
        connection.executemany("INSERT INTO about VALUES (?, ?)", [(k, str(v)) for k, v in about.items()])
        rows = _rows(labels, dataset, gathered, pieces, *promoted)
        connection.executemany("INSERT INTO concepts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.commit()
    say(f"{labels.folder / FILE}: {labels.concepts:,} concepts from {gathered.tokens:,} tokens")
    return Atlas.open(labels.folder)


def _new_database(path: Path) -> sqlite3.Connection:
    path.unlink(missing_ok=True)  # what a killed process left
    connection = sqlite3.connect(path)
    connection.executescript(SCHEMA)
    return connection


def _promoted(
    settings: AtlasSettings, labels: Labels, dataset: Dataset, occurring: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    manifest = labels.manifest
    sae_folder = settings.sae or manifest["sae"]["folder"]
    names = Names(settings.teacher or manifest["teacher"]["name"], manifest["teacher"]["block"])
    pair = ExtractSettings(data=str(dataset.folder), sae=sae_folder, device="cpu", dtype="float32")
    teacher, sae = load_pair(pair, names, dataset, labels.window)
    for key, found, due in (
        ("teacher", teacher.fingerprint, manifest["teacher"]["fingerprint"]),
        ("sae", sae.fingerprint, manifest["sae"]["fingerprint"]),
    ):
        if found != due:
            raise UserError(
                f"{key}={names.teacher if key == 'teacher' else sae_folder} is not what the labels were extracted "
                f"with: give {key}=… that is, or extract again"
            )
    return promoted_tokens(teacher, sae, settings.promoted, occurring)


def _rows(
    labels: Labels,
    dataset: Dataset,
    gathered: Gathered,
    pieces: Pieces,
    tokens: np.ndarray,
    scores: np.ndarray,
) -> Iterator[tuple[Any, ...]]:
    split = dataset.split("train")
    windows = np.unique(gathered.window)
    place = {int(w): n for n, w in enumerate(windows)}
    inputs = split.read(windows, labels.window) if len(windows) else np.empty((0, labels.window), np.int64)
    first = np.searchsorted(gathered.concept, np.arange(labels.concepts + 1))
    with progress("atlas, concepts", labels.concepts) as bar:
        for concept in range(labels.concepts):
            contexts = []
            for n in range(first[concept], first[concept + 1]):
                ids = inputs[place[int(gathered.window[n])], : labels.window]
                context = pieces.context(*_around(ids, int(gathered.position[n]), dataset.eos_id))
                contexts.append({**context._asdict(), "strength": round(float(gathered.strength[n]), 4)})
            promoted: list[dict[str, Any]] = [
                {"token": pieces.text(int(t)), "id": int(t), "score": round(float(s), 4)}
                for t, s in zip(tokens[concept], scores[concept], strict=True)
            ]
            labelled: list[dict[str, Any]] = [
                {"token": pieces.text(t), "count": count} for t, count in gathered.labelled.get(concept, [])
            ]
            count = int(gathered.counts[concept])
            yield (
                concept,
                _name([e["token"] for e in labelled], [e["token"] for e in promoted]),
                count,
                count / max(gathered.tokens, 1),
                float(gathered.sums[concept]) / max(count, 1),
                *(json.dumps(value, ensure_ascii=False) for value in (promoted, labelled, contexts)),
            )
            bar.advance()


def _around(ids: np.ndarray, at: int, eos_id: int) -> tuple[list[int], int]:
    """The ids around place ``at`` that belong to its document, and where it is among them."""
    start, end = max(0, at - BEFORE), min(len(ids), at + AFTER + 1)
    ends = np.flatnonzero(ids[start:end] == eos_id) + start
    start = max([start, *(ends[ends < at] + 1).tolist()])
    end = min([end, *ends[ends > at].tolist()])
    return ids[start:end].tolist(), at - start


def _name(labelled: list[str], promoted: list[str]) -> str:
    left, right = (" / ".join(_distinct(tokens)) for tokens in (labelled, promoted))
    return f"{left or '(no label)'} → {right}"


def _distinct(tokens: list[str]) -> list[str]:
    """The first two that read differently and can be seen."""
    found: dict[str, str] = {}
    for token in tokens:
        shown = token.strip() or repr(token)[1:-1]
        found.setdefault(shown.casefold(), shown)
    return list(found.values())[:2]
