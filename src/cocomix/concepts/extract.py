"""Concept labels of a whole dataset, once, resumable, beside its token shards."""

from __future__ import annotations

import shutil
from typing import Any, NamedTuple

import numpy as np

from cocomix.concepts.coverage import Coverage
from cocomix.concepts.extraction import Extraction
from cocomix.concepts.identity import label_identity, refuse_other
from cocomix.concepts.labelling import Labeller, upstream_costs
from cocomix.concepts.labels import FORMAT, MANIFEST, UNFINISHED, Labels, read_manifest
from cocomix.concepts.pair import Names, named
from cocomix.concepts.settings import ExtractSettings
from cocomix.concepts.units import UNITS, Layout, State, cut
from cocomix.data.dataset import Dataset
from cocomix.dist.world import current
from cocomix.errors import UserError, explained
from cocomix.files import write_json
from cocomix.progress import say


class Begun(NamedTuple):
    """What rank 0 finds before any model is loaded."""

    names: Names
    identity: dict[str, Any]
    state: State
    manifest: dict[str, Any] | None
    """Of labels that are finished already."""


def extract(settings: ExtractSettings) -> dict[str, Any]:
    """Writes the labels of the train and val windows and returns their manifest (``labels.json``).

    Windows are taken shard by shard in fixed batches, whole batches make units of work, and the ranks share the units
    (see :mod:`cocomix.concepts.units`): a stopped, killed or resumed extraction writes the same bytes as a straight
    one, on any number of ranks. ``cost.seconds`` of the manifest is the time that ranks worked, added up over all of
    them and over interruptions. Finished with the same settings: returns at once.

    Raises on all ranks :class:`UserError` when the parts do not fit or the folder holds other labels,
    :class:`cocomix.stopping.Stopped` when a signal asked to stop.
    """
    world = current()
    begun = world.once(lambda: _begin(settings))
    if begun.manifest is not None:
        return begun.manifest
    # Going on with dtype=auto means the precision of the beginning, whatever the device is now.
    settings = settings.model_copy(update={"dtype": begun.identity["teacher"]["dtype"]})
    window, coverage = begun.identity["window"], _coverage(settings)
    with world.together():
        dataset = Dataset.open(settings.data)
        splits = [dataset.split(name) for name in ("train", "val") if name in dataset.manifest["splits"]]
        shards = cut(splits, coverage, window, begun.state.layout)
        labeller = Labeller.open(settings, begun.names, dataset, window)
    extraction = Extraction(labeller, settings.batch_windows, shards, begun.state, world)
    extraction.run()
    tokens = sum(int(shard.due.sum()) for shard in shards) * window
    return world.once(lambda: _finish(settings, begun, labeller, extraction, tokens))


def _begin(settings: ExtractSettings) -> Begun:
    """What the labels will be of, and how far they are."""
    dataset = Dataset.open(settings.data)
    window = settings.window or dataset.window
    folder = dataset.folder / "labels" / settings.name
    names = named(settings)
    identity = label_identity(settings, dataset, window, names) | {"coverage": _coverage(settings)._asdict()}
    path, layout = folder / UNFINISHED, Layout(settings.batch_windows, settings.unit_tokens)
    state = State(path, identity, layout)
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        refuse_other(folder, manifest, identity, settings.dtype)
        Labels.open(dataset, str(folder))  # names a file that is missing or truncated
        say(f"{folder}: finished already")
        return Begun(names, identity, state, manifest)
    if path.is_file():
        state = State.read(path, layout)
        refuse_other(folder, state.identity, identity, settings.dtype)
        identity["teacher"]["dtype"] = state.identity["teacher"]["dtype"]
        say(f"{folder}: going on behind {sum(map(sum, state.windows.values())):,} windows")
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} holds files but no labels: give another name=… or delete that folder")
    if not dataset.split("train").count(window):
        raise UserError(f"window={window} is longer than every shard of {dataset.folder}: give a smaller window")
    return Begun(names, identity, state, None)


def _finish(
    settings: ExtractSettings, begun: Begun, labeller: Labeller, extraction: Extraction, tokens: int
) -> dict[str, Any]:
    """Writes the manifest and removes what was needed on the way."""
    sae, state, flops = labeller.sae, extraction.state, labeller.flops_per_token
    ids, folder, identity = extraction.columns[0], state.path.parent, begun.identity
    manifest = {
        "format": FORMAT,
        **identity,
        "teacher": {
            "name": begun.names.teacher,
            **identity["teacher"],
            "quantisation": labeller.teacher.quantisation,
        },
        "sae": {"folder": settings.sae, **identity["sae"], "latents": sae.latents, "k": sae.k},
        "dtype": ids.dtype,
        "no_label": int(np.iinfo(ids.dtype).max),
        "files": state.files,
        "tokens": tokens,
        "cost": {
            "flops": flops * tokens,
            "seconds": state.seconds,
            "flops_per_token": flops,
            "seconds_per_token": state.seconds / tokens,
        },
        "upstream": upstream_costs(begun.names, settings.sae),
        "fit": labeller.fit._asdict(),
        "statistics": {
            "masked_share": 1 - extraction.found / max(tokens * settings.attribution.k, 1),
            "distinct_concepts": int(extraction.used.sum()),
        },
    }
    with explained(folder):
        if (folder / UNITS).is_dir():
            shutil.rmtree(folder / UNITS)
        write_json(folder / MANIFEST, manifest)
        (folder / UNFINISHED).unlink(missing_ok=True)
    return manifest


def _coverage(settings: ExtractSettings) -> Coverage:
    return Coverage() if settings.train_windows is None else Coverage(settings.train_seed, settings.train_windows)
