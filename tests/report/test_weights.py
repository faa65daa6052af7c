"""The histogram of the compression's weights."""

from __future__ import annotations

import re

import pytest

from cocomix.report.weights import BINS, UNUSED, USED, weights_plot, write_histogram


def bars(plot, colour):
    """Left and right edges of the bars of a colour that have a height, in the picture's units."""
    paths = re.findall(rf'd="([^"]*)"[^>]*style="[^"]*fill: {colour}', plot.svg)
    boxes = [[tuple(map(float, point)) for point in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)] for path in paths]
    return [(min(x), max(x)) for points in boxes for x in [[p[0] for p in points]] if len({p[1] for p in points}) > 1]


def test_bars_below_the_bound_are_told_apart_and_end_at_it():
    plot = weights_plot([0.001, 0.005, 0.0099, 0.0101, 0.5, 0.6, 0.7, 0.8], 0.01)
    unused, used = bars(plot, UNUSED), bars(plot, USED)
    assert len(unused) == 3
    assert max(right for _, right in unused) <= min(left for left, _ in used) + 1e-6
    assert "37.5 % below 0.01" in plot.caption
    assert plot.png.startswith(b"\x89PNG")


@pytest.mark.parametrize("norms", [[0.0], [0.0, 0.0, 1.0], [5.0], [0.01], [1e-30, 1e3]])
def test_norms_of_nothing_and_of_one_value_are_drawn(norms):
    plot = weights_plot(norms, 0.01)
    assert 1 <= len(bars(plot, UNUSED)) + len(bars(plot, USED)) <= BINS


def test_picture_is_written_whole(tmp_path):
    path = write_histogram([0.1, 0.2], 0.01, tmp_path / "new" / "compression.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["compression.png"]
