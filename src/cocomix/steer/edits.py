"""Edits of predicted concepts, put on a model from outside: before TopK, on the concept logits z.

Shapes: B rows, T new tokens, C concepts. Threads and asyncio tasks steer one model side by side, each sees its own
edits alone: the model has one edit point, and what stands there asks the context (:mod:`contextvars`) that calls.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cocomix.errors import UserError
from cocomix.model.masks import positions_of
from cocomix.model.mixers import ConceptMixer, EditPoint
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.steer.notation import Edit, parse_edit
from cocomix.steer.rows import RowEdits

__all__ = ["Edit", "check_steers", "parse_edit", "steering"]

Edits = Edit | str | Sequence[Edit | str] | Sequence[Sequence[Edit | str]]
"""Edits of every row, or those of each request; a request has one row or more of a batch, all of the same number. A
text is read by :func:`parse_edit`."""

PADDED = -1
"""Position of a token that is padding."""


@contextmanager
def steering(
    model: CoCoMixForCausalLM,
    edits: Edits,
    prompt: int | Sequence[int] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Iterator[None]:
    """Within the context its caller runs the model with the edits; no edits leave it exactly as it is. Contexts within
    each other add up, the outer edits first.

    Another thread is not steered, unless it is started with ``contextvars.copy_context().run``, and then as long as
    the context lasts. ``edits``, also as they are written (``"12=x5"``), are those of every row, or a list for each
    request: of R requests in B rows, row r belongs to request r // (B/R), as ``generate`` repeats rows for beams and
    samples. Spans count the tokens of a row without padding, with a cache as without. ``prompt``: tokens of each prompt
    without padding (one number: of all), wanted where a span or a stop counts from its end; ``tokenizer``: wanted for
    stops, which need rows that stay in their order (beams do not).

    Raises :class:`UserError` for a model that no edit changes, a concept outside its dictionary and strengths that are
    no numbers, :class:`ValueError` where something is wanted and missing.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    check_steers(model)
    assert isinstance(model.mixer, ConceptMixer)
    requests = by_request(edits)
    for edit in itertools.chain(*requests):
        check_edit(edit, model.config.num_concepts)
    wanted = [[edit for edit in request if not edit.changes_nothing] for request in requests]
    rows = RowEdits(wanted, [prompt] if isinstance(prompt, int) else prompt, tokenizer)
    if not any(wanted):
        yield
        return
    station = _station(model.mixer.edit_point)
    mine = _Steered(station.key, rows)
    _steered.set((*_steered.get(), mine))
    try:
        with station.manned(model):
            yield
    finally:
        mine.ended = True
        # Not by a token: a generator may end in another context than it began in.
        _steered.set(tuple(other for other in _steered.get() if other is not mine))


def check_steers(model: Any, name: str = "this model") -> None:
    """Raises :class:`UserError` for a model that predicts no concepts, and for one that mixes none of them in: edits
    would change nothing. ``name`` says which model."""
    mixer = getattr(model, "mixer", None)
    if not isinstance(mixer, ConceptMixer):
        if type(mixer).__name__ == ConceptMixer.__name__:  # trust_remote_code
            raise UserError(
                f"{name} runs the code that lies in its export, which is not steered: load it with "
                "cocomix.model.load.load_concept_model"
            )
        raise UserError(f"{name} predicts no concepts: leave the edits out, or give a run with concepts")
    if model.config.mixing == "none":
        raise UserError(
            f"{name} mixes no concepts into its stream (model.mixing=none), so that edits change nothing: give a run "
            "with model.mixing=insert, memory or add"
        )


def by_request(edits: Edits) -> list[list[Edit]]:
    """The edits of each request; of one, where they are every row's."""
    if isinstance(edits, Edit | str):
        return [[_read(edits)]]
    if all(isinstance(edit, Edit | str) for edit in edits):
        return [[_read(edit) for edit in edits]]  # type: ignore[arg-type]
    return [[_read(edit) for edit in request] for request in edits]  # type: ignore[union-attr]


def _read(edit: Edit | str) -> Edit:
    return parse_edit(edit) if isinstance(edit, str) else edit


def check_edit(edit: Edit, concepts: int) -> None:
    """Raises :class:`UserError` for a concept that a dictionary of this size has not, and for bad strengths."""
    edit.check()
    if not 0 <= edit.concept < concepts:
        raise UserError(f"concept {edit.concept} is outside the dictionary: ids go from 0 to {concepts - 1}")


@dataclass(eq=False)
class _Steered:
    """Edits at the edit point ``key``; a copied context may outlast them."""

    key: int
    rows: RowEdits
    ended: bool = False


_steered: ContextVar[tuple[_Steered, ...]] = ContextVar("steered", default=())


class _Here(threading.local):
    """Which tokens the model that this thread runs is about to see, and at which places."""

    call: tuple[Tensor, Tensor] | None = None


_here = _Here()


class _Station:
    """The edit point of one model. While anybody steers there, :func:`_edit` stands in it and :func:`_note` before the
    model. The two come and go together: a compiled network guards the one and takes the other as it was then."""

    _keys = itertools.count()

    def __init__(self, edit_point: EditPoint) -> None:
        self.key = next(self._keys)
        self._edit = functools.partial(_edit, self.key)
        self._lock, self._users = threading.Lock(), 0
        self._handle: Any = None

    @contextmanager
    def manned(self, model: CoCoMixForCausalLM) -> Iterator[None]:
        assert isinstance(model.mixer, ConceptMixer)
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._handle = model.register_forward_pre_hook(_note, with_kwargs=True)
                model.mixer.edit_point.edit = self._edit
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    model.mixer.edit_point.edit = None
                    self._handle.remove()


_stations: WeakKeyDictionary[EditPoint, _Station] = WeakKeyDictionary()
_stations_lock = threading.Lock()


def _station(edit_point: EditPoint) -> _Station:
    with _stations_lock:
        if edit_point not in _stations:
            _stations[edit_point] = _Station(edit_point)
        return _stations[edit_point]


@torch.compiler.disable
def _note(model: Any, args: Any, kwargs: Any = None) -> None:
    """Before a forward pass: its tokens and their positions, :data:`PADDED` where one is padding."""
    if kwargs is None:
        return  # another thread is just putting this hook on or off: none of ours is wanted
    given = dict(zip(("input_ids", "attention_mask", "position_ids", "cache"), args, strict=False)) | kwargs
    ids, mask, positions = (given.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    if ids is None:
        return
    padding = None if mask is None else mask.bool()
    if positions is None:
        cache = given.get("cache") if given.get("cache") is not None else given.get("past_key_values")
        positions = positions_of(padding, ids.shape[0], model._past(cache), ids.shape[1], ids.device)
    positions = positions.expand_as(ids)
    if padding is not None:
        positions = positions.masked_fill(~padding[:, -ids.shape[1] :], PADDED)
    _here.call = (ids, positions)


def _edit(key: int, logits: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """What stands in the edit point. A compiler sees one opaque operation, which asks when it runs."""
    if torch.compiler.is_compiling():
        return torch.ops.cocomix.edit(logits, key)
    return _edited(logits, key)


def _edited(logits: Float[Tensor, "B T C"], key: int) -> Float[Tensor, "B T C"]:
    call, _here.call = _here.call, None
    if call is None or call[0].shape != logits.shape[:2]:  # the mixer alone was called
        places = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2])
        call = torch.full_like(places, -1), places
    for mine in _steered.get():
        if mine.key == key and not mine.ended:
            logits = mine.rows.apply(logits, *call)
    return logits


def _opaque(logits: Tensor, key: int) -> Tensor:
    """As :func:`_edited`; an operation's result is never its argument."""
    edited = _edited(logits, key)
    return edited.clone() if edited is logits else edited


# A recorded CUDA graph would repeat the edits of the thread that recorded it.
torch.library.define("cocomix::edit", "(Tensor logits, int key) -> Tensor", tags=(torch.Tag.cudagraph_unsafe,))
torch.library.impl("cocomix::edit", "CompositeExplicitAutograd", _opaque)
torch.library.register_fake("cocomix::edit", lambda logits, key: torch.empty_like(logits))
