"""`cocomix export`."""

from __future__ import annotations

from typing import Annotated

import typer

from cocomix.cli.common import Json, Overrides, quiet_transformers, show


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
    settings = load_settings(ReferenceSettings, words or [])
    if from_reference:
        if out is None or "=" in out:
            raise UserError("--from-reference needs a folder to write: cocomix export --from-reference FOLDER OUT")
        result = export_reference(run, out, settings)
        text = f"{result['folder']}: {result['class']} from {result['checkpoint']}"
    else:
        if words:
            raise UserError(f"{words[0]!r}: the export of a run has no settings; they belong to --from-reference")
        result = export_run(run, out)
        text = f"{result['folder']}: {result['class']} after {result['tokens']:,} tokens"
    show(result, text, as_json)
