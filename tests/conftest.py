"""Fixtures shared by the rooms: small real objects, made once a session."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

# Machines are shared and slow at times; a limit a test case would say nothing about the code.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch is imported: threads that wait spin otherwise, and tests that run side by side take each other's cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory):
    """A dataset folder of about 33,000 tokens, opened."""
    from cocomix.testing.text import tiny_dataset

    return tiny_dataset(tmp_path_factory.mktemp("text") / "data")


@pytest.fixture(autouse=True)
def _one_thread():
    """The tensors are too small to be shared; where threads matter to a test, it asks for them."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]):
    """Runs a command line in this process: (exit code, stdout, stderr)."""
    from cocomix.cli import main

    def run(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


REQUIRED = os.environ.get("COCOMIX_REQUIRE_BROWSER") == "1"
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    """Chromium; without it tests are skipped, or fail where COCOMIX_REQUIRE_BROWSER=1 says that it must be there."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        _missing("no chromium on the path")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield chromium
        chromium.close()


def _missing(what):
    (pytest.fail if REQUIRED else pytest.skip)(what)
