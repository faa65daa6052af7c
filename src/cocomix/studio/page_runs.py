"""The page Runs: curves of the runs beside the model's, and their comparison."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from cocomix.errors import UserError
from cocomix.report.plots import loss_plot
from cocomix.studio import markup, markup_results
from cocomix.studio.answers import QUIET, place, told, unchecked
from cocomix.studio.service import Studio

AXES = [("tokens", "tokens"), ("FLOPs", "flops"), ("time", "seconds")]


class RunsPage(NamedTuple):
    """What the address needs of this page."""

    chosen: gr.CheckboxGroup
    axis: gr.Radio
    shown: gr.HTML
    message: gr.HTML
    compare: Any
    """Handler from (chosen, axis) to (shown, message)."""
    refresh: Any
    """Handler from (chosen) to (chosen), with the runs that are there now."""


def runs_page(studio: Studio) -> RunsPage:
    """Builds the page inside the tab that is open."""

    @told(1)
    def compare(chosen: list[str] | None, axis: Any) -> tuple[Any, ...]:
        if axis not in [name for _, name in AXES]:
            raise UserError(f"curves against {str(axis)[:20]!r} are not drawn: choose tokens, flops or seconds")
        if not chosen:
            return (markup.note("Choose the runs to compare."),)
        comparison = studio.compare(chosen)
        plot = loss_plot(comparison, axis).inline if any(entry.run.comparable for entry in comparison.entries) else ""
        return (markup_results.runs(comparison, plot),)

    def refresh(chosen: list[str] | None) -> Any:
        names = list(studio.runs())
        return gr.CheckboxGroup(choices=names, value=[name for name in chosen or names if name in names])

    chosen = gr.CheckboxGroup(choices=list(studio.runs()), label="Runs", elem_id="runs-chosen")
    axis = gr.Radio(AXES, value="tokens", label="Against", elem_id="runs-axis")
    for field in (chosen, axis):
        unchecked(field)
    button = gr.Button("Compare", variant="primary", elem_id="runs-go")
    message = place()
    shown = place("runs-shown")
    for event in (button.click, axis.input):
        event(compare, [chosen, axis], [shown, message], **QUIET).then(
            None, [chosen, axis], None, js="(runs, axis) => studio.remember({runs, axis})"
        )
    return RunsPage(chosen, axis, shown, message, compare, refresh)
