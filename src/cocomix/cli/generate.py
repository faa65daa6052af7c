"""`cocomix generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from cocomix.cli.common import Json, Overrides, quiet_transformers, show


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    words: Overrides = None,
    steer: Annotated[
        list[str] | None,
        typer.Option(
            "--steer",
            metavar="ID=EDIT",
            help="Edit a concept before TopK: ID=x5 scales, ID=set:4 sets, ID=+3 or ID=-3 adds, ID=off ablates. "
            "Several may be given.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Continue a text, and show beside it the continuation under edits of concepts, from the same random state.

    Example: cocomix generate "The economy of" model=runs/cocomix --steer 12=x5
    """
    from cocomix.config import load_settings
    from cocomix.steer.edits import parse_edit
    from cocomix.steer.generation import generate as run
    from cocomix.steer.settings import GenerateSettings

    quiet_transformers()
    edits = [parse_edit(text) for text in steer or []]
    result = run(load_settings(GenerateSettings, words or []), prompt, edits)
    lines = [f"[unsteered] {prompt}{text}" for text in result["unsteered"]]
    lines += [f"[{', '.join(result['edits'])}] {prompt}{text}" for text in result["steered"] or []]
    show(result, "\n\n".join(lines), as_json)
