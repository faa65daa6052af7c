"""The quickstart's stages; each calls the function of a verb."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cocomix.compare.comparison import Comparison, compare
from cocomix.compare.runs import load_run
from cocomix.compare.wording import verdict
from cocomix.config import load_settings
from cocomix.files import read_json, write_json
from cocomix.quickstart.settings import QuickstartSettings
from cocomix.stages import Job, Stage
from cocomix.train.settings import TrainSettings

STUDENTS = ("ntp", "cocomix", "cocomix_add")
BLOCK = 2
"""The teacher's block whose output the SAE reads."""
TRAIN_MFLOP = {"teacher": 22.4, "ntp": 12.6, "cocomix": 17.5, "cocomix_add": 12.2}
SAE_MFLOP, LABEL_MFLOP = 6.0, 9.0
"""Operations a token, for the estimates of time alone; what is reported is counted from the models."""
UTILISATION = 0.5
INTRODUCTION = (
    "One command pretrained a teacher, trained a sparse autoencoder on its activations, extracted concept labels, and "
    "pretrained three models on the same text, tokens and data order: next-token prediction (ntp), CoCoMix with "
    "concepts in a slot behind each token (cocomix), and the same concepts added to the stream (cocomix_add). These "
    "models are tiny and their budgets are short: look at how the parts work together, not for the paper's result."
)


def quickstart(settings: QuickstartSettings, prepare: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Runs what is missing and returns ``{"report", "summary", "verdicts", "seconds"}``.

    ``prepare`` is called before the first stage that loads models (the command line silences libraries there).
    """
    folder = Path(settings.folder)
    job = Job(folder)
    record = job.run(_stages(settings, folder, job, prepare))
    comparison = _comparison(folder)
    return {
        "report": str(folder / "report" / "index.html"),
        "summary": str(folder / "report" / "summary.json"),
        "verdicts": [verdict(pair) for pair in comparison.pairs],
        "seconds": sum(stage["seconds"] for stage in record.values()),
    }


def _stages(settings: QuickstartSettings, folder: Path, job: Job, prepare: Callable[[], None]) -> list[Stage]:
    data, sae = folder / "data", folder / "sae"

    def corpus() -> None:
        from cocomix.data.factbook import write_factbook

        write_factbook(folder / "factbook.jsonl")

    def tokens() -> None:
        from cocomix.data.prepare import prepare as prepare_data
        from cocomix.data.settings import PrepareSettings

        prepare_data(
            load_settings(
                PrepareSettings,
                ["val_fraction=0.04"],
                source=str(folder / "factbook.jsonl"),
                out=str(data),
                vocab_size=settings.vocab_size,
                window=settings.window,
                limit_documents=settings.documents,
            )
        )

    def run(name: str, budget: int) -> Stage:
        words = [f"tiny/{name}", f"data.path={data}", f"run={folder / name}", f"tokens={budget}"]
        words.append(f"seed={settings.seed}")
        if name.startswith("cocomix"):
            words.append("data.labels=concepts")
        recipe = load_settings(TrainSettings, words)

        def work() -> dict[str, Any]:
            prepare()
            from cocomix.train.verb import train

            return {"flops": train(recipe)["evaluation"]["flops"]["student"]}

        does = f"pretrain {'the teacher' if name == 'teacher' else name} on {budget:,} tokens"
        expect = functools.partial(_training_seconds, budget, TRAIN_MFLOP[name])
        return Stage(name, does, expect, (name,), recipe.model_dump(mode="json"), work)

    def train_dictionary() -> dict[str, Any]:
        prepare()
        from cocomix.concepts.check import check_sae
        from cocomix.concepts.settings import SaeCheckSettings, SaeTrainSettings
        from cocomix.concepts.train_sae import train_sae

        trained = train_sae(
            load_settings(
                SaeTrainSettings,
                [f"block={BLOCK}", f"latents={settings.latents}", f"tokens={settings.sae_tokens}"],
                teacher=str(folder / "teacher" / "export"),
                data=str(data),
                out=str(sae),
                seed=settings.seed,
            )
        )
        check_sae(load_settings(SaeCheckSettings, [], sae=str(sae), data=str(data)))
        return {"flops": trained["flops"]}

    def labels() -> dict[str, Any]:
        prepare()
        from cocomix.concepts.extract import extract
        from cocomix.concepts.settings import ExtractSettings

        # Only what the students will read is labelled. A tiny SAE is judged in the report, not refused here.
        words = ["force=true", f"train_windows={_student_windows(settings)}", f"train_seed={settings.seed}"]
        return {"flops": extract(load_settings(ExtractSettings, words, data=str(data), sae=str(sae)))["cost"]["flops"]}

    def atlas() -> None:
        prepare()
        from cocomix.concepts.build_atlas import build_atlas
        from cocomix.concepts.settings import AtlasSettings

        build_atlas(load_settings(AtlasSettings, [], data=str(data))).close()

    def look() -> None:
        prepare()
        from cocomix.quickstart.look import look_inside

        write_json(folder / "look.json", look_inside(settings, folder))

    def report() -> None:
        _write_report(settings, folder, job.record)

    v, w, t, n = settings.vocab_size, settings.window, settings.teacher_tokens, settings.tokens
    latents, k = settings.latents, {"seed": settings.seed}
    text = {"v": v, "w": w, "documents": settings.documents}
    named = ("data/labels/concepts",)
    return [
        Stage("text", "256 documents of the CIA World Factbook as text", lambda: 2, ("factbook.jsonl",), {}, corpus),
        Stage("tokens", f"a tokenizer of {v:,} pieces, shards", lambda: 8, ("data",), text, tokens),
        run("teacher", t),
        Stage(
            "sae",
            f"train a sparse autoencoder of {latents:,} latents on block {BLOCK} of the teacher, and check it",
            lambda: 15 + _training_seconds(settings.sae_tokens, SAE_MFLOP),
            ("sae",),
            {"latents": latents, "tokens": settings.sae_tokens, **k},
            train_dictionary,
        ),
        Stage(
            "labels",
            "extract the concept labels of the windows that the students read",
            lambda: 5 + _training_seconds(n, LABEL_MFLOP),
            named,
            {"tokens": n},
            labels,
        ),
        Stage("atlas", "collect what each concept means", lambda: 10, (f"{named[0]}/atlas.sqlite",), {}, atlas),
        *(run(name, n) for name in STUDENTS),
        Stage(
            "look",
            "predict the concepts of a sentence, steer a text at several strengths",
            lambda: 30,
            ("look.json",),
            [settings.prompt, settings.sentence],
            look,
        ),
        Stage("report", "compare the models, draw, write the page", lambda: 10, ("report",), {}, report),
    ]


def _student_windows(settings: QuickstartSettings) -> int:
    """Windows that a student reads: its budget in whole steps."""
    batch = load_settings(TrainSettings, ["tiny/ntp"], run="", data={"path": ""}).batch_windows
    return batch * math.ceil(settings.tokens / (batch * settings.window))


def _training_seconds(tokens: int, mflop: float) -> float:
    """An estimate from operations a token and the speed of this machine's matrix products."""
    import torch

    from cocomix.train.metrics import measured_peak

    peak = measured_peak(torch.device("cpu"), torch.float32)
    return 5 + tokens * mflop * 1e6 / (UTILISATION * peak)


def _comparison(folder: Path) -> Comparison:
    return compare([load_run(folder / name) for name in STUDENTS], baseline="ntp")


def _write_report(settings: QuickstartSettings, folder: Path, record: dict[str, Any]) -> None:
    """The report from what the stages left in the folder."""
    from cocomix.report.page import write_quickstart

    look = read_json(folder / "look.json", "what the models were asked")
    comparison = _comparison(folder)
    sizes = [read_json(folder / name / "run.json", "a run") for name in ("teacher", *STUDENTS)]
    stages = [
        {
            "name": name,
            "what": stage["does"],
            "seconds": stage["seconds"],
            "flops": stage["facts"].get("flops"),
        }
        for name, stage in record.items()
        if stage["done"]
    ]
    sections: Any = {
        "intro": {
            "title": "CoCoMix quickstart",
            "text": f"{INTRODUCTION} The sentence and the steering are of {look['model']}, the better of the two.",
            "corpus": f"CIA World Factbook, {min(settings.documents or 256, 256)} documents (public domain)",
            "tokens": read_json(folder / "ntp" / "run.json", "a run")["steps"] * sizes[1]["batch_tokens"],
            "models": [{"name": run["name"], **run["parameters"]} for run in sizes],
            "stages": stages,
        },
        "sae": read_json(folder / "sae" / "check.json", "an SAE's check"),
        "prediction": look["prediction"],
        "concepts": look["concepts"],
        "sentence": look["sentence"],
        "steering": look["steering"],
    }
    write_quickstart(folder / "report", comparison, sections)
