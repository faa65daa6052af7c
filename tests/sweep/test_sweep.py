"""One file, many runs: names, shared caches, failures, stopping and going on."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cocomix.concepts.extract import extract
from cocomix.concepts.settings import ExtractSettings
from cocomix.config import load_settings, merge, parse_override
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError
from cocomix.stopping import EXIT_STOPPED
from cocomix.sweep.caches import find_caches
from cocomix.sweep.cases import Shared, cases
from cocomix.sweep.settings import SweepSettings
from cocomix.sweep.sweep import finished, run_sweep
from cocomix.testing.teachers import tiny_sae, tiny_teacher
from cocomix.testing.text import tiny_dataset
from cocomix.train.settings import TrainSettings

SMALL = {"model.backbone": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2}, "tokens": None, "steps": 4,
         "batch_windows": 2, "evaluations": 1, "eval_documents": 1, "checkpoint.number": 1}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("text") / "data", documents=12)


@pytest.fixture(scope="module")
def sae(data, tmp_path_factory) -> Path:
    teacher = tiny_teacher(tmp_path_factory.mktemp("teacher"), data)
    return tiny_sae(tmp_path_factory.mktemp("sae"), teacher, data)


def sweep(data: Dataset, folder: Path, runs: dict, **more) -> SweepSettings:
    return load_settings(SweepSettings, [], folder=str(folder), data=str(data.folder), runs=runs, **more)


def test_rows_times_grid_times_seeds_are_runs_with_names_that_tell_them_apart(data, tmp_path):
    found = sweep(
        data, tmp_path, {"ntp": {"recipe": "tiny/ntp"}, "pause": {"recipe": ["tiny/pause"], "grid": {}, "seeds": [3]}},
        grid={"optimizer.lr": [1e-3, 2e-3]}, seeds=[0, 1], set={"steps": 3},
    )  # fmt: skip
    runs = cases(found, {})
    assert [run.name for run in runs] == ["ntp-lr-0.001-s0", "ntp-lr-0.001-s1", "ntp-lr-0.002-s0", "ntp-lr-0.002-s1",
                                          "pause-s3"]  # fmt: skip
    settings = [load_settings(TrainSettings, run.words) for run in runs]
    assert [s.method for s in settings] == ["ntp"] * 4 + ["pause"]
    assert [(s.optimizer.lr, s.seed) for s in settings[:4]] == [(1e-3, 0), (1e-3, 1), (2e-3, 0), (2e-3, 1)]
    assert all(s.steps == 3 and s.run == f"{tmp_path}/{run.name}" for s, run in zip(settings, runs, strict=True))


def test_jobs_of_a_cluster_share_the_runs_out(data, tmp_path):
    runs = {"ntp": {"recipe": "tiny/ntp"}, "pause": {"recipe": "tiny/pause"}}
    whole = [run.name for run in cases(sweep(data, tmp_path, runs, seeds=[0, 1, 2]), {})]
    parts = [
        [run.name for run in cases(sweep(data, tmp_path, runs, seeds=[0, 1, 2], part=f"{i}/4"), {})]
        for i in (1, 2, 3, 4)
    ]
    assert sorted(name for part in parts for name in part) == sorted(whole)
    assert [len(part) for part in parts] == [2, 2, 1, 1]


def test_labels_are_found_whatever_their_name_and_made_where_there_are_none(data, sae, tmp_path):
    extract(ExtractSettings(data=str(data.folder), sae=str(sae), name="mine"))
    rows = {"a": {"recipe": "tiny/cocomix", "labels": "large"}, "b": {"recipe": "tiny/cocomix_add", "labels": "small"}}
    labels = {"large": {"sae": str(sae)}, "small": {"sae": str(sae), "attribution": {"order": "smallest"}}}
    settings = sweep(data, tmp_path, rows, labels=labels, seeds=[0, 1])
    large, small = Shared("labels", "large", None), Shared("labels", "small", None)
    assert find_caches(settings, make=False) == {large: "mine", small: "small"}
    assert not (data.folder / "labels" / "small").exists()
    assert find_caches(settings, make=True) == {large: "mine", small: "small"}
    assert (data.folder / "labels" / "small" / "labels.json").is_file()
    words = [run.words for run in cases(settings, find_caches(settings, make=False))]
    assert [next(w for w in run if w.startswith("data.labels")) for run in words] == ["data.labels=mine"] * 2 + [
        "data.labels=small"
    ] * 2


def test_where_few_windows_are_labelled_each_seed_has_its_own(data, sae, tmp_path):
    rows = {"a": {"recipe": "tiny/cocomix", "labels": "few"}}
    settings = sweep(data, tmp_path, rows, labels={"few": {"sae": str(sae), "train_windows": 8}}, seeds=[0, 2])
    assert list(find_caches(settings, make=True).values()) == ["few-s0", "few-s2"]
    manifests = [
        json.loads((data.folder / "labels" / name / "labels.json").read_text()) for name in ("few-s0", "few-s2")
    ]
    assert [manifest["coverage"]["seed"] for manifest in manifests] == [0, 2]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"runs": {"a": {"recipe": "tiny/ntp", "labels": "x"}}}, "runs.a.labels=x is not among the sweep's labels"),
        ({"runs": {"a": {"recipe": "tiny/ntp"}}, "grid": {"optimizer.lr": []}}, "grid.optimizer.lr has no values"),
        ({"runs": {"a": {"recipe": "tiny/ntp"}}, "only": ["b"]}, "only=b is no row of the sweep: a"),
        ({"runs": {"a": {"recipe": "tiny/ntp"}}, "part": "5/4"}, "part=5/4: parts count from 1, give 1/4 … 4/4"),
        (
            {"runs": {"a": {"recipe": "tiny/ntp"}}, "set": {"seed": 3}},
            "set.seed: this is said once for the sweep, give seeds",
        ),
        (
            {"runs": {"a": {"recipe": "tiny/ntp", "set": {"data": {"path": "x"}}}}},
            "runs.a.set.data.path: this is said once for the sweep, give data: FOLDER",
        ),
        ({"runs": {"a": {"recipe": "tiny/ntp", "grid": {"seed": [1, 2]}}}}, "runs.a.grid.seed: this is said once"),
        (
            {"runs": {"a": {"recipe": "tiny/ntp", "seeds": []}}},
            "setting 'runs.a.seeds': list should have at least 1 item",
        ),
        ({"runs": {"a": {"recipe": "tiny/ntp"}}, "only": []}, "setting 'only': list should have at least 1 item"),
        ({"runs": {}}, "setting 'runs': dictionary should have at least 1 item"),
        ({"runs": {"a": {"recipe": "tiny/ntp"}}, "part": "0/16"}, "part=0/16: parts count from 1, give 1/16 … 16/16"),
    ],
)
def test_what_does_not_fit_is_named(data, tmp_path, changes, sentence):
    with pytest.raises(UserError) as told:
        sweep(data, tmp_path, **changes)
    assert sentence in str(told.value)


def test_runs_of_one_name_are_told_whatever_their_parts(data, tmp_path):
    settings = sweep(data, tmp_path, {"a": {"recipe": "tiny/ntp"}}, grid={"batch_windows": [128, "128"]}, part="1/2")
    with pytest.raises(UserError, match=r"two runs of the sweep are called a-batch_windows-128-s0"):
        cases(settings, {})


def test_a_mistake_in_what_runs_share_says_of_which(data, tmp_path):
    rows = {"a": {"recipe": "tiny/cocomix", "labels": "large"}}
    with pytest.raises(UserError, match=r"^labels\.large: setting 'sae' is missing: add sae=…$"):
        find_caches(sweep(data, tmp_path, rows, labels={"large": {}}), make=False)


@pytest.mark.parametrize(
    "text", ["try #2", "007", "2M", "yes", "null", "a: b", "[x", '"x"', "6e-4", " x", "ключ: 🌊", ""]
)
def test_a_string_of_the_file_reaches_a_run_as_it_is(data, tmp_path, text):
    (run,) = cases(sweep(data, tmp_path / text, {text: {"recipe": "tiny/ntp"}}, set={"model.from_backbone": text}), {})
    read = functools.reduce(merge, map(parse_override, run.words[1:]))
    assert (read["run"], read["method"]) == (f"{tmp_path / text}/{text}-s0", text)
    assert read["model"]["from_backbone"] == text


def test_a_mistake_in_the_last_row_is_told_before_anything_runs(data, tmp_path, cli):
    rows = {"good": {"recipe": "tiny/ntp"}, "bad": {"recipe": "tiny/ntp", "set": {"optimiser.lr": 1}}}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"folder": str(tmp_path / "runs"), "data": str(data.folder), "runs": rows}))
    for words in ([], ["--list"]):
        code, out, err = cli("sweep", file, *words)
        assert (code, out, err.startswith("error: runs.bad: unknown setting 'optimiser'")) == (2, "", True)
        assert not (tmp_path / "runs").exists()


def test_stopped_it_goes_on_and_a_run_that_fails_takes_no_other_with_it(data, tmp_path):
    rows = {
        "long": {"recipe": "tiny/ntp", "set": {"steps": 100}},
        "broken": {"recipe": "tiny/pause", "set": {"model.insert_at": 7}},
    }
    file = tmp_path / "sweep.yaml"
    folder = tmp_path / "runs"
    file.write_text(
        yaml.safe_dump({"folder": str(folder), "data": str(data.folder), "runs": rows, "set": SMALL, "jobs": 2})
    )
    command = [sys.executable, "-m", "cocomix", "sweep", str(file), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    metrics = folder / "long-s0" / "metrics.jsonl"
    while first.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate()
    assert first.returncode == EXIT_STOPPED, err
    assert not finished(folder / "long-s0")
    second = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert second.returncode == 1, second.stderr
    told = {run["name"]: run for run in json.loads(second.stdout)["runs"]}
    assert told["long-s0"]["state"] == "finished"
    assert "insert_at=7 lies outside the network" in told["broken-s0"]["error"]
    assert "resuming at step" in (folder / "long-s0" / "log.txt").read_text()
    assert len(metrics.read_text().splitlines()) == 100


@pytest.fixture
def commands(monkeypatch):
    """Shell commands that stand for the trainings of a sweep, by the run's name; what each was started with."""
    scripts: dict[str, str] = {}
    started: list[tuple[list[str], dict[str, str]]] = []
    real = subprocess.Popen

    def popen(command, env, **options):
        started.append((command, env))
        run = next(word for word in command if word.startswith("run=")).removeprefix("run=")
        return real(["sh", "-c", scripts[Path(run).name]], env=env, cwd=run, **options)

    monkeypatch.setattr("cocomix.sweep.sweep.subprocess.Popen", popen)
    return scripts, started


def test_a_run_that_was_stopped_or_killed_is_told_as_such(data, tmp_path, commands):
    names = ("good", "stopped", "killed", "refused")
    (tmp_path / "killed-s0").mkdir()
    (tmp_path / "killed-s0" / "log.txt").write_text("error: a mistake of last week\n")
    for old in ("sweep.json", "sweep-1-2.json"):
        (tmp_path / old).write_text('{"runs": []}')  # of last week too: true no more as soon as anything runs
    commands[0].update(
        {
            "good-s0": "test ! -e ../sweep.json -a ! -e ../sweep-1-2.json && echo '{\"finished\": true}' > run.json",
            "stopped-s0": f"exit {EXIT_STOPPED}",
            "killed-s0": "echo step 3; kill -9 $$",
            "refused-s0": "echo error: too big; exit 2",
        }
    )
    result = run_sweep(sweep(data, tmp_path, {name: {"recipe": "tiny/ntp"} for name in names}))
    assert [run["state"] for run in result["runs"]] == ["finished", "stopped", "failed", "failed"]
    assert (result["failed"], result["stopped"]) == (2, 1)
    assert [run.get("error") for run in result["runs"][2:]] == ["killed by signal 9 (Killed)", "too big"]


def test_runs_at_a_time_take_a_gpu_each_and_keep_their_own_threads(data, tmp_path, commands, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    rows = {name: {"recipe": "tiny/ntp"} for name in "abc"}
    rows["c"]["set"] = {"threads": 1}
    commands[0].update({f"{name}-s0": "exit 1" for name in rows})
    run_sweep(sweep(data, tmp_path, rows, jobs=2, threads=3))
    environments = [environment for _, environment in commands[1]]
    assert {environment["CUDA_VISIBLE_DEVICES"] for environment in environments[:2]} == {"0", "1"}
    assert [environment["OMP_NUM_THREADS"] for environment in environments] == ["3", "3", "1"]
    assert ["threads=3" in command for command, _ in commands[1]] == [True, True, False]


def test_a_finished_run_of_other_settings_is_refused_with_the_difference(data, tmp_path, commands):
    commands[0]["ntp-s0"] = "echo '{\"finished\": true}' > run.json"
    rows = {"ntp": {"recipe": "tiny/ntp"}}
    run_sweep(sweep(data, tmp_path, rows))
    words = cases(sweep(data, tmp_path, rows), {})[0].words
    settings = load_settings(TrainSettings, words).model_dump(mode="json")
    (tmp_path / "ntp-s0" / "recipe.yaml").write_text(yaml.safe_dump(settings))
    assert run_sweep(sweep(data, tmp_path, rows, set={"evaluations": 3}))["runs"][0]["state"] == "finished"
    for change, sentence in (({"optimizer.lr": 9e-3}, "another optimizer.lr"), ({"tokens": 99999}, "another tokens")):
        with pytest.raises(UserError) as told:
            run_sweep(sweep(data, tmp_path, rows, set=change))
        assert sentence in str(told.value)
    assert len(commands[1]) == 1, "nothing ran again"
    assert (tmp_path / "sweep.json").is_file(), "who was refused has not changed what is there"
