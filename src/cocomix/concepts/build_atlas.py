"""The atlas: what each concept is. Made by one pass over the label cache, without running the teacher.

Promoted and suppressed tokens are a logit lens: the latent's decoder row, through the weight of the teacher's final
norm and its unembedding. Rows are centred over all concepts and unembedding vectors over all tokens, so that tokens
which are likely everywhere do not lead every list; what stays is what this concept raises more than others do.

A concept's automatic name is two labelled tokens and two promoted ones, ``old / ancient → city / town``: the labelled
tokens with the largest count × log-lift (frequent under this concept, and more so than elsewhere), then the tokens
promoted most. A name that a person gave stays when the atlas is made again, as long as the autoencoder is the same.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cocomix.concepts.atlas import Atlas
from cocomix.concepts.atlas_format import FILE, FORMAT, SCHEMA, journal, packed, reader, replacing, words
from cocomix.concepts.atlas_names import Given, given_names, write_names
from cocomix.concepts.atlas_places import BEFORE, CUT, surroundings
from cocomix.concepts.gather import Gathered, gather
from cocomix.concepts.labels import Labels, open_labels
from cocomix.concepts.lens import Best, lens_tokens, nearest_concepts
from cocomix.concepts.pair import load_pair_of
from cocomix.concepts.pieces import Pieces
from cocomix.concepts.settings import AtlasSettings
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError, explained
from cocomix.files import write_json
from cocomix.progress import progress, say

ROWS_AT_ONCE = 512


class _Rows(NamedTuple):
    """What the decoder's rows say."""

    promoted: Best
    suppressed: Best
    nearest: Best


def build_atlas(settings: AtlasSettings) -> Atlas:
    """Writes ``atlas.sqlite`` beside the labels (whole or not at all) and opens it; takes the train split."""
    labels, dataset = open_labels(settings.folder)
    split = dataset.split("train")
    number = settings.contexts, settings.random_contexts
    gathered = gather(labels, split, dataset.vocab_size, settings.tokens, *number, settings.seed)
    rows = _decoder_rows(settings, labels, dataset, np.flatnonzero(gathered.token_counts))
    cards = _Cards(labels, dataset, gathered, rows)
    manifest = labels.manifest
    about = {
        "format": FORMAT,
        "concepts": labels.concepts,
        "tokens": gathered.tokens,
        "labels": labels.fingerprint,
        "dead": int((gathered.counts == 0).sum()),
        "missed": gathered.missed,
        "teacher": manifest["teacher"]["name"],
        "block": manifest["teacher"]["block"],
        "sae": manifest["sae"]["fingerprint"],
        "settings": settings.model_dump_json(include={"tokens", "contexts", "random_contexts", "promoted", "seed"}),
    }
    path = labels.folder / FILE
    with explained(labels.folder), replacing(path) as temporary, closing(_new_database(temporary)) as connection:
        connection.executemany("INSERT INTO about VALUES (?, ?)", [(k, str(v)) for k, v in about.items()])
        cards.write(connection)
        # Last of all: a name that was given while the rest was made counts too.
        write_names(connection, _kept_names(path, manifest["sae"]["fingerprint"]))
        connection.commit()
    say(f"{path}: {labels.concepts:,} concepts from {gathered.tokens:,} tokens, {about['dead']:,} never a label")
    return Atlas.open(labels.folder)


def find_atlas(settings: AtlasSettings) -> Atlas | None:
    """The atlas that is there, if it is whole and of these labels; None: it has to be made."""
    with suppress(UserError):
        found = Atlas.open(settings.folder)
        if found.labels_fingerprint == open_labels(settings.folder)[0].fingerprint:
            return found
        found.close()
    return None


def _new_database(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path)
    # The file gets its name when it is whole and flushed: nothing has to be rolled back, nothing flushed twice.
    connection.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {SCHEMA}")
    return connection


def _kept_names(path: Path, sae: str) -> list[Given]:
    """What people gave in the atlas that was there, whatever its format, if its concepts are those of the same
    autoencoder; else the names go into a file of their own, and where they cannot be read the whole atlas stays."""
    if not path.is_file():
        return []
    try:
        with closing(reader(path)) as connection:
            given = given_names(connection)
            found = connection.execute("SELECT value FROM about WHERE key = 'sae'").fetchone()
    except (sqlite3.Error, ValueError):
        aside = _unused(path.with_name(f"{path.name}.damaged"))
        path.rename(aside)
        if journal(path).exists():
            journal(path).rename(journal(aside))
        say(f"names that were given in {path} cannot be read: the damaged atlas is kept as {aside}")
        return []
    before = found[0] if found else "unknown"
    if before == sae or not given:
        return given
    saved = _unused(path.with_name(f"names-{before[:8]}.json"))
    write_json(saved, {"sae": before, "names": [name._asdict() for name in given]})
    say(f"{len(given):,} names were given to another autoencoder's concepts: they are in {saved}")
    return []


def _unused(path: Path) -> Path:
    """``path``, or with a number after it where that is taken."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(p for p in itertools.chain([path], numbered) if not p.exists())


def _decoder_rows(settings: AtlasSettings, labels: Labels, dataset: Dataset, occurring: np.ndarray) -> _Rows:
    teacher, sae = load_pair_of(labels, dataset, "cpu", "float32", settings.teacher, settings.sae)
    return _Rows(*lens_tokens(teacher, sae, settings.promoted, occurring), nearest_concepts(sae, settings.nearest))


class _Cards:
    """Everything about each concept, as it is stored."""

    def __init__(self, labels: Labels, dataset: Dataset, gathered: Gathered, rows: _Rows) -> None:
        self._gathered, self._rows = gathered, rows
        self._pieces = Pieces(dataset.tokenizer(), dataset.vocab_size)
        split = dataset.split("train")
        self._contexts = {
            name: _Texts(self._pieces, places, surroundings(split, labels.window, places), labels.concepts)
            for name, places in (("contexts", gathered.strongest), ("random_contexts", gathered.random))
        }

    def write(self, connection: sqlite3.Connection) -> None:
        """Into the tables and their indexes, the most frequent concept first."""
        order = np.argsort(-self._gathered.counts, kind="stable").tolist()
        with progress("atlas, concepts", len(order)) as bar:
            for first in range(0, len(order), ROWS_AT_ONCE):
                here = order[first : first + ROWS_AT_ONCE]
                cards = [self._card(id) for id in here]
                rows = list(self._rows_of(first, here, cards))
                connection.executemany("INSERT INTO concepts VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
                for index, texts in _indexed(rows, cards).items():
                    connection.executemany(
                        f"INSERT INTO {index} (rowid, text) VALUES (?, ?)", enumerate(texts, start=first)
                    )
                bar.advance(len(here))

    def _rows_of(self, first: int, ids: list[int], cards: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
        gathered = self._gathered
        for rank, (id, card) in enumerate(zip(ids, cards, strict=True), start=first):
            count = int(gathered.counts[id])
            yield (
                rank,
                id,
                _name([e["token"] for e in card["labelled"]], [e["token"] for e in card["promoted"]]),
                count,
                count / max(gathered.tokens, 1),
                float(gathered.sums[id]) / max(count, 1),
                json.dumps(card, ensure_ascii=False, separators=(",", ":")),
            )

    def _card(self, id: int) -> dict[str, Any]:
        gathered, rows, text = self._gathered, self._rows, self._pieces.text
        promoted, suppressed = (
            [{"token": text(token), "id": token, "score": round(score, 4)} for token, score in _of(best, id)]
            for best in (rows.promoted, rows.suppressed)
        )
        return {
            "strengths": packed(gathered.histogram[id]),
            "promoted": promoted,
            "suppressed": suppressed,
            "labelled": [{"token": text(token), "count": count} for token, count, _ in gathered.labelled.of(id)],
            **{name: texts.of(id) for name, texts in self._contexts.items()},
            "nearest": [{"id": other, "cosine": round(cosine, 4)} for other, cosine in _of(rows.nearest, id)],
            "together": [
                {"id": other, "count": count, "lift": round(lift, 2)} for other, count, lift in gathered.together.of(id)
            ],
        }


class _Texts:
    """Contexts of the places of each concept, made when asked for."""

    def __init__(self, pieces: Pieces, places: np.ndarray, ids: np.ndarray, concepts: int) -> None:
        self._pieces, self._strength, self._ids = pieces, places["strength"], ids
        self._first = np.searchsorted(places["concept"], np.arange(concepts + 1))

    def of(self, id: int) -> list[dict[str, Any]]:
        """Those of a concept."""
        here = slice(self._first[id], self._first[id + 1])
        found = []
        for ids, strength in zip(self._ids[here].tolist(), self._strength[here].tolist(), strict=True):
            before = [token for token in ids[:BEFORE] if token != CUT]
            after = [token for token in ids[BEFORE:] if token != CUT]
            context = self._pieces.context(before + after, len(before))
            found.append({**context._asdict(), "strength": round(strength, 4)})
        return found


def _of(best: Best, id: int) -> Iterator[tuple[int, float]]:
    return zip(best.ids[id].tolist(), best.scores[id].tolist(), strict=True)


def _indexed(rows: list[tuple[Any, ...]], cards: list[dict[str, Any]]) -> dict[str, list[str]]:
    """By index, the text of each concept."""
    tokens = ((e["token"] for e in [*card["promoted"], *card["labelled"]]) for card in cards)
    contexts = (
        (c["before"] + c["token"] + c["after"] for c in [*card["contexts"], *card["random_contexts"]]) for card in cards
    )
    return {
        "name_index": [" ".join(words(row[2])) for row in rows],
        "token_index": [_distinct_words(texts) for texts in tokens],
        "context_index": [_distinct_words(texts) for texts in contexts],
    }


def _distinct_words(texts: Iterator[str]) -> str:
    return " ".join(dict.fromkeys(words(" ".join(texts))))


def _name(labelled: list[str], promoted: list[str]) -> str:
    left, right = (" / ".join(_distinct(tokens)) for tokens in (labelled, promoted))
    return f"{left or '(no label)'} → {right}"


def _distinct(tokens: list[str]) -> list[str]:
    """The first two that read differently and can be seen."""
    found: dict[str, str] = {}
    for token in filter(None, tokens):
        shown = token.strip()
        if not shown or not shown.isprintable():
            shown = repr(token)[1:-1].strip() or repr(token)
        found.setdefault(shown.casefold(), shown)
    return list(found.values())[:2]
