"""Makes the student's side of the atlas: one pass over text with labels, then the effect of one concept after another.

What the first pass found is written whole or not at all; effects are added one by one, so that a stopped command loses
none and the same command goes on.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from cocomix.concepts.atlas_format import packed, reader, replacing
from cocomix.concepts.atlas_names import changing
from cocomix.concepts.atlas_text import held_out_text, labelled_text
from cocomix.concepts.labels import open_labels
from cocomix.concepts.pieces import Pieces
from cocomix.concepts.settings import AtlasSettings
from cocomix.devices import pick_device
from cocomix.errors import UserError, explained
from cocomix.model.load import load_concept_model, weights_hash
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.progress import progress, say
from cocomix.steer.student_atlas import FORMAT, StudentAtlas, student_path
from cocomix.steer.student_atlas_effects import effects
from cocomix.steer.student_atlas_pass import Predicted, predict_all

WINDOWS_AT_ONCE = 8
LOGITS_AT_ONCE = 1 << 25
"""Concept logits held at a time (128 MB in float32)."""
TEXT_LENGTH = 64
"""Tokens of a window on which effects are measured, at most: more windows say more than longer ones."""
SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE concepts (id INTEGER PRIMARY KEY, count INTEGER, strength REAL, strengths TEXT, predictions INTEGER,
                       labels INTEGER, hits INTEGER, norm REAL);
CREATE TABLE effects (id INTEGER PRIMARY KEY, effect REAL, promoted TEXT, suppressed TEXT);
"""


def build_student_atlas(settings: AtlasSettings, run: str) -> StudentAtlas:
    """Writes ``RUN/atlas.sqlite`` from the labels of ``settings.folder`` (whole or not at all) and measures effects.

    What is there already and of the same weights, labels and number of tokens is kept: then only effects that are
    missing are measured, and each is kept as soon as it is.
    """
    labels, dataset = open_labels(settings.folder)
    path = student_path(run)
    model, _ = load_concept_model(run, str(pick_device(settings.device)))
    if (size := model.config.num_concepts) != labels.concepts:
        raise UserError(
            f"labels={labels.folder} are of {labels.concepts} concepts, the model predicts {size}: give the labels "
            "that it learnt from"
        )
    about = {
        "format": FORMAT,
        "concepts": labels.concepts,
        "labels": labels.fingerprint,
        "weights": weights_hash(run),
        "wanted_tokens": settings.student_tokens,
        "effect_tokens": settings.effect_tokens,
        "promoted": settings.promoted,
    }
    if not _is_of(path, about):
        at_once = max(1, min(WINDOWS_AT_ONCE, LOGITS_AT_ONCE // (size * labels.window)))
        read = labelled_text(labels, dataset, settings.student_tokens, at_once)
        _write(path, about, predict_all(model, read, settings.student_tokens, dataset.vocab_size), labels.k)
    if model.config.mixing == "none":
        say(f"{path}: model={run} mixes no concepts into its stream, so that none has an effect to measure")
        return StudentAtlas.open(run)
    text = torch.from_numpy(held_out_text(dataset, labels.window, settings.effect_tokens, TEXT_LENGTH))
    _measure(path, model, text, Pieces(dataset.tokenizer(), dataset.vocab_size), settings)
    return StudentAtlas.open(run)


def _is_of(path: Path, about: dict[str, Any]) -> bool:
    try:
        with closing(reader(path)) as connection:
            found = dict(connection.execute("SELECT key, value FROM about"))
            if connection.execute("PRAGMA quick_check").fetchone() != ("ok",):
                return False
    except sqlite3.DatabaseError:
        return False
    return {key: found.get(key) for key in about} == {key: str(value) for key, value in about.items()}


def _write(path: Path, about: dict[str, Any], found: Predicted, per_token: int) -> None:
    total = max(int(found.labels.sum()), 1)
    about = {
        **about,
        "tokens": found.tokens,
        "held_out": found.held_out,
        "recall": float(found.hits.sum() / total),
        "marginal_recall": float(np.sort(found.labels)[::-1][:per_token].sum() / total),
        "mixed_recall": found.mixed_hits / total,
        "tokens_seen": json.dumps(np.flatnonzero(found.token_counts).tolist()),
    }
    means = np.divide(found.sums, found.mixed, where=found.mixed > 0, out=np.full(len(found.sums), np.nan))
    rows = zip(
        range(len(means)),
        found.mixed.tolist(),
        [None if np.isnan(mean) else float(mean) for mean in means],
        (json.dumps(packed(histogram)) for histogram in found.histogram),
        *(column.tolist() for column in (found.first, found.labels, found.hits, found.norms)),
        strict=True,
    )
    with explained(path), replacing(path) as temporary, closing(sqlite3.connect(temporary)) as connection, connection:
        connection.executescript(SCHEMA)
        connection.executemany("INSERT INTO about VALUES (?, ?)", [(k, str(v)) for k, v in about.items()])
        connection.executemany("INSERT INTO concepts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    say(f"{path}: {found.tokens:,} tokens, {about['recall']:.1%} of labels predicted")


def _measure(
    path: Path, model: CoCoMixForCausalLM, text: Int[torch.Tensor, "B T"], pieces: Pieces, settings: AtlasSettings
) -> None:
    with changing(path), explained(path), closing(sqlite3.connect(path, timeout=10)) as connection:
        wanted = connection.execute(
            "SELECT id, strength FROM concepts WHERE count > 0 ORDER BY count DESC, id LIMIT ?", (settings.effects,)
        ).fetchall()
        there = {id for (id,) in connection.execute("SELECT id FROM effects")}
        due = [(id, strength) for id, strength in wanted if id not in there]
        if not due:
            return
        (seen,) = connection.execute("SELECT value FROM about WHERE key = 'tokens_seen'").fetchone()
        tokens = torch.tensor(json.loads(seen))
        with progress("student atlas, effects", len(wanted), len(wanted) - len(due)) as bar:
            for effect in effects(model, text, *zip(*due, strict=True)):
                change = effect.change[tokens]
                order = change.argsort(descending=True, stable=True)
                best = [
                    json.dumps(_tokens(pieces, tokens[at], change[at]), ensure_ascii=False)
                    for at in (order[: settings.promoted], order.flip(0)[: settings.promoted])
                ]
                with connection:  # a transaction
                    connection.execute(
                        "INSERT OR REPLACE INTO effects VALUES (?, ?, ?, ?)", (effect.concept, effect.size, *best)
                    )
                bar.advance()


def _tokens(pieces: Pieces, tokens: torch.Tensor, change: torch.Tensor) -> list[dict[str, Any]]:
    return [
        {"token": pieces.text(token), "id": token, "change": round(value, 4)}
        for token, value in zip(tokens.tolist(), change.tolist(), strict=True)
    ]
