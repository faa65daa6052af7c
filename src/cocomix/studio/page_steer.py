"""The page Steer: a prompt continued without and with edits, side by side; what a dose does; how to repeat it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from cocomix.errors import UserError
from cocomix.studio import markup, markup_results
from cocomix.studio.answers import QUIET, place, told_as_it_comes, unchecked
from cocomix.studio.service import DOSES, Sampling, Studio
from cocomix.studio.sessions import Sessions
from cocomix.studio.sliders import KINDS, LARGEST, ROWS, Row, chunks, written
from cocomix.studio.streaming import Texts


class SteerPage(NamedTuple):
    """What other pages and the address need of this one."""

    prompt: gr.Textbox
    sampling: list[Any]
    """New tokens, temperature, seed."""
    rows: list[Any]
    """Concept, kind and value of each slider in a row."""
    row_boxes: list[gr.Row]
    shown_rows: gr.State
    """How many rows are shown."""
    more: gr.Textbox
    edits: gr.Textbox
    """All edits, a line each; hidden, for the address."""
    message: gr.HTML

    def show_rows(self, number: int) -> tuple[Any, ...]:
        """For ``shown_rows`` and ``row_boxes``."""
        number = min(number, ROWS)
        return (number, *(gr.Row(visible=at < number) for at in range(ROWS)))


def steer_page(studio: Studio, sessions: Sessions) -> SteerPage:
    """Builds the page inside the tab that is open."""
    unit = studio.unit

    @told_as_it_comes(4)
    def write(
        request: gr.Request, prompt: str | None, more: str | None, new: Any, temperature: Any, seed: Any, *rows: Any
    ) -> Iterator[tuple[Any, ...]]:
        prompt, edits, how = prompt or "", written(chunks(rows), more, unit), Sampling(new, temperature, seed)
        made, rest = Texts("", "" if edits else None), [gr.skip()] * 3
        with sessions.work(request.session_hash or "") as stop:
            stream = studio.stream(prompt, edits, how, stop)
            again = studio.as_command(prompt, edits, how), studio.as_python(prompt, edits, how)
            yield markup_results.texts(prompt, made, edits, "waiting …"), "\n".join(edits), *again
            try:
                for made in stream:
                    yield markup_results.texts(prompt, made, edits, "writing …"), *rest
            except UserError:
                yield markup_results.texts(prompt, made, edits, "not written"), *rest
                raise
            state = "stopped" if stop.is_set() else "done"
        yield markup_results.texts(prompt, made, edits, state), *rest

    @told_as_it_comes(1)
    def respond(request: gr.Request, number: str | None) -> Iterator[tuple[Any, ...]]:
        id = studio.concept_id(number or "")
        name = studio.names({id})[id]
        with sessions.work(request.session_hash or "") as stop:
            yield (markup.note("waiting or measuring …"),)
            for doses in studio.dose_response(id, stop):
                yield (markup_results.doses(doses, name, DOSES),)

    def stop(request: gr.Request) -> None:
        sessions.stop(request.session_hash or "")

    prompt = gr.Textbox(label="Prompt", lines=2, max_lines=6, elem_id="steer-prompt")
    rows: list[Any] = []
    boxes: list[gr.Row] = []
    shown_rows = gr.State(1)
    for number in range(ROWS):
        with gr.Row(elem_classes="line", visible=number == 0) as box:
            boxes.append(box)
            rows += map(unchecked, _slider(number, "× its usual strength" if unit else "strength"))
    another = gr.Button("Another concept", size="sm", elem_id="steer-another")
    with gr.Accordion("Sampling and further edits", open=False):
        sampling = [*map(unchecked, _sampling(min(studio.settings.new_tokens, studio.positions - 1)))]
        more = gr.Textbox(
            label="Further edits, one a line (12=clamp:0:4 @prompt: until:END)",
            lines=2,
            max_lines=6,
            elem_id="steer-more",
        )
    with gr.Row():
        go = gr.Button("Write", variant="primary", elem_id="steer-go", min_width=100)
        halt = gr.Button("Stop", elem_id="steer-stop", min_width=100)
        dose = gr.Button("Measure the first concept's effect", elem_id="steer-dose", min_width=160)
    message = place()
    shown = place("steer-shown")
    curve = place("steer-doses")
    with gr.Accordion("The same by command line and in Python", open=False):
        command = gr.Textbox(label="Command", buttons=["copy"], interactive=False, elem_id="steer-command")
        python = gr.Textbox(label="Python", lines=6, buttons=["copy"], interactive=False, elem_id="steer-python")
    edits = gr.Textbox(visible="hidden", elem_id="steer-edits")

    asked = [prompt, more, *sampling, *rows]
    # The service has places, and tells who waits for one; gradio would let them wait unseen.
    shared: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
    keep = "(prompt, edits, tokens, temperature, seed) => studio.remember({prompt, edits, tokens, temperature, seed})"
    for event, reach in ((go.click, "public"), (prompt.submit, "private")):
        event(write, asked, [shown, edits, command, python, message], api_name="write", api_visibility=reach, **shared)
        event(None, [prompt, edits, *sampling], None, js=keep)
    edits.change(None, [prompt, edits, *sampling], None, js=keep)
    dose.click(respond, rows[0], [curve, message], api_visibility="private", **shared)
    halt.click(stop, None, None, queue=False, **QUIET)
    page = SteerPage(prompt, sampling, rows, boxes, shown_rows, more, edits, message)
    another.click(lambda number: page.show_rows(number + 1), shown_rows, [shown_rows, *boxes], **QUIET)
    return page


def _slider(number: int, label: str) -> list[Any]:
    """The fields of a :class:`Row`."""
    kinds = [(told, kind) for kind, told in KINDS.items()]
    return [
        gr.Textbox(
            label="Concept",
            placeholder="e.g. 12",
            max_lines=1,
            elem_id=f"steer-concept-{number}",
            scale=1,
            min_width=90,
        ),
        gr.Dropdown(
            kinds, value="set", label="Edit", elem_id=f"steer-kind-{number}", scale=1, min_width=110, filterable=False
        ),
        gr.Slider(
            -LARGEST,
            LARGEST,
            value=Row().value,
            step=0.1,
            label=label,
            elem_id=f"steer-value-{number}",
            scale=3,
            min_width=160,
        ),
    ]


def _sampling(most: int) -> list[Any]:
    """The fields of :class:`Sampling`."""
    usual = min(60, max(1, most // 2))
    with gr.Row():
        return [
            gr.Slider(1, most, value=usual, step=1, label="New tokens", elem_id="steer-new", min_width=160),
            gr.Slider(0, 2, value=0.8, step=0.05, label="Temperature", elem_id="steer-temperature", min_width=160),
            gr.Number(value=0, precision=0, minimum=0, label="Seed", elem_id="steer-seed", min_width=90),
        ]
