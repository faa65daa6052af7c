"""The study's parts: rates searched, rows that are real recipes, and the page that tells what was found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


TIMES = {
    "threads": 1,
    "seconds_a_step": {"ntp": 0.1, "cocomix_add": 0.12, "pause": 0.15},
    "seconds_a_flop": {"teacher": 2e-11, "labels": 3e-11, "probabilities": 4e-11, "sae": 5e-11},
}


@pytest.fixture(scope="module", autouse=True)
def benchmarks_importable():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def test_the_search_goes_on_while_the_best_rate_lies_at_an_edge():
    from study import beyond

    assert beyond({1e-3: 5.0, 2e-3: 4.0, 4e-3: 4.5}) == set()
    assert beyond({1e-3: 4.0, 2e-3: 4.1, 4e-3: 4.5}) == {5e-4}
    assert beyond({1e-3: 5.0, 2e-3: 4.0, 4e-3: 3.9}) == {8e-3}
    assert beyond({1e-3 * 2**i: 5.0 - i for i in range(6)}) == set(), "six are enough"


def test_every_row_is_a_training_with_settings_that_exist(tmp_path):
    from cocomix.config import load_settings
    from cocomix.train.settings import TrainSettings
    from study import SEARCHED, Plan, rates_rows, shifted_rows, short_rows

    plan = Plan(tmp_path)
    rate = dict.fromkeys(SEARCHED, 2e-3)
    rows = short_rows(plan, rate) | shifted_rows(plan, rate) | rates_rows(plan, rate)
    assert {"ntp", "kd", "pause", "cocomix", "cocomix_add", "cocomix_add_shifted", "cocomix-0.001"} < rows.keys()
    for name, row in rows.items():
        words = [f"{key}={value}" for key, value in row["set"].items()]
        words += [f"data.{cache}={row[cache]}" for cache in ("labels", "probabilities") if row.get(cache)]
        settings = load_settings(TrainSettings, [*row["recipe"], *words, "data.path=data", f"run={tmp_path / name}"])
        assert settings.method == name
        slot = "copy" if name in ("cocomix_copy", "pause", "kd_pause") else "position" if "position" in name else "none"
        assert settings.model.slot_base == slot, "cocomix is the paper's, with bare slots"
        assert settings.optimizer.lr == (float(name.partition("-")[2]) if "-" in name else 2e-3)


def made_steering() -> dict[str, Any]:
    """Of three concepts, each of which a concept edit makes 0.5 more active at dose 1, nothing else."""
    from cocomix.report.steering import MEASURES, METHODS, summarised

    def cell(method: str, dose: float) -> dict[str, float]:
        return {**dict.fromkeys(MEASURES, 0.1), "dose": dose, "activation": 0.5 * dose * (method == "concept")}

    methods = {method: [cell(method, dose) for dose in (0.0, 1.0)] for method in METHODS}
    score = {"doses": [0.0, 1.0], "concepts": [{"methods": methods}] * 3}
    measured = {"prompts": 4, "max_new_tokens": 8}
    return {"rule": "drawn at random", "doses": score["doses"], "measured": measured, "summary": summarised(score, 1.5)}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A study with made-up curves: add is better than ntp in every seed, pause worse, and one of kd still runs."""
    from cocomix.files import write_json
    from cocomix.testing.run_folders import MadeUpRun

    teacher = {"label_flops_per_token": 1e6, "label_seconds_per_token": 1e-5}
    upstream = {"teacher": {"flops": 4e11, "seconds": 5.0}, "sae": {"flops": 4e10, "seconds": 1.0}}
    of = {"teacher": {"fingerprint": "its teacher"}, "sae": {"fingerprint": "its sae"}}
    made = {"ntp": (0.0, {}), "cocomix_add": (-0.2, {**teacher, "upstream": upstream, "of": of}), "pause": (0.3, {})}
    for stage, seeds in (("main", (0, 1, 2)), ("short", (0,))):
        for method, (shift, more) in made.items():
            for seed in seeds:
                losses = [loss + shift + 0.002 * seed * shift for loss in (5.0, 4.6, 4.4, 4.3)]
                MadeUpRun(method=method, seed=seed, losses=losses, **more).write(
                    tmp_path / "study" / stage / f"{method}-s{seed}"
                )
    MadeUpRun(method="kd", finished=False).write(tmp_path / "study" / "main" / "kd-s0")
    quality = {"loss": 4.0, "marginal_loss": 5.5, "recall": 0.5, "marginal_recall": 0.2, "labels": 100}
    plan = {"vocabulary": 300, "teacher": 8e6, "latents": 64, "k": 8, "window": 64, "step_tokens": 512}
    plan |= {"matched_width": 132, "tokens": 1e6, "short": 1e6, "search": 1e5, "seeds": [0, 1, 2]}
    known = {
        "plan": plan,
        "data": {"train_tokens": 5e6},
        "teacher_loss": 3.5,
        "sae": {"fvu": 0.05, "cross_entropy": {"recovered": 0.98}},
        "search": {"chosen": {"ntp": 2e-3}, "losses": {"ntp": {"0.001": 5.1, "0.002": 5.0, "0.004": 5.2}}},
        "rates": {"cocomix-0.004-s0": 4.75},
        "times": TIMES,
        "concepts": {"main": {"cocomix_add-s0": quality}},
        "sources": {"ntp-s0": {"unseen": 4.5, "rest": 4.2}},
        "steering": {"cocomix_add-s0": made_steering()},
    }
    write_json(tmp_path / "study" / "study.json", known)
    return tmp_path / "study"


def test_the_page_tells_numbers_intervals_and_verdicts(folder, tmp_path):
    from study_report import main

    remarks = tmp_path / "remarks.md"
    remarks.write_text("## Remarks\n\nRead with care.\n")
    assert main([str(folder), "--out", str(tmp_path / "docs/results.md"), "--remarks", str(remarks)]) == 0
    page = (tmp_path / "docs/results.md").read_text()
    assert "| cocomix_add | 3 |" in page
    assert "kd" not in page.replace("NTP and KD are", "")
    assert "-0.200 [-0.201, -0.199]" in page
    assert "| `add` beats next-token prediction | yes (-0.200) |" in page
    assert "At 1M tokens (first seed): `cocomix-0.004` 4.750." in page
    assert "not reached (0 of 3 seeds)" in page
    assert page.startswith("# Results: a study at a small scale\n\n## Remarks\n\nRead with care.")
    numbers = json.loads((tmp_path / "docs/results.json").read_text())
    assert numbers["teacher_loss"] == 3.5
    assert numbers["stages"]["main"]["curves"]["cocomix_add-s0"][-1][1] == pytest.approx(4.1)
    assert {pair["candidate"] for pair in numbers["stages"]["short"]["comparison"]["pairs"]} == {"cocomix_add", "pause"}
    assert "| cocomix_add-s0 | +0.50 [+0.50, +0.50] at 1 |" in page
    for picture in ("tokens", "flops", "steering-cocomix_add"):
        assert (tmp_path / f"docs/images/results-{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_seconds_are_steps_and_counted_operations_at_the_speeds_measured_in_turn(folder):
    from cocomix.compare.runs import load_run
    from study_times import timed

    run = timed(load_run(folder / "main" / "pause-s0"), TIMES)
    assert [e.seconds for e in run.evaluations] == [e.step * 0.15 for e in run.evaluations]
    labels = timed(load_run(folder / "main" / "cocomix_add-s0"), TIMES).manifest.labels
    assert labels.seconds_per_token == pytest.approx(1e6 * 3e-11)
    assert labels.upstream.teacher.seconds == pytest.approx(4e11 * 2e-11)
    assert labels.upstream.sae.seconds == pytest.approx(4e10 * 5e-11)
    assert labels.makers("sae") == {"its sae"}, "who shares it is told by what made the labels"
