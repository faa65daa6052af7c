from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocomix.data.dataset import Dataset, Shard, Split
from cocomix.data.verify import verify
from cocomix.errors import UserError
from cocomix.testing.text import tiny_dataset

EOS = 0


def _split(folder: Path, shards: list[list[int]], dtype: str = "uint16") -> Split:
    entries = []
    for number, ids in enumerate(shards):
        path = folder / f"train-{number:05d}.bin"
        data = np.array(ids, dtype=dtype).tobytes()
        path.write_bytes(data)
        entries.append(Shard(path, len(ids), hashlib.sha256(data).hexdigest()))
    return Split("train", entries, np.dtype(dtype), EOS, None)


def _slow_windows(shards: list[list[int]], length: int) -> list[list[int]]:
    windows = []
    for ids in shards:
        start = 0
        while start + length + 1 <= len(ids):
            windows.append(ids[start : start + length + 1])
            start += length
    return windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@given(
    shards=st.lists(st.lists(st.integers(0, 9), min_size=0, max_size=40), min_size=1, max_size=5),
    length=st.integers(1, 12),
    dtype=st.sampled_from(["uint16", "uint32"]),
)
def test_windows_are_what_a_slow_reading_says(folder: Path, shards: list[list[int]], length: int, dtype: str) -> None:
    split, expected = _split(folder, shards, dtype), _slow_windows(shards, length)
    assert split.count(length) == len(expected)
    order = np.random.default_rng(0).permutation(len(expected))
    found = split.read(order, length)
    assert found.dtype == np.int64
    assert found.tolist() == [expected[i] for i in order]


@given(shards=st.lists(st.lists(st.integers(0, 3), min_size=0, max_size=30), min_size=1, max_size=4))
def test_documents_are_cut_behind_each_end_of_text(folder: Path, shards: list[list[int]]) -> None:
    expected = []
    for ids in shards:
        document: list[int] = []
        for token in ids:
            document.append(token)
            if token == EOS:
                expected.append(document)
                document = []
        if document:
            expected.append(document)
    assert [d.tolist() for d in _split(folder, shards).documents()] == expected


def test_every_token_but_a_shards_first_is_a_target_once(folder: Path) -> None:
    split = _split(folder, [list(range(1, 14)), list(range(20, 33))])
    targets = split.read(np.arange(split.count(4)), 4)[:, 1:]
    assert targets.reshape(-1).tolist() == [*range(2, 14), *range(21, 33)]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return tiny_dataset(tmp_path / "data", documents=20)


def test_truncated_shard_is_named(dataset: Dataset) -> None:
    path = dataset.split("train").shards[1].path
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train-00001\.bin has [\d,]+ bytes where [\d,]+ are due"):
        Dataset.open(dataset.folder)


def test_missing_shard_is_named(dataset: Dataset) -> None:
    dataset.split("val").shards[0].path.unlink()
    with pytest.raises(UserError, match=r"val-00000\.bin is missing"):
        Dataset.open(dataset.folder)


def test_changed_bytes_are_found_by_verify(dataset: Dataset) -> None:
    path = dataset.split("train").shards[0].path
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    assert len(verify(dataset.folder).problems) == 1


def test_folder_without_a_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no dataset\.json; make one with 'cocomix data prepare"):
        Dataset.open(tmp_path)


def test_unknown_split_names_the_known_ones(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="no split 'test', only train, val"):
        dataset.split("test")


def test_manifest_of_another_format_or_with_missing_keys_is_refused(dataset: Dataset) -> None:
    path = dataset.folder / "dataset.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(UserError, match="has format 2"):
        Dataset.open(dataset.folder)
    del manifest["eos_id"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="lacks eos_id"):
        Dataset.open(dataset.folder)


def test_fingerprint_follows_the_tokens_and_not_the_place(tmp_path: Path) -> None:
    one, same = tiny_dataset(tmp_path / "one", documents=20), tiny_dataset(tmp_path / "two", documents=20)
    other = tiny_dataset(tmp_path / "three", documents=21)
    assert one.fingerprint == same.fingerprint != other.fingerprint
