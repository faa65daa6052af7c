"""Which concepts the teacher has at the tokens of a text."""

from __future__ import annotations

import threading

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cocomix.concepts.labels import open_labels
from cocomix.concepts.pair import load_pair_of
from cocomix.errors import UserError
from cocomix.steer.usual import labels_folder


class TeacherView:
    """The teacher and SAE of the labels that a run learnt from, loaded once; threads ask it one after another.

    Raises :class:`UserError` when the run has no labels, or the two are not to be had, or are others by now.
    """

    def __init__(self, run: str, device: str = "auto") -> None:
        folder = labels_folder(run)
        if folder is None:
            raise UserError(f"model={run} is no run with concept labels, which name its teacher")
        self.teacher, self.sae = load_pair_of(*open_labels(folder), device)
        self._lock = threading.Lock()

    def strengths(self, ids: Int[Tensor, " T"], concepts: Int[Tensor, "T N"]) -> Float[Tensor, "T N"]:
        """The SAE's activation of each concept at its token, 0 where it is not active.

        Raises :class:`UserError` when the text is longer than the teacher reads.
        """
        context = getattr(self.teacher.config, "max_position_embeddings", None)
        if context is not None and len(ids) > context:
            raise UserError(f"the text has {len(ids)} tokens, the teacher reads {context}: shorten it")
        # Who reads a block's output hooks the block, and would be given what other threads run through it.
        with self._lock, torch.no_grad():
            values, active = self.sae.encode(self.teacher.activations(ids.unsqueeze(0))[0].float())
        same = active.cpu().unsqueeze(1) == concepts.cpu().unsqueeze(2)
        return (same * values.cpu().unsqueeze(1)).amax(-1)
