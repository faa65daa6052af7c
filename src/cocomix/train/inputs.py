"""Are the shards and labels still what was written? Their hashes, by all ranks together, before training begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cocomix.concepts.cache import TeacherCache
from cocomix.data.dataset import Dataset
from cocomix.dist.world import World
from cocomix.errors import UserError
from cocomix.files import sha256_file
from cocomix.progress import progress


def check_inputs(dataset: Dataset, caches: Sequence[TeacherCache], world: World) -> None:
    """Raises :class:`UserError`, on all ranks, that names a shard or label file that is not what its manifest says."""
    files = input_files(dataset, caches)
    megabytes = sum(path.stat().st_size for path, _, _ in files if path.is_file()) // 1_000_000
    problem: str | None = None
    with world.together(), progress("checking data, MB", megabytes) as bar:
        for number, (path, due, mend) in enumerate(files):
            if number % world.size != world.rank:
                continue
            if sha256_file(path) != due:
                problem = f"{path} is not what was written, its hash differs: {mend}"
                break
            bar.advance(path.stat().st_size // 1_000_000 * world.size)
        if problem is not None:
            raise UserError(problem)


def input_files(dataset: Dataset, caches: Sequence[TeacherCache]) -> list[tuple[Path, str, str]]:
    """(file, its SHA-256, the mend where it differs) of all that the run reads."""
    mend = f"restore it, or delete {dataset.folder} and prepare the data again"
    files = [
        (shard.path, shard.sha256, mend) for name in dataset.manifest["splits"] for shard in dataset.split(name).shards
    ]
    for cache in caches:
        mend = f"restore it, or delete {cache.folder} and extract the {cache.kind.name} again"
        files += [(cache.folder / name, due, mend) for name, due in cache.manifest["files"].items()]
    return files
