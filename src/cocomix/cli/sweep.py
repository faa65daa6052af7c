"""`cocomix sweep`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cocomix.cli.common import Json, Overrides, quiet_transformers, show

File = Annotated[str, typer.Argument(metavar="SWEEP", help="A YAML file that says the runs (docs/methods.md).")]
Caches = Annotated[bool, typer.Option("--caches", help="Make what the runs share, and run none of them.")]
List = Annotated[bool, typer.Option("--list", help="Check the settings of all runs, print their commands, run none.")]


def sweep(
    file: File, words: Overrides = None, list_runs: List = False, caches: Caches = False, json: Json = False
) -> None:
    """Run many trainings from one file: rows × grid × seeds, what they share made once.

    Labels and probabilities that rows read are found in the dataset by what they are of, or made first. Each run is a
    process with a log in its folder; a failed one does not stop the others and is listed at the end (exit code 1). The
    same command goes on where it stopped, and runs only what is not finished; a finished run of other settings is
    refused.

    On a cluster, let one job make the caches (--caches) and each task of an array take its part; parts count from 1, so
    that the array is --array=1-16:

      cocomix sweep sweep.yaml part=$SLURM_ARRAY_TASK_ID/16

    Example:

      cocomix sweep sweep.yaml jobs=2
    """
    from cocomix.config import load_settings
    from cocomix.stopping import EXIT_STOPPED
    from cocomix.sweep.settings import SweepSettings
    from cocomix.sweep.sweep import check, run_sweep

    quiet_transformers()
    settings = load_settings(SweepSettings, [file, *(words or [])])
    if list_runs:
        from cocomix.sweep.caches import find_caches
        from cocomix.sweep.cases import cases

        found = cases(settings, find_caches(settings, make=False))
        check(found)
        rows = [{"name": case.name, "command": ["cocomix", "train", *case.words]} for case in found]
        show({"runs": rows}, "\n".join(" ".join(map(_quoted, row["command"])) for row in rows), json)
        return
    if caches:
        from cocomix.sweep.caches import find_caches

        made = {f"{w.option}.{w.name}": there for w, there in find_caches(settings, make=True).items()}
        show({"caches": made}, "\n".join(f"{name}: {there}" for name, there in made.items()), json)
        return
    result = run_sweep(settings)
    show(result, _told(result), json)
    if result["failed"] or result["stopped"]:
        raise typer.Exit(1 if result["failed"] else EXIT_STOPPED)


def _told(result: dict[str, Any]) -> str:
    left = [run for run in result["runs"] if run["state"] != "finished"]
    text = f"{result['folder']}: {len(result['runs']) - len(left)} of {len(result['runs'])} runs finished"
    reasons = (run.get("error", "the same command goes on with it") for run in left)
    return "\n".join(
        [text, *(f"  {run['name']} {run['state']}: {why}" for run, why in zip(left, reasons, strict=True))]
    )


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)
