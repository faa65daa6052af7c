"""A steering score over concepts: dose-response curves with intervals, the one-number summary, a table. No torch.

Shapes: N concepts, D doses, the first of them 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cocomix.compare.intervals import CONFIDENCE, student_t

MEASURES = ("activation", "active", "promoted", "nll", "distinct_1", "distinct_2", "repeated_4")
METHODS = {"concept": "concept edit", "random": "random direction", "teacher": "decoder row in the teacher"}
RESAMPLES = 2000


def summarised(score: dict[str, Any], fluency: float) -> dict[str, Any]:
    """Of what :func:`cocomix.steer.score.score` measured: ``{"fluency", "concepts": N, "methods": {method: {"curve",
    "best"}}, "differences": {method: {"gain", "low", "high"}}}``.

    A point of ``curve`` has the ``dose`` and of each measure ``{"mean", "change", "low", "high"}``: the mean over
    concepts, and that of each concept's difference to its unsteered text, with Student's 95 % interval (None with one
    concept); ``perplexity`` is that of nll as a factor. ``best`` is ``{"gain", "dose", "perplexity", "low", "high"}``
    as :func:`best` finds it; its interval, and those of ``differences`` (the concept edit's gain less a baseline's),
    are bootstrapped over concepts.
    """
    values = {method: _values(score, method) for method in METHODS}
    doses, count = np.array(score["doses"]), len(score["concepts"])
    gains = {method: _resampled(doses, found, fluency) for method, found in values.items()}
    methods: dict[str, dict[str, Any]] = {}
    for method, found in values.items():
        gain, dose, factor = best(doses, *_means(found), fluency)
        methods[method] = {
            "curve": [_point(dose, found, at) for at, dose in enumerate(score["doses"])],
            "best": {"gain": gain, "dose": dose, "perplexity": factor, **_bounds(gains[method], count)},
        }
    differences = {
        other: {
            "gain": methods["concept"]["best"]["gain"] - methods[other]["best"]["gain"],
            **_bounds(gains["concept"] - gains[other], count),
        }
        for other in METHODS
        if other != "concept"
    }
    return {"fluency": fluency, "concepts": count, "methods": methods, "differences": differences}


def best(
    doses: Float[np.ndarray, " D"], gains: Float[np.ndarray, " D"], nlls: Float[np.ndarray, " D"], fluency: float
) -> tuple[float, float, float]:
    """(gain, dose, perplexity factor): the largest gain of a curve where the perplexity is at most ``fluency`` times
    the unsteered one, gain and NLL being straight lines between doses. At dose 0 both are 0, so there always is one.

    ``nlls``: changes, nats. Both are straight in a segment: the largest gain is at a dose or where the bound is met.
    """
    bound, points = math.log(fluency), []
    for at, dose in enumerate(doses):
        points.append((gains[at], dose, nlls[at]))
        if at + 1 < len(doses) and (nlls[at] - bound) * (nlls[at + 1] - bound) < 0:
            share = (bound - nlls[at]) / (nlls[at + 1] - nlls[at])
            between = [values[at] + share * (values[at + 1] - values[at]) for values in (gains, doses)]
            points.append((between[0], between[1], bound))
    gain, dose, nll = max((p for p in points if p[2] <= bound), key=lambda point: (point[0], -point[1]))
    return float(gain), float(dose), math.exp(nll)


def steering_table(score: dict[str, Any], summary: dict[str, Any]) -> str:
    """The curves and the summary in Markdown."""
    lines = [
        f"Steering score over {summary['concepts']} concepts, in brackets 95 % intervals over them. Activation: change "
        "of the concept's mean activation in the written text, in units of its usual one. Perplexity: times the "
        "unsteered text's.",
        "",
        "| method | dose | activation | active tokens | promoted tokens | perplexity | distinct-2 | repeated 4-grams |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for method, found in summary["methods"].items():
        for point in found["curve"]:
            cells = [
                _ranged(point["activation"], "{:+.2f}"),
                _ranged(point["active"], "{:+.1%}"),
                _ranged(point["promoted"], "{:+.1%}"),
                _ranged(point["perplexity"], "×{:.2f}"),
                f"{point['distinct_2']['mean']:.2f}",
                f"{point['repeated_4']['mean']:.1%}",
            ]
            lines.append(f"| {METHODS[method]} | {point['dose']:g} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Largest gain of activation at a perplexity of at most {summary['fluency']:g} times the unsteered one:",
    ]
    lines.append("")
    for method, found in summary["methods"].items():
        at = found["best"]
        lines.append(
            f"- {METHODS[method]}: {_bracketed(at, 'gain', '{:+.2f}')} at dose {at['dose']:.3g} "
            f"(perplexity ×{at['perplexity']:.2f})"
        )
    for other, difference in summary["differences"].items():
        lines.append(f"- concept edit less {METHODS[other]}: {_bracketed(difference, 'gain', '{:+.2f}')}")
    return "\n".join([*lines, "", f"Concepts: {score['rule']}.", ""])


def _values(score: dict[str, Any], method: str) -> dict[str, Float[np.ndarray, "N D"]]:
    cells = [record["methods"][method] for record in score["concepts"]]
    return {name: np.array([[cell[name] for cell in row] for row in cells], dtype=float) for name in MEASURES}


def _point(dose: float, values: dict[str, Float[np.ndarray, "N D"]], at: int) -> dict[str, Any]:
    point: dict[str, Any] = {"dose": dose}
    for name, found in values.items():
        changes = found[:, at] - found[:, 0]
        low, high = student_t(changes.tolist()) or (None, None)
        point[name] = {"mean": float(found[:, at].mean()), "change": float(changes.mean()), "low": low, "high": high}
    point["perplexity"] = {
        key: None if value is None else math.exp(min(value, 700)) for key, value in point["nll"].items()
    }
    return point


def _means(values: dict[str, Float[np.ndarray, "N D"]]) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"]]:
    """Changes of activation and NLL, means over concepts."""
    gains, nlls = (values[name] - values[name][:, :1] for name in ("activation", "nll"))
    return gains.mean(0), nlls.mean(0)


def _resampled(
    doses: Float[np.ndarray, " D"], values: dict[str, Float[np.ndarray, "N D"]], fluency: float
) -> Float[np.ndarray, " R"]:
    """The summary's gain of concepts drawn again and again; the same draws for every method."""
    count = len(values["activation"])
    draws = np.random.default_rng(0).integers(0, count, size=(RESAMPLES, count))
    parts = {name: values[name] for name in ("activation", "nll")}
    return np.array([best(doses, *_means({n: v[draw] for n, v in parts.items()}), fluency)[0] for draw in draws])


def _bounds(resampled: Float[np.ndarray, " R"], count: int) -> dict[str, float | None]:
    if count < 2:
        return {"low": None, "high": None}
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"low": float(low), "high": float(high)}


def _ranged(measure: dict[str, Any], form: str) -> str:
    return _bracketed(measure, "change", form)


def _bracketed(measure: dict[str, Any], key: str, form: str) -> str:
    told = form.format(measure[key])
    return told if measure["low"] is None else f"{told} [{form.format(measure['low'])}, {form.format(measure['high'])}]"


def columns(summary: dict[str, Any], method: str, measure: str, key: str) -> Sequence[float | None]:
    """One number of a measure at every dose."""
    return [point[measure][key] for point in summary["methods"][method]["curve"]]
