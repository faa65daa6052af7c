"""Concept labels of a whole dataset, once, resumable, beside its token shards."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cocomix.concepts.attribution import check_attribution, label_windows
from cocomix.concepts.costs import label_flops
from cocomix.concepts.coverage import Coverage
from cocomix.concepts.labels import FORMAT, MANIFEST, UNFINISHED, Labels, label_columns, read_manifest
from cocomix.concepts.load_sae import sae_fingerprint
from cocomix.concepts.pair import Names, check_fit, load_pair, named, refuse_bad_fit
from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.settings import AttributionSettings, ExtractSettings
from cocomix.concepts.teacher import Teacher, pick_device, pick_dtype
from cocomix.concepts.teacher_files import find_teacher, training_record
from cocomix.data.columns import Column, ColumnWriter
from cocomix.data.dataset import Dataset, Split
from cocomix.errors import UserError
from cocomix.files import read_json, write_json
from cocomix.progress import Bar, progress, say
from cocomix.stopping import Stopped, StopRequest

SECONDS_BETWEEN_SYNCS = 30.0
FIT_WINDOWS = 16
LARGEST_STRENGTH = float(np.finfo(np.float16).max)


def extract(settings: ExtractSettings) -> dict[str, Any]:
    """Writes the labels of the train and val windows and returns their manifest (``labels.json``).

    Windows are taken shard by shard in fixed batches, so that a stopped and resumed extraction writes the same
    bytes as a straight one. Finished with the same settings: returns at once. Raises :class:`UserError` when the
    parts do not fit or the folder holds other labels, :class:`Stopped` when a signal asked to stop.
    """
    dataset = Dataset.open(settings.data)
    window = settings.window or dataset.window
    folder = dataset.folder / "labels" / settings.name
    names = named(settings)
    identity = _identity(settings, dataset, window, names)
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        _refuse_other(folder, manifest, identity, settings)
        Labels.open(dataset, str(folder))  # names a file that is missing or truncated
        say(f"{folder}: finished already")
        return manifest
    state = _open_state(folder, identity, settings)
    splits = [dataset.split(name) for name in ("train", "val") if name in dataset.manifest["splits"]]
    if not splits[0].count(window):
        raise UserError(f"window={window} is longer than every shard of {dataset.folder}: give a smaller window")
    teacher, sae = load_pair(settings, names, dataset, window)
    check_attribution(teacher, sae, settings.attribution)
    fit = check_fit(teacher, sae, dataset, window, FIT_WINDOWS, settings.batch_windows)
    if not settings.force:
        refuse_bad_fit(fit, sae, settings.sae, settings.max_fvu)
    coverage = _coverage(settings)
    extraction = Extraction(teacher, sae, settings.attribution, window, settings.batch_windows, folder, state, coverage)
    extraction.run(splits)
    tokens = sum(int(coverage.mask(split, window).sum()) for split in splits) * window
    active = fit.l0 if sae.k is None else float(sae.k)
    flops = label_flops(teacher, sae, settings.attribution, window, active).total
    ids = extraction.columns[0]
    manifest = {
        "format": FORMAT,
        **identity,
        "teacher": {"name": names.teacher, **identity["teacher"], "quantisation": teacher.quantisation},
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
        "upstream": {
            "teacher": _cost(find_teacher(names.teacher).folder),
            "sae": _cost(settings.sae),
        },
        "fit": fit._asdict(),
        "statistics": _statistics(folder, ids, splits, sae.latents, tokens * settings.attribution.k),
    }
    write_json(folder / MANIFEST, manifest)
    (folder / UNFINISHED).unlink(missing_ok=True)
    return manifest


@dataclass
class State:
    """How far an extraction is; kept in ``extraction.json`` until the manifest is written."""

    path: Path
    identity: dict[str, Any]
    windows: dict[str, int] = field(default_factory=dict)
    """Windows of each token shard, by file name, whose labels are durable."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each finished label file."""
    seconds: float = 0.0

    def save(self) -> None:
        """Writes the file, after the label files were made durable."""
        write_json(
            self.path,
            {
                "identity": self.identity,
                "windows": self.windows,
                "files": self.files,
                "seconds": self.seconds,
            },
        )


class Extraction:
    """The loop over windows."""

    def __init__(
        self,
        teacher: Teacher,
        sae: SparseAutoencoder,
        attribution: AttributionSettings,
        window: int,
        batch_windows: int,
        folder: Path,
        state: State,
        coverage: Coverage,
    ) -> None:
        self.teacher, self.sae, self.attribution = teacher, sae, attribution
        self.window, self.batch_windows = window, batch_windows
        self.folder, self.state, self.coverage = folder, state, coverage
        self.columns = label_columns(sae.latents, attribution.k)
        self._stop = StopRequest()

    def run(self, splits: list[Split]) -> None:
        """Labels all windows that are not labelled yet."""
        masks = [self.coverage.mask(split, self.window) for split in splits]
        total, done = sum(int(mask.sum()) for mask in masks) * self.window, 0
        for split, mask in zip(splits, masks, strict=True):
            first = 0
            for shard, count in zip(split.shards, split.windows_per_shard(self.window), strict=True):
                done += int(mask[first : first + self.state.windows.get(shard.path.name, 0)].sum()) * self.window
                first += count
        self.state.save()  # now that all checks have passed
        with self._stop, progress("labels, tokens", total, done) as bar:
            for split, mask in zip(splits, masks, strict=True):
                first = 0
                for shard, count in zip(split.shards, split.windows_per_shard(self.window), strict=True):
                    if count and not all(c.file(shard.path) in self.state.files for c in self.columns):
                        self._label_shard(split, shard.path, first, mask[first : first + count], bar)
                    first += count

    def _label_shard(self, split: Split, shard: Path, first: int, due: np.ndarray, bar: Bar) -> None:
        state, count = self.state, len(due)
        # Where few windows are due, a batch spans more of the shard: the teacher still sees full batches.
        size = max(1, round(self.batch_windows / max(due.mean(), 1 / count)))
        done = state.windows.get(shard.name, 0)
        writers = [ColumnWriter(self.folder, shard, c, self.window, done) for c in self.columns]
        clock = last_sync = time.perf_counter()
        while done < count:
            end = min((done // size + 1) * size, count)
            for writer, values in zip(writers, self._labels(split, first + done, due[done:end]), strict=True):
                writer.append(values)
            now, tokens = time.perf_counter(), int(due[done:end].sum()) * self.window
            bar.advance(tokens, f"{tokens / (now - clock):,.0f} tokens/s")
            state.seconds += now - clock
            clock, done = now, end
            stopping = self._stop.requested
            if stopping or done == count or now - last_sync > SECONDS_BETWEEN_SYNCS:
                for writer in writers:
                    writer.sync()
                state.windows[shard.name] = done
                state.save()
                last_sync = now
            if stopping:
                for writer in writers:
                    writer.close()
                raise Stopped(
                    f"the labels in {self.folder} are saved after {sum(state.windows.values()):,} windows; the same "
                    "command goes on from there"
                )
        for column, writer in zip(self.columns, writers, strict=True):
            state.files[column.file(shard)] = writer.finish()
        state.save()

    def _labels(self, split: Split, first: int, due: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids and strengths of the windows from ``first`` on; those that are not due have no label."""
        shape = (len(due), self.window, self.attribution.k)
        dtype = self.columns[0].dtype
        ids, strengths = np.full(shape, np.iinfo(dtype).max, dtype=dtype), np.zeros(shape, dtype=np.float16)
        windows = first + np.flatnonzero(due)
        if not len(windows):
            return ids, strengths
        tokens = torch.from_numpy(split.read(windows, self.window))
        labels = label_windows(self.teacher, self.sae, tokens[:, :-1], tokens[:, 1:], self.attribution)
        if not torch.isfinite(labels.scores).all():
            raise UserError(
                f"the teacher's loss or activations are not finite at windows {windows[0]} … {windows[-1]} of "
                f"{split.name}: try dtype=float32"
            )
        # −1 becomes the largest value of the unsigned type: "no label"
        ids[due] = labels.ids.cpu().numpy().reshape(-1, *shape[1:]).astype(dtype)
        found = labels.strengths.clamp(-LARGEST_STRENGTH, LARGEST_STRENGTH).half().cpu().numpy()
        strengths[due] = found.reshape(-1, *shape[1:])
        return ids, strengths


def _coverage(settings: ExtractSettings) -> Coverage:
    return Coverage() if settings.train_windows is None else Coverage(settings.train_seed, settings.train_windows)


def _identity(settings: ExtractSettings, dataset: Dataset, window: int, names: Names) -> dict[str, Any]:
    """What labels are of: two extractions with the same identity give the same labels."""
    return {
        "dataset": dataset.fingerprint,
        "tokenizer": dataset.tokenizer_hash,
        "window": window,
        "teacher": {
            "fingerprint": find_teacher(names.teacher).fingerprint(),
            "block": names.block,
            "dtype": pick_dtype(settings.dtype, pick_device(settings.device)),
        },
        "sae": {"fingerprint": sae_fingerprint(settings.sae)},
        "attribution": settings.attribution.model_dump(mode="json"),
        "coverage": _coverage(settings)._asdict(),
    }


def _refuse_other(folder: Path, found: dict[str, Any], identity: dict[str, Any], settings: ExtractSettings) -> None:
    for key, now in identity.items():
        old = found[key]
        if key == "attribution":  # labels from before a setting was there have its default
            old = AttributionSettings().model_dump(mode="json") | old
        pairs = [(f"{key}.{k}", old.get(k), v) for k, v in now.items()] if isinstance(now, dict) else [(key, old, now)]
        for name, before, after in pairs:
            if before != after and not (name == "teacher.dtype" and settings.dtype == "auto"):
                raise UserError(
                    f"{folder} holds labels with another {name} ({_short(before)}, now {_short(after)}): give another "
                    "name=… or delete that folder"
                )


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)


def _open_state(folder: Path, identity: dict[str, Any], settings: ExtractSettings) -> State:
    path = folder / UNFINISHED
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} holds files but no labels: give another name=… or delete that folder")
        return State(path, identity)
    saved = read_json(path, "the state of an extraction")
    _refuse_other(folder, saved["identity"], identity, settings)
    say(f"{folder}: going on behind {sum(saved['windows'].values()):,} windows")
    return State(path, saved["identity"], saved["windows"], saved["files"], saved["seconds"])


def _cost(folder: Path | str) -> dict[str, float] | None:
    record = training_record(folder)
    return None if record is None else {"flops": record["flops"], "seconds": record["seconds"]}


def _statistics(folder: Path, column: Column, splits: list[Split], concepts: int, due: int) -> dict[str, Any]:
    """Over the ``due`` labels, masked ones included: how many have no meaning, how many concepts occur."""
    used, found = np.zeros(concepts, dtype=bool), 0
    none = np.iinfo(column.dtype).max
    for split in splits:
        for shard in split.shards:
            path = folder / column.file(shard.path)
            if not path.is_file():
                continue
            ids = np.memmap(path, dtype=column.dtype, mode="r")
            for start in range(0, len(ids), 1 << 24):
                part = ids[start : start + (1 << 24)]
                here = part[part != none]
                used[here] = True
                found += len(here)
    return {"masked_share": 1 - found / max(due, 1), "distinct_concepts": int(used.sum())}
