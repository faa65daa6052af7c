"""Writes docs/cli.md, the reference of the command line, from the verbs themselves: python docs/make_cli.py"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from pathlib import Path
from typing import Any

import typer

from cocomix.cli.app import VERBS, app
from cocomix.config import describe
from cocomix.files import write_text

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# Command line

Every verb takes its natural objects first and settings as `key=value` behind them, among which YAML recipes may stand;
dotted keys reach into a group (`optimizer.lr=1e-3`). Values are read as YAML. Results are printed on stdout, with
`--json` as JSON, progress on stderr. Exit codes: 0 done; 2 a mistake, told in one sentence; 75 stopped on request
(Ctrl-C, SIGTERM) with its work saved: the same command goes on; 130 interrupted.

This page is made by `python docs/make_cli.py` from what `cocomix VERB --help` prints.
"""


def page() -> str:
    """The whole page."""
    contents = [f"- [`cocomix {verb}`](#cocomix-{verb.replace(' ', '-')}): {_first(verb)}" for verb, _, _ in VERBS]
    return "\n".join([HEAD, *contents, *(_section(*entry) for entry in VERBS)]) + "\n"


def _command(verb: str) -> Any:
    command: Any = typer.main.get_command(app)
    for word in verb.split():
        command = command.commands[word]
    return command


def _first(verb: str) -> str:
    return " ".join(inspect.cleandoc(_command(verb).help).split("\n\n")[0].split())


def _section(verb: str, _: str, settings: str) -> str:
    command = _command(verb)
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    parts = [f"\n## cocomix {verb}\n", _prose(command.help)]
    parts += ["\nArguments and options:\n"]
    parts += [f"- {_argument(p)}: {p.help}" for p in arguments]
    parts += [f"- `{', '.join(p.opts)}{f' {p.metavar}' if p.metavar else ''}`: {p.help}" for p in options]
    if settings:
        module, name = settings.split(":")
        given = {p.name for p in arguments}
        rows = [row for row in describe(getattr(importlib.import_module(module), name)) if row[0] not in given]
        parts += ["\n| setting | default | meaning |", "|---|---|---|"]
        parts += [f"| `{key}` | {_default(default)} | {_cell(meaning)} |" for key, default, meaning in rows]
    return "\n".join(parts)


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return f"`{name}`" if parameter.required or name.startswith("[") or " " in name else f"`[{name}]`"


def _prose(text: str) -> str:
    """Paragraphs as they are; examples, indented or behind "Example:", as code."""
    out: list[str] = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        word, _, rest = paragraph.partition(":")
        if word in ("Example", "Examples"):
            if rest.strip():
                out.append(_code(rest))
        elif paragraph.startswith(" "):
            out.append(_code(textwrap.dedent(paragraph)))
        else:
            out.append(paragraph)
    return "\n\n".join(out).replace("\n```\n\n```bash\n", "\n")


def _code(text: str) -> str:
    return f"```bash\n{text.strip()}\n```"


def _default(default: str) -> str:
    return default if default in ("none", "required") else f"`{_cell(default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "\\n")


if __name__ == "__main__":
    write_text(PAGE, page())
