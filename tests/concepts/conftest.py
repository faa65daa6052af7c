"""A tiny dataset, a briefly trained teacher and an autoencoder that fits it, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cocomix.concepts.extract import extract
from cocomix.concepts.settings import ExtractSettings
from cocomix.data.dataset import Dataset
from cocomix.testing.teachers import tiny_sae, tiny_teacher
from cocomix.testing.text import tiny_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("text") / "data", documents=30)


@pytest.fixture(scope="session")
def teacher_path(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_teacher(tmp_path_factory.mktemp("teacher"), dataset, steps=20)


@pytest.fixture(scope="session")
def sae_path(dataset: Dataset, teacher_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sae(tmp_path_factory.mktemp("sae"), teacher_path, dataset)


@pytest.fixture(scope="session")
def labelled(dataset: Dataset, sae_path: Path) -> Path:
    """The folder of finished labels, read only."""
    extract(ExtractSettings(data=str(dataset.folder), sae=str(sae_path), name="shared"))
    return dataset.folder / "labels" / "shared"


@pytest.fixture
def own_data(dataset: Dataset, tmp_path: Path) -> Path:
    """A copy of the dataset without labels, to write into."""
    return Path(shutil.copytree(dataset.folder, tmp_path / "data", ignore=shutil.ignore_patterns("labels")))
