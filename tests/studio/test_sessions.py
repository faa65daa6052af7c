"""Who is at work, and how they are told to stop."""

from __future__ import annotations

from cocomix.studio.sessions import Sessions


def test_stopping_reaches_all_of_ones_own_work_and_nobody_elses() -> None:
    sessions = Sessions()
    with sessions.work("a") as texts, sessions.work("a") as doses, sessions.work("b") as theirs:
        assert len(sessions) == 3
        assert sessions.stop("a")
        assert (texts.is_set(), doses.is_set(), theirs.is_set()) == (True, True, False)
    assert len(sessions) == 0
    assert not sessions.stop("a")
