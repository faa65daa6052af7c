from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocomix.data.dataset import Dataset
from cocomix.data.prepare import prepare
from cocomix.data.settings import PrepareSettings
from cocomix.data.tokenizer import load_tokenizer, save_tokenizer
from cocomix.data.verify import verify
from cocomix.errors import UserError
from cocomix.testing.text import tiny_dataset


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("inplace") / "data", documents=20)


@pytest.fixture
def nanogpt(made: Dataset, tmp_path: Path) -> Path:
    """The tokens of a dataset as nanoGPT's data scripts leave them."""
    folder = tmp_path / "nanogpt"
    folder.mkdir()
    for split in ("train", "val"):
        ids = np.concatenate(list(made.split(split).documents()))
        ids.astype(np.uint16).tofile(folder / f"{split}.bin")
    return folder


def taken(source: Path, out: Path, **more: Any) -> Dataset:
    prepare(PrepareSettings.model_validate({"source": str(source), "out": str(out), "window": 32, **more}))
    return Dataset.open(out)


def test_files_are_taken_where_they_lie(made: Dataset, nanogpt: Path, tmp_path: Path) -> None:
    dataset = taken(nanogpt, tmp_path / "out", tokenizer=str(made.folder))
    assert not list((tmp_path / "out").glob("*.bin"))
    for split in ("train", "val"):
        found, wanted = dataset.split(split), made.split(split)
        assert [d.tolist() for d in found.documents()] == [d.tolist() for d in wanted.documents()]
        assert found.text_bytes is None
        assert dataset.manifest["splits"][split]["documents"] == made.manifest["splits"][split]["documents"]
    assert verify(tmp_path / "out").problems == ()
    assert dataset.tokenizer_hash == made.tokenizer_hash


def test_manifest_in_the_same_folder_moves_with_it(made: Dataset, nanogpt: Path, tmp_path: Path) -> None:
    taken(nanogpt, nanogpt, tokenizer=str(made.folder))
    taken(nanogpt, nanogpt, tokenizer=str(made.folder))  # finished: nothing to do
    nanogpt.rename(tmp_path / "moved")
    assert verify(tmp_path / "moved").problems == ()


def test_tokenizer_must_be_named(nanogpt: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"say which tokenizer made them, e\.g\. tokenizer=gpt2"):
        taken(nanogpt, tmp_path / "out")


def test_missing_val_is_named(made: Dataset, nanogpt: Path, tmp_path: Path) -> None:
    (nanogpt / "val.bin").unlink()
    with pytest.raises(UserError, match=r"holds train\.bin but no val\.bin"):
        taken(nanogpt, tmp_path / "out", tokenizer=str(made.folder))


def test_ids_of_another_tokenizer_are_refused(made: Dataset, nanogpt: Path, tmp_path: Path) -> None:
    np.array([5000] * 100, dtype=np.uint16).tofile(nanogpt / "val.bin")
    with pytest.raises(UserError, match=r"val\.bin holds the id 5000, but tokenizer=.* has only 384 entries"):
        taken(nanogpt, tmp_path / "out", tokenizer=str(made.folder))


def test_wider_ids_are_told_from_uint16(made: Dataset, nanogpt: Path, tmp_path: Path) -> None:
    ids = np.fromfile(nanogpt / "val.bin", dtype=np.uint16)
    ids.astype(np.uint32).tofile(nanogpt / "val.bin")
    with pytest.raises(UserError, match=r"every second uint16 of .*val\.bin is zero"):
        taken(nanogpt, tmp_path / "out", tokenizer=str(made.folder))


def test_vocabulary_beyond_uint16_is_refused(made: Dataset, nanogpt: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(made.folder))
    tokenizer.add_tokens([f"<{number}>" for number in range(1 << 16)])
    save_tokenizer(tokenizer, tmp_path / "large")
    with pytest.raises(UserError, match=r"has 65,\d+ entries, more than the uint16 ids"):
        taken(nanogpt, tmp_path / "out", tokenizer=str(tmp_path / "large"))


@pytest.mark.parametrize(
    ("size", "sentence"), [(201, "not a whole number of uint16 ids"), (20, "too few for window=32")]
)
def test_odd_or_short_file_is_refused(made: Dataset, nanogpt: Path, tmp_path: Path, size: int, sentence: str) -> None:
    path = nanogpt / "val.bin"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"val\.bin .*{sentence}"):
        taken(nanogpt, tmp_path / "out", tokenizer=str(made.folder))
    assert not (tmp_path / "out" / "dataset.json").exists()
