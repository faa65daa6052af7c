"""Progress in a log: a line now and then."""

from __future__ import annotations

import contextlib
import os
import sys

import pytest

from cocomix import progress


def test_a_line_tells_the_time_left_only_once_something_was_done(monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.progress("labels", total=100, done=40) as bar:
        bar.advance(0)
        bar.advance(10, "note")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "labels: 40 of 100 (40%)"
    assert second.startswith("labels: 50 of 100 (50%, about ")
    assert second.endswith(" s left)  note")


def test_work_goes_on_where_nobody_reads_its_progress_any_more(monkeypatch):
    """As with ``2>&1 | tee log`` when the connection is lost."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    read, written = os.pipe()
    os.close(read)
    gone = os.fdopen(written, "w")
    monkeypatch.setattr(sys, "stderr", gone)
    with progress.progress("labels", total=2) as bar:
        bar.advance()
        bar.advance()
    progress.say("done")
    assert sys.stderr is not gone
    with contextlib.suppress(BrokenPipeError):
        gone.close()
