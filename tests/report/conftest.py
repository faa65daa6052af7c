"""A comparison with a teacher, several seeds and hostile names, and every section of a quickstart's report."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cocomix.compare.comparison import Comparison, compare
from cocomix.compare.runs import load_run
from cocomix.report.page import write_comparison, write_quickstart
from cocomix.report.sections import Sections
from cocomix.testing.run_folders import MadeUpRun

HOSTILE = "$a_b$ <script>alert('x')</script> & \"q\""
GRID = tuple(range(100_000, 1_000_001, 100_000))


def losses(scale: float, seed: int) -> tuple[float, ...]:
    return tuple(10 - 0.5 * math.log(t / scale) + 0.01 * seed for t in GRID)


@pytest.fixture(scope="session")
def comparison(tmp_path_factory) -> Comparison:
    root = tmp_path_factory.mktemp("runs")
    upstream = {"teacher": {"flops": 2e12, "seconds": 20.0}, "sae": {"flops": 1e12, "seconds": 10.0}}
    teacher = {"label_flops_per_token": 3e6, "label_seconds_per_token": 5e-5, "upstream": upstream}
    folders = [
        MadeUpRun(method=method, seed=seed, tokens=GRID, losses=losses(scale, seed), **costs).write(
            root / f"run-{number}-{seed}"
        )
        for number, (method, scale, costs) in enumerate(
            [("ntp", 1.0, {}), ("cocomix", 1.2, teacher), ("cocomix_add", 0.7, teacher), (HOSTILE, 0.9, {})]
        )
        for seed in (0, 1)
    ]
    return compare([load_run(folder) for folder in folders])


@pytest.fixture(scope="session")
def sections() -> Sections:
    cross_entropy = {"clean": 3.741, "reconstructed": 3.829, "ablated": 7.21, "recovered": 0.975}
    concept = {
        "id": 137,
        "name": f"rivers {HOSTILE}",
        "frequency": 0.004,
        "count": 2000,
        "mean_strength": 3.1,
        "promoted": [{"token": " river", "score": 1.5}, {"token": "\n", "score": 1.0}],
        "contexts": [
            {"before": f"a {HOSTILE} ", "token": " Nile", "after": "\nflows", "strength": 7.0},
            {"before": "", "token": " ", "after": "", "strength": 6.0},
        ],
    }
    active = [{"id": 137, "name": HOSTILE, "strength": 2.0}]
    return {
        "intro": {
            "title": f"Quickstart {HOSTILE}",
            "text": "What was done.",
            "corpus": "256 documents",
            "tokens": 1_000_000,
            "models": [{"name": "student", "total": 2_000_000, "active": 1_000_000}],
            "stages": [
                {"name": "data", "what": "text to tokens", "seconds": 12.0, "flops": None},
                {"name": "teacher", "what": "trained", "seconds": 420.0, "flops": 9e13},
            ],
        },
        "sae": {
            "latents": 2048,
            "k": 16,
            "l0": 160.0,
            "fvu": 0.113,
            "dead_share": 0.05,
            "cross_entropy": cross_entropy,
            "tokens": 131_072,
        },
        "prediction": {"recall": 0.412, "marginal_recall": 0.083, "loss": 4.31, "marginal_loss": 6.92},
        "concepts": [concept],
        "sentence": {"text": HOSTILE, "tokens": [{"token": f" {HOSTILE}", "concepts": active}]},
        "steering": {
            "prompt": HOSTILE,
            "concept": {"id": 137, "name": "rivers"},
            "unsteered": f"plain {HOSTILE}",
            "samples": [{"edit": "×5", "text": "rivers " + "r" * 300}],
        },
    }


@pytest.fixture(scope="session")
def reports(tmp_path_factory, comparison, sections) -> dict[str, Path]:
    """The pages of both kinds of report."""
    root = tmp_path_factory.mktemp("reports")
    return {
        "comparison": write_comparison(comparison, root / "comparison"),
        "quickstart": write_quickstart(root / "quickstart", comparison, sections),
    }
