"""The page Read: a text's tokens by surprise or by a concept, and what is mixed behind each."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from cocomix.studio import markup
from cocomix.studio.answers import QUIET, place, told
from cocomix.studio.service import Studio


class ReadPage(NamedTuple):
    """What other pages and the address need of this one."""

    text: gr.Textbox
    colour: gr.Textbox
    shown: gr.HTML
    panel: gr.HTML
    results: list[Any]
    """What is shown, the panel, the text that was read, the chosen token, the message."""
    read: Any
    """Handler from (text, colour) to ``results``."""


def read_page(studio: Studio) -> ReadPage:
    """Builds the page inside the tab that is open."""

    @told(4)
    def read(text: str | None, colour: str | None) -> tuple[Any, ...]:
        concept = studio.concept_id(colour) if colour and colour.strip() else None
        shown = markup.text(studio.read(text or ""), concept)
        return shown, markup.note("Choose a token to see what is mixed behind it."), text or "", None

    @told(2)
    def choose(event: gr.EventData, text: str) -> tuple[Any, ...]:
        reading, number = studio.read(text), event._data.get("token")
        if not isinstance(number, int) or not 0 <= number < len(reading.tokens):
            return markup.note("The text has changed: read it again."), None
        return markup.token_panel(reading, number), number

    @told(1)
    def measure(text: str, number: int | None) -> tuple[Any, ...]:
        chosen = -1 if number is None else number
        done = studio.measure(text, chosen)
        return (markup.token_panel(studio.read(text), chosen, done),)

    text = gr.Textbox(label="Text", lines=3, max_lines=8, placeholder="Type or paste a text", elem_id="read-text")
    examples = studio.examples()
    if examples:
        picked = gr.Examples([[e] for e in examples], inputs=text, label="Or take a held-out one", examples_per_page=8)
    with gr.Row(elem_classes="line"):
        colour = gr.Textbox(label="Colour by a concept (its number; empty: surprise)", elem_id="read-colour", scale=3)
        button = gr.Button("Read", variant="primary", elem_id="read-button", scale=1, min_width=120)
    message = place()
    shown = place("read-shown")
    panel = place("read-panel")
    was_read, chosen = gr.State(""), gr.State(None)  # the box may hold another text by the time a token is chosen
    measured = gr.Button("Measure what each of them does", elem_id="read-measure")
    results = [shown, panel, was_read, chosen, message]
    patient = QUIET | {"show_progress": "minimal"}  # a place may have to be waited for
    events = [button.click, colour.submit] + ([picked.load_input_event.then] if examples else [])
    for event in events:
        event(read, [text, colour], results, **patient).then(
            None, [text, colour], None, js="(text, colour) => studio.remember({text, colour})"
        )
    shown.token(choose, was_read, [panel, chosen, message], **QUIET)
    measured.click(measure, [was_read, chosen], [panel, message], **patient)
    return ReadPage(text, colour, shown, panel, results, read)
