"""Rank 0 leads, the others help."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from cocomix.dist.lead import Crew, led
from cocomix.dist.world import current, joined
from cocomix.errors import UserError
from cocomix.stopping import Stopped
from cocomix.testing.ranks import on_ranks, values


def helping(task: Any) -> str:
    if task == "fail":
        raise UserError(f"the disk of rank {current().rank} is full")
    if task == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
    if task == "die":
        os._exit(9)
    return f"{task} by {current().rank}"


def rounds(crew: Crew) -> tuple[list[Any], bool]:
    replies = []
    for number in range(3):
        crew.deal([f"task {number}.{helper}" for helper in range(crew.helpers)])
        replies.append(crew.collect())
    crew.deal(["not collected"] * crew.helpers)
    return replies, crew.stop_asked


def lead(work: Any) -> Any:
    with joined(timeout=30.0):
        return led(work, helping)


def test_tasks_and_replies_come_in_the_order_of_ranks_and_all_have_the_result() -> None:
    replies = [[f"task {number}.0 by 1", f"task {number}.1 by 2"] for number in range(3)]
    assert values(on_ranks(3, lead, rounds)) == [(replies, False)] * 3


def test_one_process_has_nobody_to_deal_to() -> None:
    assert lead(rounds) == ([[], [], []], False)


def failing_helper(crew: Crew) -> None:
    crew.deal(["fine", "fail"])
    crew.collect()


def failing_leader(crew: Crew) -> None:
    crew.deal(["fine"] * crew.helpers)  # their replies are due when the error comes
    raise UserError("the disk of the leader is full")


def stopping_leader(crew: Crew) -> None:
    crew.deal(["fine"] * crew.helpers)
    raise Stopped("saved at step 5")


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (failing_helper, "UserError: the disk of rank 2 is full"),
        (failing_leader, "UserError: the disk of the leader is full"),
        (stopping_leader, "Stopped: saved at step 5"),
    ],
)
def test_what_ends_the_work_ends_all_ranks(work: Any, error: str) -> None:
    assert [outcome.error for outcome in on_ranks(3, lead, work)] == [error] * 3


def hear_of_signal(crew: Crew) -> list[bool]:
    heard = []
    for tasks in (["a", "b"], ["stop", "b"], ["a", "b"]):
        crew.deal(tasks)
        crew.collect()
        heard.append(crew.stop_asked)
    return heard


def test_a_signal_to_a_helper_reaches_the_leader_with_its_reply() -> None:
    assert values(on_ranks(3, lead, hear_of_signal))[0] == [False, True, True]


def losing(crew: Crew) -> None:
    crew.deal(["a", "die"])
    crew.collect()


def test_a_helper_that_dies_ends_the_others_with_a_reason() -> None:
    leader, helper, dead = on_ranks(3, lead, losing)
    assert dead.error == "Died: exit code 9"
    for rank, survivor in enumerate((leader, helper)):
        assert (survivor.error or "").startswith(
            f"RankLost: rank {rank}, in round 1 of the work that rank 0 deals out: "
        )
