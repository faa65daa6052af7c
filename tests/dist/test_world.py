"""What ranks tell each other, over gloo."""

from __future__ import annotations

import os
import time

import pytest
import torch

from cocomix.dist.world import World, joined
from cocomix.errors import UserError
from cocomix.testing.ranks import on_ranks, values


def talk() -> dict:
    with joined() as world:
        return {
            "rank": world.rank,
            "gathered": world.gather(f"from {world.rank}"),
            "first": world.from_first(world.rank + 10),
            "to_first": world.to_first(world.rank),
            "table": world.table([0.1 * world.rank, 1e300]),
            "once": world.once(lambda: world.rank + 5),
        }


def test_ranks_tell_each_other_values_in_their_order():
    for rank, said in enumerate(values(on_ranks(2, talk))):
        assert said == {
            "rank": rank,
            "gathered": ["from 0", "from 1"],
            "first": 10,
            "to_first": [0, 1] if rank == 0 else None,
            "table": [[0.0, 1e300], [0.1, 1e300]],
            "once": 5,
        }


def test_a_world_of_one_needs_no_process_group():
    with joined() as world:
        assert (world.rank, world.size, world.first) == (0, 1, True)
        assert world.gather("x") == world.to_first("x") == ["x"]
        assert world.table([1.0, 2.0]) == [[1.0, 2.0]]
        assert world.once(lambda: 3) == world.in_turn(lambda: 3) == 3
        world.barrier()


def fail_on_one() -> None:
    with joined() as world, world.together():
        if world.rank == 1:
            raise UserError("the disk of rank 1 is full")


def test_a_mistake_that_one_rank_meets_is_raised_by_all():
    assert [o.error for o in on_ranks(2, fail_on_one)] == ["UserError: the disk of rank 1 is full"] * 2


def take_turns(folder: str) -> bool:
    with joined() as world:
        return world.in_turn(lambda: os.path.exists(f"{folder}/made") or open(f"{folder}/made", "w").close() or False)


def test_rank_0_goes_first_and_the_others_find_what_it_made(tmp_path):
    assert values(on_ranks(2, take_turns, str(tmp_path))) == [False, True]


def one_dies() -> None:
    with joined(timeout=30) as world:
        world.beat("in step 7")
        world.barrier()
        if world.rank == 1:
            os._exit(9)
        world.table([1.0])


def test_a_rank_that_dies_ends_the_others_with_a_reason():
    survivor, dead = on_ranks(2, one_dies)
    assert dead.error == "Died: exit code 9"
    assert survivor.error.startswith("RankLost: rank 0, in step 7: another rank is gone")


def one_hangs() -> None:
    with joined(timeout=2) as world:
        world.beat(f"in step {7 + world.rank}")
        world.barrier()
        if world.rank == 1:
            time.sleep(6)
        world.table([1.0])


def test_a_rank_that_hangs_ends_the_others_after_the_timeout_and_is_named():
    survivor, _ = on_ranks(2, one_hangs)
    assert survivor.error == (
        "RankLost: rank 0, in step 7: another rank does not answer (rank 1 was last heard of in step 8)"
    )


@pytest.fixture
def second_of_two(monkeypatch) -> list[str]:
    """This process is rank 1 of two on a machine with one GPU; the list holds the backends that it joins by."""
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    backends: list[str] = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: backends.append(backend))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    return backends


def test_a_rank_without_a_gpu_tells_it_itself(second_of_two):
    with pytest.raises(UserError, match="rank 1 of this machine has no GPU: it has 1") as error, joined():
        pass
    assert error.value.rank == 1
    assert second_of_two == []


def test_ranks_that_compute_on_cpus_need_no_gpu(second_of_two):
    with joined(device="cpu") as world:
        assert world.rank == 1
    assert second_of_two == ["gloo"]


def test_alone_a_mistake_is_raised_as_it_is():
    with pytest.raises(UserError, match="here"), World().together():
        raise UserError("here")
