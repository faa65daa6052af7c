"""`cocomix generate`."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from cocomix.cli.common import Json, Overrides, plain, quiet_transformers, show


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text to continue, prompt=TEXT where it begins like a setting; or give prompts=FILE."),
    ] = None,
    words: Overrides = None,
    steer: Annotated[
        list[str] | None,
        typer.Option(
            "--steer",
            metavar="ID=EDIT",
            help="Edit a concept before TopK: ID=x5 scales, ID=set:4 sets, ID=+3 or ID=-3 adds, ID=clamp:0:4 keeps "
            "within bounds, ID=off ablates; u after a strength (ID=set:2u) counts in units of the concept's usual "
            "one. @START:END after it is a span of tokens, @prompt: what comes after the prompt; until:TEXT, last, "
            "ends the edit where TEXT was written. Several may be given.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Continue a text, and show beside it the continuation under edits of concepts, from the same random numbers.

    With prompts=FILE many texts, each with edits of its own; --json then prints a line for each as it is done.

    Example: cocomix generate "The economy of" model=runs/cocomix --steer 12=x5 --steer "7=set:2u @prompt:"
    """
    from cocomix.config import load_settings
    from cocomix.errors import UserError
    from cocomix.steer.notation import parse_edit
    from cocomix.steer.settings import GenerateSettings

    given = list(words or [])
    try:
        edits = [parse_edit(text) for text in steer or []]
    except UserError as error:
        raise UserError(f"--steer {error}") from error
    if prompt is not None and "=" in prompt and prompt.partition("=")[0] in GenerateSettings.model_fields:
        given, prompt = [prompt, *given], None  # the first setting of a command line without a prompt
    elif prompt is not None:
        prompt = plain("prompt", prompt)
    settings = load_settings(GenerateSettings, given)
    if (prompt is None) == (settings.prompts is None):
        raise UserError("give a prompt, or prompts=FILE, and not both: see 'cocomix generate --help'")
    quiet_transformers()
    if prompt is None:
        _many(settings, edits, as_json)
    elif sys.stdout.isatty() and not as_json and settings.samples == settings.beams == 1:
        _live(settings, prompt, edits)
    else:
        from cocomix.steer.generation import generate as run

        result = run(settings, prompt, edits)
        show(result, _told(result), as_json)


def _told(result: dict[str, Any]) -> str:
    lines = [f"[unsteered] {result['prompt']}{text}" for text in result["unsteered"]]
    lines += [f"[{', '.join(result['edits'])}] {result['prompt']}{text}" for text in result["steered"] or []]
    return "\n\n".join(lines)


def _many(settings: Any, edits: list[Any], as_json: bool) -> None:
    from cocomix.steer.generation import generate_many
    from cocomix.steer.requests import read_requests

    for result in generate_many(settings, read_requests(settings.prompts, edits)):
        print(json.dumps(result, ensure_ascii=False) if as_json else _told(result) + "\n", flush=True)


def _live(settings: Any, prompt: str, edits: list[Any]) -> None:
    """Prints the words as they come."""
    from cocomix.steer.generation import Generator
    from cocomix.steer.requests import Request
    from cocomix.steer.streaming import Live

    generator = Generator(settings)
    heads = ["unsteered", ", ".join(map(str, edits))]
    generator.answer(
        [Request(prompt, tuple(edits))], [Live(generator.tokenizer, f"[{head}] {prompt}") for head in heads]
    )
