"""The page Concept: search, a concept's card, its name."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from cocomix.errors import UserError
from cocomix.studio import markup, markup_card
from cocomix.studio.answers import QUIET, place, told
from cocomix.studio.service import Studio


class ConceptPage(NamedTuple):
    """What other pages and the address need of this one."""

    concept: gr.Textbox
    """Number of the concept that is shown."""
    search: gr.Textbox
    found: gr.HTML
    card: gr.HTML
    results: list[Any]
    """The concept, its card and name, whether its usual strength is still to be measured, the message."""
    steer: gr.Button
    colour: gr.Button
    open: Any
    """Handler from (number) to ``results``."""
    complete: Any
    """Called with the event that opened a card: measures what is still missing in it, and shows it."""
    look: Any
    """Handler from (search) to (found, message)."""


def concept_page(studio: Studio) -> ConceptPage:
    """Builds the page inside the tab that is open."""

    @told(1)
    def look(text: str | None) -> tuple[Any, ...]:
        return (search_for(text),)

    def search_for(text: str | None) -> str:
        return markup_card.found(studio.search(text or "", markup_card.FOUND + 1))

    @told(4)
    def open_card(number: str | None) -> tuple[Any, ...]:
        if not number or not number.strip():
            return "", markup.note("Search, or write a concept's number, and choose a concept."), "", False
        card = studio.card(studio.concept_id(number))
        return str(card["id"]), markup_card.card(card), card["name"], card["usual"] is None

    def measure(is_due: bool) -> tuple[Any, ...]:
        if is_due:
            try:
                studio.measure_usual()
            except UserError as error:
                return False, markup.alert(str(error))
        return gr.skip(), gr.skip()

    @told(2)
    def fill(number: str | None) -> tuple[Any, ...]:
        return markup_card.card(studio.card(studio.concept_id(number or ""))), False

    def complete(opened: Any) -> None:
        # Two steps: by the time that it is measured, another card may be open, and that is to be filled.
        opened.then(measure, due, [due, message], **QUIET).then(
            lambda is_due, number: fill(number) if is_due else (gr.skip(),) * 3,
            [due, concept],
            [card, due, message],
            **QUIET,
        )

    @told(3)
    def rename(request: gr.Request, number: str | None, name: str | None, text: str | None) -> tuple[Any, ...]:
        id = studio.concept_id(number or "")
        studio.rename(id, name or "", request.username or "")
        card = studio.card(id)
        return markup_card.card(card), card["name"], search_for(text)

    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            search = gr.Textbox(
                label="Search", placeholder="a word, or a number", elem_id="concept-search", max_lines=1
            )
            find = gr.Button("Search", elem_id="concept-find")
            found = place("concept-found")
        with gr.Column(scale=3, min_width=280):
            message = place()
            concept = gr.Textbox(visible="hidden", elem_id="concept-number")
            with gr.Row(elem_classes="line"):
                name = gr.Textbox(label="Name (empty: the automatic one)", max_lines=1, elem_id="concept-name", scale=3)
                rename_button = gr.Button("Rename", elem_id="concept-rename", scale=1, min_width=100)
            with gr.Row():
                steer = gr.Button("Steer with it", elem_id="concept-steer", min_width=120)
                colour = gr.Button("Colour the text by it", elem_id="concept-colour", min_width=120)
            card = place("concept-card")
            due = gr.State(False)
    for event in (find.click, search.submit):
        event(look, search, [found, message], **QUIET).then(
            None, search, None, js="(search) => studio.remember({search})"
        )
    for event in (rename_button.click, name.submit):
        event(rename, [concept, name, search], [card, name, found, message], **QUIET)
    results = [concept, card, name, due, message]
    return ConceptPage(concept, search, found, card, results, steer, colour, open_card, complete, look)
