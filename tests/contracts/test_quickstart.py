"""What the quickstart promises: stages that are found again, a report of its own, a summary that others can read."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cocomix.compare.runs import Run, load_run
from cocomix.quickstart.settings import QuickstartSettings
from cocomix.train.metrics import read_lines

STUDENTS = ("ntp", "cocomix", "cocomix_add")


def files(folder: Path) -> dict[str, int]:
    """When each file was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_second_run_finds_every_stage_and_writes_nothing(quickstart, call):
    before, record = files(quickstart.folder), (quickstart.folder / "stages.json").read_bytes()
    again = call(quickstart.root, [*quickstart.words, "--json"])
    assert again.code == 0
    assert json.loads(again.out) == json.loads(quickstart.first.out)
    stages = json.loads(record)
    assert again.err.count("done before") == len(stages) >= 10
    assert len(again.err.splitlines()) == len(stages)
    assert files(quickstart.folder) == before


class Resources(HTMLParser):
    """Collects what a browser would load with the page."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("src", "srcset", "poster", "data", "action") or (name in ("href", "xlink:href") and tag != "a"):
                self.loaded.append(value or "")
            if name == "style":
                self.loaded += re.findall(r"url\(([^)]*)\)", value or "")


def test_report_is_one_file_that_loads_nothing(quickstart):
    page = quickstart.folder / "report" / "index.html"
    assert json.loads(quickstart.first.out)["report"] == "runs/quickstart/report/index.html"
    text = page.read_text(encoding="utf-8")
    parser = Resources()
    parser.feed(text)
    outside = [url for url in parser.loaded if not url.startswith(("data:", "#"))]
    styles = "".join(re.findall(r"<style.*?</style>", text, re.DOTALL))
    assert outside == []
    assert "@import" not in styles
    assert [
        url for url in re.findall(r"url\(([^)]*)\)", styles) if not url.strip("'\"").startswith(("data:", "#"))
    ] == []
    assert "<script src" not in text
    assert all(name in text for name in STUDENTS)


def test_summary_obeys_the_contract(quickstart):
    summary = json.loads((quickstart.folder / "report" / "summary.json").read_text())
    assert [run["name"] for run in summary["runs"]] == list(STUDENTS)
    for run in summary["runs"]:
        wanted = {"name", "method", "seed", "parameters", "tokens", "flops", "seconds", "val_loss", "ppl",
                  "bits_per_byte", "benchmarks"}  # fmt: skip
        assert wanted <= set(run)
        assert set(run["parameters"]) >= {"total", "active"}
        assert set(run["flops"]) >= {"student", "teacher"}
        assert (run["flops"]["teacher"] > 0) == (run["method"] != "ntp")
        assert 0 < run["val_loss"] < 10
        assert run["seconds"] > 0
    assert [(pair["baseline"], pair["candidate"]) for pair in summary["pairs"]] == [
        ("ntp", "cocomix"),
        ("ntp", "cocomix_add"),
    ]
    for pair in summary["pairs"]:
        wanted = {"baseline", "candidate", "seeds", "tokens_saved", "flops_saved", "seconds_saved", "interval"}
        assert wanted <= set(pair)
        assert pair["interval"] is None  # one seed
        for saved in ("tokens_saved", "flops_saved", "seconds_saved"):
            assert pair[saved] is None or pair[saved] < 1


@pytest.fixture(scope="module")
def runs(quickstart) -> list[Run]:
    return [load_run(quickstart.folder / name) for name in STUDENTS]


def test_students_differ_in_the_method_alone(quickstart, runs):
    """The same tokens in the same order, the same seed, schedule and held-out set."""
    assert len({run.last.tokens for run in runs}) == 1
    assert len({run.last.fingerprint for run in runs}) == 1
    assert len({(run.seed, run.manifest.data) for run in runs}) == 1
    import yaml

    recipes = [yaml.safe_load((run.folder / "recipe.yaml").read_text()) for run in runs]
    differing = {key for key in recipes[0] if any(recipe[key] != recipes[0][key] for recipe in recipes)}
    assert differing == {"run", "method", "data", "model", "losses"}
    assert {recipe["data"]["path"] for recipe in recipes} == {"runs/quickstart/data"}
    assert all(run.manifest.finished for run in runs)


def test_default_students_have_the_same_size():
    """Active parameters of tiny/ntp and tiny/cocomix at the quickstart's own vocabulary and dictionary, within 3 %."""
    import torch

    from cocomix.config import load_settings
    from cocomix.data.dataset import Dataset
    from cocomix.model.costs import count_parameters
    from cocomix.model.modeling import CoCoMixForCausalLM
    from cocomix.train.build import model_config
    from cocomix.train.settings import TrainSettings

    sizes = QuickstartSettings()
    manifest = {"vocab_size": sizes.vocab_size, "eos_id": 0, "window": sizes.window, "tokenizer": {"sha256": ""},
                "dtype": "uint16", "splits": {}}  # fmt: skip
    data = Dataset(Path("data"), manifest)
    active = {}
    for name in STUDENTS:
        settings = load_settings(TrainSettings, [f"tiny/{name}", "data.labels=concepts"], run="r", data={"path": "d"})
        with torch.device("meta"):
            network = CoCoMixForCausalLM(model_config(settings.model, data, sizes.window, sizes.latents))
        active[name] = count_parameters(network).active
    for name in STUDENTS:
        assert active[name] == pytest.approx(active["ntp"], rel=0.03), active


def test_killed_while_a_student_trains_it_goes_on(quickstart, call, tmp_path):
    shutil.copytree(quickstart.root / "runs", tmp_path / "runs")
    student = tmp_path / "runs" / "quickstart" / "cocomix"
    straight = read_lines(student / "metrics.jsonl")
    shutil.rmtree(student)  # a lost output is made again; the stages behind it are found
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cocomix", *quickstart.words], cwd=tmp_path, stderr=log, env=environment
        )
        while not list(student.glob("checkpoints/step-????????")):
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(read_lines(student / "metrics.jsonl")) < len(straight)
    assert not (student / "export").exists()

    again = call(tmp_path, quickstart.words)
    assert again.code == 0, again.err
    assert "runs/quickstart/cocomix: resuming at step" in again.err
    stages = json.loads((tmp_path / "runs" / "quickstart" / "stages.json").read_text())
    assert again.err.count("done before") == len(stages) - 1
    assert all(stage["done"] for stage in stages.values())
    clock = ("seconds", "tokens_per_second", "mfu", "waited")
    resumed = [{k: v for k, v in line.items() if k not in clock} for line in read_lines(student / "metrics.jsonl")]
    assert resumed == [{k: v for k, v in line.items() if k not in clock} for line in straight]
