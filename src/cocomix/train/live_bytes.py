"""Bytes of the tensors that live, by part, while a training step runs."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cocomix.ops.heads import tokens_at_once

OPTIMIZER = "optimizer"
"""AdamW's two moments, Muon's one."""
GRADIENTS = "gradients"
"""Under FSDP a rank's own part of them, and all, whole, while micro-batches are summed."""
GATHERED = "gathered"
"""Under FSDP: whole weights of the units at work, and the buffers that they and their gradients travel in."""
CASTS = "casts"
"""Copies of weights in bfloat16, which autocast keeps to a micro-batch's end."""
LOGITS = "logits"
"""Tensors of vocabulary or concepts × a micro-batch's tokens, or × those of a chunk (``ops/heads.py``)."""
ACTIVATIONS = "activations"
"""What the forward pass made and the backward pass still needs."""
WORKING = "working"
"""What the backward pass and the update made and have not given back: gradients of activations, activations made
again."""
PARTS = (OPTIMIZER, GRADIENTS, GATHERED, CASTS, LOGITS, ACTIVATIONS, WORKING)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other as it is."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside, as long as they live; a model's weights are left out.

    For work under FakeTensorMode: where code asks a tensor for its number, it is told zero.
    """

    def __init__(self, model: Any, tokens: int) -> None:
        """``tokens``: of a micro-batch of ``model``, a :class:`cocomix.model.modeling.CoCoMixForCausalLM`."""
        super().__init__()
        self.fullest: dict[str, int] = {}
        """Bytes by part (:data:`PARTS`) when they were most together, since :meth:`begin`."""
        self._now: Counter[str] = Counter()
        self._total = self._most = 0
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], str, int]] = {}
        self._weights = {id(local(p).untyped_storage()) for p in model.parameters()}
        self._logits = {
            n * entries
            for entries in (model.config.text_config.vocab_size, model.config.num_concepts)
            for n in (tokens, tokens_at_once(tokens, entries))
        }
        self._making = WORKING
        self._model = model
        self._hooks = contextlib.ExitStack()

    def begin(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Between two steps: what is alive is the optimizers' state, or gradients. The fullest moment comes anew."""
        state = {
            id(local(value).untyped_storage())
            for optimizer in optimizers
            for entry in optimizer.state.values()
            for value in entry.values()
            if isinstance(value, Tensor)
        }
        for key, (_, _, size) in list(self._alive.items()):
            self._set(key, OPTIMIZER if key in state else GRADIENTS, size)
        self._note_fullest()

    def __enter__(self) -> LiveBytes:
        hooks = [
            self._model.register_forward_pre_hook(self._forward_begins),
            self._model.register_forward_hook(self._forward_ends),
            *(p.register_post_accumulate_grad_hook(self._is_gradient) for p in self._model.parameters()),
        ]
        for hook in hooks:
            self._hooks.callback(hook.remove)
        # FSDP takes and gives back gathered weights by the size of their storage, which no operation tells.
        plain = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = plain(storage, size)
            self._see(storage, GATHERED)
            self._set(id(storage), GATHERED, size)
            return result

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        self._hooks.callback(setattr, torch.UntypedStorage, "resize_", plain)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.close()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            return 0
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(local(tensor).untyped_storage(), self._part(function, args, tensor))
        return result

    def _part(self, function: Any, args: Any, made: Tensor) -> str:
        if function.namespace in ("fsdp", "c10d"):
            return GATHERED
        if made.numel() in self._logits:
            return LOGITS
        if function is torch.ops.aten._to_copy.default and isinstance(args[0], nn.Parameter):
            return CASTS
        return self._making

    def _forward_begins(self, *unused: Any) -> None:
        """What a backward pass has left is gradients (FSDP keeps those of a micro-batch where no hook sees them)."""
        for key, (_, part, size) in list(self._alive.items()):
            if part in (WORKING, ACTIVATIONS):  # a head makes its gradients in the forward pass
                self._set(key, GRADIENTS, size)
        self._making = ACTIVATIONS

    def _forward_ends(self, *unused: Any) -> None:
        self._making = WORKING

    def _is_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            storage = local(parameter.grad).untyped_storage()
            if id(storage) in self._alive:
                self._set(id(storage), GRADIENTS, storage.nbytes())

    def _see(self, storage: torch.UntypedStorage, part: str) -> None:
        key = id(storage)
        if key not in self._alive and key not in self._weights:
            self._alive[key] = (weakref.ref(storage, lambda _: self._drop(key)), part, 0)
            self._set(key, part, storage.nbytes())

    def _set(self, key: int, part: str, size: int) -> None:
        if key not in self._alive:
            return
        storage, old, before = self._alive[key]
        self._now[old] -= before
        self._now[part] += size
        self._total += size - before
        self._alive[key] = (storage, part, size)
        if self._total > self._most:
            self._note_fullest()

    def _note_fullest(self) -> None:
        self._most = self._total
        self.fullest = {part: self._now[part] for part in PARTS}

    def _drop(self, key: int) -> None:
        _, part, size = self._alive.pop(key)
        self._now[part] -= size
        self._total -= size
