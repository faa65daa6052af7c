"""One row a method, all at the same cost; benchmarks of run folders."""

from __future__ import annotations

import json
import math

import pytest

from cocomix.compare.benchmarks import Score, scores
from cocomix.compare.comparison import compare
from cocomix.compare.methods import budgets, methods
from cocomix.compare.runs import load_run
from cocomix.compare.summary import summary
from cocomix.errors import UserError
from cocomix.testing.run_folders import MadeUpRun

GRID = tuple(range(100_000, 1_000_001, 100_000))
UPSTREAM = {"teacher": {"flops": 2e12, "seconds": 20.0}, "sae": {"flops": 1e12, "seconds": 10.0}}


def loss_at(tokens):
    return 10 - 0.5 * math.log(tokens)


def made(method, seed=0, shift=0.0, grid=GRID, **values):
    return MadeUpRun(method=method, seed=seed, tokens=grid, losses=[loss_at(t) + shift for t in grid], **values)


def compared(tmp_path, *made_up, **options):
    runs = [load_run(run.write(tmp_path / f"run{i}")) for i, run in enumerate(made_up)]
    return compare(runs, **options)


def test_methods_are_read_at_the_cost_that_all_have_spent(tmp_path):
    # twice the FLOPs a token, and half as many for the labels on top: 3e6 of 6e6
    better = made("cocomix", flops_per_token=12e6, label_flops_per_token=3e6, upstream=UPSTREAM)
    longer = made("pause", grid=(*GRID, 2_000_000))
    found = compared(tmp_path, made("ntp"), better, longer)
    at = budgets(found)
    assert at["tokens"] == 1_000_000
    assert at["student_flops"] == at["flops"] == at["upstream_flops"] == 6e12  # what ntp has spent
    rows = {method.name: method for method in methods(found)}
    reached = {axis: rows["cocomix"].equal[axis].loss.mean for axis in ("tokens", "student_flops", "flops")}
    assert reached == {
        "tokens": pytest.approx(loss_at(1_000_000)),
        "student_flops": pytest.approx(loss_at(6e12 / 12e6)),
        "flops": pytest.approx(loss_at(6e12 / 15e6)),
    }
    # 3e12 for teacher and SAE leave 3e12 of 15e6 a token
    assert rows["cocomix"].equal["upstream_flops"].loss.mean == pytest.approx(loss_at(200_000))
    assert rows["pause"].equal["tokens"].loss.mean == pytest.approx(loss_at(1_000_000))
    assert rows["pause"].final.loss.mean == pytest.approx(loss_at(2_000_000))
    assert rows["pause"].final.ppl.mean == pytest.approx(math.exp(loss_at(2_000_000)))


def test_teacher_that_costs_more_than_the_whole_budget_is_out_of_range_and_an_unknown_one_not_known(tmp_path):
    dear = {"teacher": {"flops": 7e12, "seconds": 20.0}, "sae": {"flops": 0.0, "seconds": 0.0}}
    foreign = {"teacher": None, "sae": {"flops": 0.0, "seconds": 0.0}}
    for name, upstream, word in (("a", dear, "out of range"), ("b", foreign, "not known")):
        runs = made("ntp"), made("cocomix", label_flops_per_token=3e6, upstream=upstream)
        found = summary(compared(tmp_path / name, *runs))
        assert found["methods"][1]["equal"]["upstream_flops"] == word
        assert found["pairs"][0]["loss"]["equal_upstream_flops"] is None
        assert found["pairs"][0]["why"]["equal_upstream_flops"] == word
        assert found["methods"][1]["equal"]["flops"]["loss"]["mean"] == pytest.approx(loss_at(6e12 / 9e6))


def test_mean_over_seeds_leaves_out_diverged_runs_and_counts_them(tmp_path):
    diverged = MadeUpRun(method="ntp", seed=2, tokens=GRID, losses=[math.inf] * len(GRID))
    (row,) = methods(compared(tmp_path, made("ntp", 0, 0.1), made("ntp", 1, -0.1), diverged))
    assert row.seeds == (0, 1)
    assert row.left_out == 1
    assert row.final.loss.mean == pytest.approx(loss_at(1_000_000))
    assert row.final.loss.half == pytest.approx(12.7062 * 0.1, rel=1e-4)


FORMATS = {
    "of cocomix eval": {"metrics": {"acc": {"value": 0.31, "stderr": 0.01, "unit": "share"}}, "items": 5},
    "flat": {"acc": 0.31, "acc_stderr": 0.01},
    "of lm-evaluation-harness": {"alias": "piqa", "acc,none": 0.31, "acc_stderr,none": 0.01},
}


@pytest.mark.parametrize("layout", FORMATS)
def test_accuracies_are_read_from_every_layout(tmp_path, layout):
    folder = made("ntp").write(tmp_path / "run")
    (folder / "benchmarks.json").write_text(json.dumps({"piqa": FORMATS[layout]}))
    assert scores(load_run(folder)) == {"piqa acc": Score(0.31, 0.01)}


def test_accuracy_without_a_known_error_has_none_and_other_metrics_are_left_out(tmp_path):
    folder = made("ntp").write(tmp_path / "run")
    task = {"acc,none": 0.5, "acc_stderr,none": "N/A", "perplexity,none": 31.0, "acc_norm": "N/A"}
    (folder / "benchmarks.json").write_text(json.dumps({"lambada": task}))
    assert scores(load_run(folder)) == {"lambada acc": Score(0.5, None)}


def test_a_metric_under_several_filters_is_told_under_each(tmp_path):
    folder = made("ntp").write(tmp_path / "run")
    task = {"exact_match,strict-match": 0.1, "exact_match_stderr,strict-match": 0.02,
            "exact_match,flexible-extract": 0.35, "exact_match_stderr,flexible-extract": 0.03}  # fmt: skip
    (folder / "benchmarks.json").write_text(json.dumps({"gsm8k": task}))
    assert scores(load_run(folder)) == {
        "gsm8k exact_match (strict-match)": Score(0.1, 0.02),
        "gsm8k exact_match (flexible-extract)": Score(0.35, 0.03),
    }


def test_seeds_share_the_items_so_that_their_mean_keeps_the_error_of_one(tmp_path):
    folders = [made("ntp", seed).write(tmp_path / f"run{seed}") for seed in (0, 1, 2)]
    for folder, acc in zip(folders, (0.30, 0.34), strict=False):  # the third has not been asked
        (folder / "benchmarks.json").write_text(json.dumps({"piqa": {"acc": acc, "acc_stderr": 0.01}}))
    found = summary(compare([load_run(folder) for folder in folders]))
    assert found["methods"][0]["benchmarks"] == {"piqa acc": {"value": pytest.approx(0.32), "stderr": 0.01}}
    assert found["runs"][0]["benchmarks"] == {"piqa": {"acc": 0.30, "acc_stderr": 0.01}}


def test_benchmarks_asked_in_different_ways_are_pointed_out(tmp_path):
    folders = [made(method).write(tmp_path / method) for method in ("ntp", "cocomix")]
    for folder, context in zip(folders, (64, 1024), strict=True):
        result = {"metrics": {"acc": {"value": 0.3, "stderr": None}}, "context": context, "items": 10}
        (folder / "benchmarks.json").write_text(json.dumps({"piqa": result}))
    (note,) = compare([load_run(folder) for folder in folders]).notes
    assert note == "piqa was scored with a different context (1024 and 64): its accuracies do not compare."


@pytest.mark.parametrize("result", [0.3, {"metrics": [1]}])
def test_benchmarks_of_no_known_layout_are_named(tmp_path, result):
    folder = made("ntp").write(tmp_path / "run")
    (folder / "benchmarks.json").write_text(json.dumps({"piqa": result}))
    with pytest.raises(UserError, match=r"benchmarks\.json: 'piqa' holds no metrics: write it with 'cocomix eval"):
        summary(compare([load_run(folder)]))
