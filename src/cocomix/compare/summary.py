"""A comparison as the contract's ``summary.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from cocomix.compare.comparison import Comparison, Entry
from cocomix.compare.curves import AXES, MAIN_AXES, Axis, parts
from cocomix.compare.intervals import Interval, bootstrap, student_t
from cocomix.compare.methods import Level, Method, budgets, methods
from cocomix.compare.pairs import By, Losses, Pair
from cocomix.compare.runs import is_finite
from cocomix.compare.wording import no_loss, no_saving, verdict


def summary(comparison: Comparison) -> dict[str, Any]:
    """``{"runs": […], "methods": […], "pairs": […], "baseline", "budgets", "notes"}``, free of NaN and infinities.

    Of a run: costs and losses at its last evaluation; null before the first one. ``seconds`` are of its
    training alone. Of a pair: ``flops_saved`` and ``seconds_saved`` count the student's training and the
    teacher's labels; ``flops_saved_by`` and ``seconds_saved_by`` split them into the student alone, with
    labels, and with the training of the teacher shared over ``upstream_shared_by`` runs and that of the SAE over
    ``sae_shared_by`` (null: not known). ``loss`` holds both losses and their difference on the same seven axes,
    ``intervals`` the 95 % bootstraps of all of these, ``intervals_student_t`` the same by Student's t; ``interval`` is
    that of ``tokens_saved``. What is null for a reason has it in ``why``.
    Of a method: means over seeds with half their 95 % intervals (Student's t), ``equal`` at the ``budgets`` that all
    methods have spent; a word instead says why there is none.
    """
    return {
        "baseline": comparison.baseline,
        "budgets": budgets(comparison),
        "methods": [_method(method) for method in methods(comparison)],
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
        "benchmarks": _finite(run.benchmarks),
        "best_loss": _best(entry),
        "finished": run.manifest.finished,
        "folder": run.folder.as_posix(),
        "trained_tokens": run.progress.tokens if run.progress else 0,
        "costs": {kind: vars(part) if part else None for kind, part in cost.items()},
    }


def _best(entry: Entry) -> float | None:
    return None if entry.curve is None else _number(float(entry.curve.loss.min()))


def _method(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "seeds": list(method.seeds),
        "left_out": method.left_out,
        "parameters": {"total": method.total, "active": method.active},
        "final": _level(method.final),
        "equal": {axis: _level(level) for axis, level in method.equal.items()},
        "benchmarks": {name: vars(score) for name, score in method.benchmarks.items()},
    }


def _level(level: Level | str | None) -> dict[str, Any] | str | None:
    if not isinstance(level, Level):
        return level
    return {"loss": vars(level.loss), "ppl": vars(level.ppl)}


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "baseline": pair.baseline,
        "candidate": pair.candidate,
        "seeds": pair.seeds,
        "tokens_saved": pair.saved("tokens"),
        "flops_saved": pair.saved("flops"),
        "seconds_saved": pair.saved("seconds"),
        "interval": _list(pair.saved_interval("tokens")),
        "intervals": _intervals(pair, bootstrap),
        "intervals_student_t": _intervals(pair, student_t),
        "flops_saved_by": _split(pair, "flops"),
        "seconds_saved_by": _split(pair, "seconds"),
        "upstream_shared_by": pair.shared_by,
        "sae_shared_by": pair.sae_shared_by,
        "reached": pair.reached,
        "reverse": pair.reverse,
        "reverse_saved": {axis: pair.reverse_saved(axis) for axis in MAIN_AXES},
        "loss": {
            "final": _losses(pair.final),
            **{f"equal_{axis}": _losses(pair.equal(axis)) for axis in AXES},
        },
        "why": _why(pair),
        "by_seed": [
            {
                "seed": seed.seed,
                **{f"{axis}_saved": seed.saved[axis] for axis in AXES},
                "final_loss": _losses(seed.final),
                **{f"loss_at_equal_{axis}": _losses(seed.equal[axis]) for axis in AXES},
                "reverse": seed.reverse,
            }
            for seed in pair.by_seed
        ],
        "verdict": verdict(pair),
        "notes": list(pair.notes),
    }


def _intervals(pair: Pair, by: By) -> dict[str, list[float] | None]:
    return {
        **{f"{axis}_saved": _list(pair.saved_interval(axis, by)) for axis in AXES},
        "final_loss": _list(pair.difference_interval(lambda seed: seed.final, by)),
        **{f"loss_at_equal_{axis}": _list(pair.equal_interval(axis, by)) for axis in AXES},
    }


def _why(pair: Pair) -> dict[str, str]:
    """The reasons of what is null."""
    saved = {f"{axis}_saved": no_saving(pair, axis) for axis in AXES if pair.saved(axis) is None}
    return saved | {f"equal_{axis}": no_loss(pair, axis) for axis in AXES if pair.equal(axis) is None}


def _split(pair: Pair, kind: str) -> Mapping[str, float | None]:
    axes = {"student": f"student_{kind}", "with_labels": kind, "with_upstream": f"upstream_{kind}"}
    return {name: pair.saved(cast(Axis, axis)) for name, axis in axes.items()}


def _losses(losses: Losses | None) -> dict[str, float] | None:
    return None if losses is None else {**vars(losses), "difference": losses.difference}


def _list(bounds: Interval | None) -> list[float] | None:
    return None if bounds is None else list(bounds)


def _number(value: float | None) -> float | None:
    return value if is_finite(value) else None


def _finite(value: Any) -> Any:
    """``value`` with None for its numbers that are not finite, at any depth."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return _number(value) if isinstance(value, float) else value
