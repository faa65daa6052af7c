"""Budgets, their shares, and the schedules laid over them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from cocomix.config import load_settings
from cocomix.errors import UserError
from cocomix.train.budget import Budget, passes
from cocomix.train.build import learning_rate
from cocomix.train.counters import Counters
from cocomix.train.metrics import read_lines
from cocomix.train.run import Run
from cocomix.train.settings import ScheduleSettings, TrainSettings
from cocomix.train.verb import train

BACKBONE = "model.backbone={model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2}"


def settings(dataset, run: Path, *words: str) -> TrainSettings:
    common = [f"data.path={dataset.folder}", f"run={run}", BACKBONE, "batch_windows=4", "checkpoint.number=2",
              "model.insert_at=0", "evaluations=2", "eval_documents=1"]  # fmt: skip
    return load_settings(TrainSettings, [*common, *words])


def budget(*words: str) -> Budget:
    return Budget(load_settings(TrainSettings, ["run=r", "data.path=d", *words]), step_tokens=100, step_flops=1e6)


@pytest.mark.parametrize(
    ("words", "steps"),
    [(["tokens=1001"], 11), (["steps=7"], 7), (["flops=2.5e6"], 3), (["tokens=100", "steps=7"], 7),
     (["tokens=100", "steps=7", "flops=2.5e6"], 3), (["steps=7", "seconds=3"], None)],
)  # fmt: skip
def test_budgets_are_whole_steps_and_the_most_telling_one_counts(words, steps):
    assert budget(*words).steps == steps


def test_a_budget_is_wanted(dataset, tmp_path):
    with pytest.raises(UserError, match="give the budget as tokens=…, steps=…, flops=… or seconds=…"):
        settings(dataset, tmp_path / "run")


@pytest.mark.parametrize(("steps", "number"), [(10, 3), (3, 3), (7, 7), (100, 9), (2, 5)])
def test_marks_are_spread_evenly_and_the_last_is_at_the_end(steps, number):
    made = [s for s in range(1, steps + 1) if passes((s - 1) / steps, s / steps, number)]
    assert len(made) == min(steps, number)
    assert made[-1] == steps
    gaps = [b - a for a, b in itertools.pairwise([0, *made])]
    assert max(gaps) - min(gaps) <= 1


def test_the_clock_as_budget_lays_the_schedule_over_the_seconds():
    clock = budget("seconds=10")
    counters = Counters()
    assert clock.share(counters) == 0
    assert clock.expected_steps(counters) > 10**6
    counters.step, counters.seconds = 20, 4.0
    assert clock.share(counters) == pytest.approx(0.4)
    assert clock.expected_steps(counters) == 50
    counters.step, counters.seconds = 51, 10.5
    assert clock.over(counters)


def test_a_run_by_the_clock_ends_with_it_and_can_be_given_more(dataset, tmp_path):
    first = train(settings(dataset, tmp_path / "run", "seconds=1.0", "schedule.warmup=0"))
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert lines[-1]["seconds"] >= 1.0 > lines[-2]["seconds"]
    assert lines[-1]["lr"] < 0.3 * lines[2]["lr"]  # the cosine came down with the clock
    assert first["evaluation"]["step"] == lines[-1]["step"]
    assert len(read_lines(tmp_path / "run" / "evals.jsonl")) == 2
    again = train(settings(dataset, tmp_path / "run", "seconds=1.5", "schedule.warmup=0"))
    assert again["evaluation"]["seconds"] >= 1.5


def test_a_run_by_flops_spends_them(dataset, tmp_path):
    run = Run(settings(dataset, tmp_path / "run", "flops=1e9"))
    per_step = run.flops_per_token * run.step_tokens
    train(settings(dataset, tmp_path / "run", "flops=1e9"))
    spent = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["flops"]["student"]
    assert 1e9 <= spent < 1e9 + per_step


def test_wsd_is_constant_and_then_falls_in_a_line():
    schedule = ScheduleSettings(kind="wsd", warmup=0.1, decay=0.3, final=0.1)
    rates = [learning_rate(s, 100, 2.0, schedule) for s in range(100)]
    assert rates[9:71] == [2.0] * 62
    falls = [a - b for a, b in itertools.pairwise(rates[70:])]
    assert falls == pytest.approx([2.0 * 0.9 / 30] * 29)
    assert rates[-1] == pytest.approx(0.2 + 1.8 / 30)


def test_averages_of_losses_begin_at_the_first_loss():
    counters = Counters()
    counters.follow({"ntp": 4.0}, 0.9)
    counters.follow({"ntp": 3.0}, 0.9)
    assert counters.average == {"ntp": pytest.approx(3.9)}
