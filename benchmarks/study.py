"""Which of the paper's claims show at a small scale? One resumable command from a text to runs, times and a comparison.

    python benchmarks/study.py corpus.jsonl.zst --folder runs/study [--jobs 1] [--threads 2] [--stage NAME …]

A tokenizer, a teacher and its sparse autoencoder are trained on the text; then, all on the same data:

- ``search``: a learning rate for each method by the same small search (at the shorter budget for interleaved slots that
  start from the concept alone: at less they have hardly begun to learn);
- ``main``: six methods, and inserted slots that start from their token's state, three seeds each, the longer budget;
- ``rates``: interleaved slots at the rates of the search that were not chosen, at the longer budget, first seed: a
  search at a shorter one may mislead a method that begins slowly;
- ``short``: the ablations, one seed each, at the shorter one, beside the same methods at that budget;
- ``shift``: a teacher that has not seen some sources (``--without``), labels by it, and students on all sources;
- ``steering``: steering scores of the main stage's methods with concepts, first seed;
- ``times``: seconds of a step of each row and of the teacher's parts, measured in turn in one process, since runs of a
  study share the machine with each other;
- ``report``: comparisons, and ``study.json`` with all that was found.

Stopped (Ctrl-C, SIGTERM), the same command goes on. ``docs/results.md`` is written from its folder by
``benchmarks/study_report.py``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocomix.compare.runs import load_run
from cocomix.config import load_settings
from cocomix.files import read_json, write_json
from cocomix.progress import say
from cocomix.stopping import EXIT_STOPPED, Stopped
from cocomix.sweep.settings import SweepSettings
from cocomix.sweep.sweep import finished, run_sweep
from cocomix.train.fault import RECORD
from study_measure import STEERING, kept_steering, measure_concepts, measure_sources, score_steering
from study_times import finished_runs, measure_times, timed

METHODS: dict[str, dict[str, Any]] = {
    "ntp": {"recipe": ["tiny/ntp"]},
    "kd": {"recipe": ["tiny/kd"], "probabilities": "teacher"},
    "pause": {"recipe": ["tiny/pause"]},
    "cocomix": {"recipe": ["tiny/cocomix", "ablations/slot_bare"], "labels": "largest"},
    "cocomix_add": {"recipe": ["tiny/cocomix_add"], "labels": "largest"},
    "cocomix_memory": {"recipe": ["tiny/cocomix_memory"], "labels": "largest"},
}
"""Row → where it comes from; ``cocomix`` is the paper's, whose slots start from the concepts alone."""
SEARCHED = {**METHODS, "cocomix_copy": {"recipe": ["tiny/cocomix"], "labels": "largest"}}
"""What gets a learning rate of its own."""
SLOW = frozenset({"cocomix"})
"""Methods that are searched at the shorter budget."""
RATES = (1e-3, 2e-3, 4e-3)
BLOCK = 2
SHIFTED = ("cocomix", "cocomix_add")
"""Methods that learn from the shifted teacher too."""
STAGES = ("data", "teacher", "search", "main", "rates", "short", "shift", "steering", "times", "report")


@dataclass(frozen=True)
class Plan:
    """Sizes of a study."""

    folder: Path
    tokens: int = 3_000_000
    short: int = 1_000_000
    search: int = 500_000
    teacher: int = 8_000_000
    sae: int = 2_000_000
    vocabulary: int = 4096
    window: int = 256
    latents: int = 2048
    k: int = 16
    matched_width: int = 140
    """Of plain NTP with as many active parameters as CoCoMix at :attr:`latents` concepts."""
    concepts: int = 32
    """Of a steering score."""
    documents: int = 50
    """Held-out documents of an evaluation."""
    search_documents: int = 100
    seeds: tuple[int, ...] = (0, 1, 2)
    jobs: int = 1
    threads: int | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def step_tokens(self) -> int:
        return 8 * self.window


def prepare_data(plan: Plan, source: Path) -> None:
    """The dataset."""
    from cocomix.data.prepare import prepare
    from cocomix.data.settings import PrepareSettings

    sizes = {"vocab_size": plan.vocabulary, "window": plan.window}
    prepare(load_settings(PrepareSettings, [], source=str(source), out=str(plan.data), **sizes))


def train_teacher(plan: Plan, data: Path, name: str) -> None:
    """A teacher on ``data`` and an autoencoder on its block 2, checked."""
    from cocomix.concepts.check import check_sae
    from cocomix.concepts.settings import SaeCheckSettings, SaeTrainSettings
    from cocomix.concepts.train_sae import train_sae
    from cocomix.train.settings import TrainSettings
    from cocomix.train.verb import train

    words = ["tiny/teacher", f"data.path={data}", f"run={plan.folder / name}", f"tokens={plan.teacher}"]
    words += [f"threads={plan.threads * plan.jobs}"] if plan.threads else []  # nothing runs beside it
    train(load_settings(TrainSettings, [*words, "checkpoint.number=16", f"eval_documents={plan.documents}"]))
    sae = str(plan.folder / f"{name}-sae")
    sizes = {"latents": plan.latents, "k": plan.k, "tokens": plan.sae, "block": BLOCK}
    teacher = str(plan.folder / name / "export")
    train_sae(load_settings(SaeTrainSettings, [], teacher=teacher, data=str(data), out=sae, **sizes))
    if not (Path(sae) / "check.json").is_file():
        check_sae(load_settings(SaeCheckSettings, [], sae=sae, data=str(data)))


def sweep(
    plan: Plan,
    name: str,
    rows: dict[str, dict[str, Any]],
    tokens: int,
    evaluations: int,
    may_diverge: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Runs ``rows`` at a budget of ``tokens``; a method's own learning rate, where one was found, is in its row. A run
    that fails ends the study, but for one that diverges where that may be.

    An evaluation costs as much as some twenty steps, so only curves that are looked at have many.
    """
    windows = -(-tokens // plan.step_tokens) * 8
    mine = {"sae": str(plan.folder / "teacher-sae"), "train_windows": windows, "force": True}
    shifted = mine | {"sae": str(plan.folder / "teacher-shifted-sae")}
    size = f"{windows * plan.window // 1000}k"
    every = {
        "tokens": tokens,
        "eval_documents": plan.search_documents if name.startswith("search") else plan.documents,
        "evaluations": evaluations,
        "checkpoint.number": 8,
        "checkpoint.keep": 1,
        "data.verify": False,
    }
    labels = {
        "largest": mine | {"name": f"largest-{size}"},
        "smallest": mine | {"name": f"smallest-{size}", "attribution": {"order": "smallest"}},
        "absolute": mine | {"name": f"absolute-{size}", "attribution": {"order": "absolute"}},
        "activation": mine | {"name": f"activation-{size}", "attribution": {"select": "activation"}},
        "next_token": mine | {"name": f"next-token-{size}", "attribution": {"gradient_of": "next_token"}},
        "shifted": shifted | {"name": f"shifted-{size}"},
    }
    teacher = {"teacher": str(plan.folder / "teacher"), "k": 32, "train_windows": windows, "name": f"teacher-{size}"}
    settings = load_settings(
        SweepSettings,
        [],
        folder=str(plan.folder / name),
        data=str(plan.data),
        runs=rows,
        set=every,
        labels=labels,
        probabilities={"teacher": teacher},
        jobs=plan.jobs,
        threads=plan.threads,
        **more,
    )
    result = run_sweep(settings)
    for run in result["runs"]:
        diverged = may_diverge and (plan.folder / name / run["name"] / RECORD).is_file()
        if run["state"] != "finished" and not diverged:
            raise SystemExit(f"{name}: {run}")
    return result


def row(plan: Plan, method: str, rate: float, recipes: tuple[str, ...] = (), /, **changes: Any) -> dict[str, Any]:
    """A row of a sweep: a method at its learning rate, with further recipes laid over it and settings changed."""
    settings: dict[str, Any] = {"method": method, "optimizer.lr": rate}
    if method in ("ntp", "kd"):
        settings["model.backbone.n_embd"] = plan.matched_width
    labels = changes.pop("labels", SEARCHED[method].get("labels"))
    own = SEARCHED[method]
    found = {**own, "recipe": [*own["recipe"], *recipes], "set": {**settings, **changes}}
    return found | {"labels": labels}


def last_loss(run: Path) -> float:
    """Held-out loss at a run's end, nats a token; infinite where it diverged."""
    if not finished(run):
        return float("inf")
    lines = (run / "evals.jsonl").read_text(encoding="utf-8").splitlines()
    loss = json.loads(lines[-1])["loss"]
    return float(loss) if isinstance(loss, int | float) and loss == loss else float("inf")


def finite(loss: float) -> float | None:
    """A loss as JSON knows it; None: the run diverged."""
    return loss if math.isfinite(loss) else None


def search(plan: Plan) -> dict[str, float]:
    """The learning rate of each method: of three, doubled or halved on while the best lies at an edge."""
    losses: dict[str, dict[float, float]] = {name: {} for name in SEARCHED}
    due = {name: set(RATES) for name in SEARCHED}
    while any(due.values()):
        for stage, tokens, slow in (("search", plan.search, False), ("search-slow", plan.short, True)):
            rates = {name: found for name, found in due.items() if (name in SLOW) == slow}
            rows = {f"{name}-{rate:g}": row(plan, name, rate) for name in rates for rate in sorted(rates[name])}
            if rows:
                sweep(plan, stage, rows, tokens, 1, may_diverge=True)
            for name, found in rates.items():
                for rate in found:
                    losses[name][rate] = last_loss(plan.folder / stage / f"{name}-{rate:g}-s0")
                due[name] = beyond(losses[name])
    found = {name: min(by_rate, key=by_rate.__getitem__) for name, by_rate in losses.items()}
    told = {name: {rate: finite(loss) for rate, loss in by_rate.items()} for name, by_rate in losses.items()}
    write_json(plan.folder / "search.json", {"losses": told, "chosen": found})
    return found


def beyond(losses: dict[float, float]) -> set[float]:
    """The next rate to try, where the best lies at an edge and at most six were tried."""
    rates = sorted(losses)
    best = min(rates, key=losses.__getitem__)
    if len(rates) >= 6 or best not in (rates[0], rates[-1]):
        return set()
    return {best / 2 if best == rates[0] else best * 2}


def main_stage(plan: Plan, rate: dict[str, float]) -> None:
    """All methods with the first seed, then all with the next; what is no method of the paper comes last."""
    rows = {name: row(plan, name, rate[name]) for name in SEARCHED}
    for seed in plan.seeds:
        sweep(plan, "main", {name: rows[name] for name in METHODS}, plan.tokens, 10, seeds=[seed])
    sweep(plan, "main", rows, plan.tokens, 10, seeds=list(plan.seeds))


def rates_rows(plan: Plan, rate: dict[str, float]) -> dict[str, dict[str, Any]]:
    """The methods that begin slowly, at the rates of the search that were not chosen."""
    others = {f"{name}-{other:g}": (name, other) for name in sorted(SLOW) for other in RATES if other != rate[name]}
    return {key: row(plan, name, other, method=key) for key, (name, other) in others.items()}


def short_rows(plan: Plan, rate: dict[str, float]) -> dict[str, dict[str, Any]]:
    """The ablations, and the methods that they are held against."""

    def of(method: str, *recipes: str, **changes: Any) -> dict[str, Any]:
        return row(plan, method, rate[method], recipes, **changes)

    alone: dict[str, Any] = {"losses.concept": 0.0, "model.num_concepts": plan.latents, "labels": None}
    width = head_width(plan)
    head = {"model.mixer": "hidden", "model.state_size": 128, "model.state_width": width, "model.insert_at": BLOCK}
    rows = {name: of(name) for name in METHODS}
    rows |= {
        "ntp_same_width": of("ntp", **{"model.backbone.n_embd": 128}),
        "ntp_larger_head": of("ntp", **{"model.backbone.n_embd": 128, "model.mixing": "add", **head}),
        "kd_pause": {**of("pause"), "recipe": ["tiny/kd_pause"], "probabilities": "teacher"},
        "pause_position": of("pause", "ablations/slot_position"),
        "cocomix_copy": of("cocomix_copy"),
        "cocomix_add_concept_alone": of("cocomix_add", "ablations/concept_alone"),  # no slots: at add's rate
    }
    for method in ("cocomix", "cocomix_add", "cocomix_memory"):
        rows[f"{method}_mixing_alone"] = of(method, **alone)
    for name in ("smallest", "absolute", "activation", "next_token"):
        rows[f"cocomix_add_{name}"] = of("cocomix_add", labels=name)
    for name in ("smallest", "activation"):
        rows[f"cocomix_{name}"] = of("cocomix", labels=name)
    for depth in (1, 4):
        rows[f"cocomix_add_at_{depth}"] = of("cocomix_add", **{"model.insert_at": depth})
        rows[f"cocomix_at_{depth}"] = of("cocomix", **{"model.insert_at": depth})
    for weight in (0.03, 0.3):
        rows[f"cocomix_add_lambda_{weight}"] = of("cocomix_add", **{"losses.concept": weight})
    for kept in (1, 4):
        rows[f"cocomix_add_k_{kept}"] = of("cocomix_add", **{"model.concept_k": kept})
    guess = {"model.state_width": width, "data.teacher.name": str(plan.folder / "teacher"), "data.teacher.block": BLOCK}
    for kind in ("l2", "cosine"):
        rows[f"cocomix_add_hidden_{kind}"] = of("cocomix_add", f"ablations/hidden_{kind}", labels=None, **guess)
    rows["cocomix_hidden_l2"] = of("cocomix", "ablations/hidden_l2", labels=None, **guess)
    for name, row_ in rows.items():
        row_["set"]["method"] = name
    return rows


def head_width(plan: Plan) -> int:
    """Width of a plain network's extra layers that cost the operations of the concept head and its compression."""
    d = 128
    return max(1, round((d * (plan.latents + plan.k) - d * d) / (2 * d)))


def shift(plan: Plan, source: Path, without: list[str], rate: dict[str, float]) -> None:
    """Students of all sources, with labels of a teacher that has not seen some."""
    text = plan.folder / "shifted.jsonl"
    if not text.is_file():
        write_without(source, text, without)
    data = plan.folder / "data-shifted"
    from cocomix.data.prepare import prepare
    from cocomix.data.settings import PrepareSettings

    tokenizer = str(plan.data / "tokenizer")
    prepare(
        load_settings(PrepareSettings, [], source=str(text), out=str(data), tokenizer=tokenizer, window=plan.window)
    )
    train_teacher(plan, data, "teacher-shifted")
    sweep(plan, "short", shifted_rows(plan, rate), plan.short, 4)


def shifted_rows(plan: Plan, rate: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Methods of :data:`SHIFTED` with the labels of the teacher that has not seen a part."""
    names = {f"{method}_shifted": method for method in SHIFTED}
    return {name: row(plan, of, rate[of], labels="shifted", method=name) for name, of in names.items()}


def write_without(source: Path, target: Path, without: list[str]) -> None:
    """The documents of a JSON lines file (plain or .zst) whose ``source`` is none of ``without``."""
    from cocomix.data.readers import read_jsonl
    from cocomix.data.settings import PrepareSettings
    from cocomix.files import atomic_path

    fields = [
        read_jsonl(source, load_settings(PrepareSettings, [], source=str(source), out="", field=field))
        for field in ("text", "source")
    ]
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        for (text, _), (origin, _) in zip(*fields, strict=True):
            if origin not in without:
                file.write(json.dumps({"text": text, "source": origin}, ensure_ascii=False) + "\n")


def steer(plan: Plan) -> None:
    """Steering scores of the methods with labels, first seed each."""
    for method, made in SEARCHED.items():
        if "labels" in made:
            score_steering(plan.folder / "main" / f"{method}-s{plan.seeds[0]}", plan.concepts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a text that 'cocomix data prepare' reads; JSON lines for the shift")
    parser.add_argument("--folder", type=Path, default=Path("runs/study"))
    parser.add_argument("--without", default="austen,kjv", help="values of 'source' that the shifted teacher lacks")
    parser.add_argument("--stage", action="append", choices=STAGES, help="only these, in their order; default: all")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int)
    for name in ("tokens", "short", "search", "teacher", "sae", "documents"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Plan, name))
    parser.add_argument("--tiny", action="store_true", help="minutes instead of hours: does it run?")
    given = parser.parse_args()
    sizes = {name: getattr(given, name) for name in ("tokens", "short", "search", "teacher", "sae", "documents")}
    if given.tiny:
        sizes = {"tokens": 8192, "short": 8192, "search": 4096, "teacher": 8192, "sae": 8192, "documents": 2}
        sizes |= {
            "search_documents": 2,
            "vocabulary": 300,
            "window": 64,
            "latents": 64,
            "k": 8,
            "matched_width": 132,
            "seeds": (0, 1),
            "concepts": 2,
        }
    plan = Plan(given.folder, jobs=given.jobs, threads=given.threads, **sizes)
    plan.folder.mkdir(parents=True, exist_ok=True)
    rate: dict[str, float] = {}
    if (plan.folder / "search.json").is_file():
        rate = read_json(plan.folder / "search.json", "a search")["chosen"]
    work: dict[str, Callable[[], Any]] = {
        "data": lambda: prepare_data(plan, given.source),
        "teacher": lambda: train_teacher(plan, plan.data, "teacher"),
        "search": lambda: rate.update(search(plan)),
        "main": lambda: main_stage(plan, rate),
        "rates": lambda: sweep(
            plan, "rates", rates_rows(plan, rate), plan.tokens, 10, seeds=[plan.seeds[0]], may_diverge=True
        ),
        "short": lambda: sweep(plan, "short", short_rows(plan, rate), plan.short, 4),
        "shift": lambda: shift(plan, given.source, given.without.split(","), rate),
        "steering": lambda: steer(plan),
        "times": lambda: measure_times(plan.folder, first_of_each(plan), plan.threads),
        "report": lambda: report(plan, given.source, given.without.split(",")),
    }
    try:
        for stage in given.stage or STAGES:
            say(f"== {stage}")
            work[stage]()
    except Stopped as stopped:
        say(f"stopped: {stopped}")
        return EXIT_STOPPED
    return 0


def first_of_each(plan: Plan) -> dict[str, Path]:
    """Method → a run of it, of the main stage where there is one."""
    found: dict[str, Path] = {}
    for name in ("main", "short"):
        for run in finished_runs(plan.folder / name):
            found.setdefault(load_run(run).method, run)
    return found


def report(plan: Plan, source: Path, without: list[str]) -> None:
    """The comparisons of both budgets with their pages, and ``study.json``."""
    from cocomix.compare.comparison import compare
    from cocomix.report.page import write_comparison

    folders = {name: finished_runs(plan.folder / name) for name in ("main", "short")}
    times = read_json(plan.folder / "times.json", "times")
    searched = read_json(plan.folder / "search.json", "a search")
    for name, runs in folders.items():
        found = compare([timed(load_run(run), times) for run in runs], "ntp")
        write_comparison(found, plan.folder / "report" / name)
    shifted = [run for run in folders["short"] if run.name.removesuffix("-s0").removesuffix("_shifted") in SHIFTED]
    shifted += [run for run in folders["short"] if run.name == "ntp-s0"]
    if not (plan.folder / "teacher-shifted-sae").is_dir():  # a report of what there is so far
        shifted = []
    splits = read_json(plan.data / "dataset.json", "a dataset")["splits"]
    known = {
        "plan": {**vars(plan), "folder": plan.folder.name, "step_tokens": plan.step_tokens},
        "data": {"train_tokens": sum(shard["tokens"] for shard in splits["train"]["shards"])},
        "teacher_loss": last_loss(plan.folder / "teacher"),
        "sae": read_json(plan.folder / "teacher-sae" / "check.json", "a check"),
        "search": searched,
        "rates": rates_found(plan, searched["chosen"]),
        "times": times,
        "concepts": {name: measure_concepts(runs, plan.data) for name, runs in folders.items()},
        "steering": {run.name: kept_steering(run) for run in folders["main"] if (run / STEERING).is_file()},
        "sources": measure_sources(shifted, source, plan.data, {" and ".join(without): set(without)}),
    }
    write_json(plan.folder / "study.json", known)


def rates_found(plan: Plan, chosen: dict[str, float]) -> dict[str, float | None]:
    """Losses of the methods that begin slowly at every rate that has seen the longer budget, first seed."""
    seed = plan.seeds[0]
    runs = {f"{name}-{chosen[name]:g}-s{seed}": plan.folder / "main" / f"{name}-s{seed}" for name in SLOW}
    runs |= {run.name: run for run in finished_runs(plan.folder / "rates")}
    return {name: finite(last_loss(run)) for name, run in runs.items()}


if __name__ == "__main__":
    sys.exit(main())
