"""`concepts extract` over ranks: the same bytes, whoever labelled which windows and however often they were killed."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cocomix.cli import main
from cocomix.concepts import extraction, labelling
from cocomix.concepts.extract import extract
from cocomix.concepts.settings import ExtractSettings
from cocomix.concepts.units import Work, deal
from cocomix.data.dataset import Dataset
from cocomix.dist.world import current, joined
from cocomix.errors import UserError
from cocomix.files import read_json
from cocomix.stopping import Stopped
from cocomix.testing.ranks import Outcome, on_ranks, values

UNIT_TOKENS = 600
"""Two batches of eight windows: several units in each of several shards."""


def _die(calls: int) -> None:
    if current().rank == 1 and calls == 9:
        os.kill(os.getpid(), signal.SIGKILL)


def _ask_to_stop(calls: int) -> None:
    if current().rank == 1 and calls == 9:
        os.kill(os.getpid(), signal.SIGTERM)


def _fill_the_disk(calls: int) -> None:
    if current().rank == 1 and calls == 9:

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        os.fsync = full


def _be_slow(calls: int) -> None:
    time.sleep(0.1)


def _nothing(calls: int) -> None:
    pass


def _labelled_on_a_rank(settings: dict[str, Any], happens: Callable[[int], None]) -> tuple[dict[str, Any], int]:
    """One rank's manifest, and how many batches it labelled. ``happens`` is called before each, with their number;
    the ranks meet after every step."""
    calls, whole = 0, labelling.label_windows

    def watched(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        happens(calls)
        return whole(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelling, "label_windows", watched)
        patch.setattr(extraction, "SECONDS_BETWEEN_MEETINGS", 0.0)
        with joined(timeout=60.0):
            return extract(ExtractSettings.model_validate(settings)), calls


def _on_ranks(
    size: int, data: Path, sae: Path, happens: Callable[[int], None] = _nothing, **more: object
) -> list[Outcome]:
    settings = {"data": str(data), "sae": str(sae), "unit_tokens": UNIT_TOKENS, **more}
    return on_ranks(size, _labelled_on_a_rank, settings, happens)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


def _batches(dataset: Dataset) -> int:
    """Batches of eight windows in all shards."""
    counts = [count for name in ("train", "val") for count in dataset.split(name).windows_per_shard(dataset.window)]
    return sum(-(-count // 8) for count in counts)


def test_any_number_of_ranks_writes_the_same_bytes(
    dataset: Dataset, own_data: Path, sae_path: Path, labelled: Path
) -> None:
    assert len(dataset.split("train").shards) > 2
    straight = read_json(labelled / "labels.json", "labels")
    for size in (1, 2, 3):
        done = values(_on_ranks(size, own_data, sae_path, name=f"on{size}"))
        folder = own_data / "labels" / f"on{size}"
        assert _files(folder) == _files(labelled)
        assert {path.name for path in folder.iterdir()} == {"labels.json", *straight["files"]}
        manifests, calls = zip(*done, strict=True)
        assert all(manifest == read_json(folder / "labels.json", "labels") for manifest in manifests)
        assert {**manifests[0], "cost": None} == {**straight, "cost": None}
        assert sum(calls) == _batches(dataset)  # nothing is labelled twice
        assert min(calls) > 0  # each did a share


@pytest.mark.parametrize("resumed_on", [1, 3])
def test_a_rank_that_was_killed_costs_little_on_any_number_of_ranks(
    dataset: Dataset, own_data: Path, sae_path: Path, labelled: Path, resumed_on: int
) -> None:
    survivor, dead = _on_ranks(2, own_data, sae_path, _die)
    assert dead.error == "Died: exit code -9"
    assert survivor.error.startswith("RankLost: rank 0, at label of train-00000.bin, unit ")
    folder = own_data / "labels" / "concepts"
    for torn in (folder / "units").glob("*.partial"):
        with torn.open("ab") as file:
            file.write(b"torn")
    done = values(_on_ranks(resumed_on, own_data, sae_path))
    assert _files(folder) == _files(labelled)
    # Rank 1 died in its 9th batch, rank 0 did its own then: seven to nine rounds of two batches are noted.
    assert 7 * 2 <= _batches(dataset) - sum(calls for _, calls in done) <= 9 * 2


def test_one_rank_that_is_asked_to_stop_stops_all_and_one_process_goes_on(
    dataset: Dataset, own_data: Path, sae_path: Path, labelled: Path
) -> None:
    outcomes = _on_ranks(2, own_data, sae_path, _ask_to_stop)
    assert [o.error.split(" after")[0] for o in outcomes] == [
        f"Stopped: the labels in {own_data}/labels/concepts are saved"
    ] * 2
    state = read_json(own_data / "labels" / "concepts" / "extraction.json", "a state")
    manifest, calls = values(_on_ranks(1, own_data, sae_path, unit_tokens=10**6))[0]  # the cut stays what it was
    assert calls == _batches(dataset) - 2 * 9
    assert _files(own_data / "labels" / "concepts") == _files(labelled)
    assert manifest["cost"]["seconds"] > state["seconds"] > 0


def test_a_mistake_that_one_rank_meets_ends_all_and_the_same_command_goes_on(
    dataset: Dataset, own_data: Path, sae_path: Path, labelled: Path
) -> None:
    outcomes = _on_ranks(2, own_data, sae_path, _fill_the_disk)
    sentence = f"UserError: no space left on the disk while writing {own_data}/labels/concepts/units/train-0000"
    assert [o.error.startswith(sentence) for o in outcomes] == [True, True]
    done = values(_on_ranks(2, own_data, sae_path))
    assert _files(own_data / "labels" / "concepts") == _files(labelled)
    assert sum(calls for _, calls in done) == _batches(dataset) - 8 - 9  # of the full rank's ninth nothing is noted


def _stopped(data: Path, sae: Path, after: int, **more: object) -> Path:
    def ask(calls: int) -> None:
        if calls == after:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        _labelled_on_a_rank({"data": str(data), "sae": str(sae), "unit_tokens": UNIT_TOKENS, **more}, ask)
    return data / "labels" / "concepts"


@pytest.mark.parametrize(
    ("file", "batches"),
    [
        ("units/train-00001.unit-00000.concept_ids.bin", 2),
        ("units/train-00001.unit-00001.concept_strengths.bin.partial", 1),
        ("train-00000.concept_strengths.bin", 17),
    ],
    ids=["complete unit", "begun unit", "finished shard"],
)
@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_labels_that_were_lost_are_made_again_and_that_is_said(
    dataset: Dataset,
    own_data: Path,
    sae_path: Path,
    labelled: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    batches: int,
    how: str,
) -> None:
    assert -(-dataset.split("train").windows_per_shard(dataset.window)[0] // 8) == 17
    folder = _stopped(own_data, sae_path, after=17 + 3)
    lost = folder / file
    if how == "missing":
        lost.unlink()
    else:
        os.truncate(lost, lost.stat().st_size // 2)
    capsys.readouterr()
    _, calls = _labelled_on_a_rank({"data": str(own_data), "sae": str(sae_path), "unit_tokens": UNIT_TOKENS}, _nothing)
    assert (
        f"{lost.with_name(lost.name.removesuffix('.partial'))} is missing or damaged: its " in capsys.readouterr().err
    )
    assert calls == _batches(dataset) - (17 + 3) + batches
    assert _files(folder) == _files(labelled)


def test_going_on_keeps_the_precision_of_the_beginning(own_data: Path, sae_path: Path) -> None:
    straight = extract(ExtractSettings(data=str(own_data), sae=str(sae_path), name="straight", dtype="bfloat16"))
    folder = _stopped(own_data, sae_path, after=20, dtype="bfloat16")
    resumed = extract(ExtractSettings(data=str(own_data), sae=str(sae_path), dtype="auto"))  # float32 on a CPU
    assert resumed["teacher"]["dtype"] == "bfloat16"
    assert _files(folder) == _files(own_data / "labels" / "straight")
    assert resumed["files"] == straight["files"]


def test_a_unit_that_goes_while_the_ranks_work_is_named(own_data: Path, sae_path: Path, labelled: Path) -> None:
    part = own_data / "labels" / "concepts" / "units" / "train-00000.unit-00003.concept_ids.bin"

    def lose(calls: int) -> None:
        if calls == 10:
            part.unlink()

    settings = {"data": str(own_data), "sae": str(sae_path), "unit_tokens": UNIT_TOKENS}
    with pytest.raises(UserError, match=f"{part} has gone or changed .*: run the same command again"):
        _labelled_on_a_rank(settings, lose)
    _labelled_on_a_rank(settings, _nothing)
    assert _files(own_data / "labels" / "concepts") == _files(labelled)


def test_the_seconds_are_those_of_all_ranks_added_up(own_data: Path, sae_path: Path) -> None:
    start = time.perf_counter()
    done = values(_on_ranks(2, own_data, sae_path, _be_slow, train_windows=40))
    wall = time.perf_counter() - start
    batches = sum(calls for _, calls in done)
    assert batches > 15
    assert batches * 0.1 <= done[0][0]["cost"]["seconds"] < 2 * wall


def _command(words: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return code, out.getvalue(), err.getvalue()


def test_what_is_refused_is_told_once_and_what_is_done_is_printed_once(own_data: Path, sae_path: Path) -> None:
    words = ["concepts", "extract", f"data={own_data}", f"sae={sae_path}", "train_windows=8"]
    for mistake, sentence in (
        ("attribution.k=13", "error: attribution.k=13 is more than the 12 latents"),
        ("window=99", "error: window=99 is longer than the context of the teacher"),
        ("sae=nowhere", "error: sae=nowhere is no folder"),
        ("batch=1", "error: unknown setting 'batch'"),
    ):
        (code, out, err), other = values(on_ranks(2, _command, [*words, mistake]))
        assert (code, out) == (2, "")
        assert err.startswith(sentence)
        assert other == (2, "", "")
        assert not (own_data / "labels").exists()
    (code, out, _), other = values(on_ranks(2, _command, [*words, "--json"]))
    assert (code, other) == (0, (0, "", ""))
    assert json.loads(out)["files"] == read_json(own_data / "labels" / "concepts" / "labels.json", "labels")["files"]
    (code, out, err), other = values(on_ranks(2, _command, words))
    assert (code, other[0]) == (0, 0)
    assert "finished already" in err


def test_what_is_left_is_shared_evenly_and_nobody_leaves_what_he_began() -> None:
    works = [Work("label", "a", unit) for unit in range(7)]
    queues = deal(works, [works[4], None, works[1]])
    assert [queue[0] for queue in queues] == [works[4], works[0], works[1]]
    assert sorted(work for queue in queues for work in queue) == works
    assert [len(queue) for queue in queues] == [3, 2, 2]
    assert deal(works[:1], [works[3], None]) == [[works[0]], []]  # the fourth is done
