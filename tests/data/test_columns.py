from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from cocomix.data.columns import Column, Columns, ColumnWriter
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError
from cocomix.testing.text import tiny_dataset

COLUMN = Column("stamp", "uint32", 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("columns") / "data", documents=30)


def _values(first: int, count: int, window: int) -> np.ndarray:
    """Each value says which window, token and place it belongs to."""
    return np.arange(first * window * 2, (first + count) * window * 2, dtype=np.uint32).reshape(count, window, 2)


def _write(folder: Path, data: Dataset) -> None:
    for name in ("train", "val"):
        split, first = data.split(name), 0
        for shard, count in zip(split.shards, split.windows_per_shard(data.window), strict=True):
            writer = ColumnWriter(folder, shard.path, COLUMN, data.window)
            writer.append(_values(first, count, data.window))
            writer.finish()
            first += count


def _open(folder: Path, data: Dataset, **changes: object) -> Columns:
    manifest = {"dataset": data.fingerprint, "window": data.window, **changes}
    return Columns(folder, data, manifest, [COLUMN], "stamps")


def test_windows_are_read_by_number_across_shards(tmp_path: Path, data: Dataset) -> None:
    _write(tmp_path, data)
    split = data.split("train")
    assert len(split.shards) > 2
    count = split.count(data.window)
    ids = np.array([count - 1, 0, 3, count // 2, 3])
    found = _open(tmp_path, data).read("train", "stamp", ids)
    assert np.array_equal(found, np.concatenate([_values(i, 1, data.window) for i in ids]))
    assert np.array_equal(_open(tmp_path, data).read("train", "stamp", ids.tolist()), found)
    with pytest.raises(UserError, match="there is no split test: .* has train, val"):
        _open(tmp_path, data).read("test", "stamp", ids)
    with pytest.raises(IndexError):
        _open(tmp_path, data).read("train", "stamp", np.array([count]))


def test_a_torn_tail_is_cut_off_and_written_again(tmp_path: Path) -> None:
    shard = Path("train-00000.bin")
    straight = ColumnWriter(tmp_path / "straight", shard, COLUMN, 4)
    straight.append(_values(0, 4, 4))
    due = straight.finish()

    writer = ColumnWriter(tmp_path / "torn", shard, COLUMN, 4)
    writer.append(_values(0, 3, 4))
    writer.sync()
    writer.append(_values(3, 2, 4))
    writer.close()
    with (tmp_path / "torn" / "train-00000.stamp.bin.partial").open("ab") as file:
        file.write(b"half a")
    again = ColumnWriter(tmp_path / "torn", shard, COLUMN, 4, windows=3)
    again.append(_values(3, 1, 4))
    assert again.finish() == due
    content = (tmp_path / "torn" / "train-00000.stamp.bin").read_bytes()
    assert content == _values(0, 4, 4).tobytes()
    assert due == hashlib.sha256(content).hexdigest()


def test_fewer_windows_than_were_noted_are_refused(tmp_path: Path) -> None:
    writer = ColumnWriter(tmp_path, Path("train-00000.bin"), COLUMN, 4)
    writer.append(_values(0, 2, 4))
    writer.close()
    with pytest.raises(UserError, match="64 bytes where 96 were written: delete the folder"):
        ColumnWriter(tmp_path, Path("train-00000.bin"), COLUMN, 4, windows=3)


def test_missing_truncated_and_foreign_files_are_named(tmp_path: Path, data: Dataset) -> None:
    _write(tmp_path, data)
    with pytest.raises(UserError, match="stamps .* belong to another dataset"):
        _open(tmp_path, data, dataset="0" * 64)
    with pytest.raises(UserError, match="train-00000.stamp.bin has .* truncated or foreign"):
        _open(tmp_path, data, window=data.window - 1)
    path = tmp_path / "train-00001.stamp.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train-00001.stamp.bin has .* make it again"):
        _open(tmp_path, data)
    path.unlink()
    with pytest.raises(UserError, match="train-00001.stamp.bin is missing"):
        _open(tmp_path, data)
