"""Where handlers show what they have: HTML of ours, and one sentence when a person made a mistake."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from cocomix.errors import UserError
from cocomix.studio import markup

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""How most events are: without a veil over what is shown, and no address for programs."""

LISTEN = "studio.listen(element, trigger); // its events are 'concept', 'colour', 'token'"


def place(name: str | None = None) -> gr.HTML:
    """A place for HTML of :mod:`cocomix.studio.markup`; clicks on concepts and tokens in it are its events."""
    return gr.HTML(elem_id=name, elem_classes="studio", js_on_load=LISTEN, apply_default_css=False)


def unchecked(field: Any) -> Any:
    """The field, whose value comes as it is: the service judges it, in a sentence, where gradio would log a trace."""
    field.preprocess = lambda value: value
    return field


def told(outputs: int) -> Callable[[Callable[..., tuple[Any, ...]]], Callable[..., tuple[Any, ...]]]:
    """The handler's ``outputs`` values and an empty message; after a :class:`UserError` nothing but its sentence."""

    def wrap(handler: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        @functools.wraps(handler)
        def run(*given: Any) -> tuple[Any, ...]:
            try:
                return (*handler(*given), "")
            except UserError as error:
                return (*[gr.skip()] * outputs, markup.alert(str(error)))

        return run

    return wrap


def told_as_it_comes(outputs: int) -> Callable[[Callable[..., Iterator[tuple[Any, ...]]]], Callable[..., Any]]:
    """The same of a handler that answers bit by bit."""

    def answers(handler: Callable[..., Iterator[tuple[Any, ...]]], given: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        try:
            for answer in handler(*given):
                yield (*answer, "")
        except UserError as error:
            yield (*[gr.skip()] * outputs, markup.alert(str(error)))

    def wrap(handler: Callable[..., Iterator[tuple[Any, ...]]]) -> Callable[..., Any]:
        # A lambda: gradio asks whether it is a generator function, which a function whose types are checked is not.
        return functools.wraps(handler)(lambda *given: (yield from answers(handler, given)))

    return wrap
