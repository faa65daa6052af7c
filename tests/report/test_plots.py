"""What the figures show."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from cocomix.report.figure import METHOD_COLOURS, method_colours
from cocomix.report.plots import cost_plot, loss_plot, plots

SVG = "{http://www.w3.org/2000/svg}"


def texts(plot):
    return ["".join(element.itertext()).strip() for element in ElementTree.fromstring(plot.svg).iter(f"{SVG}text")]


def strokes(plot, colour):
    """The styles of the lines in a colour."""
    return [style for style in re.findall(r'style="([^"]*)"', plot.svg) if f"stroke: {colour}" in style]


def test_methods_keep_their_colours_and_all_differ():
    groups = ["a", "ntp", "b", "cocomix", "c", "d", "e"]
    colours = method_colours(groups)
    assert colours["cocomix"] == METHOD_COLOURS["cocomix"] == method_colours(["cocomix"])["cocomix"]
    assert len(set(colours.values())) == len(groups)
    assert set(method_colours([str(i) for i in range(30)])) == {str(i) for i in range(30)}


def test_methods_are_named_at_their_curves(comparison):
    named = texts(loss_plot(comparison, "tokens"))
    assert {"ntp", "cocomix", "cocomix_add"} <= set(named)
    assert "training tokens" in named
    # neither read as mathematics nor as markup, and cut where it would take the curves' room
    assert "$a_b$ <script>alert('…" in named


@pytest.mark.parametrize(("axis", "dashed"), [("tokens", False), ("flops", True), ("seconds", True)])
def test_teachers_labels_are_dashed_where_they_cost(comparison, axis, dashed):
    plot = loss_plot(comparison, axis)
    assert any("stroke-dasharray" in style for style in strokes(plot, METHOD_COLOURS["cocomix"])) == dashed
    assert not any("stroke-dasharray" in style for style in strokes(plot, METHOD_COLOURS["ntp"]))
    assert any("dashed" in text for text in texts(plot)) == dashed


def test_every_seed_is_drawn_beside_the_mean(comparison):
    lines = [s for s in strokes(loss_plot(comparison, "tokens"), METHOD_COLOURS["cocomix"]) if "fill: none" in s]
    assert sum("opacity" in style for style in lines) == 2
    assert sum("opacity" not in style for style in lines) == 1


def test_bars_stack_every_part_of_the_cost(comparison):
    named = texts(cost_plot(comparison, "flops"))
    assert {"student's training", "labels", "teacher's training", "SAE's training"} <= set(named)
    # student 6e12, labels 3e12, teacher 2e12, SAE 1e12
    assert "12 TFLOP" in named
    assert "6 TFLOP" in named
    # 100 s, 50 s, 20 s, 10 s
    assert "3 min" in texts(cost_plot(comparison, "seconds"))


def test_alt_texts_tell_the_final_losses(comparison):
    by_name = {plot.name: plot for plot in plots(comparison)}
    final = comparison.pairs[0].final
    assert f"ntp {final.baseline:.3f}, cocomix {final.candidate:.3f}" in by_name["loss-tokens"].alt
    assert by_name["cost-flops"].png.startswith(b"\x89PNG")
