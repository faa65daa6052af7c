"""``cocomix compare``: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cocomix.cli.common import Json, show

if TYPE_CHECKING:
    from cocomix.compare.comparison import Comparison
    from cocomix.compare.runs import Run
    from cocomix.compare.settings import CompareSettings
    from cocomix.compare.watch import Look

SECONDS = 30.0
"""Between two looks."""
WIDEST = 1000
"""Columns of a table in a file."""

RunsAndSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN... [KEY=VALUE]...", help="Run folders or folders of runs, and settings, see the list below."
    ),
]
Watch = Annotated[
    bool,
    typer.Option(
        "--watch",
        help=f"Follow runs: look again every [SECONDS] ({SECONDS:.0f}) until all are finished, or Ctrl-C.",
    ),
]


def compare(words: RunsAndSettings = None, watch: Watch = False, as_json: Json = False) -> None:
    """Hold runs against a baseline at equal tokens, equal FLOPs and equal time, over their seeds.

    Example: cocomix compare runs/ntp runs/cocomix baseline=ntp

    Prints a table of the runs and what each method saves or loses on the way to the baseline's final validation
    loss, and writes the report: index.html, summary.json, plots/ and a table for a paper (table.tex, table.md,
    table.csv) into out=FOLDER, without it into comparison/ beside the first run. Runs of one method with several seeds
    are paired by seed and get intervals. Runs may still be running. Runs on other data, another tokenizer, window or
    evaluation set are refused.

    Example: cocomix compare runs/study format=latex

    With --watch the page is rebuilt, and reloads itself, whenever a run has been evaluated, and a line a run is
    printed at every look. Of a folder that is there the first run is waited for.

    Example: cocomix compare runs/study --watch 10
    """
    from cocomix.compare.comparison import compare as compare_runs
    from cocomix.compare.runs import load_run
    from cocomix.compare.settings import CompareSettings
    from cocomix.compare.summary import summary
    from cocomix.compare.watch import run_folders
    from cocomix.compare.watch import watch as watch_runs
    from cocomix.config import load_settings
    from cocomix.errors import UserError
    from cocomix.progress import say
    from cocomix.report.page import write_comparison

    words = words or []
    folders = [word for word in words if _is_folder(word) and not (watch and _is_seconds(word))]
    settings = load_settings(CompareSettings, [word for word in words if "=" in word and not _is_folder(word)])
    if as_json and settings.format != "text":
        raise UserError(f"format={settings.format} and --json both say what is printed: leave one of them out")

    def compared(runs: list[Run]) -> Comparison:
        return compare_runs(runs, settings.baseline, settings.upstream_shared_by)

    if not watch:
        runs = [load_run(folder) for folder in run_folders(folders)]
        comparison = compared(runs)
        page = write_comparison(comparison, _out(settings, runs))
        _print(comparison, summary(comparison), settings.format, as_json)
        say(f"report: {page}")
        return

    seconds = [float(word) for word in words if _is_seconds(word)]
    if len(seconds) > 1:
        raise UserError(f"--watch takes one number of seconds, these are {len(seconds)}: leave the others out")
    every = seconds[0] if seconds else SECONDS

    def follow(look: Look) -> None:
        comparison = compared(look.runs)
        if look.news or look.last:
            # The last page stays as it is.
            page = write_comparison(comparison, _out(settings, look.runs), None if look.last else every)
            if not look.last:
                say(f"report: {page}")
        if look.last:
            _print(comparison, summary(comparison), settings.format, as_json)
            say(f"report: {page}")
        elif not as_json and settings.format == "text":
            print(in_short(look.runs, summary(comparison)) + "\n", flush=True)

    watch_runs(folders, every, follow)


def _is_folder(word: str) -> bool:
    return "=" not in word or Path(word).is_dir()


def _is_seconds(word: str) -> bool:
    """Whether ``word`` is the number after --watch, and no folder."""
    try:
        float(word)
    except ValueError:
        return False
    return not Path(word).is_dir()


def _out(settings: CompareSettings, runs: list[Run]) -> Path:
    """Where the report goes: beside the first run, so into the folder of runs that was given."""
    return settings.out if settings.out is not None else runs[0].folder.absolute().parent / "comparison"


def _print(comparison: Comparison, result: dict[str, Any], format: str, as_json: bool) -> None:
    from cocomix.report.tables import FORMATS

    if format == "text":
        show(result, as_text(result), as_json)
    else:
        print(FORMATS[format][1](comparison), end="")


def in_short(runs: list[Run], result: dict[str, Any]) -> str:
    """The runs' states in a line each, below the time: what --watch prints at every look."""
    import time

    from rich.text import Text

    from cocomix.compare.watch import state
    from cocomix.compare.wording import count

    rows = []
    states = {run.folder.as_posix(): state(run) for run in runs}
    for run in result["runs"]:
        loss = "–" if run["val_loss"] is None else f"{run['val_loss']:.3f}"
        rows.append([Text(run["name"]), states[run["folder"]], count(run["trained_tokens"]), loss])
    return _table(time.strftime("%H:%M:%S"), ["state", "tokens", "loss"], rows)


def as_text(result: dict[str, Any]) -> str:
    """A summary as a table of runs and the verdicts, as wide as the terminal."""
    from rich.text import Text

    from cocomix.compare.wording import count, duration, flops

    rows = []
    for run in result["runs"]:
        state = "" if run["finished"] else " (running)"
        rows.append(
            [
                Text(run["name"] + state),
                str(run["seed"]),
                count(run["parameters"]["active"]),
                count(run["tokens"]),
                flops(run["flops"]["student"]),
                flops(run["flops"]["teacher"]) if run["flops"]["teacher"] else "–",
                duration(run["seconds"]),
                "–" if run["val_loss"] is None else f"{run['val_loss']:.3f}",
                "–" if run["ppl"] is None else f"{run['ppl']:.2f}",
            ]
        )
    columns = ["seed", "active", "tokens", "FLOPs", "+ labels", "time", "loss", "ppl"]
    below: list[Text] = []
    for pair in result["pairs"]:
        below.append(Text.assemble((f"\n{pair['candidate']} against {pair['baseline']}: ", "bold"), pair["verdict"]))
        below += [Text(f"Note: {note}") for note in pair["notes"]]
    below += [Text(f"Note: {note}") for note in result["notes"]]
    return _table("run", columns, rows, below)


def _table(first: str, columns: list[str], rows: list[list[Any]], below: list[Any] | None = None) -> str:
    """A table without lines and the texts ``below`` it, as wide as the terminal; in a file no name is folded."""
    import io

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    width = max(Console().width, 80)
    out = Console(file=io.StringIO(), width=width, highlight=False)
    if not Console().is_terminal:
        out.width = max(width, out.measure(table, options=out.options.update(max_width=WIDEST)).maximum)
    out.print(table)
    out.width = width
    for text in below or []:
        out.print(text)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().rstrip("\n")
