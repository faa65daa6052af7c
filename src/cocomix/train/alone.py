"""A run folder has one writer: it holds a lock on a file in it, which the system frees however the process ends."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cocomix.errors import UserError, explained

LOCK = ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """The context in which this process alone trains in ``folder``; the file is there only meanwhile.

    Raises :class:`UserError` that names the process which trains there already: one that a sweep left behind when it
    was killed, say.
    """
    path = folder / LOCK
    with explained(path):
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    try:
        with explained(path):
            file.truncate(0)
            file.write(f"{os.getpid()} {platform.node()}".encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink()
            if made:
                folder.rmdir()  # goes only where it is empty: nothing came of it
        file.close()


def _locked(path: Path) -> BinaryIO:
    while True:
        file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                raise UserError(_told(path, file.read().decode())) from None
        except OSError:
            return file  # a file system without locks: nothing to go by
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # who held it before has removed it meanwhile


def _told(path: Path, writer: str) -> str:
    number, _, machine = writer.partition(" ")
    here = machine == platform.node()
    who = f"process {number}{'' if here else f' on {machine}'}" if machine else "another process"
    down = "" if here or not machine else f", remove {path} if that machine is down"
    return (
        f"run={path.parent}: {who} trains in this folder already: wait for its end, stop it (SIGTERM: it saves what it "
        f"has){down}, or choose another run folder"
    )
