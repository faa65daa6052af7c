"""What log-likelihoods say about a task: accuracies, perplexity, bits a byte, each with its standard error and unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from cocomix.evaluate.tasks import Item, Task


class Metric(NamedTuple):
    """One figure."""

    value: float
    stderr: float | None
    """Standard error over items; None where one item is all there is, or nobody tells."""
    unit: str

    def to_json(self) -> dict[str, Any]:
        """The fields as a plain dictionary; what is not finite is null, as JSON has no word for it."""
        return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in self._asdict().items()}


def measure(task: Task, items: Sequence[Item], nats: Sequence[float], greedy: Sequence[bool]) -> dict[str, Metric]:
    """The task's metrics. ``nats`` are log-likelihoods (≤ 0) of all requests in order; ``greedy`` says whether each
    token of a continuation is the likeliest.

    ``acc`` takes the likeliest answer; of a task without wrong answers, an item is right when its continuation is
    greedy. ``acc_norm`` takes the likeliest a character of the answer and ``acc_bytes`` a UTF-8 byte, the space before
    it not counted, as lm-evaluation-harness does under these names. Of equals the first wins, as there.
    """
    starts = np.cumsum([0, *(len(item.requests) for item in items)])
    answers = [np.asarray(nats[a:b], dtype=np.float64) for a, b in pairwise(starts)]
    if "perplexity" in task.metrics:
        right = [greedy[start + item.right] for start, item in zip(starts[:-1], items, strict=True)]
        found = {"acc": _share(right)}
    else:
        found = {name: _share(_right(name, items, answers)) for name in task.metrics}
    truths = np.array([-answer[item.right] for item, answer in zip(items, answers, strict=True)])
    if "perplexity" in task.metrics:
        found["perplexity"] = _perplexity(truths, "per last word")
    sizes = np.array([len(item.requests[item.right].continuation.encode()) for item in items], dtype=np.float64)
    found["bits_per_byte"] = _ratio(truths / math.log(2), sizes, "bits per byte of the right continuation")
    return found


def _right(name: str, items: Sequence[Item], answers: Sequence[Float64[np.ndarray, " A"]]) -> list[bool]:
    """Whether each item's best answer is the right one."""
    return [
        int(np.argmax(answer / _lengths(name, item))) == item.right for item, answer in zip(items, answers, strict=True)
    ]


def _lengths(name: str, item: Item) -> Float64[np.ndarray, " A"]:
    texts = [request.continuation.removeprefix(" ") for request in item.requests]
    measures = {"acc": lambda text: 1, "acc_norm": len, "acc_bytes": lambda text: len(text.encode())}
    # An empty answer has no likelihood a character.
    return np.array([max(measures[name](text), 1) for text in texts], dtype=np.float64)


def _share(right: Sequence[bool]) -> Metric:
    """A mean of zeros and ones with its standard error from the sample's variance (n − 1)."""
    values = np.asarray(right, dtype=np.float64)
    return Metric(float(values.mean()), _mean_stderr(values), "share of items")


def _perplexity(nats: Float64[np.ndarray, " N"], unit: str) -> Metric:
    """exp of the mean; the error of the mean goes through the slope of exp (delta method)."""
    value, error = math.exp(min(float(nats.mean()), 700.0)), _mean_stderr(nats)
    return Metric(value, None if error is None else value * error, unit)


def _ratio(parts: Float64[np.ndarray, " N"], sizes: Float64[np.ndarray, " N"], unit: str) -> Metric:
    """Σ parts / Σ sizes; the error is that of a ratio of sums (Cochran, Sampling Techniques, 1977, § 6.4)."""
    value, count = float(parts.sum() / sizes.sum()), len(parts)
    error = None
    if count > 1:
        error = float(np.sqrt(((parts - value * sizes) ** 2).sum() * count / (count - 1)) / sizes.sum())
    return Metric(value, error, unit)


def _mean_stderr(values: Float64[np.ndarray, " N"]) -> float | None:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
