"""`cocomix export`."""

from __future__ import annotations

from typing import Annotated

import typer

from cocomix.cli.common import Json, quiet_transformers, show


def export(
    run: Annotated[str, typer.Argument(help="Run folder.")],
    out: Annotated[str | None, typer.Argument(help="Folder to write; default: RUN/export.")] = None,
    as_json: Json = False,
) -> None:
    """Write a run's last checkpoint as a folder that transformers' from_pretrained loads.

    A model without a mixer becomes a plain transformers model; one with a mixer loads after
    `import cocomix.model.modeling`.

    Example: cocomix export runs/cocomix models/cocomix
    """
    from cocomix.train.run import export_run

    quiet_transformers()
    result = export_run(run, out)
    show(result, f"{result['folder']}: {result['class']} after {result['tokens']:,} tokens", as_json)
