"""What the verbs share: options, help from settings, results on stdout."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="A YAML recipe and settings that go over it."),
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, see the list below.")]


def show(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Prints a verb's result on stdout: ``result`` as JSON, or the ``text`` for people."""
    print(json.dumps(result, ensure_ascii=False, indent=1) if as_json else text)


def settings_help(module: str, name: str) -> str:
    """What :class:`cocomix.cli.app.Verb` replaces in --help by the settings of ``module.name``."""
    return f"settings:{module}:{name}"


def quiet_transformers() -> None:
    """Silences transformers' warnings and its bars over weights, not the hub's over downloads; imports it."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def plain(name: str, value: str) -> str:
    """The value of an argument that stands by its place, which someone may have written as a setting, NAME=VALUE."""
    return value.removeprefix(f"{name}=")
