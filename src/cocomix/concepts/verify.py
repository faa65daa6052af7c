"""Are the teacher's caches beside a dataset still what was written?"""

from __future__ import annotations

from typing import NamedTuple

from cocomix.concepts.cache import TeacherCache
from cocomix.concepts.labels import Labels
from cocomix.concepts.probabilities import Probabilities
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError

CACHES: tuple[type[TeacherCache], ...] = (Labels, Probabilities)


class CacheVerdict(NamedTuple):
    """What :func:`verify_caches` found."""

    caches: int
    problems: list[str]
    """One sentence for each thing that is wrong."""


def verify_caches(dataset: Dataset) -> CacheVerdict:
    """Reads every finished cache of ``dataset``, labels and probabilities."""
    caches, problems = 0, []
    for kind in CACHES:
        for path in sorted((dataset.folder / kind.kind.name).glob(f"*/{kind.kind.manifest}")):
            caches += 1
            try:
                problems += kind.open(dataset, str(path.parent)).verify()
            except UserError as error:
                problems.append(str(error))
    return CacheVerdict(caches, problems)
