"""``cocomix compare``: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cocomix.cli.common import Json, show

if TYPE_CHECKING:
    from cocomix.compare.runs import Run

RunsAndSettings = Annotated[
    list[str] | None,
    typer.Argument(metavar="RUN... [KEY=VALUE]...", help="Run folders, and settings, see the list below."),
]


def compare(words: RunsAndSettings = None, as_json: Json = False) -> None:
    """Hold runs against a baseline at equal tokens, equal FLOPs and equal time, over their seeds.

    Example: cocomix compare runs/ntp runs/cocomix baseline=ntp

    Prints a table of the runs and what each method saves or loses on the way to the baseline's final validation
    loss, and writes the report: index.html, summary.json and plots/ into out=FOLDER, without it into comparison/
    beside the first run. Runs of one method with several seeds are paired by seed and get intervals. Runs may
    still be running. Runs on other data, another tokenizer, window or evaluation set are refused.
    """
    from cocomix.compare.comparison import compare as compare_runs
    from cocomix.compare.settings import CompareSettings
    from cocomix.compare.summary import summary
    from cocomix.config import load_settings
    from cocomix.progress import say
    from cocomix.report.page import write_comparison

    words = words or []
    folders = [word for word in words if _is_folder(word)]
    settings = load_settings(CompareSettings, [word for word in words if not _is_folder(word)])
    comparison = compare_runs(_loaded(folders), settings.baseline)
    out = settings.out or Path(folders[0]).resolve().parent / "comparison"
    page = write_comparison(comparison, out)
    result = summary(comparison)
    show(result, as_text(result), as_json)
    say(f"report: {page}")


def _is_folder(word: str) -> bool:
    return "=" not in word or Path(word).is_dir()


def _loaded(folders: list[str]) -> list[Run]:
    """The runs; an earlier comparison's folder, which ``runs/*`` matches too, is passed over."""
    from cocomix.compare.runs import load_run
    from cocomix.progress import say

    runs = []
    for folder in folders:
        if (Path(folder) / "summary.json").is_file() and not (Path(folder) / "run.json").is_file():
            say(f"{folder} holds an earlier comparison, no run: passed over")
        else:
            runs.append(load_run(folder))
    return runs


def as_text(result: dict[str, Any]) -> str:
    """A summary as a table of runs and the verdicts, as wide as the terminal."""
    import io

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cocomix.compare.wording import count, duration, flops

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run")
    for column in ("seed", "active", "tokens", "FLOPs", "+ labels", "time", "loss", "ppl"):
        table.add_column(column, justify="right")
    for run in result["runs"]:
        state = "" if run["finished"] else " (running)"
        table.add_row(
            Text(run["name"] + state),
            str(run["seed"]),
            count(run["parameters"]["active"]),
            count(run["tokens"]),
            flops(run["flops"]["student"]),
            flops(run["flops"]["teacher"]) if run["flops"]["teacher"] else "–",
            duration(run["seconds"]),
            "–" if run["val_loss"] is None else f"{run['val_loss']:.3f}",
            "–" if run["ppl"] is None else f"{run['ppl']:.2f}",
        )
    out = Console(file=io.StringIO(), width=max(Console().width, 80), highlight=False)
    out.print(table)
    for pair in result["pairs"]:
        out.print()
        out.print(Text.assemble((f"{pair['candidate']} against {pair['baseline']}: ", "bold"), pair["verdict"]))
        for note in pair["notes"]:
            out.print(Text(f"Note: {note}"))
    for note in result["notes"]:
        out.print(Text(f"Note: {note}"))
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().rstrip("\n")
