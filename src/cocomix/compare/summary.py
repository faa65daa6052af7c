"""A comparison as the contract's ``summary.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from cocomix.compare.comparison import Comparison, Entry
from cocomix.compare.curves import MAIN_AXES, Axis, parts
from cocomix.compare.pairs import Interval, Losses, Pair
from cocomix.compare.runs import is_finite
from cocomix.compare.wording import verdict


def summary(comparison: Comparison) -> dict[str, Any]:
    """``{"runs": […], "pairs": […], "baseline", "notes"}``, free of NaN and infinities.

    Of a run: costs and losses at its last evaluation; null before the first one. ``seconds`` are of its
    training alone. Of a pair: ``flops_saved`` and ``seconds_saved`` count the student's training and the
    teacher's labels; ``flops_saved_by`` and ``seconds_saved_by`` split them into the student alone, with
    labels, and with the training of teacher and SAE shared over ``upstream_shared_by`` runs (null: not
    known). ``interval`` is of ``tokens_saved``.
    """
    return {
        "baseline": comparison.baseline,
        "runs": [_run(entry) for entry in comparison.entries],
        "pairs": [_pair(pair) for pair in comparison.pairs],
        "notes": list(comparison.notes),
    }


def _run(entry: Entry) -> dict[str, Any]:
    run, last = entry.run, entry.run.last
    cost = {kind: parts(run, kind) for kind in ("flops", "seconds")}
    return {
        "name": entry.name,
        "method": run.method,
        "group": entry.group,
        "seed": run.seed,
        "parameters": {"total": run.manifest.parameters.total, "active": run.manifest.parameters.active},
        "tokens": last.tokens if last else 0,
        "flops": {
            "student": last.flops.student if last else 0.0,
            "teacher": last.flops.teacher if last else 0.0,
        },
        "seconds": last.seconds if last else 0.0,
        "val_loss": _number(last.loss) if last else None,
        "ppl": _number(last.ppl) if last else None,
        "bits_per_byte": _number(last.bits_per_byte) if last else None,
        "benchmarks": run.benchmarks,
        "best_loss": _best(entry),
        "finished": run.manifest.finished,
        "folder": run.folder.as_posix(),
        "trained_tokens": run.progress.tokens if run.progress else 0,
        "costs": {kind: vars(part) if part else None for kind, part in cost.items()},
    }


def _best(entry: Entry) -> float | None:
    return None if entry.curve is None else _number(float(entry.curve.loss.min()))


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "baseline": pair.baseline,
        "candidate": pair.candidate,
        "seeds": pair.seeds,
        "tokens_saved": pair.saved("tokens"),
        "flops_saved": pair.saved("flops"),
        "seconds_saved": pair.saved("seconds"),
        "interval": _list(pair.saved_interval("tokens")),
        "intervals": {
            **{f"{axis}_saved": _list(pair.saved_interval(axis)) for axis in MAIN_AXES},
            "final_loss": _list(pair.difference_interval(lambda seed: seed.final)),
            "loss_at_equal_tokens": _list(pair.difference_interval(lambda seed: seed.equal["tokens"])),
        },
        "flops_saved_by": _split(pair, "flops"),
        "seconds_saved_by": _split(pair, "seconds"),
        "upstream_shared_by": pair.shared_by,
        "reached": pair.reached,
        "reverse": pair.reverse,
        "reverse_saved": {axis: pair.reverse_saved(axis) for axis in MAIN_AXES},
        "loss": {
            "final": _losses(pair.final),
            **{f"equal_{axis}": _losses(pair.equal(axis)) for axis in MAIN_AXES},
        },
        "by_seed": [
            {
                "seed": seed.seed,
                **{f"{axis}_saved": seed.saved[axis] for axis in MAIN_AXES},
                "final_loss": _losses(seed.final),
                "reverse": seed.reverse,
            }
            for seed in pair.by_seed
        ],
        "verdict": verdict(pair),
        "notes": list(pair.notes),
    }


def _split(pair: Pair, kind: str) -> Mapping[str, float | None]:
    axes = {"student": f"student_{kind}", "with_labels": kind, "with_upstream": f"upstream_{kind}"}
    return {name: pair.saved(cast(Axis, axis)) for name, axis in axes.items()}


def _losses(losses: Losses | None) -> dict[str, float] | None:
    return None if losses is None else {**vars(losses), "difference": losses.difference}


def _list(bounds: Interval | None) -> list[float] | None:
    return None if bounds is None else list(bounds)


def _number(value: float | None) -> float | None:
    return value if is_finite(value) else None
