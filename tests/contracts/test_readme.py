"""README.md is executed: its commands in their order, its Python blocks, its make targets, its links."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocomix.testing.text import english_like

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

SMALLER = {
    # verb: words that go behind the README's own
    "data prepare": ["vocab_size=384", "window=128"],
    "train": ["tokens=2048", "batch_windows=4", "evaluations=1", "eval_documents=1", "checkpoint.number=1"],
    "sae train": ["tokens=2048", "buffer_tokens=4096"],
    "concepts extract": ["force=true"],  # an autoencoder that has seen two thousand tokens explains little
}
ONLINE = ("Skylion007/", "=gpt2", "=HuggingFaceTB/")
"""What a command names that only a network has: such a command is not run."""


def user_files(place: Path) -> None:
    """What the README takes for granted in the reader's folder."""
    (place / "texts").mkdir()
    for number, text in enumerate(english_like(24)):
        (place / "texts" / f"{number:02}.txt").write_text(text, encoding="utf-8")


def blocks(*languages: str) -> list[str]:
    """The code blocks in these languages, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def commands(program: str) -> list[list[str]]:
    """The words of every command line that begins with ``program``; comments and continued lines are understood."""
    text = "\n".join(blocks("bash", "sh")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words[1:] for words in lines if words[:1] == [program]]


def smaller(words: list[str], quickstart: list[str]) -> list[str]:
    """The command with small budgets behind it."""
    if words[0] == "quickstart":
        return words + quickstart[1:]
    return words + next((more for verb, more in SMALLER.items() if words[: len(verb.split())] == verb.split()), [])


@pytest.fixture(scope="module")
def place(quickstart, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder in which the quickstart has run and, after the first test, the README's commands too."""
    place = tmp_path_factory.mktemp("reader")
    shutil.copytree(quickstart.root / "runs", place / "runs")
    user_files(place)
    return place


def test_commands_run_in_their_order(place, quickstart, call):
    lines = commands("cocomix")
    assert len(lines) > 5
    for words in lines:
        shown = shlex.join(["cocomix", *words])
        assert not {"|", ">", "&&", ";", "&"} & set(words), f"{shown}: write plain commands, this test has no shell"
        if any(name in shown for name in ONLINE):
            continue
        done = call(place, smaller(words, quickstart.words))
        assert done.code == 0, f"README.md: {shown}\n{done.err}"
        assert done.out, f"README.md: {shown} printed nothing"


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.strip().splitlines()[-1][:40])
def test_python_runs(code, place):
    with contextlib.chdir(place):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = [word for words in commands("make") for word in words if "=" not in word]
    assert asked
    assert set(asked) <= targets


def links() -> Iterator[str]:
    """What the README links to in this repository."""
    for target in re.findall(r"\]\(([^)\s]+)", README):
        if "://" not in target and not target.startswith(("#", "mailto:")):
            yield target.partition("#")[0]


@pytest.mark.parametrize("target", sorted(set(links())))
def test_linked_files_exist(target):
    assert (ROOT / target).exists()
