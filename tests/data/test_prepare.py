from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cocomix.data.dataset import Dataset
from cocomix.data.heldout import divide, fair_hold_out, position_of
from cocomix.data.prepare import prepare
from cocomix.data.settings import PrepareSettings
from cocomix.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from cocomix.errors import UserError
from cocomix.testing.text import english_like, tiny_dataset

SMALL = {"vocab_size": 300, "window": 16, "val_fraction": 0.2, "shard_tokens": 2000}


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def prepared(source: Path, out: Path, **more: Any) -> Dataset:
    prepare(PrepareSettings.model_validate({"source": str(source), "out": str(out), **SMALL, **more}))
    return Dataset.open(out)


def texts_of(dataset: Dataset, split: str) -> list[str]:
    tokenizer = dataset.tokenizer()
    return [tokenizer.decode(ids[:-1]) for ids in dataset.split(split).documents()]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small tokenizer, so that tests need not train their own."""
    folder = tmp_path_factory.mktemp("tokenizer") / "data"
    tiny_dataset(folder, documents=20)
    return str(folder)


def given_tokenizer(tokenizer: str) -> dict[str, Any]:
    return {k: v for k, v in SMALL.items() if k != "vocab_size"} | {"tokenizer": tokenizer}


def prepared_with(tokenizer: str, source: Path, out: Path, **more: Any) -> Dataset:
    prepare(
        PrepareSettings.model_validate({"source": str(source), "out": str(out), **given_tokenizer(tokenizer), **more})
    )
    return Dataset.open(out)


def test_every_text_comes_back_whole_on_one_of_the_sides(tmp_path: Path) -> None:
    texts = [*english_like(40), "naïve — 日本語 🙂", "<|endoftext|> is text here", "x"]
    dataset = prepared(write_jsonl(tmp_path / "a.jsonl", texts), tmp_path / "out")
    train, val = texts_of(dataset, "train"), texts_of(dataset, "val")
    assert sorted(train + val) == sorted(texts)
    assert [t for t in texts if t in train] == train
    assert 2 <= len(val) <= 18
    assert len(dataset.split("train").shards) > 3
    for split, side in (("train", train), ("val", val)):
        entry = dataset.manifest["splits"][split]
        assert entry["documents"] == len(side)
        assert entry["text_bytes"] == sum(len(text.encode()) for text in side)
        assert all(shard["tokens"] < 2000 + 1500 for shard in entry["shards"])


def test_manifest_says_what_the_folder_holds(tmp_path: Path) -> None:
    dataset = prepared(write_jsonl(tmp_path / "a.jsonl", list(english_like(20))), tmp_path / "out")
    manifest = dataset.manifest
    assert (manifest["format"], manifest["window"], manifest["dtype"]) == (1, 16, "uint16")
    assert manifest["vocab_size"] == len(dataset.tokenizer()) == 300
    assert manifest["eos_id"] == dataset.tokenizer().eos_token_id
    assert manifest["source"]["kind"] == "files"
    assert manifest["settings"]["val_fraction"] == 0.2
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "dataset.json",
        "tokenizer",
        *(s["file"] for entry in manifest["splits"].values() for s in entry["shards"]),
    }


def test_large_vocabulary_is_written_as_uint32(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<eos>": 0, "<unk>": 1} | {f"w{i}": i for i in range(2, 70_000)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "words"
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>").save_pretrained(str(folder))
    texts = [" ".join(f"w{i}" for i in range(start, start + 50)) for start in range(100, 69_900, 3000)]
    dataset = prepared_with(str(folder), write_jsonl(tmp_path / "a.jsonl", texts), tmp_path / "out")
    assert dataset.dtype == np.uint32
    assert sorted(texts_of(dataset, "train") + texts_of(dataset, "val")) == sorted(texts)


def test_held_out_documents_depend_on_nothing_but_their_text(tmp_path: Path, tokenizer: str) -> None:
    texts = list(english_like(60))
    straight = prepared_with(tokenizer, write_jsonl(tmp_path / "a.jsonl", texts), tmp_path / "one")
    mixed = random.Random(0).sample(texts, len(texts))
    for number in range(3):
        write_jsonl(tmp_path / "parts" / f"{number}.jsonl", mixed[number::3])
    parts = prepared_with(tokenizer, tmp_path / "parts", tmp_path / "two", shard_tokens=500)
    assert sorted(texts_of(straight, "val")) == sorted(texts_of(parts, "val"))
    assert sorted(texts_of(straight, "train")) == sorted(texts_of(parts, "train"))
    other = prepared_with(tokenizer, tmp_path / "a.jsonl", tmp_path / "three", seed=1)
    assert sorted(texts_of(other, "val")) != sorted(texts_of(straight, "val"))


def test_duplicates_never_lie_on_both_sides(tmp_path: Path, tokenizer: str) -> None:
    texts = list(english_like(30)) * 4
    dataset = prepared_with(tokenizer, write_jsonl(tmp_path / "a.jsonl", texts), tmp_path / "out")
    train, val = set(texts_of(dataset, "train")), set(texts_of(dataset, "val"))
    assert train | val == set(texts)
    assert not train & val


def test_share_of_held_out_texts_is_what_was_asked_for() -> None:
    share = np.mean([position_of(f"text {i}", seed=0) < 0.02 for i in range(20_000)])
    assert 0.017 < share < 0.023


def test_empty_documents_are_passed_over_and_counted(tmp_path: Path, tokenizer: str) -> None:
    texts = [" \n", "", *english_like(20), "", "a"]
    dataset = prepared_with(tokenizer, write_jsonl(tmp_path / "a.jsonl", texts), tmp_path / "out")
    assert dataset.manifest["empty_documents"] == 3
    splits = dataset.manifest["splits"]
    assert splits["train"]["documents"] + splits["val"]["documents"] == 21


def test_fewer_documents_are_read_when_asked(tmp_path: Path, tokenizer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", list(english_like(30)))
    dataset = prepared_with(tokenizer, source, tmp_path / "out", limit_documents=12)
    assert sum(entry["documents"] for entry in dataset.manifest["splits"].values()) == 12


def test_two_documents_are_shared_out_whatever_the_fraction(tmp_path: Path, tokenizer: str) -> None:
    texts = list(english_like(2))
    for name, fraction in (("little", 0.0001), ("much", 0.9999)):
        dataset = prepared_with(
            tokenizer, write_jsonl(tmp_path / "a.jsonl", texts), tmp_path / name, val_fraction=fraction
        )
        assert len(texts_of(dataset, "train")) == len(texts_of(dataset, "val")) == 1


def test_validation_gets_as_many_short_documents_as_a_window_needs(tmp_path: Path, tokenizer: str) -> None:
    texts = [f"{i} is a number" for i in range(200)]
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    dataset = prepared_with(tokenizer, source, tmp_path / "out", val_fraction=0.001, window=64)
    assert dataset.split("val").count(64) >= 1
    assert len(texts_of(dataset, "val")) < 20
    assert sorted(texts_of(dataset, "val") + texts_of(dataset, "train")) == sorted(texts)


def test_single_document_is_divided_at_a_paragraph_near_its_end(tmp_path: Path, tokenizer: str) -> None:
    (text,) = english_like(1, sentences=100)
    (tmp_path / "a.txt").write_text(text)
    dataset = prepared_with(tokenizer, tmp_path / "a.txt", tmp_path / "out", val_fraction=0.1)
    (train,), (val,) = texts_of(dataset, "train"), texts_of(dataset, "val")
    assert train + val == text
    assert train.endswith("\n\n")
    assert 0.05 < len(val) / len(text) < 0.2


def test_single_document_whose_end_fills_no_window_is_told(tmp_path: Path, tokenizer: str) -> None:
    (text,) = english_like(1, sentences=60)
    longest = max((load_tokenizer(tokenizer).decode([id]) for id in range(256, 384)), key=len)
    dense = "".join(f"{a}.{b};" for a, b in zip("bcdfghjk" * 200, "lmnpqrst" * 200, strict=True))  # a token a character
    (tmp_path / "a.txt").write_text(dense + text + longest * 600)
    with pytest.raises(
        UserError, match=r"held-out end has too few tokens for a window of \d+: set a larger val_fraction"
    ):
        prepared_with(tokenizer, tmp_path / "a.txt", tmp_path / "out", val_fraction=0.01, window=64)


@given(text=st.text(alphabet="ab .\n", min_size=2, max_size=200), share=st.floats(0.5, 0.999))
def test_division_loses_nothing_and_is_near_the_share(text: str, share: float) -> None:
    head, tail = divide(text, share)
    assert head + tail == text
    assert len(tail) <= 1.5 * (1 - share) * len(text) + 3


@example(counts=[11, 10], fraction=0.5, window=10)
@example(counts=[10, 11], fraction=0.5, window=10)
@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=30),
    fraction=st.floats(0.01, 0.99),
    window=st.integers(1, 60),
)
def test_fair_choice_fills_a_window_on_both_sides_or_says_that_none_can(
    counts: list[int], fraction: float, window: int
) -> None:
    choice = PrepareSettings(source="text", out="out", val_fraction=fraction, window=window)
    measured = [(position_of(str(i), 0), count, str(i)) for i, count in enumerate(counts)]
    ordered = sorted(measured)
    possible = any(
        min(sum(c for _, c, _ in ordered[:k]), sum(c for _, c, _ in ordered[k:])) > window
        for k in range(1, len(ordered))
    )
    if not possible:
        with pytest.raises(UserError, match="is too short"):
            fair_hold_out(measured, choice)
        return
    rule = fair_hold_out(measured, choice)
    val = sum(c for p, c, _ in measured if p < rule.below)
    assert window < val < sum(counts) - window


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([], "holds no text"),
        (["", "  "], "holds no text"),
        (["a few words"], r"is too short: \d+ tokens in 1 documents do not fill a window of 16 tokens"),
        (["a", "few", "words"], r"is too short: \d+ tokens in 3 documents"),
    ],
)
def test_too_little_text_says_how_much_there_is(
    tmp_path: Path, tokenizer: str, texts: list[str], sentence: str
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    with pytest.raises(UserError, match=sentence):
        prepared_with(tokenizer, source, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    # More text, the same folder: the failed attempt stands in nobody's way.
    write_jsonl(source, list(english_like(10)))
    prepared_with(tokenizer, source, tmp_path / "out")


def test_finished_dataset_is_left_alone(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", list(english_like(20)))
    dataset = prepared_with(tokenizer, source, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in dataset.folder.rglob("*")}
    prepared_with(tokenizer, source, tmp_path / "out")
    assert {p: p.stat().st_mtime_ns for p in dataset.folder.rglob("*")} == before
    assert "nothing to do" in capsys.readouterr().err


def test_other_settings_or_text_for_a_finished_dataset_are_refused_by_name(tmp_path: Path, tokenizer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", list(english_like(20)))
    prepared_with(tokenizer, source, tmp_path / "out")
    with pytest.raises(UserError, match="made with window=16 where this command has window=8: choose another"):
        prepared_with(tokenizer, source, tmp_path / "out", window=8)
    write_jsonl(source, list(english_like(21)))
    with pytest.raises(UserError, match=r"made of another source, with bytes=\d+ where this command has"):
        prepared_with(tokenizer, source, tmp_path / "out")


def test_finished_dataset_knows_when_its_tokenizer_was_made_anew(tmp_path: Path, tokenizer: str) -> None:
    source, own = write_jsonl(tmp_path / "a.jsonl", list(english_like(20))), tmp_path / "tokenizer"
    save_tokenizer(load_tokenizer(tokenizer), own)
    prepared_with(str(own), source, tmp_path / "out")
    save_tokenizer(train_tokenizer(english_like(3), 300), own)
    with pytest.raises(UserError, match="was made with another tokenizer than tokenizer=.* holds now"):
        prepared_with(str(own), source, tmp_path / "out")


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size=300 is for a tokenizer trained here, but tokenizer=gpt2"):
        PrepareSettings(source="a", out="b", vocab_size=300, tokenizer="gpt2")
    with pytest.raises(ValueError, match="shard_tokens=100 must be larger than window=256"):
        PrepareSettings(source="a", out="b", shard_tokens=100)
    with pytest.raises(ValueError, match="greater than or equal to 257"):
        PrepareSettings(source="a", out="b", vocab_size=256)


def test_folder_that_cannot_be_made_is_told(tmp_path: Path, tokenizer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", list(english_like(5)))
    with pytest.raises(UserError, match="a part of this path is a file"):
        prepared_with(tokenizer, source, source / "out")


def test_folder_without_write_permission_is_told(tmp_path: Path, tokenizer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", list(english_like(5)))
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    # The administrator may write anywhere, so the test gives up that right for its duration.
    was_root = os.geteuid() == 0
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if was_root:
            folder.chmod(0o755)
    if was_root:
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=r"no permission for .*locked"):
            prepared_with(tokenizer, source, locked / "out")
    finally:
        if was_root:
            os.seteuid(0)


def test_source_that_may_not_be_seen_is_told(tmp_path: Path, tokenizer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", list(english_like(5)))
    tmp_path.chmod(0o000)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=r"no permission for .*a\.jsonl"):
            prepared_with(tokenizer, source, tmp_path / "out")
    finally:
        if was_root:
            os.seteuid(0)
        tmp_path.chmod(0o755)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_full_disk_is_told_and_the_same_command_goes_on(tmp_path: Path, tokenizer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", list(english_like(20)))
    out = tmp_path / "out"
    out.mkdir()
    (out / "train-00001.bin.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"no space left on the disk while writing .*train-00001\.bin"):
        prepared_with(tokenizer, source, out)
    resumed = prepared_with(tokenizer, source, out)
    assert resumed.fingerprint == prepared_with(tokenizer, source, tmp_path / "straight").fingerprint


@settings(max_examples=15)
@given(texts=st.lists(st.text(max_size=40), max_size=12))
def test_any_texts_are_prepared_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: str, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    source = write_jsonl(folder / "a.jsonl", texts)
    try:
        dataset = prepared_with(tokenizer, source, folder / "out", window=4)
    except UserError as error:
        told = str(error)
    else:
        told = ""
    if told:
        assert "is too short" in told or "holds no text" in told
        return
    found = texts_of(dataset, "train") + texts_of(dataset, "val")
    assert sorted("".join(found)) == sorted("".join(t for t in texts if t.strip()))
