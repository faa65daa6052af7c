"""Texts to ids on all ranks: rank 0 reads, deals batches of texts and takes their ids back in the texts' order.

Only rank 0 reads the source: a dataset of the hub comes over the network once, and ranks cannot differ in what they
read. On one core, reading and hashing take a fiftieth of the time that encoding takes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt32

from cocomix.data.tokenizer import Encoder, load_tokenizer
from cocomix.dist.lead import Crew
from cocomix.dist.world import World, current, usable_cores
from cocomix.errors import UserError

RAYON = "RAYON_NUM_THREADS"


class Packed(NamedTuple):
    """The ids of several texts, as they travel between ranks."""

    ids: UInt32[np.ndarray, " L"]
    lengths: Int64[np.ndarray, " N"]


class EncodingHelper:
    """What a rank that helps does: a task is the folder of the tokenizer to load, or texts to encode."""

    def __call__(self, task: Path | list[str]) -> Packed | None:
        """The ids of the texts; raises :class:`UserError` when the tokenizer is not in its folder."""
        if isinstance(task, Path):
            if not task.is_dir():
                raise UserError(
                    f"rank {current().rank} does not see {task}, which rank 0 has written: start all ranks in the same "
                    "folder of a file system that they share"
                )
            self._encoder = Encoder(load_tokenizer(str(task)))
            return None
        return _packed(self._encoder(task))


class SharedEncoder:
    """Rank 0's encoder of as many batches at once as there are ranks: batch i is encoded by rank i."""

    def __init__(self, crew: Crew, encoder: Encoder, folder: Path) -> None:
        """``folder`` holds the tokenizer of ``encoder``, for the helpers to load; raises :class:`UserError` where one
        of them cannot."""
        self._crew, self._encoder = crew, encoder
        self.eos_id = encoder.eos_id
        crew.deal([folder] * crew.helpers)
        crew.collect()

    def __call__(self, batches: Sequence[list[str]]) -> Iterator[UInt32[np.ndarray, " L"]]:
        """The ids of each text of up to ``crew.size`` batches in turn, each with the end-of-text id behind it."""
        own, *others = batches
        self._crew.deal([*others, *([] for _ in range(self._crew.size - len(batches)))])
        yield from list(self._encoder(own))  # all of it before the others' is waited for
        for packed in self._crew.collect():
            yield from np.split(packed.ids, np.cumsum(packed.lengths)[:-1]) if len(packed.lengths) else ()


def _packed(ids: Iterable[UInt32[np.ndarray, " L"]]) -> Packed:
    parts = [np.empty(0, np.uint32), *ids]
    return Packed(np.concatenate(parts), np.array([len(part) for part in parts[1:]], dtype=np.int64))


def share_cores(world: World) -> None:
    """Gives this rank's tokenizer its share of the cores, unless the user has set RAYON_NUM_THREADS.

    The tokenizers library starts a thread a core, whatever other ranks run on the same machine. A rank that has cores
    of its own (bound by SLURM, say) keeps them all.
    """
    cores = usable_cores()
    here = (socket.gethostname(), cores)
    sharing = world.gather(here).count(here)
    if sharing > 1:
        # Read once, when the library's first threads start.
        os.environ.setdefault(RAYON, str(max(1, len(cores) // sharing)))
