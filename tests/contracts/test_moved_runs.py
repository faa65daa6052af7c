"""A run is read from any directory, and where it was moved to together with its data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from cocomix.steer.usual import labels_folder


def test_a_run_is_evaluated_exported_and_named_from_elsewhere(place, tmp_path, monkeypatch, works, cli) -> None:
    assert json.loads((place / "run" / "environment.json").read_text())["directory"] != str(place)  # it was copied
    here = json.loads(cli("inspect", "The", "model=run", "--json")[1])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    works("eval", place / "run", "documents=1")
    works("export", place / "run", "made")
    assert json.loads(cli("inspect", "The", f"model={place / 'run'}", "--json")[1]) == here


def test_an_export_needs_neither_the_device_of_the_run_nor_its_labels(place, works) -> None:
    recipe = place / "run" / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("device: auto", "device: cuda"))
    assert recipe.read_text() != text
    shutil.rmtree("data/labels")
    before = json.loads((place / "run" / "export" / "config.json").read_text())
    works("export", "run", "made")
    assert json.loads((place / "made" / "config.json").read_text()) == before


def test_data_and_labels_that_are_gone_are_told(place, refused, works) -> None:
    run = place / "run"
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**environment, "directory": str(place)}))
    shutil.rmtree("data/labels")
    assert labels_folder("run") is None
    err = works("inspect", "The", f"model={run}")  # a model without names is still looked into
    missing = place / "data" / "labels" / "concepts"
    assert f"{run} learnt from labels that are not at " in err
    assert str(missing.relative_to(place)) in err
    Path("data").rename("away")
    assert "run was trained on data.path=data, which is not there: add data=FOLDER" in refused("eval", "run")
    works("eval", "run", "data=away", "documents=1")
