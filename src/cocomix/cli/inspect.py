"""`cocomix inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from cocomix.cli.common import Json, Overrides, quiet_transformers, show


def inspect(
    text: Annotated[str, typer.Argument(help="The text to look into.")],
    words: Overrides = None,
    as_json: Json = False,
) -> None:
    """Which concepts a model predicts at each token of a text, with their names from the atlas.

    Example: cocomix inspect "The capital of France is" model=runs/cocomix
    """
    from cocomix.config import load_settings
    from cocomix.steer.inspection import inspect as run
    from cocomix.steer.settings import InspectSettings

    quiet_transformers()
    result = run(load_settings(InspectSettings, words or []), text)
    width = max(len(repr(token["token"])) for token in result["tokens"])
    lines = [
        f"{token['token']!r:<{width}}  "
        + ", ".join(f"{c['id']} {c['name']} ({c['strength']:.2f})" for c in token["concepts"])
        for token in result["tokens"]
    ]
    show(result, "\n".join(lines), as_json)
