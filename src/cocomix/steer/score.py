"""Does steering work, over many concepts and doses? A model's own edits beside the two baselines, judged by others.

docs/steering_score.md defines every number. What one concept gave lies in a file of its own, so that a score that was
stopped goes on. Shapes: P prompts, T tokens of a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cocomix.concepts.atlas import Atlas
from cocomix.concepts.labels import open_labels
from cocomix.concepts.pair import load_pair, load_pair_of, named
from cocomix.concepts.settings import ExtractSettings
from cocomix.data.dataset import Dataset
from cocomix.devices import pick_device
from cocomix.errors import UserError
from cocomix.files import read_json, sha256_json, write_json
from cocomix.model.load import load_concept_model, weights_hash
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.progress import progress
from cocomix.steer.edits import check_steers, steering
from cocomix.steer.notation import Edit
from cocomix.steer.score_baselines import along, decoder_row, random_direction
from cocomix.steer.score_judge import Judge, Match, counted, matches
from cocomix.steer.score_sample import LISTED, RULE, draw_concepts, draw_prompts, listed_concepts, suitable
from cocomix.steer.score_settings import ScoreSettings
from cocomix.steer.score_texts import at_once, write
from cocomix.steer.text import continuation
from cocomix.steer.usual import labels_folder, load_usual, run_folder
from cocomix.stopping import Stopped, StopRequest

FORMAT = 1
METHODS = ("concept", "random", "teacher")
"""The student's own edit; a random direction in the student; the SAE's decoder row in the teacher."""
WINDOWS = 256
"""Held-out windows on which activations are measured."""
ABOUT = "about.json"
"""What a folder's score is of."""
UNHEARD = ("model", "labels", "judge", "judge_sae", "fluency", "batch", "out", "device")
"""Settings that are known by hashes, or that change no text."""


def score(settings: ScoreSettings) -> dict[str, Any]:
    """Everything that was measured, concept by concept: ``{"model", "labels", "judge", "rule", "doses", "measured",
    "atlas", "settings", "concepts": [{"id", "name", "frequency", "count", "usual_strength", "usual_activation",
    "latent", "correlation", "methods": {method: [cell of each dose]}}]}``.

    A cell holds the measures of :data:`cocomix.report.steering.MEASURES`, the ``dose`` and the first prompt's
    ``text``. Raises :class:`UserError` for what cannot be measured, :class:`Stopped` when asked to stop; the same
    command then goes on.
    """
    folder = score_folder(settings)
    bench = Bench.open(settings)
    about = bench.about()
    claim(folder, about)
    records = []
    with StopRequest() as stop, progress("concepts", len(bench.entries)) as bar:
        for entry, match in zip(bench.entries, bench.matches, strict=True):
            path = folder / "concepts" / f"{entry['id']}.json"
            if not path.is_file():
                write_json(path, bench.measure(entry, match))
            records.append(read_json(path, "a concept's part of a steering score"))
            bar.advance(note=entry["name"][:30])
            if stop.requested and entry is not bench.entries[-1]:
                raise Stopped(f"{folder}: {len(records)} of {len(bench.entries)} concepts are measured")
    return {**about, "settings": settings.model_dump(mode="json"), "concepts": records}


def score_folder(settings: ScoreSettings) -> Path:
    """Where the result lies; raises :class:`UserError` when it must be given, or is something else than a score."""
    run = run_folder(settings.model)
    if settings.out is None and run is None:
        raise UserError(f"model={settings.model} is no run's folder: say with out=FOLDER where the score is to lie")
    folder = Path(settings.out).expanduser() if settings.out is not None else run / "steering"  # type: ignore[operator]
    if folder.exists() and not (folder / ABOUT).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"out={folder} holds something else than a score: give an empty or new folder")
    return folder


def claim(folder: Path, about: dict[str, Any]) -> None:
    """Makes the folder this score's, or finds that it is; raises :class:`UserError` when it is another's."""
    path = folder / ABOUT
    if path.is_file():
        found = read_json(path, "what a steering score is of")
        # The rule is words for what is measured, and what an older version did not write is taken as the same.
        changed = [key for key in about if key != "rule" and found.get(key, about[key]) != about[key]]
        if changed:
            raise UserError(
                f"out={folder} holds a score with another {changed[0]}: give another out=FOLDER, or delete that folder"
            )
        if found.keys() >= about.keys():
            return
    write_json(path, about)


class Bench(NamedTuple):
    """A student, its labels' teacher and a judge, and what is to be measured."""

    settings: ScoreSettings
    model: CoCoMixForCausalLM
    tokenizer: PreTrainedTokenizerBase
    own: Judge
    """The labels' teacher and autoencoder: the baseline that is steered."""
    judge: Judge
    labels: str
    """Fingerprint of the labels."""
    vocabulary: int
    prompts: Int[Tensor, "P L"]
    strengths: Float[Tensor, " C"]
    """Usual, of the student's concepts."""
    activations: Float[Tensor, " C"]
    """Usual, of the latents of :attr:`own`."""
    entries: list[dict[str, Any]]
    """The atlas' of the concepts that are measured."""
    matches: list[Match]
    unsteered: tuple[Int[Tensor, "P T"], Int[Tensor, "P T"]]
    """The student's texts, and the teacher's."""

    @classmethod
    def open(cls, settings: ScoreSettings) -> Bench:
        """Loads all, draws concepts and prompts, writes the unsteered texts."""
        folder = Path(settings.labels) if settings.labels is not None else labels_folder(settings.model)
        if folder is None:
            raise UserError(
                f"model={settings.model} is no run with concept labels, which name its teacher: give labels="
            )
        labels, dataset = open_labels(folder)
        held_out = dataset.split("val")
        if not held_out.count(labels.window):
            raise UserError(
                f"the held-out text of {dataset.folder} has no window of {labels.window} tokens, which the labels "
                "have: prepare the data with a larger val_fraction"
            )
        atlas = Atlas.open(folder)
        model, tokenizer = load_concept_model(settings.model, str(pick_device(settings.device)))
        check_steers(model, f"model={settings.model}")
        if labels.concepts != model.config.num_concepts:
            raise UserError(
                f"labels={folder} are of {labels.concepts} concepts, the model predicts {model.config.num_concepts}: "
                "give the labels that it learnt from"
            )
        length = settings.prompt_tokens + settings.max_new_tokens
        own = Judge(*load_pair_of(labels, dataset, settings.device), settings.batch)
        judge = own if settings.judge is None else _other(dataset, labels.window, settings)
        _check_length(length, model, own, judge)
        windows = held_out.read(np.arange(min(WINDOWS, held_out.count(labels.window))), labels.window)
        text = torch.from_numpy(windows[:, :-1].astype(np.int64))
        strengths, activations = load_usual(settings.model, model, folder if settings.labels else None), own.usual(text)
        if isinstance(settings.concepts, int):
            entries = draw_concepts(atlas, suitable(strengths, activations), settings.concepts, settings.seed)
        else:
            entries = listed_concepts(atlas, strengths, activations, settings.concepts)
        usual = activations if judge is own else judge.usual(text)
        found = matches(judge, own, [entry["id"] for entry in entries], text, usual)
        for entry, match in zip(entries, found, strict=True):
            if not match.usual > 0:
                raise UserError(
                    f"judge_sae={settings.judge_sae} has no latent that goes with concept {entry['id']} on held-out "
                    "text: give other concepts=, or another judge"
                )
        prompts = draw_prompts(held_out, labels.window, settings.prompts, settings.prompt_tokens, settings.seed)
        size = dataset.vocab_size
        unsteered = write(model, prompts, 1, size, settings), write(own.teacher.model, prompts, 1, size, settings)
        return cls(
            settings, model, tokenizer, own, judge, labels.fingerprint, size, prompts, strengths, activations, entries,
            found, unsteered,
        )  # fmt: skip

    def about(self) -> dict[str, Any]:
        """What a score is of: two with the same are the same."""
        promoted = [(entry["id"], [token["id"] for token in entry["promoted"]]) for entry in self.entries]
        return {
            "format": FORMAT,
            "model": weights_hash(self.settings.model),
            "labels": self.labels,
            "judge": [self.judge.teacher.fingerprint, self.judge.teacher.block, self.judge.sae.fingerprint],
            "rule": RULE if isinstance(self.settings.concepts, int) else LISTED,
            "doses": [0.0, *self.settings.doses],
            "measured": {k: v for k, v in self.settings.model_dump(mode="json").items() if k not in UNHEARD},
            "atlas": sha256_json(promoted),
        }

    def measure(self, entry: dict[str, Any], match: Match) -> dict[str, Any]:
        """All doses and methods of one concept."""
        concept, promoted = entry["id"], [token["id"] for token in entry["promoted"]]
        cells = {}
        for method in METHODS:
            plain = self.unsteered[method == "teacher"]
            texts = [plain, *self.texts(method, concept)]
            cells[method] = [
                {"dose": dose, **self.judged(text, match, promoted)}
                for dose, text in zip([0.0, *self.settings.doses], texts, strict=True)
            ]
        return {
            **{key: entry[key] for key in ("id", "name", "frequency", "count")},
            "usual_strength": float(self.strengths[concept]),
            "usual_activation": float(self.activations[concept]),
            "latent": match.latent,
            "correlation": match.correlation,
            "methods": cells,
        }

    def texts(self, method: str, concept: int, doses: Sequence[float] | None = None) -> Iterator[Int[Tensor, "P T"]]:
        """Prompts and continuations at each dose above 0, or at those given."""
        network: Any = self.own.teacher.model if method == "teacher" else self.model
        for part in at_once(self.settings.doses if doses is None else doses, self.settings):
            with self.dosed(method, concept, part):
                written = write(network, self.prompts, len(part), self.vocabulary, self.settings)
            yield from written.split(len(self.prompts))

    @contextmanager
    def dosed(self, method: str, concept: int, doses: Sequence[float]) -> Iterator[None]:
        """Within the context the method's model is steered, the rows of each prompt set at a dose of their own."""
        edits = [[Edit(concept, "add", dose * float(self.strengths[concept]))] for dose in doses]
        context: AbstractContextManager[None]
        match method:
            case "concept":
                context = steering(self.model, edits)
            case "random":
                direction = random_direction(self.model.config.text_config.hidden_size, self.settings.seed, concept)
                context = along(self.model, edits, direction)
            case _:
                amounts = torch.tensor(doses).repeat_interleave(len(self.prompts)) * self.activations[concept]
                context = decoder_row(self.own.teacher, self.own.sae, concept, amounts)
        with context:
            yield

    def judged(self, text: Int[Tensor, "P T"], match: Match, promoted: Sequence[int]) -> dict[str, Any]:
        """The measures of one cell, of the tokens behind the prompts."""
        new = self.settings.max_new_tokens
        strengths = self.judge.strengths(text, [match.latent])[0, :, -new:].double()
        return {
            "activation": float(strengths.mean()) / match.usual,
            "active": float((strengths > 0).double().mean()),
            "nll": self.judge.nll(text, new),
            **counted(text[:, -new:], promoted),
            "text": continuation(self.tokenizer, text[0, :-new].tolist(), text[0, -new:].tolist(), False),
        }


def _other(dataset: Dataset, window: int, settings: ScoreSettings) -> Judge:
    assert settings.judge_sae is not None
    pair = ExtractSettings(
        data=str(dataset.folder),
        sae=settings.judge_sae,
        teacher=settings.judge,
        block=settings.judge_block,
        device=settings.device,
    )
    return Judge(*load_pair(pair, named(pair), dataset, window), settings.batch)


def _check_length(length: int, model: CoCoMixForCausalLM, own: Judge, judge: Judge) -> None:
    for what, config in (
        ("model", model.config.text_config),
        ("teacher", own.teacher.config),
        ("judge", judge.teacher.config),
    ):
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and length > limit:
            raise UserError(
                f"prompt_tokens and max_new_tokens are {length} together, the {what} reads {limit}: give less of them"
            )
