"""A frozen causal language model and the residual stream behind one of its blocks.

Shapes: B windows, T tokens, D hidden size, V vocabulary. ``block`` = 5 means the output of the block with index 5,
which transformers calls ``hidden_states[6]``.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cocomix.concepts.nll import IGNORED, mean_nll, mean_nll_and_gradient
from cocomix.concepts.plain_head import plain_head
from cocomix.concepts.teacher_files import TeacherFiles, find_teacher
from cocomix.data.dataset import Dataset
from cocomix.data.tokenizer import TOKENIZER_FILES, first_line, tokenizer_hash, tokenizer_in
from cocomix.devices import pick_device
from cocomix.errors import UserError
from cocomix.ops.activations import fuse_activations
from cocomix.ops.heads import linear_nll
from cocomix.ops.topk import topk

Replace = Callable[[Float[Tensor, "B T D"]], Float[Tensor, "B T D"]]
"""From a block's output to what the blocks above see in its place."""


ROWS_AT_ONCE = 1024
"""Tokens whose logits are made at once where probabilities are wanted."""


class Gradient(NamedTuple):
    """What :meth:`Teacher.loss_and_gradient` returns."""

    activation: Float[Tensor, "B T D"]
    """The block's own output h."""
    gradient: Float[Tensor, "B T D"]
    """∂ loss / ∂ (what the blocks above saw: h, or its replacement)."""
    loss: Float[Tensor, ""]
    """Mean NLL of the targets, nats."""


class Probabilities(NamedTuple):
    """What :meth:`Teacher.probabilities` returns, in float32."""

    probs: Float[Tensor, "B T K_or_V"]
    tokens: Int[Tensor, "B T K"] | None


class _Enough(Exception):
    """What is wanted has been computed; nothing above it is needed."""


class Teacher:
    """A causal language model in evaluation mode, its parameters frozen, named by one block.

    It is the model that is given, and stays so: evaluation mode, no gradients, activations (and where SDPA would be
    wrong, attention) exchanged for equal ones.
    """

    def __init__(
        self,
        model: Any,
        block: int,
        name: str = "",
        fingerprint: str = "",
        quantisation: dict[str, float] | str | None = None,
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.name = name
        self.fingerprint = fingerprint
        """Hash over the weights' files."""
        self.quantisation = quantisation
        """Share of the parameters in each type of the GGUF file they came from, or the method by which safetensors are
        quantised; None: not quantised."""
        self.config: Any = self.model.config.get_text_config()
        if getattr(self.config, "attn_logit_softcapping", None) and self.config._attn_implementation == "sdpa":
            # SDPA knows no cap on scores: transformers 5.17 chooses it for Gemma 2 and leaves the cap out in silence.
            self.model.set_attn_implementation("eager")
        fuse_activations(self.model)
        self.head: nn.Linear | None = plain_head(self.model)
        """The layer whose output the logits are; None: more is done to them, and they must be asked of the model."""
        self.block = block
        self.blocks = find_blocks(self.model)
        if not 0 <= block < len(self.blocks):
            raise UserError(
                f"block={block} is outside the teacher {name}: it has {len(self.blocks)} blocks, give "
                f"0 … {len(self.blocks) - 1}"
            )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def width(self) -> int:
        """Hidden size D."""
        return int(self.config.hidden_size)

    @property
    def dtype(self) -> str:
        """The precision it runs in: ``float32``, ``bfloat16``."""
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    def activations(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The block's output; the blocks above it and the head are not run."""
        found: list[Tensor] = []

        def keep(states: Tensor) -> Tensor:
            found.append(states)
            raise _Enough

        with torch.no_grad(), self.at_block(keep), suppress(_Enough):
            self.model.base_model(input_ids=tokens.to(self.device), use_cache=False)
        return found[0]

    def loss_and_gradient(
        self, inputs: Int[Tensor, "B T"], targets: Int[Tensor, "B T"], replace: Replace | None = None
    ) -> Gradient:
        """One forward pass and a backward pass that ends at the block.

        The loss is the mean NLL over all targets of the batch (−100: none), so the gradient at a position holds
        its effect on all later tokens of its window. Nothing below the block has a graph, no weight has a
        gradient. ``replace`` puts its result in the block's place; the gradient is then taken there (paper
        Eq. 1: at the SAE's reconstruction).
        """
        kept: list[Tensor] = []

        def leaf(states: Tensor) -> Tensor:
            seen = states if replace is None else replace(states).to(states.dtype)
            kept.extend((states.detach(), seen.detach().requires_grad_()))
            return kept[1]

        due = targets.to(self.device).flatten()
        with torch.enable_grad(), self.at_block(leaf):
            if self.head is None:
                logits = self._logits(inputs)
                loss, pull = mean_nll_and_gradient(logits.detach(), due)
            else:
                logits = loss = self._mean_nll(self._hidden(inputs, self.head), self.head, due)
                pull = None
        logits.backward(pull)  # the leaf is all that wants a gradient
        gradient = kept[1].grad
        assert gradient is not None
        return Gradient(kept[0], gradient, loss.detach())

    def cross_entropy(
        self, inputs: Int[Tensor, "B T"], targets: Int[Tensor, "B T"], replace: Replace | None = None
    ) -> Float[Tensor, ""]:
        """Mean NLL over the targets in nats, with ``replace(h)`` in the place of the block's output h."""

        def put(states: Tensor) -> Tensor:
            return states if replace is None else replace(states).to(states.dtype)

        due = targets.to(self.device).flatten()
        with torch.no_grad(), self.at_block(put):
            if self.head is None:
                return mean_nll(self._logits(inputs), due)
            return self._mean_nll(self._hidden(inputs, self.head), self.head, due)

    def probabilities(self, inputs: Int[Tensor, "B T"], k: int | None) -> Probabilities:
        """Of the next token: the ``k`` likeliest tokens' and these tokens, the likeliest first; without ``k`` all."""
        with torch.no_grad():
            if self.head is None:
                parts: Any = self._logits(inputs).split(ROWS_AT_ONCE)
            else:
                parts = (self.head(rows) for rows in self._hidden(inputs, self.head).split(ROWS_AT_ONCE))
            found = [_likeliest(logits.float(), k) for logits in parts]
        probs, tokens = (torch.cat(column).unflatten(0, inputs.shape) for column in zip(*found, strict=True))
        return Probabilities(probs, tokens if k is not None else None)

    @staticmethod
    def _mean_nll(hidden: Float[Tensor, "N D"], head: nn.Linear, targets: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        return linear_nll(hidden, head.weight, targets.unsqueeze(1), head.bias) / (targets != IGNORED).sum()

    def _logits(self, inputs: Tensor) -> Float[Tensor, "N V"]:
        return self.model(input_ids=inputs.to(self.device), use_cache=False).logits.flatten(0, 1)

    def _hidden(self, inputs: Tensor, head: nn.Linear) -> Float[Tensor, "N D"]:
        """What the head would be given."""
        found: list[Tensor] = []

        def keep(module: nn.Module, arguments: Any) -> None:
            found.append(arguments[0])
            raise _Enough

        handle = head.register_forward_pre_hook(keep)
        try:
            with suppress(_Enough):
                self.model(input_ids=inputs.to(self.device), use_cache=False)
        finally:
            handle.remove()
        return found[0].flatten(0, 1)

    @contextmanager
    def at_block(self, function: Replace) -> Iterator[None]:
        """Inside, the block's output goes through ``function``."""

        def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
            if isinstance(output, tuple):  # some families return (states, attention weights, …)
                return (function(output[0]), *output[1:])
            return function(output)

        handle = self.blocks[self.block].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def final_norm(self) -> nn.Module:
        """The norm between the last block and the head: the base model's own, a direct child beside its blocks."""
        for parent in self.model.modules():
            children = list(parent.children())
            if any(child is self.blocks for child in children):
                norms = [child for child in children if "norm" in type(child).__name__.lower()]
                if norms:
                    return norms[-1]
        raise UserError(
            f"teacher {self.name} ({self.config.model_type}) has no final norm beside its blocks: it can have no atlas"
        )

    def check_fits(self, dataset: Dataset, window: int) -> None:
        """Raises :class:`UserError` when windows of ``dataset`` are no text to this teacher."""
        context = getattr(self.config, "max_position_embeddings", None)
        if context is not None and window > context:
            raise UserError(
                f"window={window} is longer than the context of the teacher {self.name} ({context} tokens): give "
                f"window={context} or less"
            )
        if self.config.vocab_size < dataset.vocab_size:
            raise UserError(
                f"teacher={self.name} knows {self.config.vocab_size} tokens, the dataset {dataset.folder} has "
                f"{dataset.vocab_size}: use a teacher of the same tokenizer, or prepare the data with the teacher's"
            )


def _likeliest(logits: Float[Tensor, "N V"], k: int | None) -> tuple[Tensor, Tensor]:
    """Probabilities and tokens; without ``k`` those of all, and no tokens."""
    if k is None:
        return logits.softmax(-1), logits.new_empty(len(logits), 0)
    largest, tokens = topk(logits, k)
    return (largest - logits.logsumexp(-1, keepdim=True)).exp(), tokens


def find_blocks(model: Any) -> nn.ModuleList:
    """The list of transformer blocks: the outermost ModuleList as long as the configuration says the model is deep."""
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.modules():  # parents come before their children
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise UserError(f"a teacher of type {model.config.model_type} is not supported: its blocks are in no list")


def pick_dtype(dtype: str, device: torch.device) -> str:
    """``float32`` or ``bfloat16`` for a setting: many CPUs are very slow in bfloat16."""
    return dtype if dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"


def load_teacher(
    name: str,
    block: int,
    dataset: Dataset | None = None,
    window: int = 0,
    device: torch.device | str = "cpu",
    dtype: str = "auto",
) -> Teacher:
    """The model ``name`` (what :func:`cocomix.concepts.teacher_files.find_teacher` knows), checked against the dataset
    where one is given.

    ``dtype``: float32, bfloat16, or auto as :func:`pick_dtype`; the weights of a GGUF file are dequantised to it.
    Raises :class:`UserError` when it is no causal language model (or one that sees what comes), its files are not
    whole, its tokenizer is not the dataset's, its context is shorter than ``window``, or ``block`` is outside.
    """
    device = pick_device(str(device))
    dtype = pick_dtype(dtype, device)
    files = find_teacher(name)
    files.check_whole(name)
    if dataset is not None:
        _check_tokenizer(files, name, dataset)
    teacher = Teacher(_load(files, name, dtype).to(device), block, name, files.fingerprint(), files.quantisation())
    if dataset is not None:
        teacher.check_fits(dataset, window)
    refuse_bidirectional(teacher, window)
    return teacher


def refuse_bidirectional(teacher: Teacher, window: int) -> None:
    """Raises :class:`UserError` when tokens change with those behind them: labels would know what they foretell."""
    tokens = torch.arange(min(16, window or 16, teacher.config.vocab_size // 2))
    half = len(tokens) // 2
    others = torch.cat([tokens[:half], tokens[half:] + len(tokens)])
    one, other = (teacher.activations(ids[None])[0, :half].float() for ids in (tokens, others))
    # Experts may sum in another order for other company.
    tolerance = max(1e-4, 4 * torch.finfo(getattr(torch, teacher.dtype)).eps)
    if ((one - other).norm(dim=-1) > tolerance * one.norm(dim=-1)).any():
        raise UserError(
            f"teacher={teacher.name} ({teacher.config.model_type}) is no causal model: its tokens see those behind "
            "them; give one that predicts the next token"
        )


def _load(files: TeacherFiles, name: str, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bar_was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    where = {"use_safetensors": True} if files.gguf is None else {"gguf_file": files.gguf.name}
    # transformers shows a bar of its own over a GGUF file's tensors
    quiet = nullcontext() if files.gguf is None else redirect_stderr(io.StringIO())
    try:
        with quiet:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                files.folder,
                dtype=getattr(torch, dtype),
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **where,
            )
    except Exception as error:  # transformers raises what its many parts raise
        raise UserError(
            f"teacher={name} cannot be loaded as a causal language model of transformers ({first_line(error)}): "
            "give a model's folder or hub id"
        ) from error
    finally:
        if bar_was_on:
            logging.enable_progress_bar()
    model, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        missing = ", ".join(sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))[:3])
        raise UserError(f"teacher={name} lacks weights ({missing} …): it would be partly random, save it again")
    return model


def _check_tokenizer(files: TeacherFiles, name: str, dataset: Dataset) -> None:
    if files.gguf is None and not any((files.folder / file).is_file() for file in TOKENIZER_FILES):
        return  # weights alone: only the size of the vocabulary can be compared
    try:
        found = tokenizer_hash(tokenizer_in(files.gguf or files.folder, f"teacher={name}"))
    except UserError:
        raise
    except Exception as error:  # transformers raises what its many parts raise
        raise UserError(
            f"teacher={name}: its tokenizer cannot be read ({first_line(error)}): save it again with save_pretrained"
        ) from error
    if found != dataset.tokenizer_hash:
        raise UserError(
            f"teacher={name} has another tokenizer than the dataset {dataset.folder}: prepare the data with "
            f"tokenizer={name}, or use a teacher that was trained on this data"
        )
