"""An unsteered and a steered text, made side by side in one batch, that can be stopped at every token."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from cocomix.steer.generation import continue_all
from cocomix.steer.requests import Request
from cocomix.steer.settings import GenerateSettings
from cocomix.steer.text import continuation


class Texts(NamedTuple):
    """Both continuations as far as they are written."""

    unsteered: str
    steered: str | None
    """None: there are no edits."""


class Stopped(Exception):
    """Raised inside the generation to end it."""


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    settings: GenerateSettings,
    stop: threading.Event,
) -> Iterator[Texts]:
    """The continuations of one request, or of the same prompt without and with edits, after each token.

    Setting ``stop`` ends the work within a token, as does closing the iterator. What the work raises is raised here.
    """
    news: queue.SimpleQueue[list[str] | BaseException | None] = queue.SimpleQueue()
    closed = threading.Event()
    rows = _Rows(tokenizer, lambda: stop.is_set() or closed.is_set(), news)

    def work() -> None:
        try:
            news.put([texts[0] for texts in continue_all(model, tokenizer, requests, settings, rows)])
        except Stopped:
            pass
        except BaseException as error:
            news.put(error)
        news.put(None)

    worker = threading.Thread(target=work, name="generation", daemon=True)
    worker.start()
    try:
        while (found := news.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield Texts(found[0], found[1] if len(found) > 1 else None)
    finally:
        closed.set()
        worker.join()


class _Rows(BaseStreamer):
    """Told of the prompt, then of a token a row; tells the rows' texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, is_over: Callable[[], bool], news: Any) -> None:
        self._tokenizer, self._is_over, self._news = tokenizer, is_over, news
        self._prompts: list[list[int]] = []
        self._rows: list[list[int]] = []

    def put(self, value: Any) -> None:
        if self._is_over():
            raise Stopped
        if not self._prompts:
            self._prompts = value.tolist()
            self._rows = [[] for _ in value]
            return
        for row, token in zip(self._rows, value.tolist(), strict=True):
            row.append(token)
        self._news.put([continuation(self._tokenizer, *row) for row in zip(self._prompts, self._rows, strict=True)])

    def end(self) -> None:
        """The whole texts come from who generates."""
