"""The labels and probabilities that a sweep's runs share: found in the dataset by what they are of, or made."""

from __future__ import annotations

from typing import Any

from cocomix.concepts.cache import TeacherCache
from cocomix.concepts.extract import extract, extract_probabilities, identity_of
from cocomix.concepts.identity import differs
from cocomix.concepts.labels import Labels
from cocomix.concepts.probabilities import Probabilities
from cocomix.concepts.settings import ExtractSettings, ProbabilitySettings
from cocomix.config import load_settings
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError
from cocomix.files import read_json
from cocomix.progress import say
from cocomix.sweep.cases import OPTIONS, Option, Shared, shared
from cocomix.sweep.settings import SweepSettings

KINDS: dict[Option, tuple[type[TeacherCache], Any]] = {
    "labels": (Labels, ExtractSettings),
    "probabilities": (Probabilities, ProbabilitySettings),
}


def find_caches(sweep: SweepSettings, make: bool) -> dict[Shared, str]:
    """What the rows read → its name in the dataset.

    One that is not there is made, with ``make``, or else bears the name that it would get. Raises :class:`UserError`
    when the settings do not fit the dataset, or a name is taken by something else.
    """
    rows = [row for name, row in sweep.runs.items() if sweep.only is None or name in sweep.only]
    dataset = Dataset.open(sweep.data)
    found: dict[Shared, str] = {}
    for row in rows:
        for option in OPTIONS:
            name = getattr(row, option)
            for seed in (sweep.seeds if row.seeds is None else row.seeds) if name is not None else []:
                wanted = shared(sweep, option, name, seed)
                if wanted not in found:
                    found[wanted] = _find_or_make(sweep, dataset, wanted, make)
    return found


def _find_or_make(sweep: SweepSettings, dataset: Dataset, wanted: Shared, make: bool) -> str:
    cache, settings_class = KINDS[wanted.option]
    given = {"name": wanted.name, **getattr(sweep, wanted.option)[wanted.name], "data": sweep.data}
    if wanted.seed is not None:
        given |= {"name": f"{given['name']}-s{wanted.seed}", "train_seed": wanted.seed}
    try:
        settings = load_settings(settings_class, [], **given)
        there = _find(dataset, cache, settings)
    except UserError as error:
        raise UserError(f"{wanted.option}.{wanted.name}: {error}") from error
    if there is None and make:
        say(f"{wanted.option} {settings.name}: not there yet")
        (extract if wanted.option == "labels" else extract_probabilities)(settings)
    return there or settings.name


def _find(dataset: Dataset, cache: type[TeacherCache], settings: Any) -> str | None:
    """The name of a finished cache with the contents that ``settings`` ask for."""
    identity = identity_of(settings, dataset)
    kind = cache.kind
    for path in sorted((dataset.folder / kind.name).glob(f"*/{kind.manifest}")):
        manifest = read_json(path, f"a manifest of {kind.what}")
        if manifest.keys() >= identity.keys() and differs(manifest, identity, settings.dtype) is None:
            return path.parent.name
    return None
