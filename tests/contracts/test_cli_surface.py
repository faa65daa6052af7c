"""The command line is a promise: docs/cli.md says all of it, and every verb's help teaches by an example."""

from __future__ import annotations

import difflib
import runpy
import shlex
from pathlib import Path

import pytest
import torch

from cocomix.cli.app import VERBS

DOCS = Path(__file__).parents[2] / "docs"
REGENERATE = "python docs/make_cli.py"


def test_reference_page_says_what_the_verbs_say() -> None:
    made = runpy.run_path(str(DOCS / "make_cli.py"))["page"]()
    written = (DOCS / "cli.md").read_text(encoding="utf-8")
    changes = difflib.unified_diff(
        written.splitlines(), made.splitlines(), "docs/cli.md", "the verbs", lineterm="", n=0
    )
    if text := "\n".join(changes):
        pytest.fail(f"docs/cli.md is not what the verbs say; if the change is meant, run '{REGENERATE}':\n{text}")


@pytest.mark.parametrize("verb", [verb for verb, _, _ in VERBS])
def test_help_of_every_verb_has_an_example_of_that_verb(verb: str, cli) -> None:
    code, out, err = cli(*verb.split(), "--help")
    assert (code, err) == (0, "")
    _, found, rest = out.partition("Example")
    assert found, f"the help of '{verb}' has no example"
    assert f"cocomix {verb} " in rest


@pytest.mark.parametrize(("verb", "settings"), [(verb, settings) for verb, _, settings in VERBS if settings])
def test_help_lists_every_setting_with_a_meaning(verb: str, settings: str, cli) -> None:
    from importlib import import_module

    from cocomix.config import describe

    module, name = settings.split(":")
    _, out, _ = cli(*verb.split(), "--help")
    listed = {line.split()[0] for line in out.partition("Settings (")[2].splitlines()[1:] if line}
    rows = describe(getattr(import_module(module), name))
    assert {key for key, _, _ in rows} == listed
    assert [key for key, _, meaning in rows if not meaning] == []


def test_examples_on_the_page_can_be_parsed() -> None:
    """Every ``cocomix`` line is a verb that exists, with words that a shell reads whole."""
    verbs = {tuple(verb.split()) for verb, _, _ in VERBS}
    lines = [line for line in (DOCS / "cli.md").read_text(encoding="utf-8").splitlines() if line.startswith("cocomix ")]
    assert len(lines) >= len(VERBS)
    for line in lines:
        words = shlex.split(line)
        assert tuple(words[1:2]) in verbs or tuple(words[1:3]) in verbs, line


def test_a_device_without_memory_is_a_sentence_with_the_settings_that_help(tmp_path, capfd, monkeypatch) -> None:
    from cocomix.cli import run
    from cocomix.data import verify

    def full(folder):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB. GPU 0 has …")

    monkeypatch.setattr(verify, "verify", full)
    assert run(["data", "verify", str(tmp_path)]) == 2
    assert capfd.readouterr().err.startswith("error: CUDA out of memory: set more micro_batches= (training)")
