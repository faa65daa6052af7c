"""A training run that goes on a part at a time when told to (see ``sides.py``); started by ``scaling.py``."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

from cocomix.allocator import keep_freed_memory
from cocomix.config import load_settings
from cocomix.train.budget import Budget
from cocomix.train.loop import fit
from cocomix.train.metrics import read_lines
from cocomix.train.run import Run
from cocomix.train.settings import TrainSettings
from sides import given_sizes, memory, serve


def main() -> None:
    """Serves; arguments: the folder with the data, and sizes of which ``batch`` is the steps of a part."""
    keep_freed_memory()  # as cocomix train does
    folder, sizes = Path(sys.argv[1]), given_sizes(sys.argv[2])
    steps = sizes.batch
    words = ["tiny/cocomix", f"data.path={folder / 'made/data'}", "data.labels=concepts", f"run={folder / 'long'}"]
    words += [f"threads={sizes.threads}", "schedule.kind=constant", "evaluations=1", "checkpoint.number=1"]
    run = Run(load_settings(TrainSettings, [*words, f"steps={steps}", "eval_documents=1"]))

    def part() -> dict[str, Any]:
        due = run.counters.step + steps
        run.settings = run.settings.model_copy(update={"steps": due})
        run.budget = Budget(run.settings, run.step_tokens, run.flops_per_token * run.step_tokens)
        before = run.counters.step
        fit(run)
        clock = [line["seconds"] for line in read_lines(folder / "long" / "metrics.jsonl")]
        taken = [after - first for first, after in zip(clock[before:], clock[before + 1 :], strict=False)]
        return {"seconds": median(taken), "steps": run.counters.step, "megabytes": memory()["highest"] / 1e6}

    serve({"part": part})


if __name__ == "__main__":
    main()
