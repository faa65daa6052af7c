"""Concept labels, or a teacher's probabilities, of a whole dataset, once, resumable, beside its token shards."""

from __future__ import annotations

import functools
import shutil
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from cocomix.allocator import keep_freed_memory
from cocomix.concepts.cache import FORMAT, UNFINISHED, Kind, TeacherCache
from cocomix.concepts.coverage import Coverage
from cocomix.concepts.extraction import Extraction, Maker
from cocomix.concepts.identity import label_identity, probability_identity, refuse_other
from cocomix.concepts.labelling import Labeller, teacher_cost, upstream_costs
from cocomix.concepts.labels import Labels
from cocomix.concepts.pair import Names, named
from cocomix.concepts.probabilities import Probabilities, ProbabilityMaker
from cocomix.concepts.settings import ExtractSettings, ProbabilitySettings
from cocomix.concepts.teacher import load_teacher
from cocomix.concepts.units import UNITS, Layout, State, cut
from cocomix.data.dataset import Dataset
from cocomix.devices import pick_device
from cocomix.dist.world import current
from cocomix.errors import UserError, explained
from cocomix.files import write_json
from cocomix.progress import say

AnySettings = ExtractSettings | ProbabilitySettings


@runtime_checkable
class Recipe(Protocol):
    """What one kind of cache does differently."""

    cache: type[TeacherCache]

    def identity(self, dataset: Dataset, window: int) -> dict[str, Any]:
        """What the contents depend on."""

    def open(self, dataset: Dataset, window: int, dtype: str) -> Maker:
        """Loads the models, the teacher in the precision ``dtype``."""

    def tell(self, maker: Any, extraction: Extraction, tokens: int) -> dict[str, Any]:
        """The manifest's parts that only this kind has; keys of the identity are added to."""

    def measure(self, made: Any) -> dict[str, Any]:
        """Statistics that can only be told of the finished cache."""


class Begun(NamedTuple):
    """What rank 0 finds before any model is loaded."""

    identity: dict[str, Any]
    state: State
    manifest: dict[str, Any] | None
    """Of a cache that is finished already."""


def extract(settings: ExtractSettings) -> dict[str, Any]:
    """Writes the labels of the train and val windows and returns their manifest (``labels.json``).

    Windows are taken shard by shard in fixed batches, whole batches make units of work, and the ranks share the units
    (see :mod:`cocomix.concepts.units`): a stopped, killed or resumed extraction writes the same bytes as a straight
    one, on any number of ranks. ``cost.seconds`` of the manifest is the time that ranks worked, added up over all of
    them and over interruptions. Finished with the same settings: returns at once.

    Raises on all ranks :class:`UserError` when the parts do not fit or the folder holds other labels,
    :class:`cocomix.stopping.Stopped` when a signal asked to stop (an Exception: where you catch those, let it through).
    """
    return _fill(settings, _Labels(settings))


def extract_probabilities(settings: ProbabilitySettings) -> dict[str, Any]:
    """Writes a teacher's probabilities, as :func:`extract` does labels; returns ``probabilities.json``."""
    return _fill(settings, _Probabilities(settings))


def identity_of(settings: AnySettings, dataset: Dataset) -> dict[str, Any]:
    """What the contents of a cache depend on, with the windows that it covers."""
    recipe: Recipe = _Labels(settings) if isinstance(settings, ExtractSettings) else _Probabilities(settings)
    return recipe.identity(dataset, settings.window or dataset.window) | {"coverage": _coverage(settings)._asdict()}


def _fill(settings: AnySettings, recipe: Recipe) -> dict[str, Any]:
    world = current()
    begun = world.once(lambda: _begin(settings, recipe))
    if begun.manifest is not None:
        return begun.manifest
    keep_freed_memory()
    window, coverage = begun.identity["window"], _coverage(settings)
    with world.together():
        dataset = Dataset.open(settings.data)
        splits = [dataset.split(name) for name in ("train", "val") if name in dataset.manifest["splits"]]
        shards = cut(splits, coverage, window, begun.state.layout)
        # Going on with dtype=auto means the precision of the beginning, whatever the device is now.
        maker = recipe.open(dataset, window, begun.identity["teacher"]["dtype"])
    extraction = Extraction(maker, settings.batch_windows, shards, begun.state, world, recipe.cache.kind.name)
    extraction.run()
    tokens = sum(int(shard.due.sum()) for shard in shards) * window
    return world.once(lambda: _finish(recipe, dataset, begun.identity, maker, extraction, tokens))


def _begin(settings: AnySettings, recipe: Recipe) -> Begun:
    """What the contents will be of, and how far they are."""
    kind: Kind = recipe.cache.kind
    dataset = Dataset.open(settings.data)
    window = settings.window or dataset.window
    folder = dataset.folder / kind.name / settings.name
    identity = identity_of(settings, dataset)
    path = folder / UNFINISHED
    state = State(path, identity, Layout(settings.batch_windows, settings.unit_tokens))
    if (folder / kind.manifest).is_file():
        manifest = recipe.cache.read_manifest(folder)
        refuse_other(folder, kind.name, manifest, identity, settings.dtype)
        recipe.cache.open(dataset, str(folder))  # names a file that is missing or truncated
        say(f"{folder}: finished already")
        return Begun(identity, state, manifest)
    if path.is_file():
        state = State.read(path)
        refuse_other(folder, kind.name, state.identity, identity, settings.dtype)
        identity["teacher"]["dtype"] = state.identity["teacher"]["dtype"]
        say(f"{folder}: going on behind {sum(map(sum, state.windows.values())):,} windows")
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} holds files but no {kind.name}: give another name=… or delete that folder")
    if not dataset.split("train").count(window):
        raise UserError(f"window={window} is longer than every shard of {dataset.folder}: give a smaller window")
    return Begun(identity, state, None)


def _finish(
    recipe: Recipe, dataset: Dataset, identity: dict[str, Any], maker: Any, extraction: Extraction, tokens: int
) -> dict[str, Any]:
    """Writes the manifest and removes what was needed on the way."""
    state, flops = extraction.state, maker.flops_per_token
    folder = state.path.parent
    manifest = {
        "format": FORMAT,
        **identity,
        "dtype": extraction.columns[0].dtype,
        "files": state.files,
        "tokens": tokens,
        "cost": {
            "flops": flops * tokens,
            "seconds": state.seconds,
            "flops_per_token": flops,
            "seconds_per_token": state.seconds / tokens,
        },
    }
    for key, told in recipe.tell(maker, extraction, tokens).items():
        manifest[key] = {**manifest.get(key, {}), **told} if isinstance(told, dict) else told
    manifest["statistics"] = manifest.get("statistics", {}) | recipe.measure(recipe.cache.of(folder, dataset, manifest))
    with explained(folder):
        if (folder / UNITS).is_dir():
            shutil.rmtree(folder / UNITS)
        write_json(folder / recipe.cache.kind.manifest, manifest)
        (folder / UNFINISHED).unlink(missing_ok=True)
    return manifest


class _Labels:
    """Concept labels."""

    cache: type[TeacherCache] = Labels

    def __init__(self, settings: ExtractSettings) -> None:
        self.settings = settings

    @functools.cached_property
    def names(self) -> Names:
        """Asked of rank 0 before the others load anything: what is wrong is told once."""
        return named(self.settings)

    def identity(self, dataset: Dataset, window: int) -> dict[str, Any]:
        return label_identity(self.settings, dataset, window, self.names)

    def open(self, dataset: Dataset, window: int, dtype: str) -> Labeller:
        return Labeller.open(self.settings.model_copy(update={"dtype": dtype}), self.names, dataset, window)

    def tell(self, maker: Labeller, extraction: Extraction, tokens: int) -> dict[str, Any]:
        sae, attribution = maker.sae, self.settings.attribution
        return {
            "teacher": {"name": self.names.teacher, "quantisation": maker.teacher.quantisation},
            "sae": {"folder": self.settings.sae, "latents": sae.latents, "k": sae.k},
            "no_label": int(np.iinfo(extraction.columns[0].dtype).max),
            "upstream": upstream_costs(self.names, self.settings.sae),
            "fit": maker.fit._asdict(),
            "statistics": {
                "masked_share": 1 - extraction.found / max(tokens * attribution.k, 1),
                "distinct_concepts": int(extraction.used.sum()),
            },
        }

    def measure(self, made: Labels) -> dict[str, Any]:
        return {}


class _Probabilities:
    """A teacher's probabilities."""

    cache: type[TeacherCache] = Probabilities

    def __init__(self, settings: ProbabilitySettings) -> None:
        self.settings = settings

    def identity(self, dataset: Dataset, window: int) -> dict[str, Any]:
        return probability_identity(self.settings, self.settings.teacher, dataset, window) | {"k": self.settings.k}

    def open(self, dataset: Dataset, window: int, dtype: str) -> ProbabilityMaker:
        name, k = self.settings.teacher, self.settings.k
        teacher = load_teacher(name, 0, dataset, window, pick_device(self.settings.device), dtype)
        if k > teacher.config.vocab_size:
            raise UserError(f"k={k} is more than the {teacher.config.vocab_size} tokens of teacher={name}: give fewer")
        return ProbabilityMaker(teacher, k, window)

    def tell(self, maker: ProbabilityMaker, extraction: Extraction, tokens: int) -> dict[str, Any]:
        return {
            "teacher": {"name": self.settings.teacher, "quantisation": maker.teacher.quantisation},
            "vocabulary": maker.entries,
            "upstream": {"teacher": teacher_cost(self.settings.teacher), "sae": {"flops": 0.0, "seconds": 0.0}},
        }

    def measure(self, made: Probabilities) -> dict[str, Any]:
        return {"mass": made.mass()}


def _coverage(settings: AnySettings) -> Coverage:
    return Coverage() if settings.train_windows is None else Coverage(settings.train_seed, settings.train_windows)
