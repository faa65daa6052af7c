"""What a run reads: the windows of a step; and, before it begins, whether shards and labels are what was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cocomix.concepts.labels import Labels
from cocomix.data.batches import Batch, sample_batch
from cocomix.errors import UserError
from cocomix.files import sha256_file
from cocomix.progress import progress

if TYPE_CHECKING:
    from cocomix.train.run import Run


def read_batch(run: Run, step: int, rank: int | None = None) -> Batch:
    """The windows of step ``step`` that are a rank's (default: this one's), on the CPU."""
    rank = run.world.rank if rank is None else rank
    first = step * run.settings.batch_windows + rank * run.share
    return sample_batch(run.split, run.window, run.settings.seed, first, run.share, run.columns)


def check_inputs(run: Run) -> None:
    """Raises :class:`UserError`, on all ranks, that names a shard or label file that is not what its manifest says."""
    if not run.settings.data.verify:
        return
    files = input_files(run)
    megabytes = sum(path.stat().st_size for path, _, _ in files if path.is_file()) // 1_000_000
    problem: str | None = None
    with run.world.together(), progress("checking data, MB", megabytes) as bar:
        for number, (path, due, mend) in enumerate(files):
            if number % run.world.size != run.world.rank:
                continue
            if sha256_file(path) != due:
                problem = f"{path} is not what was written, its hash differs: {mend}"
                break
            bar.advance(path.stat().st_size // 1_000_000 * run.world.size)
        if problem is not None:
            raise UserError(problem)


def input_files(run: Run) -> list[tuple[Path, str, str]]:
    """(file, its SHA-256, the mend where it differs) of all that the run reads."""
    mend = f"restore it, or delete {run.dataset.folder} and prepare the data again"
    files = [
        (shard.path, shard.sha256, mend)
        for name in run.dataset.manifest["splits"]
        for shard in run.dataset.split(name).shards
    ]
    if isinstance(run.labels, Labels):
        mend = f"restore it, or delete {run.labels.folder} and extract the labels again"
        files += [(run.labels.folder / name, due, mend) for name, due in run.labels.manifest["files"].items()]
    return files
