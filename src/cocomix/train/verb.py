"""What ``cocomix train`` and ``cocomix export`` do: a run from its beginning or its last checkpoint to its end."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cocomix.allocator import keep_freed_memory
from cocomix.config import read_recipe
from cocomix.dist.world import World, joined
from cocomix.errors import UserError
from cocomix.files import read_json
from cocomix.progress import say
from cocomix.train.alone import alone_in
from cocomix.train.checkpoint import COUNTERS, checkpoint_folders, last_whole, load_weights, step_of, tensor_sizes
from cocomix.train.counters import Counters
from cocomix.train.loop import fit
from cocomix.train.metrics import read_lines
from cocomix.train.run import Run, open_run
from cocomix.train.settings import TrainSettings


def train(settings: TrainSettings) -> dict[str, Any]:
    """Runs or resumes a training; a finished one returns soon. Returns the run's description and last evaluation.

    Under torchrun the work of all ranks. Raises :class:`UserError`, on all ranks, for what a user can mend,
    :class:`cocomix.stopping.Stopped` after a checkpoint when a signal asked any rank to stop (Ctrl-C, a notebook's
    interrupt; an Exception: where you catch those, let it through), and :class:`cocomix.dist.world.RankLost` when a
    rank died or hangs. Reseeds torch; freed memory stays with the process.
    """
    keep_freed_memory()
    with joined(settings.dist.timeout, settings.device) as world, world.watching(), ExitStack() as held:
        run = Run(settings, world)
        with world.together():
            if world.first:
                held.enter_context(alone_in(run.folder))
        run.resume()
        if not run.budget.over(run.counters):
            steps = run.budget.expected_steps(run.counters)
            length = f"{settings.seconds:,.0f} s" if run.budget.steps is None else f"{steps:,} steps"
            cost = (
                ""
                if run.budget.steps is None
                else f", {run.flops_per_token * run.step_tokens * steps / 1e12:.1f} TFLOP"
            )
            ranks = f", {world.size} ranks ({settings.dist.strategy})" if world.size > 1 else ""
            say(
                f"{run.folder}: {settings.method}, {run.parameters.active:,} active parameters, {length} of "
                f"{run.step_tokens:,} tokens{cost}{ranks}"
            )
            fit(run)
        run.finish()
        lines = read_lines(run.folder / "evals.jsonl")
        return {**run.describe(True), "folder": str(run.folder), "evaluation": lines[-1] if lines else None}


def export_run(folder: Path | str, out: str | None = None, step: int | None = None) -> dict[str, Any]:
    """Exports a run's last whole checkpoint to ``out`` (default: its ``export/``), finished or not; with ``step`` the
    checkpoint of that step (default: to ``export-STEP/``). Returns folder, class and tokens seen.

    Raises :class:`UserError` where there is no such checkpoint.
    """
    folder = str(folder)
    if not (Path(folder) / "recipe.yaml").is_file() or not checkpoint_folders(Path(folder)):
        raise UserError(f"{folder} is no run with a checkpoint: give a folder that 'cocomix train' wrote")
    known = [step_of(checkpoint) for checkpoint in checkpoint_folders(Path(folder))]
    if step is not None and step not in known:
        raise UserError(f"step={step}: {folder} has no checkpoint of that step, only of {', '.join(map(str, known))}")
    last, _ = last_whole(Path(folder), World(), step)
    assert last is not None
    run = open_run(folder, **_weights_alone(folder, last))
    load_weights(last, run.model)
    run.counters = Counters(**read_json(last / COUNTERS, "a checkpoint's counters"))
    target = Path(out) if out else run.folder / ("export" if step is None else f"export-{step}")
    run.export(target)
    name = read_json(target / "config.json", "a model's configuration")["architectures"][0]
    return {"folder": str(target), "class": name, "tokens": run.counters.tokens}


def _weights_alone(folder: str, checkpoint: Path) -> dict[str, Any]:
    """Changes of a run's settings under which nothing is needed but its weights: no GPU, no labels, no teacher. What
    those say of the network's sizes its tensors say too."""
    recipe, sizes = read_recipe(Path(folder) / "recipe.yaml"), tensor_sizes(checkpoint)
    model = dict(recipe.get("model", {}))
    for name, weight in (("num_concepts", "predict"), ("state_size", "guess")):
        if size := sizes.get(f"model.mixer.{weight}.weight"):
            model[name] = size[0]
    sources = dict.fromkeys(("labels", "online", "probabilities", "teacher"))
    return {"device": "cpu", "losses": {"ntp": 1.0}, "model": model, "data": {**recipe["data"], **sources}}
