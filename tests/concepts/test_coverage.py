from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cocomix.concepts.coverage import Coverage
from cocomix.concepts.extract import extract
from cocomix.concepts.labels import Labels
from cocomix.concepts.settings import ExtractSettings
from cocomix.data.dataset import Dataset
from cocomix.data.order import window_ids
from cocomix.errors import UserError


@pytest.fixture(scope="module")
def part(dataset: Dataset, sae_path: Path) -> Labels:
    extract(ExtractSettings(data=str(dataset.folder), sae=str(sae_path), name="part", train_windows=40, train_seed=3))
    return Labels.open(dataset, "part")


def test_the_windows_that_a_run_reads_first_have_the_labels_of_a_whole_extraction(
    dataset: Dataset, part: Labels, labelled: Path
) -> None:
    whole, split = Labels.open(dataset, "shared"), dataset.split("train")
    read = window_ids(split.count(dataset.window), 3, 0, 40)
    agree = part.read("train", read) == whole.read("train", read)
    assert agree.mean() > 0.99
    others = np.setdiff1d(np.arange(split.count(dataset.window)), read)
    assert len(others) > 100
    assert (part.read("train", others) == -1).all()
    val = np.arange(dataset.split("val").count(dataset.window))
    assert (part.read("val", val) == whole.read("val", val)).mean() > 0.99


def test_only_what_is_labelled_is_paid_for(dataset: Dataset, part: Labels) -> None:
    tokens = (40 + dataset.split("val").count(dataset.window)) * dataset.window
    assert part.manifest["tokens"] == tokens
    assert part.cost["flops"] == pytest.approx(part.cost["flops_per_token"] * tokens)
    assert 0 <= part.manifest["statistics"]["masked_share"] < 0.9


@pytest.mark.parametrize(("seed", "samples"), [(3, 41), (4, 10)])
def test_a_run_that_reads_more_is_refused(dataset: Dataset, part: Labels, seed: int, samples: int) -> None:
    part.check_covers(dataset.split("train"), 3, 40)
    with pytest.raises(UserError, match=f"cover the first 40 windows of runs with seed 3, this run reads {samples} "):
        part.check_covers(dataset.split("train"), seed, samples)


def test_another_coverage_under_the_same_name_is_refused(dataset: Dataset, sae_path: Path, part: Labels) -> None:
    with pytest.raises(UserError, match=r"labels with another coverage.seed \(3, now None\)"):
        extract(ExtractSettings(data=str(dataset.folder), sae=str(sae_path), name="part"))


def test_a_coverage_beyond_a_pass_is_everything(dataset: Dataset) -> None:
    split = dataset.split("train")
    assert Coverage(0, 10**6).mask(split, dataset.window).all()
    assert Coverage().mask(split, dataset.window).all()
    assert Coverage(0, 7).mask(split, dataset.window).sum() == 7
    assert Coverage(0, 7).mask(dataset.split("val"), dataset.window).all()
