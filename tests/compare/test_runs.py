"""Run folders: whole, running, damaged, foreign."""

from __future__ import annotations

import json

import pytest

from cocomix.compare.runs import load_run
from cocomix.errors import UserError
from cocomix.testing.run_folders import MadeUpRun


def test_run_folder_is_read(tmp_path):
    run = load_run(MadeUpRun(method="cocomix", seed=3).write(tmp_path / "mine"))
    assert (run.name, run.method, run.seed) == ("mine", "cocomix", 3)
    assert [e.tokens for e in run.evaluations] == [250_000, 500_000, 750_000, 1_000_000]
    assert run.last.loss == 4.3
    assert run.last.flops.student == 6e12
    assert run.progress.tokens == 1_000_000


@pytest.mark.parametrize(
    "torn", [b'{"step": 2000, "tokens": 2000000, "fl', b"\xc3", b"\0\0\0\0", b'{"step"', b"[1]", b""]
)
def test_torn_last_line_of_a_running_run_is_left_out(tmp_path, torn):
    folder = MadeUpRun(finished=False).write(tmp_path / "run")
    for name in ("evals.jsonl", "metrics.jsonl"):
        with (folder / name).open("ab") as file:
            file.write(torn)
    run = load_run(folder)
    assert [e.tokens for e in run.evaluations] == [250_000, 500_000, 750_000, 1_000_000]
    assert run.progress.tokens == 1_000_000


def test_whole_last_line_without_newline_counts(tmp_path):
    folder = MadeUpRun().write(tmp_path / "run")
    path = folder / "evals.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    assert load_run(folder).last.tokens == 1_000_000


def test_progress_is_read_from_the_end_of_long_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr("cocomix.compare.runs.TAIL_BYTES", 800)
    folder = MadeUpRun(tokens=range(1000, 501_000, 1000), losses=[4.0] * 500).write(tmp_path / "run")
    assert load_run(folder).progress.tokens == 500_000
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])  # the last line is half written
    assert load_run(folder).progress.tokens == 499_000


def test_metrics_with_a_damaged_end_are_named(tmp_path):
    folder = MadeUpRun().write(tmp_path / "run")
    (folder / "metrics.jsonl").write_text("no line\n{}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged at its end: restore the file"):
        load_run(folder)


def test_damaged_line_in_the_middle_is_named(tmp_path):
    folder = MadeUpRun().write(tmp_path / "run")
    path = folder / "evals.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]) + "\n")
    with pytest.raises(UserError, match=r"evals\.jsonl, line 2 is damaged"):
        load_run(folder)


def test_resumed_run_that_went_back_counts_its_later_lines(tmp_path):
    folder = MadeUpRun().write(tmp_path / "run")
    again = MadeUpRun(tokens=(500_000, 750_000), losses=(4.5, 4.2)).write(tmp_path / "again")
    with (folder / "evals.jsonl").open("a") as file:
        file.write((again / "evals.jsonl").read_text())
    assert [(e.tokens, e.loss) for e in load_run(folder).evaluations] == [
        (250_000, 5.0),
        (500_000, 4.5),
        (750_000, 4.2),
    ]


def test_run_before_its_first_evaluation_is_read(tmp_path):
    folder = MadeUpRun(finished=False).write(tmp_path / "run")
    (folder / "evals.jsonl").unlink()
    run = load_run(folder)
    assert run.last is None
    assert not run.comparable


@pytest.mark.parametrize("loss", ["NaN", "Infinity", "null"])
def test_diverged_run_is_not_comparable(tmp_path, loss):
    folder = MadeUpRun().write(tmp_path / "run")
    path = folder / "evals.jsonl"
    path.write_text(path.read_text().replace('"loss": 4.3', f'"loss": {loss}'))
    assert not load_run(folder).comparable


def test_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"is no run: it holds no run\.json; give the folders"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_run(tmp_path / "nowhere")


def test_foreign_run_description_is_named(tmp_path):
    folder = MadeUpRun().write(tmp_path / "run")
    manifest = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**manifest, "format": 7}))
    with pytest.raises(UserError, match="has format 7, this version reads 1"):
        load_run(folder)
    del manifest["data"]["window"]
    (folder / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"'data\.window' is not as this version reads it \(field required\)"):
        load_run(folder)


def test_benchmarks_beside_the_run_are_read(tmp_path):
    folder = MadeUpRun().write(tmp_path / "run")
    (folder / "benchmarks.json").write_text('{"hellaswag": {"acc_norm": 0.3}}')
    assert load_run(folder).benchmarks == {"hellaswag": {"acc_norm": 0.3}}
