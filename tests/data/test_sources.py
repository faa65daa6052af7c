from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cocomix.data import readers
from cocomix.data.settings import PrepareSettings
from cocomix.data.sources import HubSource, open_source
from cocomix.errors import UserError
from cocomix.testing.text import english_like

TEXTS = ["first\nof two lines", "", "naïve — 日本語 🙂", "last"]


def settings_for(path: Path, **more: Any) -> PrepareSettings:
    return PrepareSettings(source=str(path), out=str(path.parent / "nowhere"), **more)


def read(path: Path, **more: Any) -> list[str]:
    return [document.text for document in open_source(settings_for(path, **more)).documents()]


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_all_formats_give_the_same_documents(tmp_path: Path) -> None:
    data = jsonl(TEXTS)
    assert read(write(tmp_path / "a.jsonl", data)) == TEXTS
    assert read(write(tmp_path / "a.jsonl.gz", gzip.compress(data))) == TEXTS
    assert read(write(tmp_path / "a.jsonl.zst", zstd(data))) == TEXTS
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "id": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == TEXTS


def test_several_members_of_a_packed_file_are_one_text(tmp_path: Path) -> None:
    data = jsonl(TEXTS)
    halves = data[:30], data[30:]
    assert read(write(tmp_path / "a.jsonl.gz", b"".join(map(gzip.compress, halves)) + b"\0\0")) == TEXTS
    assert read(write(tmp_path / "a.jsonl.zst", b"".join(map(zstd, halves)))) == TEXTS
    padded = gzip.compress(data) + bytes(3 * readers.PIECE)  # as tape archives are
    assert read(write(tmp_path / "padded.jsonl.gz", padded)) == TEXTS


def test_files_packed_with_a_long_window_are_read(tmp_path: Path) -> None:
    long = zstandard.ZstdCompressionParameters(window_log=28)
    packed = zstandard.ZstdCompressor(compression_params=long).compressobj()
    data = packed.compress(jsonl(TEXTS)) + packed.flush()
    assert read(write(tmp_path / "a.jsonl.zst", data)) == TEXTS


def test_bad_bytes_in_a_parquet_column_are_told_with_their_rows(tmp_path: Path) -> None:
    column = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, rows 1 … 1: the text is not UTF-8"):
        read(tmp_path / "a.parquet")


@given(texts=st.lists(st.text(max_size=30), max_size=8), piece=st.integers(1, 40))
def test_lines_do_not_depend_on_the_pieces_that_are_read(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], piece: int
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "pieces.jsonl", jsonl(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PIECE", piece)
        assert read(path) == texts


def test_byte_order_marks_and_windows_line_ends_are_no_text(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n")) == ["one\ntwo"]
    assert read(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}')) == ["one", "two"]


def test_folder_is_read_in_the_order_of_its_names_without_the_output(tmp_path: Path) -> None:
    for name in ("b/1.txt", "a.txt", "b/0.txt", ".hidden.txt", "notes.md", "out/old.txt"):
        write(tmp_path / name, name.encode())
    settings = PrepareSettings(source=str(tmp_path), out=str(tmp_path / "out"))
    assert [d.text for d in open_source(settings).documents()] == ["a.txt", "b/0.txt", "b/1.txt"]


def test_identity_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    here, there = (write(tmp_path / part / "a.txt", b"text") for part in ("here", "there"))
    identity = open_source(settings_for(here)).identity
    assert open_source(settings_for(there)).identity == identity
    there.write_bytes(b"tixt")
    assert open_source(settings_for(there)).identity != identity


def test_short_text_file_is_one_document_and_a_long_one_is_cut_at_blank_lines(tmp_path: Path) -> None:
    text = "\n\n".join(english_like(20, seed=1))
    assert read(write(tmp_path / "short.txt", text.encode())) == [text]
    text = "\n\n".join(english_like(300, seed=1))
    documents = read(write(tmp_path / "long.txt", text.encode()))
    assert "\n\n".join(documents) == text
    assert len(documents) > 15
    assert max(map(len, documents)) < 2.5 * readers.CUT


@given(seed=st.integers(0, 10_000))
def test_cuts_do_not_depend_on_the_pieces_that_are_read(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    draw = random.Random(seed)
    words = draw.choices(["é", "word ", "\n", "\n\n", "x" * 50, "日本"], k=draw.randint(1, 400))
    path = write(tmp_path_factory.getbasetemp() / "cuts.txt", "".join(words).encode())
    found = []
    for piece in (draw.randint(1, 50), 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(readers, "PIECE", piece)
            patch.setattr(readers, "WHOLE", 400)
            patch.setattr(readers, "CUT", 100)
            found.append(read(path))
    assert found[0] == found[1]
    assert "".join(found[0]).replace("\n", "") == "".join(words).replace("\n", "")


def test_separator_cuts_a_text_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one\n<|endoftext|>\ntwo\n\nstill two<|endoftext|>three\n")
    assert read(path, separator="<|endoftext|>") == ["one", "two\n\nstill two", "three"]


def test_separator_of_windows_line_ends_cuts_a_text_of_either(tmp_path: Path) -> None:
    for name, text in (("a.txt", b"one\r\n\r\ntwo"), ("b.txt", b"one\n\ntwo")):
        assert read(write(tmp_path / name, text), separator="\r\n\r\n") == ["one", "two"]


def test_separator_that_is_never_found_is_told_before_memory_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LONGEST", 100)
    with pytest.raises(UserError, match=r"separator='@' is not found within 100 characters"):
        read(write(tmp_path / "a.txt", b"x" * 1000), separator="@")


def test_lone_surrogates_become_replacement_characters(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", rb'{"text": "a\ud800b \ud83d\ude42"}')) == ["a\ufffdb \U0001f642"]


def test_null_is_an_empty_text(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", b'{"text": null}\n{"text": "a"}\n')) == ["", "a"]


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.txt", b"abc\xff", r"a\.txt is not UTF-8: byte 3 is wrong"),
        ("a.txt", "é".encode() * 70_000 + b"\xc3", r"a\.txt is not UTF-8: byte 140,000 is wrong"),
        ("a.txt.gz", gzip.compress(b"abc\xff"), r"byte 3 of the unpacked text is wrong"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"a\.jsonl is not UTF-8: byte 24 is wrong"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2 is no valid JSON"),
        ("a.jsonl", b'{"text": "a", "id": ' + b"1" * 5000 + b"}\n", r"a\.jsonl, line 1 is no valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', r"a\.jsonl, line 2 is a JSON list where an object"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl, line 1: field=text holds a int, text is wanted"),
        ("a.jsonl", b'{"txt": "a", "id": 1}\n', r"no field=text \(did you mean 'txt'\?\); fields here: txt, id"),
        ("a.jsonl.gz", gzip.compress(jsonl(TEXTS))[:-9], r"a\.jsonl\.gz is truncated: it ends after [\d,]+ bytes"),
        ("a.jsonl.zst", zstd(jsonl(TEXTS))[:-3], r"a\.jsonl\.zst is truncated: it ends after [\d,]+ bytes"),
        ("a.jsonl.gz", b"no gzip at all", r"a\.jsonl\.gz is damaged"),
        ("a.jsonl.zst", b"no zstd at all", r"a\.jsonl\.zst is damaged"),
        ("a.parquet", b"PAR1 no parquet", r"a\.parquet is no whole parquet file"),
        ("a.md", b"text", r"a\.md is of no type that can be read: give \.txt"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_bad_file_is_told_in_one_sentence(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as told:
        read(write(tmp_path / name, data))
    assert "\n" not in str(told.value)


def test_parquet_without_the_column_names_its_columns(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"content": ["a"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no field=text.*fields here: content, id"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", field="content") == ["a"]


def test_truncated_parquet_is_named(tmp_path: Path) -> None:
    table = pyarrow.table({"text": list(english_like(200))})
    pyarrow.parquet.write_table(table, tmp_path / "whole.parquet", compression="none")
    whole = (tmp_path / "whole.parquet").read_bytes()
    with pytest.raises(UserError, match=r"cut\.parquet is no whole parquet file"):
        read(write(tmp_path / "cut.parquet", whole[: len(whole) // 2]))


@pytest.mark.parametrize(
    ("files", "sentence"), [((), "holds no files"), (("a.md", "b.csv", "c.csv"), r"2 \.csv, 1 \.md")]
)
def test_folder_without_text_says_what_it_holds(tmp_path: Path, files: tuple[str, ...], sentence: str) -> None:
    for name in files:
        write(tmp_path / name, b"x")
    with pytest.raises(UserError, match=sentence):
        open_source(PrepareSettings(source=str(tmp_path), out=str(tmp_path / "out")))


def test_path_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.txt does not exist: give a file"):
        read(tmp_path / "nothing.txt")


def test_unreachable_hub_dataset_says_what_to_do_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = PrepareSettings(source="nobody/nothing", out=str(tmp_path))
    with pytest.raises(UserError, match=r"nobody/nothing is no file or folder here, .* download the text"):
        open_source(settings)


def test_hub_rows_are_streamed_and_their_faults_named(tmp_path: Path) -> None:
    """The loader of the ``datasets`` library reads a folder just as it reads a repository of the hub."""
    write(tmp_path / "data" / "train.jsonl", jsonl(TEXTS))
    settings = PrepareSettings(source=str(tmp_path / "data"), out="nowhere")
    assert [d.text for d in HubSource(settings, None).documents()] == TEXTS
    with pytest.raises(UserError, match=r"row 1: there is no field=txt \(did you mean 'text'\?\)"):
        list(HubSource(settings.model_copy(update={"field": "txt"}), None).documents())
    with pytest.raises(UserError, match=r"no such dataset \(subset=None, split=test\)"):
        list(HubSource(settings.model_copy(update={"split": "test"}), None).documents())
