"""Comparisons of made-up curves whose answers are known."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from cocomix.compare.comparison import compare
from cocomix.compare.curves import Curve, Sharing, curve, parts
from cocomix.compare.runs import load_run
from cocomix.compare.summary import summary
from cocomix.errors import UserError
from cocomix.testing.run_folders import MadeUpRun

GRID = tuple(range(100_000, 1_000_001, 100_000))


def power_law(shift=0.0, scale=1.0, tokens=GRID):
    """Losses that fall by 0.5 nats an e-fold of tokens; ``scale`` 0.8 needs 80 % of the tokens."""
    return tuple(10 - 0.5 * math.log(t / scale) + shift for t in tokens)


def runs(tmp_path, *made_up):
    return [load_run(m.write(tmp_path / f"run{i}")) for i, m in enumerate(made_up)]


def only_pair(tmp_path, *made_up, **options):
    """The summary's only pair."""
    (pair,) = summary(compare(runs(tmp_path, *made_up), **options))["pairs"]
    return pair


def ntp(**values):
    return MadeUpRun(**{"method": "ntp", "tokens": GRID, "losses": power_law(), **values})


def cocomix(**values):
    return MadeUpRun(**{"method": "cocomix", "tokens": GRID, "losses": power_law(), **values})


def test_candidate_that_needs_four_fifths_of_the_tokens_saves_a_fifth(tmp_path):
    # 1.25 times the FLOPs and twice the seconds a token: 0.8 · 1.25 = 1 and 0.8 · 2 = 1.6
    better = cocomix(losses=power_law(scale=0.8), flops_per_token=7.5e6, seconds_per_token=2e-4)
    pair = only_pair(tmp_path, ntp(), better)
    assert pair["tokens_saved"] == pytest.approx(0.2)
    assert pair["flops_saved"] == pytest.approx(0.0, abs=1e-9)
    assert pair["seconds_saved"] == pytest.approx(-0.6)
    assert pair["interval"] is None
    assert pair["reverse"] is None
    assert pair["loss"]["final"]["difference"] == pytest.approx(0.5 * math.log(0.8))
    assert pair["loss"]["equal_tokens"]["difference"] == pytest.approx(0.5 * math.log(0.8))
    # the candidate affords 800k tokens for the baseline's FLOPs, 500k for its seconds
    assert pair["loss"]["equal_flops"]["difference"] == pytest.approx(0.0, abs=1e-9)
    assert pair["loss"]["equal_seconds"]["difference"] == pytest.approx(0.5 * math.log(1.6))
    assert "20.0 % fewer tokens" in pair["verdict"]
    assert "60.0 % more seconds" in pair["verdict"]


def test_teachers_labels_and_upstream_are_counted_and_told_apart(tmp_path):
    better = cocomix(
        losses=power_law(scale=0.5),
        label_flops_per_token=3e6,
        label_seconds_per_token=5e-5,
        upstream={"teacher": {"flops": 2e12, "seconds": 20.0}, "sae": {"flops": 1e12, "seconds": 10.0}},
    )
    pair = only_pair(tmp_path, ntp(), better)
    by = pair["flops_saved_by"]
    assert by["student"] == pytest.approx(0.5)
    assert by["with_labels"] == pair["flops_saved"] == pytest.approx(1 - (3e12 + 1.5e12) / 6e12)
    assert by["with_upstream"] == pytest.approx(1 - (3e12 + 1.5e12 + 3e12) / 6e12)
    assert pair["seconds_saved_by"] == {
        "student": pytest.approx(0.5),
        "with_labels": pytest.approx(1 - 75 / 100),
        "with_upstream": pytest.approx(1 - 105 / 100),
    }
    assert "the teacher's labels counted" in pair["verdict"]


def test_losses_at_equal_flops_count_the_student_then_its_labels_then_upstream(tmp_path):
    upstream = {"teacher": {"flops": 2e12, "seconds": 20.0}, "sae": {"flops": 1e12, "seconds": 10.0}}
    # half of the tokens do; a token costs 6e6 and 3e6 for its label, upstream 3e12: of ntp's 6e12 they leave 3e12
    made = {"label_flops_per_token": 3e6, "label_seconds_per_token": 5e-5, "upstream": upstream}
    better = cocomix(losses=power_law(scale=0.5), **made)
    loss = only_pair(tmp_path, ntp(), better)["loss"]
    at = {"student_flops": 6e12, "flops": 6e12, "upstream_flops": 6e12}
    assert {axis: loss[f"equal_{axis}"]["at"] for axis in at} == at
    differences = {axis: math.exp(-2 * loss[f"equal_{axis}"]["difference"]) for axis in at}
    # exp(-2 · difference): how many times further the candidate is than the baseline
    assert differences == {
        "student_flops": pytest.approx(2),
        "flops": pytest.approx(2 * 6 / 9),
        "upstream_flops": pytest.approx(2 * 3 / 9),
    }
    # 100 s: all of its tokens; less 50 s a million for labels; less 30 s of upstream before
    seconds = {
        axis: math.exp(-2 * loss[f"equal_{axis}"]["difference"])
        for axis in ("student_seconds", "seconds", "upstream_seconds")
    }
    assert seconds == {
        "student_seconds": pytest.approx(2),
        "seconds": pytest.approx(2 * 100 / 150),
        "upstream_seconds": pytest.approx(2 * 70 / 150),
    }


def test_every_share_and_difference_has_an_interval_over_seeds(tmp_path):
    upstream = {"teacher": {"flops": 2e12, "seconds": 20.0}, "sae": {"flops": 1e12, "seconds": 10.0}}
    teacher = {"label_flops_per_token": 1e6, "label_seconds_per_token": 1e-5, "upstream": upstream}
    made = [ntp(seed=s) for s in (0, 1)]
    made += [cocomix(seed=s, losses=power_law(scale=k), **teacher) for s, k in ((0, 0.4), (1, 0.5))]
    pair = only_pair(tmp_path, *made)
    axes = ["tokens", *(f"{who}{kind}" for kind in ("flops", "seconds") for who in ("", "student_", "upstream_"))]
    for axis in axes:
        assert pair["intervals"][f"{axis}_saved"] == pytest.approx(
            sorted(seed[f"{axis}_saved"] for seed in pair["by_seed"])
        )
        differences = sorted(seed[f"loss_at_equal_{axis}"]["difference"] for seed in pair["by_seed"])
        assert pair["intervals"][f"loss_at_equal_{axis}"] == pytest.approx(differences)
        low, high = pair["intervals_student_t"][f"loss_at_equal_{axis}"]
        assert (low, high) == pytest.approx(
            (
                np.mean(differences) - 12.7062 * (differences[1] - differences[0]) / 2,
                np.mean(differences) + 12.7062 * (differences[1] - differences[0]) / 2,
            ),
            rel=1e-4,
        )
    assert pair["why"] == {}


def test_two_seeds_that_agree_are_not_called_certain(tmp_path):
    made = [ntp(seed=s) for s in (0, 1)] + [cocomix(seed=s, losses=power_law(scale=k)) for s, k in ((0, 0.6), (1, 0.9))]
    pair = only_pair(tmp_path, *made)
    low, high = pair["intervals"]["loss_at_equal_tokens"]
    assert low < high < 0  # the bootstrap alone would say that it is better
    assert "A 95 % bootstrap over 2 seeds holds the truth in about 50 % of cases, not in 95 %" in pair["verdict"]
    assert "by Student's t the loss difference is -1.442 to +1.134. It holds zero" in pair["verdict"]


def test_ten_seeds_need_no_warning(tmp_path):
    made = [ntp(seed=s) for s in range(10)]
    made += [cocomix(seed=s, losses=power_law(scale=0.7 + 0.01 * s)) for s in range(10)]
    pair = only_pair(tmp_path, *made)
    assert "95 % interval over 10 seeds" in pair["verdict"]
    assert "Student" not in pair["verdict"]


def test_upstream_is_shared_by_as_many_runs_as_one_says(tmp_path):
    teacher = {"teacher": {"flops": 2e12, "seconds": 20.0}, "sae": {"flops": 1e12, "seconds": 10.0}}
    made = [ntp(), cocomix(label_flops_per_token=3e6, upstream=teacher, losses=power_law(scale=0.5))]
    pair = only_pair(tmp_path, *made, upstream_shared_by=10)
    assert pair["upstream_shared_by"] == 10
    assert pair["flops_saved_by"]["with_upstream"] == pytest.approx(1 - (3 + 1.5 + 0.3) / 6)


def test_runs_with_the_same_labels_share_the_upstream(tmp_path):
    teacher = {"teacher": {"flops": 2e12, "seconds": 20.0}, "sae": {"flops": 1e12, "seconds": 10.0}}
    labels = {"label_flops_per_token": 3e6, "upstream": teacher, "losses": power_law(scale=0.5)}
    made = [ntp(), cocomix(**labels), cocomix(method="cocomix_add", **labels)]
    found = summary(compare(runs(tmp_path, *made)))
    assert [pair["upstream_shared_by"] for pair in found["pairs"]] == [2, 2]
    assert found["pairs"][0]["flops_saved_by"]["with_upstream"] == pytest.approx(1 - (3 + 1.5 + 1.5) / 6)


def test_runs_of_one_teacher_share_it_whatever_they_read_of_it_and_those_of_one_sae_that(tmp_path):
    upstream = {"teacher": {"flops": 2e12, "seconds": 20.0}, "sae": {"flops": 1e12, "seconds": 10.0}}
    teacher, sae = {"fingerprint": "teacher"}, {"fingerprint": "sae"}
    labels = {"label_flops_per_token": 3e6, "losses": power_law(scale=0.5)}
    made = [ntp(), cocomix(method="kd", upstream=upstream | {"sae": {"flops": 0, "seconds": 0}}, labels="probabilities",
                           of={"teacher": teacher}, **labels)]  # fmt: skip
    # with train_windows each seed has a cache of its own
    made += [cocomix(seed=s, labels=f"few-s{s}", upstream=upstream, of={"teacher": teacher, "sae": sae}, **labels)
             for s in (0, 1)]  # fmt: skip
    kd, ours = summary(compare(runs(tmp_path, *made)))["pairs"]
    assert (kd["upstream_shared_by"], ours["upstream_shared_by"], ours["sae_shared_by"]) == (3, 3, 2)
    assert kd["flops_saved_by"]["with_upstream"] == pytest.approx(1 - (3 + 1.5 + 2 / 3) / 6)
    assert ours["flops_saved_by"]["with_upstream"] == pytest.approx(1 - (3 + 1.5 + 2 / 3 + 1 / 2) / 6)


def test_unknown_upstream_stays_unknown(tmp_path):
    pretrained = {"teacher": None, "sae": {"flops": 1e12, "seconds": 10.0}}
    pair = only_pair(tmp_path, ntp(), cocomix(label_flops_per_token=3e6, upstream=pretrained))
    assert pair["flops_saved_by"]["with_upstream"] is None
    assert pair["why"] == {
        f"{name}{axis}{saved}": "not known"
        for axis in ("upstream_flops", "upstream_seconds")
        for name, saved in (("", "_saved"), ("equal_", ""))
    }
    assert pair["flops_saved_by"]["with_labels"] == pytest.approx(-0.5)


def test_never_reached_is_null_and_says_what_the_baseline_needed(tmp_path):
    worse = cocomix(losses=power_law(scale=2.0), flops_per_token=9e6)
    pair = only_pair(tmp_path, ntp(), worse)
    assert pair["tokens_saved"] is pair["flops_saved"] is pair["seconds_saved"] is None
    assert pair["why"]["tokens_saved"] == pair["why"]["upstream_flops_saved"] == "never reached"
    assert pair["reverse"] == pytest.approx(0.5)
    assert pair["reverse_saved"]["flops"] == pytest.approx(1 - 0.5 * 6 / 9)
    assert "cocomix ends 0.347 nats a token worse than ntp" in pair["verdict"]
    assert "never reaches ntp's final loss within its budget" in pair["verdict"]
    assert "ntp reached cocomix's final loss with 50.0 % fewer tokens" in pair["verdict"]


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_equal_runs_save_nothing(tmp_path, noise):
    losses = tuple(np.array(power_law()) + noise * np.random.default_rng(1).standard_normal(len(GRID)))
    pair = only_pair(tmp_path, ntp(losses=losses), cocomix(losses=losses))
    assert pair["tokens_saved"] == pair["flops_saved"] == pair["seconds_saved"] == 0.0
    assert pair["loss"]["final"]["difference"] == 0.0
    assert "ends level with ntp" in pair["verdict"]
    assert "as many tokens" in pair["verdict"]


def test_noisy_curve_counts_at_its_first_crossing(tmp_path):
    tokens = (100_000, 200_000, 400_000, 800_000)
    baseline = MadeUpRun(tokens=tokens, losses=(6.0, 5.0, 4.5, 4.0))
    # comes down to 3.8 at 400k, then ends at 3.9: first at 4.0 after 6/7 of the way to 3.8
    noisy = MadeUpRun(method="cocomix", tokens=tokens, losses=(6.0, 5.2, 3.8, 3.9))
    pair = only_pair(tmp_path, baseline, noisy)
    assert pair["tokens_saved"] == pytest.approx(1 - 200_000 * 2 ** (6 / 7) / 800_000)
    assert any("0.100 nats better at 400k tokens than at its end" in note for note in pair["notes"])


def test_candidate_with_a_longer_budget_can_lose_tokens(tmp_path):
    tokens = (*GRID, 2_000_000)
    pair = only_pair(tmp_path, ntp(), cocomix(tokens=tokens, losses=power_law(scale=1.5, tokens=tokens)))
    assert pair["tokens_saved"] == pytest.approx(-0.5)
    assert pair["loss"]["equal_tokens"]["at"] == 1_000_000
    assert "50.0 % more tokens" in pair["verdict"]


@pytest.mark.parametrize(("loss", "saved"), [(4.2, 0.0), (4.3, 0.0), (4.4, None)])
def test_one_evaluation_each_is_enough(tmp_path, loss, saved):
    once = {"tokens": (1_000_000,)}
    pair = only_pair(tmp_path, ntp(losses=(4.3,), **once), cocomix(losses=(loss,), **once))
    assert pair["tokens_saved"] == saved
    assert pair["loss"]["equal_tokens"]["difference"] == pytest.approx(loss - 4.3)


def test_evaluation_before_the_first_step_does_no_harm(tmp_path):
    tokens = (0, *GRID)
    start = {"tokens": tokens}
    pair = only_pair(
        tmp_path,
        ntp(losses=(9.0, *power_law()), **start),
        cocomix(losses=(9.0, *power_law(scale=0.8)), **start),
    )
    assert pair["tokens_saved"] == pytest.approx(0.2)


def test_seeds_are_paired_and_give_an_interval(tmp_path):
    scales = {0: 0.7, 1: 0.8, 2: 0.9}
    made = [ntp(seed=s, losses=power_law(shift=0.1 * s)) for s in scales]
    made += [cocomix(seed=s, losses=power_law(shift=0.1 * s, scale=k)) for s, k in reversed(scales.items())]
    pair = only_pair(tmp_path, *made)
    assert pair["seeds"] == [0, 1, 2]
    # unpaired, the shifts between seeds would drown it
    assert pair["tokens_saved"] == pytest.approx(0.2)
    low, high = pair["interval"]
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.3))
    assert pair["by_seed"][0]["tokens_saved"] == pytest.approx(0.3)
    assert "95 % interval over 3 seeds" in pair["verdict"]


def test_reached_in_some_seeds_only_is_null(tmp_path):
    made = [ntp(seed=0), ntp(seed=1), cocomix(seed=0, losses=power_law(scale=0.9))]
    pair = only_pair(tmp_path, *made, cocomix(seed=1, losses=power_law(scale=1.1)))
    assert pair["tokens_saved"] is None
    assert pair["interval"] is None
    assert pair["reached"] == 1
    assert pair["why"]["flops_saved"] == "reached by 1 of 2 seeds"
    assert "in 1 of 2 seeds only" in pair["verdict"]
    assert "do not tell the two apart" in pair["verdict"]


def test_baseline_is_ntp_else_the_first_else_the_one_named(tmp_path):
    kd, other, base = runs(tmp_path, cocomix(method="kd"), cocomix(), ntp())
    assert compare([kd, other, base]).baseline == "ntp"
    assert compare([kd, other]).baseline == "kd"
    assert compare([kd, other, base], baseline="cocomix").baseline == "cocomix"
    assert compare([kd, other, base], baseline="run0").baseline == "kd"
    with pytest.raises(UserError, match=r"baseline=cocomx is none of the runs \(did you mean 'cocomix'\?\)"):
        compare([kd, other], baseline="cocomx")


def test_sweep_of_one_method_is_compared_run_by_run_with_the_best_of_the_baselines(tmp_path):
    found = compare(runs(tmp_path, ntp(), ntp(losses=power_law(scale=0.9)), ntp(losses=(math.nan,) * 10), cocomix()))
    assert found.baseline == "run1"
    assert [pair.candidate for pair in found.pairs] == ["run0", "cocomix"]
    assert compare([entry.run for entry in found.entries], baseline="ntp").baseline == "run1"
    assert compare([entry.run for entry in found.entries], baseline="run0").baseline == "run0"


def test_a_group_that_bears_its_methods_name_is_no_better_baseline_for_it(tmp_path):
    made = {"ntp-s0": ntp(), "ntp-lr-0.004-s0": ntp(losses=power_law(scale=0.9)), "cocomix-s0": cocomix()}
    found = [load_run(run.write(tmp_path / name)) for name, run in made.items()]
    assert compare(found).baseline == compare(found, baseline="ntp").baseline == "ntp-lr-0.004"
    assert compare(found, baseline="ntp-s0").baseline == "ntp"


def test_rows_of_one_method_with_seeds_are_grouped_by_their_names(tmp_path):
    made = {
        "ntp-s0": ntp(seed=0),
        "ntp-s1": ntp(seed=1),
        **{
            f"cocomix-concept-{weight}-s{seed}": cocomix(seed=seed, losses=power_law(scale=scale))
            for weight, scale in (("0.1", 0.8), ("0.2", 0.9))
            for seed in (0, 1)
        },
    }
    found = compare([load_run(run.write(tmp_path / name)) for name, run in made.items()])
    assert found.groups == ["ntp", "cocomix-concept-0.1", "cocomix-concept-0.2"]
    assert [pair.seeds for pair in found.pairs] == [[0, 1], [0, 1]]


def test_seeds_without_a_match_are_said(tmp_path):
    pair = only_pair(tmp_path, ntp(seed=0), ntp(seed=1), cocomix(seed=1))
    assert pair["seeds"] == [1]
    assert any("Only 1" in note for note in pair["notes"])
    pair = only_pair(tmp_path / "b", ntp(seed=0), cocomix(seed=1))
    assert any("no seed in common" in note for note in pair["notes"])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"data": "data-b"}, r"were trained on different data \(data-a and data-b\)"),
        ({"tokenizer": "tokenizer-b"}, "use different tokenizers"),
        ({"window": 64}, r"have different windows \(128 and 64\)"),
        ({"evaluation_set": "held-out-b"}, "were evaluated on different held-out sets"),
    ],
)
def test_runs_that_answer_different_questions_are_refused(tmp_path, other, message):
    with pytest.raises(UserError, match=message):
        compare(runs(tmp_path, ntp(), cocomix(**other)))


def test_run_evaluated_on_two_sets_is_refused(tmp_path):
    folder = ntp().write(tmp_path / "run")
    path = folder / "evals.jsonl"
    path.write_text(path.read_text().replace("held-out-a", "held-out-b", 1))
    with pytest.raises(UserError, match=r"the evaluations of .*run were evaluated on different held-out"):
        compare([load_run(folder)])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"documents": 10', '"documents": 7', r"different numbers of held-out documents \(10 and 7\): train them with"),
        ('"context": 128', '"context": 64', r"were evaluated with different contexts \(128 and 64\)"),
        ('"tokens_evaluated": 50000', '"tokens_evaluated": 4', r"different numbers of held-out tokens \(50000 and 4\)"),
    ],
)
def test_other_documents_or_context_are_named_before_their_hash(tmp_path, old, new, message):
    one, two = ntp().write(tmp_path / "a"), cocomix(evaluation_set="held-out-b").write(tmp_path / "b")
    text = (two / "evals.jsonl").read_text()
    assert old in text
    (two / "evals.jsonl").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        compare([load_run(one), load_run(two)])


def test_no_run_and_the_same_run_twice_are_refused(tmp_path):
    with pytest.raises(UserError, match="no run to compare"):
        compare([])
    (run,) = runs(tmp_path, ntp())
    with pytest.raises(UserError, match="given twice"):
        compare([run, run])


def test_running_and_unevaluated_runs_are_told(tmp_path):
    half = GRID[:5]
    base, running, fresh = runs(
        tmp_path,
        ntp(),
        cocomix(tokens=half, losses=power_law(scale=0.8, tokens=half), finished=False),
        cocomix(method="kd", finished=False, tokens=(), losses=()),
    )
    found = summary(compare([base, running, fresh]))
    assert [pair["candidate"] for pair in found["pairs"]] == ["cocomix"]
    assert found["pairs"][0]["loss"]["equal_tokens"]["at"] == 500_000
    assert any("Not finished" in note for note in found["pairs"][0]["notes"])
    assert any("run2 has not been evaluated yet" in note for note in found["notes"])
    assert found["runs"][2]["val_loss"] is None


def test_seconds_of_different_machines_are_pointed_out(tmp_path):
    machine = {"device": "cpu", "processor": "x86_64", "threads": 2, "ranks": 1, "torch": "2.13.0"}
    other = {**machine, "device": "NVIDIA H200", "threads": 16, "torch": "2.14.0"}
    made = runs(tmp_path, ntp(), cocomix(), cocomix(method="pause"), cocomix(method="kd"))
    for run, environment in zip(made, (machine, other, machine), strict=False):  # of the fourth nobody wrote it down
        (run.folder / "environment.json").write_text(json.dumps(environment))
    pairs = {pair.candidate: pair.notes for pair in compare([load_run(run.folder) for run in made]).pairs}
    assert pairs == {
        "cocomix": (
            "cocomix and ntp were trained on different devices (NVIDIA H200 and cpu): their seconds do not compare.",
            "cocomix and ntp were trained with different numbers of threads (16 and 2): their seconds do not compare.",
        ),
        "pause": (),
        "kd": (),
    }


def test_different_sizes_are_pointed_out(tmp_path):
    pair = only_pair(tmp_path, ntp(), cocomix(active=1_100_000))
    assert any("10.0 % more active parameters than ntp (1.1M against 1M)" in note for note in pair["notes"])


def test_summary_has_the_contracts_keys_and_is_plain_json(tmp_path):
    found = summary(compare(runs(tmp_path, ntp(), cocomix(label_flops_per_token=1e6))))
    json.dumps(found, allow_nan=False)
    run = {"name", "method", "seed", "parameters", "tokens", "flops", "seconds", "val_loss", "ppl"}
    assert run | {"bits_per_byte", "benchmarks"} <= set(found["runs"][0])
    pair = {"baseline", "candidate", "seeds", "tokens_saved", "flops_saved", "seconds_saved", "interval"}
    assert pair <= set(found["pairs"][0])
    assert found["runs"][1]["flops"] == {"student": 6e12, "teacher": 1e12}


def test_loss_between_evaluations_lies_on_a_line_in_the_logarithm_of_tokens():
    tokens = np.array([100.0, 400.0])
    curve = Curve(tokens, np.array([5.0, 3.0]), {"tokens": tokens, "flops": tokens * 6, "seconds": None})
    assert curve.loss_at(200) == pytest.approx(4.0)
    assert curve.tokens_to_reach(4.0) == pytest.approx(200)
    assert curve.loss_for("flops", 1200) == pytest.approx(4.0)
    assert curve.loss_at(50) is None
    assert curve.loss_for("seconds", 1) is None
    assert curve.tokens_to_reach(2.9) is None


def test_an_evaluation_on_the_way_that_is_not_finite_leaves_its_neighbourhood_unknown(tmp_path):
    short, long = (250_000, 500_000, 750_000), (250_000, 500_000, 900_000, 1_000_000)
    pair = only_pair(
        tmp_path, ntp(tokens=short, losses=(5.0, 4.6, 4.4)), cocomix(tokens=long, losses=(5.0, math.inf, 4.4, 4.3))
    )
    assert (pair["loss"]["equal_tokens"], pair["why"]["equal_tokens"]) == (None, "out of range")
    assert "At the end of its own budget cocomix ends 0.100 nats a token better" in pair["verdict"]
    assert Curve(np.array([1.0, 2.0]), np.array([5.0, math.inf]), {}).loss_at(2.0) is None


def test_headline_and_interval_of_a_verdict_are_of_the_same_losses(tmp_path):
    """Seed 1 has just begun: nothing is known of it at the baseline's first evaluation."""
    begun = cocomix(seed=1, tokens=(10_000,), losses=(9.0,), finished=False)
    longer = (*GRID, 2_000_000)
    pair = only_pair(tmp_path, ntp(), ntp(seed=1), cocomix(tokens=longer, losses=power_law(tokens=longer)), begun)
    final = [seed["final_loss"]["difference"] for seed in pair["by_seed"]]
    assert pair["loss"]["equal_tokens"] is None is not pair["by_seed"][0]["loss_at_equal_tokens"]
    assert pair["verdict"].startswith("At the end of its own budget")
    assert f"loss difference {min(final):+.3f} to {max(final):+.3f} nats" in pair["verdict"]


def test_benchmarks_that_are_no_numbers_are_null_in_the_summary(tmp_path):
    folder = ntp().write(tmp_path / "run")
    (folder / "benchmarks.json").write_text('{"piqa": {"acc": NaN, "more": [Infinity, 1]}}')
    assert summary(compare([load_run(folder)]))["runs"][0]["benchmarks"] == {"piqa": {"acc": None, "more": [None, 1]}}


def test_seconds_of_labels_that_are_made_while_training_count_before_the_run_has_ended(tmp_path):
    folder = cocomix(label_flops_per_token=3e6, label_seconds_per_token=5e-5, finished=False).write(tmp_path / "run")
    described = json.loads((folder / "run.json").read_text())
    described["labels"] |= {
        "seconds_per_token": 2e-5,
        "cached_seconds_per_token": 2e-5,
    }  # a cache, and one that is asked
    (folder / "run.json").write_text(json.dumps(described))
    lines = [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]
    (folder / "evals.jsonl").write_text("".join(json.dumps(x | {"label_seconds": x["step"]}) + "\n" for x in lines))
    found = load_run(folder)
    last = found.last
    assert parts(found, "seconds").labels == pytest.approx(2e-5 * last.tokens + last.step)
    assert curve(found, Sharing(1, 1)).costs["seconds"][-1] == pytest.approx(
        last.seconds + 2e-5 * last.tokens + last.step
    )


def test_bounce_before_the_crossing_is_passed_by_the_running_minimum():
    tokens = np.array([100.0, 200.0, 400.0, 800.0])
    curve = Curve(tokens, np.array([6.0, 4.4, 4.8, 4.0]), {})
    assert curve.tokens_to_reach(4.2) == pytest.approx(400 * math.sqrt(2))


def test_labels_of_a_second_epoch_cost_no_more_seconds(tmp_path):
    folder = cocomix(label_flops_per_token=3e6, label_seconds_per_token=1e-4).write(tmp_path / "run")
    path = folder / "evals.jsonl"
    path.write_text(path.read_text().replace('"teacher": 3000000000000.0', '"teacher": 1500000000000.0'))
    (found,) = summary(compare([load_run(folder)]))["runs"]
    assert found["costs"]["seconds"] == {
        "student": pytest.approx(100.0),
        "labels": pytest.approx(50.0),
        "teacher": None,
        "sae": None,
    }


def test_comparing_and_reporting_never_import_torch():
    code = (
        "import sys, cocomix.compare.summary, cocomix.report.page, cocomix.cli.compare;sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
