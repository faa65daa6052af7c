"""Kills a run of two ranks with SIGKILL again and again and starts it with the same command: is anything ever lost?

    python benchmarks/faults.py [--faults 50] [--steps 4000] [--folder runs/faults]

A tiny CoCoMix run over two ranks on the CPU (gloo) is trained straight. Then the same run in another folder is killed
at random moments: while it starts, while it trains, and while a checkpoint is being written; either all of its
processes at once, or one rank, whose death torchrun has to notice. Checkpoints are written in the background or not,
by turns. At the end the weights must be those of the straight run, bit for bit. What was found is printed, and
written to
FOLDER/faults.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BACKBONE = "model.backbone={model_type: gpt2, n_embd: 32, n_layer: 4, n_head: 4}"
EVERY = 20
"""Steps between checkpoints."""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--faults", type=int, default=50)
    options.add_argument("--steps", type=int, default=4000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--folder", type=Path, default=Path("runs/faults"))
    given = options.parse_args()
    folder: Path = given.folder
    prepare(folder)
    for run in ("straight", "killed"):
        shutil.rmtree(folder / run, ignore_errors=True)
    start = time.monotonic()
    finish(command(folder, "straight", given.steps, False))
    print(f"straight run: {given.steps:,} steps in {time.monotonic() - start:.0f} s", flush=True)
    found = kill_again_and_again(folder, given.steps, given.faults, random.Random(given.seed))
    finish(command(folder, "killed", given.steps, False))
    found["resumes"] += 1
    found["weights_equal"] = same_weights(folder / "straight", folder / "killed")
    found["metrics_equal"] = same_metrics(folder / "straight", folder / "killed")
    (folder / "faults.json").write_text(json.dumps(found, indent=1) + "\n")
    moments = ", ".join(f"{number} {moment}" for moment, number in found["moments"].items())
    print(
        f"{found['faults']} faults ({moments}; {found['one_rank']} of one rank), {found['resumes']} resumes, "
        f"{found['lost_steps']} steps done again (most at once {found['most_lost']}, a checkpoint every {EVERY}); "
        f"weights {'equal' if found['weights_equal'] else 'DIFFER FROM'} the straight run's bit for bit, "
        f"metrics {'equal' if found['metrics_equal'] else 'DIFFER'}"
    )
    return 0 if found["weights_equal"] and found["metrics_equal"] else 1


def prepare(folder: Path) -> None:
    """A dataset with labels, once."""
    if (folder / "data/labels/concepts/labels.json").is_file():
        return
    from cocomix.cli.common import quiet_transformers
    from cocomix.concepts.extract import extract
    from cocomix.concepts.settings import ExtractSettings
    from cocomix.testing.teachers import tiny_sae, tiny_teacher
    from cocomix.testing.text import tiny_dataset

    quiet_transformers()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dataset = tiny_dataset(folder / "data", documents=40)
    tiny_sae(folder / "sae", tiny_teacher(folder / "teacher", dataset, steps=10), dataset)
    extract(ExtractSettings(data=str(folder / "data"), sae=str(folder / "sae")))


def command(folder: Path, run: str, steps: int, background: bool) -> list[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cocomix"]
    words += ["train", "tiny/cocomix", BACKBONE, "model.concept_k=8", f"data.path={folder / 'data'}"]
    words += ["data.labels=concepts", "batch_windows=4", f"steps={steps}", f"checkpoint.number={steps // EVERY}"]
    words += [f"checkpoint.background={str(background).lower()}", "evaluations=2", "eval_documents=1", "threads=1"]
    return [*words, "dist.timeout=60", f"run={folder / run}"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def finish(words: list[str]) -> None:
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-4000:]}")


def kill_again_and_again(folder: Path, steps: int, faults: int, draw: random.Random) -> dict[str, Any]:
    run = folder / "killed"
    found: dict[str, Any] = {"faults": 0, "resumes": 0, "lost_steps": 0, "most_lost": 0, "one_rank": 0, "moments": {}}
    while found["faults"] < faults and last_step(run) < steps:
        words = command(folder, "killed", steps, draw.random() < 0.5)
        with (folder / "killed.log").open("wb") as log:
            process = subprocess.Popen(words, env=environment(), stderr=log, stdout=log, start_new_session=True)
            moment = wait_for_a_moment(run, process, draw)
            if process.poll() is not None:  # it was done before
                break
            one = draw.random() < 1 / 3
            kill(process, one)
            process.wait()
        reached, kept = reached_step(run), last_step(run)
        lost = max(0, reached - kept)
        found["faults"] += 1
        found["one_rank"] += one
        found["moments"][moment] = found["moments"].get(moment, 0) + 1
        found["resumes"] += kept > 0
        found["lost_steps"] += lost
        found["most_lost"] = max(found["most_lost"], lost)
        print(f"fault {found['faults']:>3} {moment}: at step {reached:,}, goes on from {kept:,}", flush=True)
    return found


def wait_for_a_moment(run: Path, process: subprocess.Popen[bytes], draw: random.Random) -> str:
    """Waits for a random moment of one kind, and says which kind it was."""
    kind = draw.choices(["while starting", "while training", "while writing a checkpoint"], [1, 5, 4])[0]
    if kind == "while starting":
        pause(process, draw.uniform(0, 6))
        return kind
    before = reached_step(run)
    while process.poll() is None and reached_step(run) == before:
        time.sleep(0.02)
    pause(process, draw.uniform(0, 2))
    if kind == "while writing a checkpoint":
        limit = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < limit and not list((run / "checkpoints").glob("*.partial")):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
    return kind


def pause(process: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def kill(process: subprocess.Popen[bytes], one: bool) -> None:
    """Of the processes that torchrun started one, or torchrun and all."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    ranks = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    doomed = ranks[-1:] if one and ranks else [process.pid, *ranks]
    for pid in doomed:  # torchrun first: it must not see its ranks die
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def reached_step(run: Path) -> int:
    """The last step that metrics.jsonl tells."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError):
            continue
    return 0


def last_step(run: Path) -> int:
    from cocomix.train.checkpoint import checkpoint_folders, step_of

    folders = checkpoint_folders(run)
    return step_of(folders[-1]) if folders else 0


def same_weights(run: Path, other: Path) -> bool:
    import torch

    from cocomix.train.checkpoint import checkpoint_folders, read_tensors

    a, b = (read_tensors(checkpoint_folders(r)[-1]) for r in (run, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_metrics(run: Path, other: Path) -> bool:
    from cocomix.train.metrics import read_lines

    clock = ("seconds", "tokens_per_second", "mfu", "waited", "label_seconds")
    a, b = (
        [{k: v for k, v in x.items() if k not in clock} for x in read_lines(r / "metrics.jsonl")] for r in (run, other)
    )
    return a == b


if __name__ == "__main__":
    sys.exit(main())
