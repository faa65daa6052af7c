"""`cocomix studio`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.common import Overrides, plain, quiet_transformers


def studio(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder or export of a model with concepts.")],
    words: Overrides = None,
    share: Annotated[
        bool,
        typer.Option("--share", help="Also open a tunnel through gradio's servers: anybody with the link gets in."),
    ] = False,
    auth: Annotated[
        list[str] | None,
        typer.Option(
            "--auth",
            metavar="USER:PASSWORD",
            help="Who may log in; @FILE: a file with one a line, which no list of processes shows. May be repeated.",
        ),
    ] = None,
) -> None:
    """A web page to read a text through a model's concepts, look at concepts, steer and compare runs.

    It listens at this machine alone unless told otherwise, fetches nothing from elsewhere, and ends with Ctrl-C.

    Example: cocomix studio runs/quickstart/cocomix port=7860
    """
    from cocomix.config import load_settings
    from cocomix.errors import UserError
    from cocomix.progress import say
    from cocomix.studio.settings import StudioSettings

    settings = load_settings(StudioSettings, words or [], model=plain("model", run))
    users = [user for given in auth or [] for user in _users(given)]
    quiet_transformers()
    try:
        from cocomix.studio.app import serve
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise UserError("the studio needs gradio: pip install -e '.[studio]' in cocomix's checkout") from error
    if not users and (share or settings.host not in ("127.0.0.1", "localhost", "::1")):
        say(
            "anybody who reaches this page can use the model and rename concepts: --auth USER:PASSWORD keeps others out"
        )
    serve(settings, share, users)


def _users(given: str) -> list[tuple[str, str]]:
    from cocomix.errors import UserError, explained

    lines = [given]
    if given.startswith("@"):
        with explained(given[1:]):
            lines = [line for line in Path(given[1:]).read_text(encoding="utf-8").splitlines() if line.strip()]
    pairs = [line.partition(":") for line in lines]
    if not pairs or not all(name and password for name, _, password in pairs):
        where = given if given.startswith("@") else "…"  # a password is not shown
        raise UserError(f"--auth {where}: write USER:PASSWORD, or @FILE with such lines")
    return [(name, password) for name, _, password in pairs]
