"""Rows × grid × seeds → runs with a name and the words of their command line."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cocomix.config import parse_override
from cocomix.errors import UserError
from cocomix.sweep.settings import SweepSettings

Option = Literal["labels", "probabilities"]
OPTIONS: tuple[Option, ...] = ("labels", "probabilities")


class Case(NamedTuple):
    """One run."""

    name: str
    row: str
    words: list[str]
    """Behind ``cocomix train``."""

    def folder(self, sweep: SweepSettings) -> Path:
        """Its run folder."""
        return Path(sweep.folder) / self.name


class Shared(NamedTuple):
    """Something that runs share."""

    option: Option
    name: str
    """In the sweep."""
    seed: int | None
    """Of the runs whose windows alone it covers; None: it does not depend on it."""


def shared(sweep: SweepSettings, option: Option, name: str, seed: int) -> Shared:
    """What a run of ``seed`` reads for ``name``: with ``train_windows`` each seed reads windows of its own."""
    settings = getattr(sweep, option)[name]
    return Shared(option, name, seed if "train_windows" in settings and "train_seed" not in settings else None)


def cases(sweep: SweepSettings, caches: Mapping[Shared, str]) -> list[Case]:
    """All runs of the sweep in their order, or those of its part. ``caches``: → name in the dataset.

    Raises :class:`UserError` for runs of one name, whatever their parts.
    """
    found = []
    for name, row in sweep.runs.items():
        if sweep.only is not None and name not in sweep.only:
            continue
        grid = sweep.grid if row.grid is None else row.grid
        for point in itertools.product(*grid.values()):
            chosen = dict(zip(grid, point, strict=True))
            for seed in sweep.seeds if row.seeds is None else row.seeds:
                parts = [name, *(f"{key.split('.')[-1]}-{_short(value)}" for key, value in chosen.items()), f"s{seed}"]
                given: dict[str, Any] = {"data.path": sweep.data, "method": name, "seed": seed}
                for option in OPTIONS:
                    wanted = getattr(row, option)
                    if wanted is not None:
                        given[f"data.{option}"] = caches[shared(sweep, option, wanted, seed)]
                given |= {**sweep.set, **row.set, **chosen, "run": f"{sweep.folder}/{'-'.join(parts)}"}
                words = [*row.recipe, *(_word(key, value) for key, value in given.items())]
                found.append(Case("-".join(parts), name, words))
    for name, times in Counter(case.name for case in found).items():
        if times > 1:
            raise UserError(f"two runs of the sweep are called {name}: give their rows or values other names")
    if sweep.part is None:
        return found
    first, step = map(int, sweep.part.split("/"))
    return found[first - 1 :: step]


def _word(key: str, value: Any) -> str:
    """``key=value`` that is read back as ``value``: a string stands in quotes where YAML would take it for another."""
    if isinstance(value, str) and parse_override(f"value={value}") == {"value": value}:
        return f"{key}={value}"
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in text)
