"""Who is at work, and how they are told to stop."""

from __future__ import annotations

from cocomix.studio.sessions import Sessions


def test_stopping_reaches_ones_own_work_alone() -> None:
    sessions = Sessions()
    with (
        sessions.work("a", "texts") as mine,
        sessions.work("a", "doses") as other,
        sessions.work("b", "texts") as theirs,
    ):
        assert sessions.stop("a", "texts")
        assert (mine.is_set(), other.is_set(), theirs.is_set()) == (True, False, False)
        assert sessions.stop("a")
        assert (other.is_set(), theirs.is_set()) == (True, False)
    assert len(sessions) == 0
    assert not sessions.stop("a")


def test_new_work_ends_the_former_of_its_kind() -> None:
    sessions = Sessions()
    with sessions.work("a", "texts") as former:
        with sessions.work("a", "texts") as latter:
            assert (former.is_set(), latter.is_set()) == (True, False)
        assert len(sessions) == 0
