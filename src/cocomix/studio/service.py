"""What the studio's pages ask: plain functions of one loaded model, from any thread. No gradio here."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cocomix.compare.comparison import Comparison
from cocomix.compare.runs import Run
from cocomix.concepts.atlas import Atlas
from cocomix.concepts.labels import open_labels
from cocomix.devices import pick_device
from cocomix.errors import UserError
from cocomix.model.load import load_concept_model
from cocomix.steer.edits import Edit, check_edit, parse_edit
from cocomix.steer.effect import promotion
from cocomix.steer.inspection import atlas_of, atlas_path
from cocomix.steer.requests import Request
from cocomix.steer.settings import GenerateSettings
from cocomix.steer.student_atlas import StudentAtlas, card, student_path
from cocomix.steer.teacher_view import TeacherView
from cocomix.steer.text import token_ids
from cocomix.steer.usual import in_raw_units, labels_folder, load_usual
from cocomix.studio import repeat
from cocomix.studio.followed import Followed
from cocomix.studio.reading import Doing, Reading, measure, read_tokens
from cocomix.studio.runs import compare_runs, find_runs
from cocomix.studio.settings import StudioSettings
from cocomix.studio.streaming import Texts, stream

MOST_EDITS = 16
DOSES = (-8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0)
"""In units of a concept's usual strength."""
DOSE_WINDOWS = 8
"""Held-out windows on which a dose is measured."""
READINGS_KEPT = 32


class Dose(NamedTuple):
    """What a strength does."""

    dose: float
    nats: float
    """By how much the concept's promoted tokens become likelier, over held-out text."""


class Sampling(NamedTuple):
    """How a text is continued."""

    new_tokens: int = 60
    temperature: float = 0.8
    seed: int = 0


class Studio:
    """A model, its atlas and the runs beside it."""

    def __init__(self, settings: StudioSettings) -> None:
        self.settings = settings
        self.model, self.tokenizer = load_concept_model(settings.model, str(pick_device(settings.device)))
        self.concepts = self.model.config.num_concepts
        self.positions: int = self.model.config.text_config.max_position_embeddings
        self._reading = functools.lru_cache(READINGS_KEPT)(self._read)
        there = Path(settings.model).expanduser().is_dir()
        student = student_path(settings.model) if there else None
        self._atlas = Followed(atlas_path(settings.model, settings.atlas), self._open_atlas)
        self._student = Followed(student, lambda: self._open_student(student))
        self._atlas()  # mistakes are told now
        self._student()
        self._labels = labels_folder(settings.model)
        self._usual: Tensor | None = None
        self._places = threading.BoundedSemaphore(settings.generations)
        self._teacher: tuple[TeacherView | None, str] | None = None
        self._teacher_lock = threading.Lock()

    @property
    def unit(self) -> str:
        """``u`` where strengths can be given in units of the usual one, which is measured on a run's held-out text."""
        return "u" if self._labels is not None else ""

    # Read

    def read(self, text: str) -> Reading:
        """Tokens with surprise and mixed concepts; raises :class:`UserError` for an empty or too long text."""
        token_ids(self.tokenizer, text, self._limit(), "the text")
        self._atlas()  # one that was made anew has other names
        return self._reading(text)

    def _read(self, text: str) -> Reading:
        tokens = read_tokens(self.model, self.tokenizer, text)
        self._refuse_long(len(tokens), "the text")
        return Reading(tokens, self.names({mixed.id for token in tokens for mixed in token.concepts}))

    def measure(self, text: str, number: int) -> Doing:
        """What the concepts mixed behind a token of ``text`` do for the next one; raises :class:`UserError` for a text
        that cannot be read, and a token that it has not."""
        if not 0 <= number < len(self.read(text).tokens):
            raise UserError("choose a token of the text first")
        with self._places:
            return measure(self.model, self.tokenizer, text, number, *self._teacher_view())

    def _teacher_view(self) -> tuple[TeacherView | None, str]:
        """The labels' teacher, loaded when it is asked for first; or why it is not to be had."""
        with self._teacher_lock:
            if self._teacher is None:
                try:
                    self._teacher = TeacherView(self.settings.model, self.settings.device), ""
                except UserError as error:
                    self._teacher = None, str(error)
            return self._teacher

    # Concept

    def names(self, ids: set[int]) -> dict[int, str]:
        """Names of concepts, ``concept 7`` where there is no atlas."""
        atlas = self._atlas()
        if atlas is not None:
            return atlas.names(ids)
        return {id: f"concept {id}" for id in ids}

    def examples(self, number: int = 6) -> list[str]:
        """Short held-out texts to pick from, whole sentences; none where the model is no run with labels."""
        if self._labels is None:
            return []
        texts = (str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in self._held_out(64).cpu())
        sentences = (_whole_sentences(text) for text in texts)
        return [text for text in dict.fromkeys(sentences) if text and "�" not in text][:number]

    def search(self, text: str, n: int = 20) -> list[dict[str, Any]]:
        """Concepts that ``text`` finds, best first: by number, by name, tokens and contexts; empty: the most frequent.

        Each ``{"id", "name", "frequency", "promoted": [{"token"…}…]}`` at least.
        """
        atlas = self._need_atlas()
        asked = text.strip().removeprefix("#")
        if asked.isdecimal() and len(asked) < 10:
            return [atlas.concept(self.concept_id(asked))]
        return atlas.search(text[:1000], n) if text.strip() else atlas.top(n)

    def card(self, id: int) -> dict[str, Any]:
        """All that is known of a concept (:func:`cocomix.steer.student_atlas.card`), and ``usual``, its usual strength
        in the model; None: it is never mixed, or nobody can tell."""
        found = card(self._need_atlas(), self._student(), id)
        usual = self._usual_table()
        strength = float(usual[id]) if usual is not None else float("nan")
        return {**found, "usual": strength if np.isfinite(strength) else None}

    def concept_id(self, text: str) -> int:
        """The number in ``text``; raises :class:`UserError` where it is none of the model's concepts."""
        written = str(text).strip().removeprefix("#").partition(" ")[0]
        if not (written.isascii() and written.isdecimal() and len(written) < 10 and int(written) < self.concepts):
            shown = written if len(written) <= 20 else written[:20] + "…"
            raise UserError(f"there is no concept {shown!r}: the model has concepts 0 to {self.concepts - 1}")
        return int(written)

    def rename(self, id: int, name: str, author: str = "") -> None:
        """Gives a concept a name; an empty one gives the automatic name back."""
        atlas = self._need_atlas()
        if name.strip():
            atlas.rename(id, name, author)
        else:
            atlas.unname(id)
        self._reading.cache_clear()  # names are in it

    def _need_atlas(self) -> Any:
        atlas = self._atlas()
        if atlas is None:
            raise UserError(
                f"model={self.settings.model} has no atlas: make one with 'cocomix concepts atlas', or give atlas=FILE"
            )
        return atlas

    def _open_atlas(self) -> Atlas | None:
        self._reading.cache_clear()  # names are in it
        return atlas_of(self.settings.model, self.settings.atlas)

    def _open_student(self, path: Path | None) -> StudentAtlas | None:
        return StudentAtlas.open(self.settings.model) if path is not None and path.is_file() else None

    def _usual_table(self) -> Tensor | None:
        if self._usual is None and self._labels is not None:
            self._usual = load_usual(self.settings.model, self.model)
        return self._usual

    # Steer

    def edits(self, texts: Sequence[str]) -> list[Edit]:
        """Edits as the command line writes them; raises :class:`UserError` for what is none."""
        if len(texts) > MOST_EDITS:
            raise UserError(f"{len(texts)} edits are too many: give {MOST_EDITS} at most")
        edits = [parse_edit(text) for text in texts]
        for edit in edits:
            check_edit(edit, self.concepts)
        return edits

    def stream(
        self, prompt: str, edits: Sequence[str], sampling: Sampling, stop: threading.Event | None = None
    ) -> Iterator[Texts]:
        """The prompt's continuation without and with the edits, side by side from the same random numbers, after every
        token. ``stop`` ends the work itself. Raises :class:`UserError` for a prompt that is too long and bad edits.
        """
        stop = stop or threading.Event()
        asked, how = self.edits(edits), self._generation(sampling)
        tokens = len(token_ids(self.tokenizer, prompt, self._limit(), "the prompt"))
        self._refuse_long(tokens, "the prompt")
        if tokens + how.max_new_tokens > self.positions:
            raise UserError(
                f"the prompt's {tokens} tokens and {how.max_new_tokens} new ones are more than the model's "
                f"{self.positions} positions: shorten one of them"
            )
        raw = tuple(in_raw_units(asked, self._usual_for(asked)))
        requests = [Request(prompt), Request(prompt, raw)] if raw else [Request(prompt)]
        return self._stream_in_turn(requests, how, stop)

    def _stream_in_turn(
        self, requests: Sequence[Request], how: GenerateSettings, stop: threading.Event
    ) -> Iterator[Texts]:
        while not self._places.acquire(timeout=0.05):
            if stop.is_set():
                return
        try:
            yield from stream(self.model, self.tokenizer, requests, how, stop)
        finally:
            self._places.release()

    def dose_response(self, id: int, stop: threading.Event | None = None) -> Iterator[list[Dose]]:
        """How much likelier the concept's promoted tokens become on held-out text when it is set to several strengths,
        in units of its usual one; a longer list after each measurement."""
        edits = [Edit(id, "set", dose, unit="usual") for dose in DOSES]
        tokens = [entry["id"] for entry in self._need_atlas().concept(id)["promoted"]]
        windows, raw = self._held_out(DOSE_WINDOWS), in_raw_units(edits, self._usual_for(edits))
        done: list[Dose] = []
        for dose, edit in zip(DOSES, raw, strict=True):
            if stop is not None and stop.is_set():
                return
            with self._places:
                done.append(Dose(dose, promotion(self.model, windows, [edit], tokens)))
            yield list(done)

    def as_command(self, prompt: str, edits: Sequence[str], sampling: Sampling) -> str:
        """The command line that makes the same texts."""
        return repeat.as_command(prompt, self.edits(edits), self._generation(sampling))

    def as_python(self, prompt: str, edits: Sequence[str], sampling: Sampling) -> str:
        """The Python that makes the same texts."""
        return repeat.as_python(prompt, self.edits(edits), self._generation(sampling))

    def _generation(self, sampling: Sampling) -> GenerateSettings:
        new, temperature, seed = sampling
        for name, value, least, most in (
            ("new tokens", new, 1, self.settings.new_tokens),
            ("temperature", temperature, 0, 100),
            ("seed", seed, 0, 2**63 - 1),
        ):
            if not isinstance(value, int | float) or not least <= value <= most:
                raise UserError(f"{name}: {value} is no number from {least} to {most}")
        return GenerateSettings(
            model=self.settings.model,
            max_new_tokens=int(new),
            temperature=float(temperature),
            seed=int(seed),
            device=self.settings.device,
        )

    def _usual_for(self, edits: Sequence[Edit]) -> Tensor | None:
        """The table of usual strengths, where an edit needs it."""
        if all(edit.unit == "raw" for edit in edits):
            return None
        if self._labels is None:  # says what to give instead
            return load_usual(self.settings.model, self.model)
        return self._usual_table()

    def _held_out(self, windows: int) -> Tensor:
        if self._labels is None:
            raise UserError(
                f"model={self.settings.model} is no run with concept labels: there is no text to measure on"
            )
        labels, dataset = open_labels(self._labels)
        split, window = dataset.split("val"), min(labels.window, self.positions)
        count = split.count(window)
        ids = split.read(np.linspace(0, count - 1, min(windows, count)).astype(int), window)
        return torch.from_numpy(ids[:, :-1]).to(self.model.device)

    def _limit(self) -> int:
        return min(self.positions, self.settings.prompt_tokens or self.positions)

    def _refuse_long(self, tokens: int, what: str) -> None:
        if tokens > self._limit():
            raise UserError(f"{what} has {tokens} tokens, {self._limit()} are the most: shorten it")

    # Runs

    def runs(self) -> dict[str, Run]:
        """The runs in the folder beside the model's, by name of their folder there; damaged ones are left out."""
        return find_runs(self._runs_root)

    def compare(self, names: Sequence[str]) -> Comparison:
        """The runs of these names held against each other.

        Raises :class:`UserError` for a name that is none of :meth:`runs`, and for runs that cannot be compared.
        """
        return compare_runs(self._runs_root, names)

    @property
    def _runs_root(self) -> Path:
        if self.settings.runs is not None:
            return Path(self.settings.runs).expanduser()
        model = Path(self.settings.model).expanduser().resolve()
        return (model if (model / "run.json").is_file() else model.parent).parent


def _whole_sentences(text: str) -> str:
    """The part of a text between its first and its last sentence's end, or else its whole words."""
    for end in (". ", " "):
        first, last = text.find(end), text.rfind(end)
        if last - first >= 40:
            return text[first + len(end) : last + len(end)].strip()
    return ""
