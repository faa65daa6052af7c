"""What a teacher said of a dataset's windows, on disk beside its token shards: the part that all such caches share.

``<dataset>/<kind>/<name>/`` holds a manifest, written last, and for each token shard a file of each column (see
:mod:`cocomix.data.columns`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from cocomix.concepts.coverage import Coverage
from cocomix.data.columns import Column, Columns
from cocomix.data.dataset import Dataset, Split
from cocomix.errors import UserError, near_name
from cocomix.files import read_json, sha256_file, sha256_json
from cocomix.progress import progress

UNFINISHED = "extraction.json"
FORMAT = 1


class Kind(NamedTuple):
    """One sort of cache, in a user's words."""

    name: str
    """Folder in a dataset, and the option that names one."""
    manifest: str
    """File name."""
    what: str
    verb: str
    """The command that makes it."""
    keys: frozenset[str]
    """What its manifest holds besides what all do."""


C = TypeVar("C", bound="TeacherCache")


class TeacherCache:
    """Columns of a dataset's windows."""

    kind: ClassVar[Kind]

    def __init__(self, folder: Path, dataset: Dataset, manifest: dict[str, Any], columns: list[Column]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.window: int = manifest["window"]
        self.cost: dict[str, float] = manifest["cost"]
        """flops, seconds, flops_per_token, seconds_per_token of the extraction."""
        self._columns = Columns(folder, dataset, manifest, columns, self.kind.what)

    @classmethod
    def of(cls: type[C], folder: Path, dataset: Dataset, manifest: dict[str, Any]) -> C:
        """The cache of a manifest that was read."""
        raise NotImplementedError

    @classmethod
    def open(cls: type[C], dataset: Dataset, name_or_path: str) -> C:
        """The cache ``name`` of the dataset, or that in a folder.

        Raises :class:`UserError` when there is none, it is unfinished, of another dataset, or truncated.
        """
        kind = cls.kind
        folder = dataset.folder / kind.name / name_or_path
        if not (folder / kind.manifest).is_file() and (Path(name_or_path) / kind.manifest).is_file():
            folder = Path(name_or_path)
        if (folder / UNFINISHED).is_file() and not (folder / kind.manifest).is_file():
            raise UserError(
                f"{kind.name}={name_or_path}: the extraction in {folder} is not finished: run the same "
                f"'cocomix {kind.verb}' again, it goes on"
            )
        if not (folder / kind.manifest).is_file():
            known = sorted(path.parent.name for path in (dataset.folder / kind.name).glob(f"*/{kind.manifest}"))
            raise UserError(
                f"{kind.name}={name_or_path}: {dataset.folder} has no such {kind.name}{near_name(name_or_path, known)}"
                f", only {', '.join(known) or 'none at all'}: make them with 'cocomix {kind.verb}'"
            )
        return cls.of(folder, dataset, cls.read_manifest(folder))

    @classmethod
    def read_manifest(cls, folder: Path) -> dict[str, Any]:
        """The manifest of a folder; raises :class:`UserError` when it is none of this version."""
        kind = cls.kind
        path = folder / kind.manifest
        manifest = read_json(path, f"a manifest of {kind.what}")
        if manifest.get("format") != FORMAT:
            raise UserError(f"{path} has format {manifest.get('format')}, this version reads {FORMAT}: extract again")
        missing = {"dataset", "window", "files", "cost", "coverage", *kind.keys} - manifest.keys()
        if missing:
            raise UserError(f"{path} lacks {', '.join(sorted(missing))}: extract the {kind.name} again")
        return manifest

    @property
    def upstream(self) -> dict[str, Any]:
        """What the ``teacher`` and the ``sae`` cost to train: {"flops", "seconds"} each, or None."""
        return self.manifest.get("upstream", {"teacher": None, "sae": None})

    @property
    def identity(self) -> dict[str, Any]:
        """What they are of, besides the dataset."""
        return {name: self.manifest.get(name) for name in ("window", "teacher", "coverage", *sorted(self.kind.keys))}

    @property
    def fingerprint(self) -> str:
        """Hash over the dataset and every file's hash: the same one means the same contents."""
        return sha256_json({"dataset": self.manifest["dataset"], "files": self.manifest["files"]})

    @property
    def coverage(self) -> Coverage:
        """Which windows it holds."""
        return Coverage(**self.manifest["coverage"])

    def check_covers(self, split: Split, seed: int, samples: int) -> None:
        """Raises :class:`UserError` when a run of ``samples`` windows with ``seed`` reads windows that are not here."""
        covered, count = self.coverage, split.count(self.window)
        if covered.windows is None or covered.windows >= count:
            return
        if covered.seed != seed or covered.windows < samples:
            raise UserError(
                f"{self.kind.name}={self.folder.name} cover the first {covered.windows:,} windows of runs with seed "
                f"{covered.seed}, this run reads {samples:,} with seed {seed}: extract under another name with "
                "train_windows to fit, or without it"
            )

    def verify(self) -> list[str]:
        """Re-hashes every file; one sentence for each that is not what was written."""
        problems = []
        with progress(f"verifying {self.kind.name} {self.folder.name}, files", len(self.manifest["files"])) as bar:
            for name, due in self.manifest["files"].items():
                found = sha256_file(self.folder / name)
                if found != due:
                    problems.append(
                        f"{self.folder / name} is not what was written: its hash is {found[:12]}…, the manifest says "
                        f"{due[:12]}…: extract the {self.kind.name} again under another name"
                    )
                bar.advance()
        return problems
