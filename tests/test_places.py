"""What a user's name for a model means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cocomix.errors import UserError
from cocomix.places import model_place, recorded_path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "export").mkdir()
    (tmp_path / "recipe.yaml").write_text("{}")
    return tmp_path


def test_a_runs_folder_stands_for_its_export(run: Path) -> None:
    (run / "export" / "config.json").write_text("{}")
    assert model_place(str(run), f"teacher={run}") == run / "export"
    assert model_place(str(run / "export"), "teacher=x") == run / "export"


def test_a_run_without_a_whole_export_is_told_to_finish(run: Path) -> None:
    for _ in range(2):  # an export's folder that is empty, then none
        with pytest.raises(UserError, match=f"^teacher={run}: this run is not finished.*'cocomix export {run}'"):
            model_place(str(run), f"teacher={run}")
        if (run / "export").is_dir():
            (run / "export").rmdir()


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
def test_what_looks_like_a_hub_id_and_is_no_folder_is_one(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_place(name, f"teacher={name}") is None
    (tmp_path / name).mkdir(parents=True)
    assert model_place(name, f"teacher={name}") == Path(name)


def test_a_name_below_a_folder_that_is_here_is_no_hub_id(run: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(run.parent)
    name = f"{run.name}/exprt"
    with pytest.raises(UserError, match=rf"^model={name}: there is no such folder; give"):
        model_place(name, f"model={name}")
    (run / "export" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=rf"no such folder \(did you mean '{run.name}/export'\?\); give"):
        model_place(name, f"model={name}")


def test_what_a_recipe_names_is_found_where_the_run_was_started_and_beside_a_moved_run(tmp_path, monkeypatch) -> None:
    started, moved, elsewhere = tmp_path / "started", tmp_path / "moved", tmp_path / "elsewhere"
    for folder in (started / "data", started / "run", moved / "runs" / "run", elsewhere):
        folder.mkdir(parents=True)
    (started / "run" / "environment.json").write_text(json.dumps({"directory": str(started)}))
    monkeypatch.chdir(elsewhere)
    assert recorded_path(started / "run", "data") == started / "data"
    (moved / "runs" / "run" / "environment.json").write_text(json.dumps({"directory": "/gone"}))
    assert recorded_path(moved / "runs" / "run", "data") is None
    (moved / "data").mkdir()
    assert recorded_path(moved / "runs" / "run", "data") == moved / "data"
    assert recorded_path(moved / "runs" / "run", str(started / "data")) == started / "data"
    (elsewhere / "data").mkdir()
    assert recorded_path(started / "run", "data") == Path("data")


@pytest.mark.parametrize("name", ["./gpt2", "~/no/such", "/no/such", "a/b/c", "file.gguf"])
def test_a_path_that_is_not_there_is_told(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^teacher={name}: there is no such folder"):
        model_place(name, f"teacher={name}")
