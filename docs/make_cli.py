"""Writes docs/cli.md, the reference of the command line, from the verbs themselves: python docs/make_cli.py"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from pathlib import Path
from typing import Any

import typer

from cocomix.cli import INTERRUPTED
from cocomix.cli.app import VERBS, app
from cocomix.config import describe
from cocomix.files import write_text
from cocomix.stopping import EXIT_LOST, EXIT_STOPPED

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# Command line

Every verb takes its arguments first, then `key=value` settings; YAML recipes may be mixed in, later ones win. Dotted keys reach into a
group (`optimizer.lr=1e-3`). Values are read as YAML. Results are printed on stdout, with `--json` as JSON, progress on stderr.

This page is made by `python docs/make_cli.py` from what `cocomix VERB --help` prints.
"""
EXIT_CODES = {
    0: ("done", ""),
    1: ("`sweep`: some of its runs failed, the others are done. Elsewhere: an error that nobody foresaw, with its traceback. "
        "torchrun itself leaves with 1 whenever a rank leaves with anything but 0", "look into the log that is named"),
    2: ("a mistake, a damaged file, a full disk, a loss that is not finite: one sentence says what, and the mend",
        "mend it, then the same command"),
    EXIT_LOST: ("another rank died, or did not answer for `dist.timeout` seconds (labels and probabilities: an hour)", "the same command goes on"),
    EXIT_STOPPED: ("asked to stop (Ctrl-C, SIGTERM, SIGUSR1, or SIGHUP: its terminal is gone), its work is saved", "the same command goes on"),
    INTERRUPTED: ("interrupted by Ctrl-C where nothing is saved on the way, or by a second one", "the same command; "
                  "what was finished is found again"),
}  # fmt: skip


def page() -> str:
    """The whole page."""
    contents = [f"- [`cocomix {verb}`](#cocomix-{verb.replace(' ', '-')}): {_first(verb)}" for verb, _, _ in VERBS]
    return "\n".join([HEAD, *contents, _exit_codes(), *(_section(*entry) for entry in VERBS)]) + "\n"


def _exit_codes() -> str:
    rows = [f"| {code} | {what} | {then} |" for code, (what, then) in EXIT_CODES.items()]
    return "\n".join(["\n## Exit codes\n", "| exit code | what happened | what to do |", "|---|---|---|", *rows])


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
