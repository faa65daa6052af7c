"""Edits applied to the logits of a batch: each row its own, each edit at its own tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cocomix.model.mixers import ablated, is_ablated
from cocomix.steer.notation import Edit, Place
from cocomix.steer.text import continuation


class RowEdits:
    """The edits of R requests whose rows lie in a batch one request after another, with what they need to know."""

    def __init__(
        self,
        requests: Sequence[Sequence[Edit]],
        prompt: Sequence[int] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        edits = [edit for request in requests for edit in request]
        if any(edit.unit != "raw" for edit in edits):
            raise ValueError("edits in units of usual strengths are made raw first (steer.usual.in_raw_units)")
        if prompt is None and any(edit.looks_at_the_prompt for edit in edits):
            raise ValueError("an edit counts from the prompt's end: prompt= is wanted")
        if tokenizer is None and any(edit.until is not None for edit in edits):
            raise ValueError("an edit ends at a text: tokenizer= is wanted")
        self._requests, self._prompt = requests, prompt
        stops = sorted({edit.until for edit in edits if edit.until is not None})
        self._stops = Stops(stops, tokenizer) if stops and tokenizer is not None else None

    def apply(
        self, logits: Float[Tensor, "B T C"], ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T C"]:
        """The edited logits, a new tensor; a request's edits act one after another.

        ``positions`` are the tokens' places in their rows, −1: padding. Raises :class:`ValueError` where the rows
        cannot be dealt to the requests.
        """
        rows = len(logits)
        each = _each(rows, len(self._requests), "lists of edits")
        if self._stops is not None:
            self._stops.see(ids, positions, self._prompts(range(rows), rows))
        edited = logits.clone()
        for number, edits in enumerate(self._requests):
            mine = slice(number * each, (number + 1) * each)
            for edit in edits:
                z = edited[mine, :, edit.concept].clone()
                where = self._where(edit, positions[mine], range(rows)[mine], rows)
                changed = torch.where(is_ablated(z), z, _changed(z, edit))  # what is off stays off
                edited[mine, :, edit.concept] = changed if where is None else torch.where(where, changed, z)
        return edited

    def _where(
        self, edit: Edit, positions: Int[Tensor, "R T"], rows: range, all_rows: int
    ) -> Bool[Tensor, "R T"] | None:
        """At which tokens of these rows the edit holds; None: at all."""
        if (edit.start, edit.end, edit.until) == (0, None, None):
            return None
        first = self._places(edit.start, rows, all_rows)
        ends = [self._places(edit.end, rows, all_rows)] if edit.end is not None else []
        if edit.until is not None and self._stops is not None:
            ends.append([self._stops.place(row, edit.until) for row in rows])
        where = positions >= _column(first, positions)
        for end in ends:
            where &= positions < _column(end, positions)
        return where

    def _places(self, place: Place, rows: range, all_rows: int) -> list[int]:
        return self._prompts(rows, all_rows) if place == "prompt" else [place] * len(rows)

    def _prompts(self, rows: range, all_rows: int) -> list[int]:
        assert self._prompt is not None
        each = _each(all_rows, len(self._prompt), "prompts")
        return [self._prompt[row // each] for row in rows]


class Stops:
    """Follows the tokens of each row and finds from which on a stop stands in the text behind the prompt."""

    NEVER = torch.iinfo(torch.long).max

    def __init__(self, stops: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self._stops, self._tokenizer = stops, tokenizer
        self._rows: dict[int, dict[int, int]] = {}
        self._found: dict[tuple[int, str], int] = {}

    def see(self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"], prompts: Sequence[int]) -> None:
        """New tokens; a text that is run again, whole or from some token on, takes the place of the former."""
        for row, (tokens, places) in enumerate(zip(ids.tolist(), positions.tolist(), strict=True)):
            seen = self._rows.setdefault(row, {})
            for token, place in zip(tokens, places, strict=True):
                if place >= 0 and seen.get(place) != token:
                    if place in seen:
                        self._forget(row, place)
                    seen[place] = token
                    if place >= prompts[row]:
                        self._look(row, place, prompts[row])

    def place(self, row: int, stop: str) -> int:
        """The token with which the stop is complete; a very large number: it has not come."""
        return self._found.get((row, stop), self.NEVER)

    def _forget(self, row: int, place: int) -> None:
        seen = self._rows[row]
        for later in [p for p in seen if p >= place]:
            del seen[later]
        for key in [key for key, at in self._found.items() if key[0] == row and at >= place]:
            del self._found[key]

    def _look(self, row: int, place: int, prompt: int) -> None:
        open_stops = [stop for stop in self._stops if (row, stop) not in self._found]
        if not open_stops:
            return
        seen = self._rows[row]
        tokens, before = [seen[p] for p in sorted(seen)], sum(p < prompt for p in seen)
        text = continuation(self._tokenizer, tokens[:before], tokens[before:], skip_special_tokens=False)
        for stop in open_stops:
            if stop in text:
                self._found[row, stop] = place


def _each(rows: int, parts: int, what: str) -> int:
    if parts == 0 or rows % parts:
        raise ValueError(f"{rows} rows cannot be dealt to {parts} {what}: as many are wanted, or a multiple")
    return rows // parts


def _column(places: list[int], like: Tensor) -> Int[Tensor, "R 1"]:
    return torch.tensor(places, device=like.device).unsqueeze(1)


def _changed(z: Float[Tensor, "R T"], edit: Edit) -> Float[Tensor, "R T"]:
    match edit.kind:
        case "scale":
            return z * edit.value
        case "set":
            return torch.full_like(z, edit.value)
        case "add":
            return z + edit.value
        case "clamp":
            return z.clamp(edit.low, edit.high)
        case _:
            return ablated(z)
