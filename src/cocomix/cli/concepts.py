"""``cocomix concepts extract``, ``probabilities``, ``atlas``, ``show`` and ``weights``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cocomix.cli.common import Json, Overrides, Words, quiet_transformers
from cocomix.cli.common import show as show_result

Folder = Annotated[
    str | None,
    typer.Argument(metavar="[LABELS]", help="The labels' folder (DATASET/labels/NAME), or give data= and name=."),
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Run folder or export folder.")]
Id = Annotated[int, typer.Argument(metavar="ID", help="The concept's number.")]


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
    with joined() as world:
        manifest = extract_labels(settings)
        if not world.first:
            return
    cost, found = manifest["cost"], manifest["statistics"]
    text = (
        f"{settings.data}/labels/{settings.name}: {manifest['tokens']:,} tokens, {manifest['attribution']['k']} labels "
        f"each ({found['masked_share']:.1%} without a meaning), {found['distinct_concepts']:,} of "
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
    with joined() as world:
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
    """Describe every concept: how often and how strongly it occurs, where, and which tokens it promotes.

    Reads the labels once, without running the teacher, and writes atlas.sqlite beside them.

    Example:

      cocomix concepts atlas data/mine/labels/largest
    """
    from cocomix.concepts.build_atlas import build_atlas
    from cocomix.concepts.settings import AtlasSettings
    from cocomix.config import load_settings

    quiet_transformers()
    folder, words = _folder(labels, words)
    made = build_atlas(load_settings(AtlasSettings, words, labels=folder))
    top = made.top(20)
    lines = [f"{entry['id']:>7}  {entry['frequency']:>7.2%}  {entry['name']}" for entry in top]
    text = "\n".join([f"{made.path}: {made.concepts:,} concepts, the most frequent:", *lines])
    brief = [{key: entry[key] for key in ("id", "name", "frequency", "count", "mean_strength")} for entry in top]
    result = {"atlas": str(made.path), "concepts": made.concepts, "tokens": made.tokens, "top": brief}
    show_result(result, text, json)


def show(id: Id, words: Overrides = None, json: Json = False) -> None:
    """Print what is known of one concept.

    Example:

      cocomix concepts show 17 labels=data/mine/labels/largest
    """
    from cocomix.concepts.atlas import Atlas
    from cocomix.concepts.settings import ShowSettings
    from cocomix.config import load_settings

    settings = load_settings(ShowSettings, words or [], id=id)
    concept = Atlas.open(settings.folder).concept(settings.id)
    if json:
        show_result(concept, "", True)
    else:
        _print_card(concept)


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

    settings = load_settings(WeightsSettings, words or [], model=model)
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


def _folder(labels: str | None, words: list[str] | None) -> tuple[str | None, list[str]]:
    """The folder may be left out: then what stands in its place is the first setting."""
    if labels is not None and "=" in labels:
        return None, [labels, *(words or [])]
    return labels, words or []


def _print_card(concept: dict[str, Any]) -> None:
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    facts = Text(
        f"{concept['count']:,} labels, {concept['frequency']:.3%} of tokens, mean strength "
        f"{concept['mean_strength']:.3f}"
    )
    words = Table.grid(padding=(0, 2))
    words.add_row(Text("promotes", "bold"), Text("  ".join(repr(e["token"])[1:-1] for e in concept["promoted"])))
    words.add_row(
        Text("lies on", "bold"),
        Text("  ".join(f"{repr(e['token'])[1:-1]} ({e['count']:,})" for e in concept["labelled"])),
    )
    contexts = Table.grid(padding=(0, 2))
    for context in concept["contexts"]:
        before, token, after = (repr(context[key])[1:-1] for key in ("before", "token", "after"))
        contexts.add_row(Text(f"{context['strength']:.2f}"), Text.assemble(before, (token, "bold reverse"), after))
    Console().print(
        Panel(Group(facts, words, Text(), contexts), title=Text(f"concept {concept['id']}: {concept['name']}"))
    )
