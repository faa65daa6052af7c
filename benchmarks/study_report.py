"""A study's folder (see ``study.py``) as a page: every number, curve, interval and verdict of ``docs/results.md``.

    python benchmarks/study_report.py runs/study [--out docs/results.md] [--remarks benchmarks/study_remarks.md]

Verdicts follow one rule. With seeds: *better* or *worse* where Student's 95 % interval of the paired difference leaves
out zero, else *undecided*. With one seed: a difference counts where it is more than twice the standard deviation that a
difference of two runs had over the seeds of the main stage. ``--remarks`` is what a person says of it: it stands first.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cocomix.compare.comparison import Comparison, Entry, compare
from cocomix.compare.runs import load_run
from cocomix.compare.summary import summary
from cocomix.files import read_json, write_json, write_text
from cocomix.report.plots import loss_plot
from cocomix.report.steering import METHODS
from cocomix.report.steering_plot import steering_plot
from study_times import finished_runs, timed

AXES = {
    "tokens": "tokens",
    "student_flops": "FLOPs, student alone",
    "flops": "FLOPs with labels",
    "upstream_flops": "FLOPs with the teacher's training shared",
    "seconds": "seconds with labels",
    "upstream_seconds": "seconds, teacher's training shared",
}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--remarks", type=Path, default=Path("benchmarks/study_remarks.md"))
    given = parser.parse_args(words)
    study = read_json(given.folder / "study.json", "a study")
    main_stage, short = (comparison_of(given.folder, name, study) for name in ("main", "short"))
    images = given.out.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    for axis in ("tokens", "flops"):
        plot = loss_plot(main_stage, axis)
        (images / f"results-{axis}.png").write_bytes(plot.png)
    parts = [
        "# Results: a study at a small scale\n",
        *([given.remarks.read_text(encoding="utf-8").strip() + "\n"] if given.remarks.is_file() else []),
        *opening(given.folder, study),
        *main_table(main_stage, study),
        *verdicts(main_stage),
        *ablations(short, noise(main_stage), study["times"]["seconds_a_step"]),
        *prediction(study["concepts"]),
        *shift(study["sources"]),
        *steering(study.get("steering", {}), images),
    ]
    write_text(given.out, "\n".join(parts))
    stages = {"main": main_stage, "short": short}
    found = {"stages": {name: numbers(stage) for name, stage in stages.items()}}
    write_json(given.out.parent / "results.json", {**study, **found})
    print(f"{given.out}, {given.out.parent / 'results.json'}")
    return 0


def comparison_of(folder: Path, stage: str, study: Mapping[str, Any]) -> Comparison:
    """The runs of a stage, their seconds put in terms of the stage ``times``."""
    runs = [timed(load_run(run), study["times"]) for run in finished_runs(folder / stage)]
    return compare(runs, baseline="ntp")


def numbers(comparison: Comparison) -> dict[str, Any]:
    """Of a stage the losses of every evaluation, by run, and all that the comparison says of them."""
    curves = {
        entry.run.folder.name: [[point.tokens, point.loss] for point in entry.run.evaluations]
        for entry in comparison.entries
    }
    return {"curves": curves, "comparison": summary(comparison)}


def noise(comparison: Comparison) -> float:
    """Standard deviation over seeds of a paired difference of final losses, pooled over the methods."""
    spreads = [
        stdev([seed.final.difference for seed in pair.by_seed]) for pair in comparison.pairs if len(pair.by_seed) > 1
    ]
    return math.sqrt(mean(s * s for s in spreads)) if spreads else math.nan


def opening(folder: Path, study: Mapping[str, Any]) -> list[str]:
    plan, check = study["plan"], study["sae"]
    search = study["search"]
    rates = [[name, f"{rate:g}", tried(search["losses"][name])] for name, rate in search["chosen"].items()]
    return [
        "## What was run\n",
        f"Made by one resumable command, `python benchmarks/study.py TEXT --folder {folder}`, and this page from its "
        f"folder by `python benchmarks/study_report.py`. All numbers are in `docs/results.json`.\n",
        f"Text: {study['data']['train_tokens'] / 1e6:.1f}M training tokens of a {plan['vocabulary']:,}-token vocabulary. "
        f"Teacher: width 192, 6 blocks, {plan['teacher'] / 1e6:g}M tokens, held-out loss {study['teacher_loss']:.3f}; TopK SAE of "
        f"{plan['latents']:,} latents, k {plan['k']}, behind block 2 (FVU {check['fvu']:.3f}, cross-entropy recovered "
        f"{check['cross_entropy']['recovered']:.1%}). Students: GPT-2-like, width 128, 6 blocks, insertion at 2, windows of "
        f"{plan['window']} tokens, {plan['step_tokens']:,} tokens a step; NTP and KD are {plan['matched_width']} wide, so that active "
        f"parameters match. `cocomix` is the paper's, whose slots start from the concepts alone (recipes `tiny/cocomix` and "
        f"`ablations/slot_bare`), `cocomix_copy` the one whose slots start from a copy of their token's state (`tiny/cocomix`), "
        f"as those of `pause` do. Main stage {plan['tokens'] / 1e6:g}M tokens, {len(plan['seeds'])} seeds; ablations "
        f"{plan['short'] / 1e6:g}M tokens, one seed. float32 on CPU.\n",
        f"Learning rate of each method by the same search ({plan['search'] / 1e6:g}M tokens each, for `cocomix` "
        f"{plan['short'] / 1e6:g}M; of three, then on while the best lies at an edge):\n",
        table(["method", "chosen", "loss at each rate"], rates),
        *longer_rates(study.get("rates", {}), plan),
    ]  # fmt: skip


def longer_rates(losses: Mapping[str, float | None], plan: Mapping[str, Any]) -> list[str]:
    """What the rates come to at the main stage's budget."""
    if not losses:
        return []
    each = ", ".join(f"`{run.rpartition('-s')[0]}` {nats(loss)}" for run, loss in sorted(losses.items()))
    return [f"At {plan['tokens'] / 1e6:g}M tokens (first seed): {each}.\n"]


def tried(losses: Mapping[str, float | None]) -> str:
    return ", ".join(f"{float(rate):g}: {nats(losses[rate])}" for rate in sorted(losses, key=float))


def nats(loss: float | None) -> str:
    return "diverged" if loss is None else f"{loss:.3f}"


def main_table(comparison: Comparison, study: Mapping[str, Any]) -> list[str]:
    told = summary(comparison)
    pairs = {pair["candidate"]: pair for pair in told["pairs"]}
    base = next(run for run in told["runs"] if run["group"] == comparison.baseline)
    steps = study["times"]["seconds_a_step"]
    rows = []
    for method in told["methods"]:
        run = next(run for run in told["runs"] if run["group"] == method["name"])
        final, pair = method["final"]["loss"], pairs.get(method["name"])
        rows.append(
            [
                method["name"],
                f"{len(comparison.of(method['name']))}",
                f"{method['parameters']['active'] / 1e6:.2f}M",
                f"{run['flops']['student'] / base['flops']['student']:.2f}",
                f"{steps[method['name']] / steps[comparison.baseline]:.2f}" if method["name"] in steps else "–",
                f"{final['mean']:.3f} ± {final['half'] or math.nan:.3f}",
                difference(pair["loss"]["final"], pair["intervals_student_t"]["final_loss"]) if pair else "",
                saved(pair),
            ]
        )
    heads = [
        "method",
        "seeds",
        "active",
        "FLOPs ×",
        "time ×",
        "final loss",
        "less ntp's",
        "tokens saved to reach ntp's final loss",
    ]
    rows2 = []
    for name, pair in pairs.items():
        cells = [
            difference(pair["loss"][f"equal_{a}"], pair["intervals_student_t"][f"loss_at_equal_{a}"]) for a in AXES
        ]
        rows2.append([name, *cells])
    return [
        "## All methods, equal tokens\n",
        "Losses in nats a token on held-out documents, means over seeds; ± and brackets are Student's 95 % intervals over "
        "seeds, of paired differences where two methods are compared. Negative is better than NTP.\n",
        table(heads, rows),
        "![Validation loss against tokens](images/results-tokens.png)\n",
        "![Validation loss against FLOPs](images/results-flops.png)\n",
        "## At equal cost\n",
        f"Loss less NTP's where both have spent the same. The training of the teacher is shared over the "
        f"{max(pair.shared_by for pair in comparison.pairs)} runs here that read something of it, that of its SAE over "
        f"{min(pair.sae_shared_by for pair in comparison.pairs if pair.has_teacher)}. Seconds are steps, and the teacher's operations, at speeds measured in turn on "
        f"{told_threads(study['times']['threads'])}: while the runs ran, they shared the machine.\n",
        table(["method", *AXES.values()], rows2),
    ]  # fmt: skip


def told_threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"


def verdicts(comparison: Comparison) -> list[str]:
    claims = [
        ("CoCoMix (insert) beats next-token prediction", "cocomix", "ntp"),
        ("CoCoMix (insert) beats distillation", "cocomix", "kd"),
        ("CoCoMix (insert) beats pause tokens", "cocomix", "pause"),
        ("inserting beats adding", "cocomix", "cocomix_add"),
        ("`add` beats next-token prediction", "cocomix_add", "ntp"),
        ("`add` beats distillation", "cocomix_add", "kd"),
        ("`memory` beats next-token prediction", "cocomix_memory", "ntp"),
        ("`memory` beats `add`", "cocomix_memory", "cocomix_add"),
        ("insert with slots from a copy beats next-token prediction", "cocomix_copy", "ntp"),
        ("insert with slots from a copy beats the paper's slots", "cocomix_copy", "cocomix"),
        ("insert with slots from a copy beats distillation", "cocomix_copy", "kd"),
        ("insert with slots from a copy beats pause tokens, which start so too", "cocomix_copy", "pause"),
        ("insert with slots from a copy beats `add`", "cocomix_copy", "cocomix_add"),
    ]
    rows = []
    for claim, ours, theirs in claims:
        if {ours, theirs} <= set(comparison.groups):
            told = against(comparison, theirs)
            pair = next(pair for pair in told["pairs"] if pair["candidate"] == ours)
            rows.append([claim, *(verdict(pair, axis) for axis in AXES)])
    return [
        "## Verdicts\n",
        "*yes* or *no* where the 95 % interval leaves out zero, else *undecided*.\n",
        table(["claim, at equal", *AXES.values()], rows),
    ]


def against(comparison: Comparison, baseline: str) -> dict[str, Any]:
    return summary(compare([entry.run for entry in comparison.entries], baseline))


def verdict(pair: Mapping[str, Any], axis: str) -> str:
    bounds, losses = pair["intervals_student_t"][f"loss_at_equal_{axis}"], pair["loss"][f"equal_{axis}"]
    if losses is None or bounds is None:
        return "–"
    word = "yes" if bounds[1] < 0 else "no" if bounds[0] > 0 else "undecided"
    return f"{word} ({losses['difference']:+.3f})"


def ablations(comparison: Comparison, sigma: float, seconds: Mapping[str, float]) -> list[str]:
    finals = {name: mean(last(entry) for entry in comparison.of(name)) for name in comparison.groups}
    flops = {name: comparison.of(name)[0].run.last for name in comparison.groups}
    base_flops = flops[comparison.baseline]
    rows = []
    for name, loss in sorted(finals.items(), key=lambda item: item[1]):
        own_methods = () if name in PARENTS else PARENTS
        parent = max((p for p in own_methods if name.startswith(p) and p in finals), key=len, default="")
        own = flops[name]
        assert own is not None
        assert base_flops is not None
        rows.append(
            [
                name,
                f"{own.flops.student / base_flops.flops.student:.2f}",
                f"{seconds[name] / seconds[comparison.baseline]:.2f}",
                f"{loss:.3f}",
                f"{loss - finals[comparison.baseline]:+.3f}",
                f"{parent} {loss - finals[parent]:+.3f}" if parent else "",
            ]
        )
    return [
        "## Ablations\n",
        "One seed at the shorter budget, so a difference of less than about "
        f"{2 * sigma:.3f} (twice the standard deviation of a paired difference in the main stage) says nothing.\n",
        table(["row", "FLOPs ×", "time ×", "final loss", "less ntp's", "less its own method's"], rows),
    ]


PARENTS = ("ntp", "kd", "pause", "cocomix", "cocomix_add", "cocomix_memory")


def last(entry: Entry) -> float:
    evaluation = entry.run.last
    return math.nan if evaluation is None or evaluation.loss is None else evaluation.loss


def prediction(concepts: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    rows = [
        [
            stage,
            name,
            f"{q['loss']:.3f}",
            f"{q['marginal_loss']:.3f}",
            f"{q['recall']:.1%}",
            f"{q['marginal_recall']:.1%}",
        ]
        for stage, runs in concepts.items()
        for name, q in sorted(runs.items())
    ]
    return [
        "## How well labels are predicted\n",
        "Held-out text: nats a label, beside the entropy of the labels' frequencies (what a constant reaches), and the share of "
        "labels among the K concepts that are mixed, beside the same for the K most frequent ones.\n",
        table(["stage", "run", "loss", "constant", "among the K", "constant"], rows),
    ]  # fmt: skip


def shift(sources: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not sources:
        return []
    names = list(next(iter(sources.values())))
    base = sources.get("ntp-s0", {})
    rows = [
        [run, *(f"{losses[name]:.3f}" + (f" ({losses[name] - base[name]:+.3f})" if base else "") for name in names)]
        for run, losses in sorted(sources.items())
    ]
    return [
        "## A teacher that has not seen a part\n",
        "Students of all sources; the labels of `_shifted` ones are a teacher's that was trained without the first group's "
        "sources. Nats a token on held-out documents of each group, and less `ntp`'s (one seed).\n",
        table(["run", *names], rows),
    ]


def steering(scores: Mapping[str, Mapping[str, Any]], images: Path) -> list[str]:
    """A line a run and, of each, its dose-response curves; the picture goes into ``images``."""
    if not scores:
        return []
    first = next(iter(scores.values()))
    measured, summary = first["measured"], first["summary"]
    rows, pictures = [], []
    for run, score in scores.items():
        told = score["summary"]
        bests = [told["methods"][method]["best"] for method in METHODS]
        rows.append([run, *(f"{bracketed(best)} at {best['dose']:.2g}" for best in bests)])
        rows[-1] += [bracketed(told["differences"][method]) for method in METHODS if method != "concept"]
        name = f"results-steering-{run.rpartition('-s')[0]}.png"
        (images / name).write_bytes(steering_plot(told).png)
        pictures.append(f"![Dose-response curves of {run}](images/{name})\n")
    others = [f"less {label}" for method, label in METHODS.items() if method != "concept"]
    return [
        "## Steering\n",
        f"The largest gain of a concept's activation in the written text, in units of its usual one, at a perplexity of at most "
        f"{summary['fluency']:g} times the unsteered text's, with its dose in usual strengths; judged by the teacher and its "
        f"autoencoder (see [the steering score](steering_score.md), whose command made it). {summary['concepts']} concepts, doses "
        f"{', '.join(f'{dose:g}' for dose in first['doses'])}, {measured['prompts']} prompts, {measured['max_new_tokens']} tokens "
        f"each; brackets are 95 % intervals over concepts. {first['rule'][0].upper()}{first['rule'][1:]}.\n",
        table(["run", *METHODS.values(), *others], rows),
        *pictures,
    ]  # fmt: skip


def bracketed(gain: Mapping[str, float | None]) -> str:
    told = f"{gain['gain']:+.2f}"
    return told if gain["low"] is None else f"{told} [{gain['low']:+.2f}, {gain['high']:+.2f}]"


def difference(losses: Mapping[str, float] | None, bounds: Sequence[float] | None) -> str:
    if losses is None:
        return "–"
    return f"{losses['difference']:+.3f}" + (f" [{bounds[0]:+.3f}, {bounds[1]:+.3f}]" if bounds else "")


def saved(pair: Mapping[str, Any] | None) -> str:
    if pair is None:
        return ""
    if pair["tokens_saved"] is None:
        return f"not reached ({pair['reached']} of {len(pair['seeds'])} seeds)"
    bounds = pair["intervals_student_t"]["tokens_saved"]
    return f"{pair['tokens_saved']:.1%}" + (f" [{bounds[0]:.1%}, {bounds[1]:.1%}]" if bounds else "")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
