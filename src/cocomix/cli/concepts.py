"""``cocomix concepts extract``, ``probabilities``, ``atlas``, ``find``, ``show``, ``names`` and ``weights``."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from cocomix.cli.common import Json, Overrides, Words, plain, quiet_transformers
from cocomix.cli.common import show as show_result

WAIT_SECONDS = 3600.0
"""How long ranks wait for each other: the first may have to download and hash a model meanwhile."""

Folder = Annotated[
    str | None,
    typer.Argument(metavar="[LABELS]", help="The labels' folder (DATASET/labels/NAME), or give data= and name=."),
]
Text = Annotated[str | None, typer.Argument(metavar="[WORDS]", help="Words to look for.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Run folder or export folder.")]
Id = Annotated[int, typer.Argument(metavar="ID", help="The concept's number.")]


class Action(Enum):
    """What is done with names."""

    export = "export"
    import_ = "import"


def extract(words: Words = None, json: Json = False) -> None:
    """Label every token of a dataset with the concepts that matter most to a teacher's loss.

    A pass forward and half a pass backward through the teacher, once for all runs; the labels lie beside the
    token shards. Stopped or killed, the same command goes on and writes the same bytes, on any number of ranks: each
    takes units of work, and the seconds that are noted are those of all ranks added up.

    Example:

      cocomix concepts extract data=data/mine sae=sae name=largest attribution.k=4 attribution.order=largest

    On 8 GPUs:

      torchrun --nproc-per-node 8 -m cocomix concepts extract data=data/mine sae=sae
    """
    from cocomix.concepts.extract import extract as extract_labels
    from cocomix.concepts.settings import ExtractSettings
    from cocomix.config import load_settings
    from cocomix.dist.world import joined

    quiet_transformers()
    settings = load_settings(ExtractSettings, words or [])
    with joined(WAIT_SECONDS, settings.device) as world:
        manifest = extract_labels(settings)
        if not world.first:
            return
    cost, found = manifest["cost"], manifest["statistics"]
    text = (
        f"{settings.data}/labels/{settings.name}: {manifest['tokens']:,} tokens, {manifest['attribution']['k']} labels "
        f"each ({found['masked_share']:.1%} of these places empty), {found['distinct_concepts']:,} of "
        f"{manifest['sae']['latents']:,} concepts occur; {cost['flops'] / 1e12:.1f} TFLOP, {cost['seconds']:.0f} s, "
        f"{1 / cost['seconds_per_token']:,.0f} tokens/s"
    )
    show_result({"name": settings.name, **manifest}, text, json)


def probabilities(words: Words = None, json: Json = False) -> None:
    """Write down what a teacher expects next at every token of a dataset: for distillation.

    A pass forward through the teacher, once for all runs; its k likeliest tokens and their probabilities lie beside the
    token shards, all other tokens share one bucket. Resumable and shared between ranks like 'concepts extract'.

    Example:

      cocomix concepts probabilities data=data/mine teacher=runs/teacher k=32 name=teacher
    """
    from cocomix.concepts.extract import extract_probabilities
    from cocomix.concepts.settings import ProbabilitySettings
    from cocomix.config import load_settings
    from cocomix.dist.world import joined

    quiet_transformers()
    settings = load_settings(ProbabilitySettings, words or [])
    with joined(WAIT_SECONDS, settings.device) as world:
        manifest = extract_probabilities(settings)
        if not world.first:
            return
    cost = manifest["cost"]
    text = (
        f"{settings.data}/probabilities/{settings.name}: {manifest['tokens']:,} tokens, the {manifest['k']} likeliest "
        f"of each hold {manifest['statistics']['mass']:.1%}; "
        f"{cost['flops'] / 1e12:.1f} TFLOP, {cost['seconds']:.0f} s, "
        f"{1 / cost['seconds_per_token']:,.0f} tokens/s"
    )
    show_result({"name": settings.name, **manifest}, text, json)


def atlas(labels: Folder = None, words: Overrides = None, json: Json = False) -> None:
    """Describe every concept: how often and how strongly it occurs, where, which tokens it promotes, what is near.

    Reads the labels once, without running the teacher, and writes atlas.sqlite beside them. With model=RUN also what
    a trained model makes of them: how often it predicts each concept, how often its teacher agrees, what a concept does
    to the next token; that lies in RUN/atlas.sqlite, and an atlas of the labels that is there is not made again.

    Example:

      cocomix concepts atlas data/mine/labels/largest

      cocomix concepts atlas model=runs/cocomix effects=1000
    """
    from cocomix.concepts.build_atlas import build_atlas, find_atlas
    from cocomix.concepts.settings import AtlasSettings
    from cocomix.config import load_settings

    quiet_transformers()
    folder, words = _optional(labels, words)
    settings = _with_labels(load_settings(AtlasSettings, words, labels=folder))
    made = build_atlas(settings) if settings.model is None else find_atlas(settings) or build_atlas(settings)
    top = made.top(20)
    lines = [f"{entry['id']:>7}  {entry['frequency']:>7.2%}  {entry['name']}" for entry in top]
    brief = [{key: entry[key] for key in ("id", "name", "frequency", "count", "mean_strength")} for entry in top]
    result: dict[str, Any] = {
        "atlas": str(made.path),
        "concepts": made.concepts,
        "dead": made.dead,
        "tokens": made.tokens,
        "top": brief,
    }
    text = [f"{made.path}: {made.concepts:,} concepts, {made.dead:,} never a label; the most frequent:", *lines]
    if settings.model is not None:
        from cocomix.steer.student_atlas_build import build_student_atlas

        student = build_student_atlas(settings, settings.model)
        measured, found = student.measured(), student.agreement
        result["student"] = {"atlas": str(student.path), "tokens": student.tokens, **found}
        result["student"] |= {"ignored": student.ignored(), "measured": len(measured)}
        names = made.names(measured[:10])
        text += [
            f"{student.path}: of the labels of {student.tokens:,} tokens the model's strongest predictions hold "
            f"{found['recall']:.1%} (always the same ones would: {found['marginal_recall']:.1%}), "
            f"those it mixes {found['mixed_recall']:.1%}; it ignores {student.ignored():,} concepts",
            f"largest effects of {len(measured):,} measured, nats a token:",
            *(f"{id:>7}  {student.concept(id)['effect']:>9.3g}  {names[id]}" for id in measured[:10]),
        ]
    show_result(result, "\n".join(text), json)


def find(text: Text = None, words: Overrides = None, json: Json = False) -> None:
    """List concepts of an atlas: those that know some words, that are dead, that a model ignores, or the most frequent.

    Words are looked for in names, then in promoted and labelled tokens, then in contexts; all must be there, and from
    three letters on their beginnings suffice. With model=RUN also what that model makes of each.

    Example:

      cocomix concepts find "harbour" labels=data/mine/labels/largest

      cocomix concepts find only=ignored by=frequency model=runs/cocomix
    """
    from cocomix.concepts.settings import FindSettings
    from cocomix.config import load_settings
    from cocomix.steer.find_concepts import find_concepts

    text, words = _optional(text, words)
    result = find_concepts(_with_labels(load_settings(FindSettings, words, text=text)))
    lines = [_found(concept) for concept in result["concepts"]]
    shown = f", the first {len(lines):,}" if len(lines) < result["found"] else ""
    show_result(result, "\n".join([f"{result['atlas']}: {result['found']:,} concepts{shown}", *lines]), json)


def _found(concept: dict[str, Any]) -> str:
    line = f"{concept['id']:>7}  {concept['frequency']:>7.2%}  {concept['name']}"
    student = concept["student"]
    if student is None:
        return line
    told = [f"mixed {student['frequency']:.2%}"]
    told += [] if student["recall"] is None else [f"recall {student['recall']:.0%}"]
    told += [] if student["effect"] is None else [f"effect {student['effect']:.3g}"]
    return f"{line}  ({', '.join(told)}{', ignored' if student['ignored'] else ''})"


def show(id: Id, words: Overrides = None, json: Json = False) -> None:
    """Print what is known of one concept, with model=RUN also what that model makes of it.

    Example:

      cocomix concepts show 17 labels=data/mine/labels/largest

      cocomix concepts show 17 model=runs/cocomix
    """
    from cocomix.concepts.atlas import Atlas
    from cocomix.concepts.settings import ShowSettings
    from cocomix.config import load_settings

    settings = _with_labels(load_settings(ShowSettings, words or [], id=id))
    labels = Atlas.open(settings.folder)
    if settings.model is None:
        concept = labels.concept(settings.id)
    else:
        from cocomix.steer.student_atlas import StudentAtlas, card

        concept = card(labels, StudentAtlas.open(settings.model), settings.id)
    if json:
        show_result(concept, "", True)
    else:
        from rich.console import Console

        from cocomix.concepts.atlas_card import drawn_card

        Console().print(drawn_card(concept))


def names(
    action: Annotated[Action, typer.Argument(help="Write a file, or read one.")],
    file: Annotated[str, typer.Argument(metavar="FILE.json", help="Names, in Neuronpedia's format of explanations.")],
    words: Overrides = None,
    json: Json = False,
) -> None:
    """Take the concepts' names out of an atlas as JSON, and put names in, written by people or by a language model.

    A list of objects: "index" is the concept's number, "description" its name, "explanationModelName" who gave it;
    other fields are kept. What is in the atlas already changes nothing; a wrong line is named, and nothing is imported.

    Example:

      cocomix concepts names export names.json labels=data/mine/labels/largest

      cocomix concepts names import names.json labels=data/mine/labels/largest
    """
    from cocomix.concepts.atlas import Atlas
    from cocomix.concepts.atlas_explanations import export_names, import_names, origin, place
    from cocomix.concepts.settings import RunLabelsSettings
    from cocomix.config import load_settings

    atlas = Atlas.open(_with_labels(load_settings(RunLabelsSettings, words or [])).folder)
    if action is Action.export:
        number = export_names(atlas, file)
        text = f"{file}: the names of {number:,} concepts"
    else:
        number = import_names(atlas, file)
        text = f"{atlas.path}: {number:,} concepts have new names"
        theirs, ours = origin(file), " ".join(place(atlas).values())
        if number and theirs not in (None, ours):
            text += f"; the file's are of {theirs}, these concepts of {ours}: see that they are the same autoencoder's"
    show_result({"atlas": str(atlas.path), "file": file, "names": number}, text, json)


def weights(model: Model, words: Overrides = None, json: Json = False) -> None:
    """Say which concepts a trained model has learned to leave out: the norms of its compression's weights.

    The continuous concept adds up a vector for each predicted concept; one whose vector is near zero adds nothing.
    Reads the model's safetensors and writes compression.json (a norm a concept) and compression.png (their histogram)
    into out=FOLDER, without it into the model's folder.

    Example:

      cocomix concepts weights runs/cocomix bound=0.01
    """
    from cocomix.config import load_settings
    from cocomix.evaluate.weights import concept_weights, results_folder
    from cocomix.evaluate.weights_settings import WeightsSettings
    from cocomix.files import write_json
    from cocomix.progress import say
    from cocomix.report.weights import write_histogram

    settings = load_settings(WeightsSettings, words or [], model=plain("model", model))
    result = concept_weights(settings)
    out = results_folder(settings)
    picture = write_histogram(result["norms"], settings.bound, out / "compression.png")
    write_json(out / "compression.json", result)
    median, largest = result["quantiles"]["0.5"], result["quantiles"]["1"]
    text = (
        f"{result['below']:,} of {result['concepts']:,} concepts ({result['share_below']:.1%}) have weights of a norm "
        f"below {settings.bound:g}; median {median:.4g}, largest {largest:.4g}"
    )
    show_result(result, text, json)
    say(f"written: {out / 'compression.json'}, {picture}")


def _optional(first: str | None, words: list[str] | None) -> tuple[str | None, list[str]]:
    """The first argument may be left out: then what stands in its place is a setting."""
    if first is not None and "=" in first:
        return None, [first, *(words or [])]
    return first, words or []


def _with_labels(settings: Any) -> Any:
    """``RunLabelsSettings`` with the folder of the labels that the run learnt from, where nothing else says which."""
    if settings.labels is not None or settings.data is not None:
        return settings
    from cocomix.errors import UserError
    from cocomix.steer.usual import labels_folder

    folder = labels_folder(str(settings.model))
    if folder is None:
        raise UserError(f"model={settings.model} does not say which labels it learnt from: give labels=FOLDER too")
    return settings.model_copy(update={"labels": str(folder)})
