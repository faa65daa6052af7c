"""What loads what: help, settings, comparisons and reports without torch; SAELens where an SAE is trained, only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cocomix

SOURCE = Path(cocomix.__file__).parent
HEAVY = ("torch", "transformers", "sae_lens")


def modules_in(*patterns: str) -> list[str]:
    """Names of this package's modules whose files match."""
    files = sorted({path for pattern in patterns for path in SOURCE.glob(pattern)})
    names = [".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in files]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


LIGHT = modules_in("*.py", "cli/*.py", "compare/*.py", "report/*.py", "*/settings.py")
ALL = modules_in("**/*.py")


def in_fresh_process(code: str) -> object:
    """What ``code`` prints last, as JSON, in a Python of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def first_to_load(names: list[str], heavy: tuple[str, ...]) -> object:
    """``{library: the module that loaded it}`` after importing ``names`` one after another."""
    return in_fresh_process(
        f"""
import importlib, json, sys
found = {{}}
for name in {names!r}:
    importlib.import_module(name)
    for library in {heavy!r}:
        if library in sys.modules:
            found.setdefault(library, name)
print(json.dumps(found))
"""
    )


def test_light_modules_import_no_torch() -> None:
    assert {"cocomix", "cocomix.stages", "cocomix.compare.runs", "cocomix.train.settings"} <= set(LIGHT)
    assert first_to_load(LIGHT, HEAVY) == {}


def test_saelens_is_loaded_by_the_training_of_an_sae_only() -> None:
    others = [name for name in ALL if name != "cocomix.concepts.train_sae"]
    assert len(others) == len(ALL) - 1
    assert first_to_load(others, ("sae_lens",)) == {}


# Measured: 166 modules, 280 where arguments are checked, 303 where settings are listed; torch is over a thousand.
@pytest.mark.parametrize(
    ("words", "most"),
    [(["--help"], 250), (["concepts", "--help"], 400), (["train", "--help"], 400), (["sae", "train", "--help"], 400)],
)
def test_help_loads_few_modules_and_no_torch(words: list[str], most: int) -> None:
    code, heavy, count = in_fresh_process(  # type: ignore[misc]
        f"""
import json, sys
from cocomix.cli import main
code = main({words!r})
print(json.dumps([code, [name for name in {HEAVY!r} if name in sys.modules], len(sys.modules)]))
"""
    )
    assert code == 0
    assert heavy == []
    assert count < most
