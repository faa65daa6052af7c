"""Prompts with their edits, one a line of a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from cocomix.errors import UserError, explained, near_name
from cocomix.steer.notation import Edit, parse_edit

LINE = '{"prompt": "text", "edits": ["12=x5"]}'


class Request(NamedTuple):
    """A text to continue."""

    prompt: str
    edits: tuple[Edit, ...] = ()
    place: str = ""
    """Where it was read, and a colon: what is said of it begins so."""


def read_requests(path: str, edits: Sequence[Edit] = ()) -> list[Request]:
    """The requests in a file of JSON lines, ``-``: standard input. ``edits`` are those of lines that give none.

    Raises :class:`UserError` that names the line for what is no request.
    """
    try:
        with explained(path), nullcontext(sys.stdin) if path == "-" else Path(path).open(encoding="utf-8") as lines:
            return _read(lines, path, edits)
    except UnicodeDecodeError as error:
        raise UserError(f"prompts={path} is not UTF-8: byte {error.start} is wrong; convert the file") from error


def _read(lines: Iterable[str], path: str, edits: Sequence[Edit]) -> list[Request]:
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"prompts={path}, line {number}: "
            try:
                found.append(_request(line, edits)._replace(place=place))
            except (UserError, json.JSONDecodeError, RecursionError) as error:
                what = str(error) if isinstance(error, UserError) else f"no valid JSON; write {LINE}"
                raise UserError(place + what) from error
    if not found:
        raise UserError(f"prompts={path} holds no prompt: write lines {LINE}")
    return found


def _request(line: str, edits: Sequence[Edit]) -> Request:
    value = json.loads(line)
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise UserError(f"no object with a prompt; write {LINE}")
    for key in value.keys() - {"prompt", "edits"}:
        raise UserError(f"unknown key {key[:80]!r}{near_name(key[:80], ['prompt', 'edits'])}; write {LINE}")
    given = value.get("edits")
    if given is None:
        return Request(value["prompt"], tuple(edits))
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise UserError(f"edits is no list of texts; write {LINE}")
    return Request(value["prompt"], tuple(parse_edit(text) for text in given))
