"""What the studio's pages ask: plain functions of one loaded model, from any thread. No gradio here."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cocomix.compare.comparison import Comparison
from cocomix.compare.runs import Run
from cocomix.concepts.atlas import Atlas
from cocomix.concepts.atlas_text import held_out_text
from cocomix.concepts.labels import open_labels
from cocomix.devices import pick_device
from cocomix.errors import UserError
from cocomix.model.load import load_concept_model
from cocomix.steer.edits import Edit, check_edit, check_steers, parse_edit
from cocomix.steer.effect import promotions
from cocomix.steer.inspection import atlas_of, atlas_path
from cocomix.steer.requests import Request
from cocomix.steer.settings import GenerateSettings
from cocomix.steer.student_atlas import StudentAtlas, card, check_belongs, student_path
from cocomix.steer.teacher_view import TeacherView
from cocomix.steer.text import token_ids
from cocomix.steer.usual import in_raw_units, labels_folder, load_usual
from cocomix.studio import repeat
from cocomix.studio.followed import Followed
from cocomix.studio.reading import Doing, Reading, measure, read_tokens
from cocomix.studio.runs import compare_runs, find_runs
from cocomix.studio.settings import StudioSettings
from cocomix.studio.streaming import Texts, stream
from cocomix.studio.turns import Turns

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
        self._turns = Turns(settings.generations, settings.waiting)
        self._usual: tuple[Tensor | None, str] | None = None
        self._usual_lock = threading.Lock()
        self._teacher: tuple[TeacherView | None, str] | None = None
        self._teacher_lock = threading.Lock()

    @property
    def unit(self) -> str:
        """``u`` where strengths can be given in units of the usual one, which is measured on a run's held-out text."""
        return "u" if self._labels is not None else ""

    # Read

    def read(self, text: str) -> Reading:
        """Tokens with surprise and mixed concepts; raises :class:`UserError` for an empty or too long text."""
        self._tokens_of(text, "the text")
        self._atlas()  # one that was made anew has other names
        return self._reading(text)

    def _read(self, text: str) -> Reading:
        with self._turns.one():
            tokens = read_tokens(self.model, self.tokenizer, text)
        return Reading(tokens, self.names({mixed.id for token in tokens for mixed in token.concepts}))

    def measure(self, text: str, number: int) -> Doing:
        """What the concepts mixed behind a token of ``text`` do for the next one; raises :class:`UserError` for a text
        that cannot be read, and a token that it has not."""
        if not 0 <= number < len(self.read(text).tokens):
            raise UserError("choose a token of the text first")
        with self._turns.one():
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
        """Short held-out texts to pick from, whole sentences; none where there is no text."""
        try:
            windows = self._held_out(64).cpu()
        except UserError:
            return []
        texts = (str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in windows)
        sentences = (_whole_sentences(text) for text in texts)
        return [text for text in dict.fromkeys(sentences) if text and "�" not in text][:number]

    def search(self, text: str, n: int = 20) -> list[dict[str, Any]]:
        """At most ``n`` concepts that ``text`` finds, best first: by number, by name, tokens and contexts; empty: the
        most frequent.

        Each ``{"id", "name", "frequency", "promoted": [{"token"…}…]}`` at least.
        """
        atlas = self._need_atlas()
        if not text.strip():
            return atlas.top(n)
        number = self._number(text.strip())
        first = [] if number is None else [atlas.concept(number)]
        return (first + [found for found in atlas.search(text[:1000], n) if found["id"] != number])[:n]

    def card(self, id: int) -> dict[str, Any]:
        """All that is known of a concept (:func:`cocomix.steer.student_atlas.card`); ``usual``, its usual strength in
        the model, as text, None: :meth:`measure_usual` has not yet been asked for it; ``apart``, why what the model
        makes of it is not told where that is of other labels, else empty."""
        atlas, student, apart = self._need_atlas(), self._student(), ""
        if student is not None:
            try:
                check_belongs(atlas, student)
            except UserError as error:
                student, apart = None, str(error)
        return {**card(atlas, student, id), "usual": self._told_usual(id), "apart": apart}

    def _told_usual(self, id: int) -> str | None:
        if self._usual is None:
            return None
        table, missing = self._usual
        if table is None:
            return f"not known: {missing}"
        return f"{table[id]:.2f}" if table[id].isfinite() else "never mixed"

    def measure_usual(self) -> None:
        """Measures the usual strengths, which takes a while once for a run, unless that was tried before."""
        if self._usual is None:
            with self._turns.one():
                self._usual_table()

    def _usual_table(self) -> tuple[Tensor | None, str]:
        """Of all concepts; or why it is not to be had. Whoever asks has a place: it may be measured here."""
        with self._usual_lock:
            if self._usual is None:
                try:
                    self._usual = load_usual(self.settings.model, self.model), ""
                except UserError as error:
                    self._usual = None, str(error)
            return self._usual

    def concept_id(self, text: str) -> int:
        """The number in ``text``; raises :class:`UserError` where it is none of the model's concepts."""
        written = str(text).strip().partition(" ")[0]
        number = self._number(written)
        if number is None:
            shown = written.removeprefix("#") if len(written) <= 20 else written[:20] + "…"
            raise UserError(f"there is no concept {shown!r}: the model has concepts 0 to {self.concepts - 1}")
        return number

    def _number(self, word: str) -> int | None:
        """The concept with this number; None: there is none, or it is no number."""
        word = word.removeprefix("#")
        is_number = word.isascii() and word.isdecimal() and len(word) < 10
        return int(word) if is_number and int(word) < self.concepts else None

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
        return atlas_of(self.settings.model, self.settings.atlas, self.concepts)

    def _open_student(self, path: Path | None) -> StudentAtlas | None:
        return StudentAtlas.open(self.settings.model) if path is not None and path.is_file() else None

    # Steer

    def edits(self, texts: Sequence[str]) -> list[Edit]:
        """Edits as the command line writes them; raises :class:`UserError` for what is none."""
        if len(texts) > MOST_EDITS:
            raise UserError(f"{len(texts)} edits are too many: give {MOST_EDITS} at most")
        if texts:
            self._check_steers()
        edits = [parse_edit(text) for text in texts]
        for edit in edits:
            check_edit(edit, self.concepts)
        return edits

    def _check_steers(self) -> None:
        check_steers(self.model, f"model={self.settings.model}")

    def stream(
        self, prompt: str, edits: Sequence[str], sampling: Sampling, stop: threading.Event | None = None
    ) -> Iterator[Texts]:
        """The prompt's continuation without and with the edits, side by side from the same random numbers, after every
        token. ``stop`` ends the work itself, and waiting for a place. Raises :class:`UserError` for a prompt that is
        too long and bad edits.
        """
        stop = stop or threading.Event()
        asked, how = self.edits(edits), self._generation(sampling)
        tokens = self._tokens_of(prompt, "the prompt")
        if tokens + how.max_new_tokens > self.positions:
            raise UserError(
                f"the prompt's {tokens} tokens and {how.max_new_tokens} new ones are more than the model's "
                f"{self.positions} positions: shorten one of them"
            )
        return self._stream_in_turn(prompt, asked, how, stop)

    def _stream_in_turn(
        self, prompt: str, edits: Sequence[Edit], how: GenerateSettings, stop: threading.Event
    ) -> Iterator[Texts]:
        with self._turns.one(stop) as may:
            if may:
                raw = tuple(in_raw_units(edits, self._usual_for(edits)))
                requests = [Request(prompt), Request(prompt, raw)] if raw else [Request(prompt)]
                yield from stream(self.model, self.tokenizer, requests, how, stop)

    def dose_response(self, id: int, stop: threading.Event | None = None) -> Iterator[list[Dose]]:
        """How much likelier the concept's promoted tokens become on held-out text when it is set to several strengths,
        in units of its usual one; a longer list after each measurement. ``stop`` ends it, and waiting for a place."""
        self._check_steers()
        edits = [Edit(id, "set", dose, unit="usual") for dose in DOSES]
        tokens = [entry["id"] for entry in self._need_atlas().concept(id)["promoted"]]
        windows, done = self._held_out(DOSE_WINDOWS), list[Dose]()

        def measured() -> Iterator[float]:
            raw = in_raw_units(edits, self._usual_for(edits))
            yield from promotions(self.model, windows, [[edit] for edit in raw], tokens)

        effects = measured()  # begins with the first place
        for dose in DOSES:
            with self._turns.one(stop) as may:
                if not may:
                    return
                done.append(Dose(dose, next(effects)))
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
        table, missing = self._usual_table()
        if table is None:
            raise UserError(missing)
        return table

    def _held_out(self, windows: int) -> Tensor:
        if self._labels is None:
            raise UserError(
                f"model={self.settings.model} is no run with concept labels: there is no text to measure on"
            )
        labels, dataset = open_labels(self._labels)
        window = min(labels.window, self.positions)
        return torch.from_numpy(held_out_text(dataset, window, windows * window, window)).to(self.model.device)

    def _tokens_of(self, text: str, what: str) -> int:
        """How many tokens the text has; raises :class:`UserError` for more than are allowed."""
        most = min(self.positions, self.settings.prompt_tokens or self.positions)
        tokens = len(token_ids(self.tokenizer, text, most, what))
        if tokens > most:
            raise UserError(f"{what} has {tokens} tokens, {most} are the most: shorten it")
        return tokens

    # Runs

    def runs(self) -> dict[str, Run]:
        """The runs in the folder beside the model's, by name of their folder there; damaged ones are left out."""
        return find_runs(self._runs_root)

    def compare(self, names: Sequence[object]) -> Comparison:
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
