"""`cocomix export`."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from cocomix.cli.common import Json, Overrides, plain, quiet_transformers, show


def export(
    run: Annotated[str, typer.Argument(help="Run folder; with --from-reference, the reference's.")],
    out: Annotated[str | None, typer.Argument(help="Folder to write; default: RUN/export.")] = None,
    words: Overrides = None,
    from_reference: Annotated[
        bool,
        typer.Option(
            "--from-reference",
            help="RUN is a log folder or checkpoint of the reference implementation (facebookresearch/RAM).",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a run's last checkpoint as a folder that transformers' from_pretrained loads.

    A model without a mixer becomes a plain transformers model. One with a mixer takes its code with it:
    from_pretrained(FOLDER, trust_remote_code=True) needs no cocomix installed; after
    `import cocomix.model.modeling` it loads without the flag.

    Example: cocomix export runs/cocomix models/cocomix

    A training of the reference implementation: cocomix export --from-reference logs/gpt2 models/reference
    """
    from cocomix.config import load_settings
    from cocomix.errors import UserError
    from cocomix.train.export import export_reference
    from cocomix.train.settings import ReferenceSettings
    from cocomix.train.verb import export_run

    quiet_transformers()
    words, place = list(words or []), None if out is None else plain("out", out)
    if place is not None and place == out and re.match(r"[\w.]+=", place):  # a setting in the folder's place
        words, place = [place, *words], None
    if words and not from_reference:
        raise UserError(f"{words[0]!r}: the export of a run has no settings; they belong to --from-reference")
    if place is None and from_reference:
        raise UserError("--from-reference needs a folder to write: cocomix export --from-reference FOLDER OUT")
    settings = load_settings(ReferenceSettings, words)
    if from_reference and place is not None:
        result = export_reference(run, place, settings)
        text = f"{result['folder']}: {result['class']} from {result['checkpoint']}"
    else:
        result = export_run(run, place)
        text = f"{result['folder']}: {result['class']} after {result['tokens']:,} tokens"
    show(result, text, as_json)
