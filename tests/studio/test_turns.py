"""Who may work, and in which order."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from cocomix.studio.turns import Turns


def test_so_many_work_at_once_and_the_others_come_in_their_order() -> None:
    turns, came, working, most = Turns(2, 50), [], [], []

    def work(number: int) -> None:
        with turns.one():
            came.append(number)
            working.append(number)
            most.append(len(working))
            time.sleep(0.002)
            working.remove(number)

    with ThreadPoolExecutor(20) as pool, turns.one(), turns.one():
        for number in range(20):
            pool.submit(work, number)
            while len(turns._waiting) <= number:
                time.sleep(0.001)
    assert sorted(came) == list(range(20))
    assert all(abs(number - place) <= 1 for place, number in enumerate(came))  # two at once may swap
    assert max(most) <= 2


def test_who_is_to_stop_gets_no_place_and_leaves_none_taken() -> None:
    turns, stop = Turns(1, 1), threading.Event()
    stop.set()
    with turns.one(stop) as may:
        assert not may
    with turns.one() as may:
        assert may
