from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cocomix.testing.text import english_like


def cocomix(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line."""
    command = [sys.executable, "-m", "cocomix", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_prepare_and_verify_report_on_stdout_and_by_exit_code(tmp_path: Path) -> None:
    text, out = tmp_path / "a.txt", tmp_path / "out"
    text.write_text("\n\n".join(english_like(100)))

    code, answer, _ = cocomix(
        "data", "prepare", f"source={text}", f"out={out}", "vocab_size=300", "window=32", "--json"
    )
    made = json.loads(answer)
    assert (code, made["vocab_size"], made["window"]) == (0, 300, 32)
    assert made["splits"]["train"]["windows"] == (made["splits"]["train"]["tokens"] - 1) // 32

    code, answer, _ = cocomix("data", "verify", out)
    assert code == 0
    assert "is whole: 2 shards" in answer

    (out / "val-00000.bin").unlink()
    code, answer, _ = cocomix("data", "verify", out, "--json")
    assert code == 2
    found = json.loads(answer)
    assert not found["ok"]
    assert "val-00000.bin is missing" in found["problems"][0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "is not UTF-8: byte 3 is wrong"),
        (("windw=3",), "unknown setting 'windw' (did you mean 'window'?)"),
        (("vocab_size=256",), "setting 'vocab_size'=256: input should be greater than or equal to 257"),
        (("tokenizer=./none",), "tokenizer=./none: there is no such folder"),
    ],
)
def test_mistake_is_one_sentence_on_stderr_and_exit_code_2(
    tmp_path: Path, words: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    code, answer, told = cocomix("data", "prepare", tmp_path / "a.txt", tmp_path / "out", *words)
    assert (code, answer) == (2, "")
    assert told.startswith("error: ")
    assert sentence in told
    assert "Traceback" not in told


def test_help_lists_the_settings() -> None:
    code, answer, _ = cocomix("data", "prepare", "--help")
    assert code == 0
    assert "val_fraction" in answer
    assert "share of documents held out" in answer
