"""`cocomix inspect`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cocomix.cli.common import Json, Overrides, quiet_transformers, show


def inspect(
    text: Annotated[str, typer.Argument(help="The text to look into.")],
    words: Overrides = None,
    as_json: Json = False,
) -> None:
    """Which concepts a model predicts at each token of a text, with their names from the atlas; on request what each
    does for the next token, which are active in the teacher, and a picture of it all.

    Example: cocomix inspect "The capital of France is" model=runs/cocomix contributions=true teacher=true
    """
    from cocomix.config import load_settings
    from cocomix.progress import say
    from cocomix.steer.inspection import inspect as run
    from cocomix.steer.settings import InspectSettings

    quiet_transformers()
    settings = load_settings(InspectSettings, words or [])
    result = run(settings.model_copy(update={"picture": None}), text)
    if settings.picture is not None:
        from cocomix.report.inspection import write_inspection

        say(f"picture: {write_inspection(result['tokens'], settings.picture)}")
    show(result, _table(result["tokens"]), as_json)


def _table(tokens: list[dict[str, Any]]) -> str:
    width = max(len(repr(token["token"])) for token in tokens)
    lines = [
        f"{token['token']!r:<{width}}{_number(token)}  " + ", ".join(_told(concept) for concept in token["concepts"])
        for token in tokens
    ]
    notes = []
    if "contribution" in tokens[0]:
        notes.append("signed: nats that all mixed concepts, or one, add to the log-probability of the next token")
    if "teacher" in tokens[0]["concepts"][0]:
        notes.append("*: active in the teacher")
    return "\n".join([*lines, *notes])


def _number(token: dict[str, Any]) -> str:
    if "contribution" not in token:
        return ""
    return " " * 8 if token["contribution"] is None else f"{token['contribution']:>+8.3f}"


def _told(concept: dict[str, Any]) -> str:
    added = concept.get("contribution")
    inside = f"{concept['strength']:.2f}" + ("" if added is None else f", {added:+.3f}")
    return f"{concept['id']} {concept['name']}{'*' if concept.get('teacher') else ''} ({inside})"
