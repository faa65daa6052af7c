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
from cocomix.files import read_json
from cocomix.progress import say
from cocomix.sweep.settings import SweepSettings

KINDS: dict[str, tuple[type[TeacherCache], Any]] = {
    "labels": (Labels, ExtractSettings),
    "probabilities": (Probabilities, ProbabilitySettings),
}


def find_caches(sweep: SweepSettings, make: bool) -> dict[tuple[str, str], str]:
    """(option, name in the sweep) → name in the dataset, for all that the rows read.

    One that is not there is made, with ``make``, or else bears the sweep's name for it. Raises :class:`UserError` when
    the settings do not fit the dataset, or a name is taken by something else.
    """
    rows = [row for name, row in sweep.runs.items() if sweep.only is None or name in sweep.only]
    dataset = Dataset.open(sweep.data)
    found = {}
    for option, (cache, settings_class) in KINDS.items():
        for name in dict.fromkeys(getattr(row, option) for row in rows):
            if name is None:
                continue
            settings = load_settings(
                settings_class, [], **{"name": name, **getattr(sweep, option)[name], "data": sweep.data}
            )
            there = _find(dataset, cache, settings)
            if there is None and make:
                say(f"{option} {name}: not there yet")
                (extract if option == "labels" else extract_probabilities)(settings)
            found[option, name] = there or settings.name
    return found


def _find(dataset: Dataset, cache: type[TeacherCache], settings: Any) -> str | None:
    """The name of a finished cache with the contents that ``settings`` ask for."""
    identity = identity_of(settings, dataset)
    kind = cache.kind
    for path in sorted((dataset.folder / kind.name).glob(f"*/{kind.manifest}")):
        manifest = read_json(path, f"a manifest of {kind.what}")
        if manifest.keys() >= identity.keys() and differs(manifest, identity, settings.dtype) is None:
            return path.parent.name
    return None
