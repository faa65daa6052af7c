"""The four pages as one gradio app, and its server."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it would tell others that it is used
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
import gradio as gr

from cocomix.errors import UserError
from cocomix.progress import say
from cocomix.stopping import StopRequest
from cocomix.studio import markup
from cocomix.studio.answers import QUIET
from cocomix.studio.page_concept import ConceptPage, concept_page
from cocomix.studio.page_read import ReadPage, read_page
from cocomix.studio.page_runs import AXES, RunsPage, runs_page
from cocomix.studio.page_steer import SteerPage, steer_page
from cocomix.studio.service import Studio
from cocomix.studio.sessions import Sessions
from cocomix.studio.settings import StudioSettings
from cocomix.studio.sliders import Row, room_for, rows_of

OTHERS = 40
"""Threads for what needs no place, beside those that work in one or wait for it."""
HERE = Path(__file__).parent
PAGES = ("read", "concept", "steer", "runs")
LOOK = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="orange", neutral_hue="stone"
)
"""Fonts of the reader's system: others would be fetched."""


def build(studio: Studio, sessions: Sessions) -> gr.Blocks:
    """The app; ``sessions`` holds who is at work."""
    with gr.Blocks(title="CoCoMix studio", analytics_enabled=False) as app:
        gr.HTML(markup.head(studio), elem_classes="studio", apply_default_css=False)
        with gr.Tabs(selected="read") as tabs:
            with gr.Tab("Read", id="read") as read_tab:
                read = read_page(studio)
            with gr.Tab("Concept", id="concept") as concept_tab:
                concept = concept_page(studio)
            with gr.Tab("Steer", id="steer") as steer_tab:
                steer = steer_page(studio, sessions)
            with gr.Tab("Runs", id="runs") as runs_tab:
                runs = runs_page(studio)
        compare = runs.compare, [runs.chosen, runs.axis], [runs.shown, runs.message]
        runs_tab.select(*compare, **QUIET)
        for page, tab in zip(PAGES, (read_tab, concept_tab, steer_tab, runs_tab), strict=True):
            tab.select(None, None, None, js=f"() => studio.remember({{tab: '{page}'}})")
        _between_pages(tabs, read, concept, steer)
        _from_the_address(app, studio, tabs, read, concept, steer, runs)

        def leave(request: gr.Request) -> None:
            sessions.stop(request.session_hash or "")

        app.unload(leave)
    return app


def _between_pages(tabs: gr.Tabs, read: ReadPage, concept: ConceptPage, steer: SteerPage) -> None:
    """A concept's button opens its card, wherever it is; from the card one goes on to colour and to steer."""

    def go_to(event: gr.EventData) -> tuple[Any, ...]:
        return (gr.Tabs(selected="concept"), *concept.open(str(event._data.get("concept", ""))))

    for html in (read.shown, read.panel, concept.found, concept.card):
        opened = html.concept(go_to, None, [tabs, *concept.results], **QUIET)
        opened.then(None, concept.concept, None, js="(concept) => studio.remember({tab: 'concept', concept})")
        concept.complete(opened)

    def steer_with(number: str | None, shown: int, *fields: str | None) -> tuple[Any, ...]:
        row = room_for(number or "", fields)
        concepts = (number if at == row else gr.skip() for at in range(len(fields)))
        full = "" if row is not None or not number else f"no row is free for concept {number}: empty one first"
        rows = max(shown, len(fields) if row is None else row + 1)
        return (gr.Tabs(selected="steer"), *concepts, *steer.show_rows(rows), markup.alert(full))

    fields = steer.rows[:: len(Row._fields)]
    concept.steer.click(
        steer_with,
        [concept.concept, steer.shown_rows, *fields],
        [tabs, *fields, steer.shown_rows, *steer.row_boxes, steer.message],
        **QUIET,
    ).then(None, None, None, js="() => studio.remember({tab: 'steer'})")
    concept.colour.click(
        lambda number: (gr.Tabs(selected="read"), number), concept.concept, [tabs, read.colour], **QUIET
    ).then(read.read, [read.text, read.colour], read.results, **QUIET).then(
        None, read.colour, None, js="(colour) => studio.remember({tab: 'read', colour})"
    )


def _from_the_address(
    app: gr.Blocks,
    studio: Studio,
    tabs: gr.Tabs,
    read: ReadPage,
    concept: ConceptPage,
    steer: SteerPage,
    runs: RunsPage,
) -> None:
    """What the address says is put into the fields, and shown where that is quick: no text is written unasked."""
    query = gr.Textbox(visible="hidden")

    def restore(address: str | None) -> tuple[Any, ...]:
        asked = {key: values[0] for key, values in parse_qs((address or "").removeprefix("?")).items()}

        def of(key: str) -> Any:  # what is not asked for stays: somebody may be typing already
            return asked.get(key, gr.skip())

        rows, more = rows_of(asked.get("edits", "").splitlines(), studio.unit)
        return (
            gr.Tabs(selected=asked["tab"]) if asked.get("tab") in PAGES else gr.skip(),
            *(of(key) for key in ("text", "colour", "search", "concept", "prompt")),
            *(_number(asked.get(key)) for key in ("tokens", "temperature", "seed")),
            *(field if "edits" in asked else gr.skip() for row in rows for field in row),
            more if "edits" in asked else gr.skip(),
            *steer.show_rows(max(1, sum(bool(row.concept) for row in rows))),
            of("edits"),
            runs.refresh(asked["runs"].splitlines() if "runs" in asked else []),
            asked["axis"] if asked.get("axis") in [name for _, name in AXES] else gr.skip(),
        )

    def show(text: str | None, colour: str | None, number: str | None, search: str | None) -> tuple[Any, ...]:
        return (
            *(read.read(text, colour) if text else [gr.skip()] * len(read.results)),
            *(concept.open(number) if number else [gr.skip()] * len(concept.results)),
            concept.look(search)[0],
        )

    shown = app.load(
        restore,
        query,
        [tabs, read.text, read.colour, concept.search, concept.concept, steer.prompt, *steer.sampling, *steer.rows,
         steer.more, steer.shown_rows, *steer.row_boxes, steer.edits, runs.chosen, runs.axis],
        js="() => [studio.asked]",
        **QUIET
    ).then(None, None, None, js="() => { studio.isRestored = true; }").then(
        show,
        [read.text, read.colour, concept.concept, concept.search],
        [*read.results, *concept.results, concept.found],
        **QUIET
    )  # fmt: skip
    concept.complete(shown)


def _number(text: str | None) -> Any:
    """A number of the address; what is none leaves the field as it is."""
    try:
        value = float(text or "")
    except ValueError:
        return gr.skip()
    return value if 0 <= value < 2**53 else gr.skip()


def launch(studio: Studio, share: bool = False, auth: Sequence[tuple[str, str]] = ()) -> gr.Blocks:
    """Starts the server in the background and returns the app, with ``local_url`` and ``share_url``.

    Raises :class:`UserError` where the port or the address is not to be had.
    """
    settings = studio.settings
    app = build(studio, Sessions())
    app.queue(max_size=settings.waiting, default_concurrency_limit=8, api_open=False)
    threads = settings.generations + settings.waiting + OTHERS
    try:
        app.launch(
            server_name=settings.host,
            server_port=settings.port or _free_port(settings.host),
            share=share,
            auth=list(auth) or None,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            footer_links=[],
            max_threads=threads,
            ssr_mode=False,
            pwa=False,
            max_file_size=0,
            enable_monitoring=False,
            theme=LOOK,
            css=(HERE / "studio.css").read_text(encoding="utf-8"),
            head=f"<script>{(HERE / 'studio.js').read_text(encoding='utf-8')}</script>",
        )
    except OSError as error:
        raise UserError(
            f"port={settings.port} at host={settings.host} is not to be had ({error}): give another port, or port=0"
        ) from error
    return app


def serve(settings: StudioSettings, share: bool = False, auth: Sequence[tuple[str, str]] = ()) -> None:
    """Runs a studio until Ctrl-C or SIGTERM."""
    with StopRequest() as stop:
        app = launch(Studio(settings), share, auth)
        say(f"studio: {app.local_url}" + (f" and, for everyone, {app.share_url}" if share else ""))
        while not stop.requested:
            time.sleep(0.2)
        app.close(verbose=False)


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
