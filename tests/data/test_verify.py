from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cocomix.data.tokenizer import save_tokenizer, train_tokenizer
from cocomix.data.verify import verify
from cocomix.errors import UserError
from cocomix.testing.text import english_like, tiny_dataset


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("verify") / "data", documents=40).folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "data")
    return tmp_path / "data"


def test_whole_dataset_has_no_problems_wherever_it_lies(folder: Path) -> None:
    verdict = verify(folder)
    assert verdict.problems == ()
    assert verdict.shards == len(list(folder.glob("*.bin")))


def test_all_that_is_wrong_is_told_at_once(folder: Path) -> None:
    names = ["train-00000.bin", "train-00001.bin", "train-00002.bin", "train-00003.bin"]
    missing, truncated, changed, foreign = (folder / name for name in names)
    missing.unlink()
    truncated.write_bytes(truncated.read_bytes()[:100])
    data = changed.read_bytes()
    changed.write_bytes(data[:10] + bytes([data[10] ^ 1]) + data[11:])
    ids = np.fromfile(foreign, dtype=np.uint16)
    ids[5] = 384
    ids.tofile(foreign)
    save_tokenizer(train_tokenizer(english_like(3), 300), folder / "tokenizer")
    problems = "\n".join(verify(folder).problems)
    for part in (
        "train-00000.bin is missing",
        "train-00001.bin has 100 bytes where",
        "train-00002.bin is not what was written: its hash is",
        "train-00003.bin is not what was written: its hash is",
        "train-00003.bin holds the id 384, the vocabulary ends at 383",
        "is not the one that made the tokens",
    ):
        assert part in problems
    assert len(verify(folder).problems) == 6


def test_missing_or_damaged_tokenizer_is_told(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text()[:500])
    assert "cannot be loaded" in verify(folder).problems[0]
    path.unlink()
    assert "tokenizer.json is missing" in verify(folder).problems[0]


def test_folder_without_a_dataset_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no dataset\.json"):
        verify(tmp_path)
