"""Several ranks on one CPU, over gloo: a function run in as many processes, each with torchrun's environment."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

PRELOAD = [
    "torch.distributed.tensor",
    "transformers.models.gpt2.modeling_gpt2",
    "cocomix.train.verb",
    "cocomix.concepts.extract",
]
"""Imported once by the server that forks the ranks: each then starts in a fraction of a second."""
PATIENCE = 120.0
"""Seconds after which ranks that hang are ended, so that a wrong test ends too."""


class Outcome(NamedTuple):
    """What became of a rank."""

    value: Any
    """What the function returned; None where it raised."""
    error: str | None
    """Class and text of what it raised."""
    trace: str = ""


def on_ranks(size: int, work: Callable[..., Any], *args: Any) -> list[Outcome]:
    """Runs ``work(*args)`` (a function of a module, arguments that pickle) as ``size`` ranks: outcomes in order."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ends, processes = [], []
    for rank in range(size):
        here, there = context.Pipe(duplex=False)
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        process = context.Process(target=_rank, args=(there, environment, str(Path.cwd()), work, args))
        process.start()
        there.close()
        ends.append(here)
        processes.append(process)
    outcomes = []
    for end, process in zip(ends, processes, strict=True):
        try:
            found = end.recv() if end.poll(PATIENCE) else Outcome(None, "Hang: no answer")
        except EOFError:
            process.join()
            found = Outcome(None, f"Died: exit code {process.exitcode}")
        outcomes.append(found)
    for process in processes:
        process.join(5)
        if process.is_alive():
            process.kill()
    return outcomes


def values(outcomes: list[Outcome]) -> list[Any]:
    """The ranks' results; raises the first error with its trace."""
    for rank, outcome in enumerate(outcomes):
        if outcome.error is not None:
            raise AssertionError(f"rank {rank}: {outcome.error}\n{outcome.trace}")
    return [outcome.value for outcome in outcomes]


def _rank(end: Connection, environment: dict[str, Any], folder: str, work: Callable[..., Any], args: Any) -> None:
    os.environ |= {name: str(value) for name, value in environment.items()}
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.chdir(folder)
    import torch

    torch.set_num_threads(1)
    try:
        end.send(Outcome(work(*args), None))
    except BaseException as error:
        end.send(Outcome(None, f"{type(error).__name__}: {error}", traceback.format_exc()))
    finally:
        end.close()
