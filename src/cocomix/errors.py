"""Mistakes that a user can mend, told in one sentence."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A mistake of the user's or of their machine: one sentence that names the option, the value, the mend.

    The command line prints the sentence and leaves with exit code 2; a library caller sees an exception.
    """


def near_name(name: str, choices: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the choice nearest to ``name``, or an empty string."""
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.55)
    return f" (did you mean '{near[0]}'?)" if near else ""


@contextmanager
def explained(path: Path | str) -> Iterator[None]:
    """Turns the operating system's refusals at ``path`` into a :class:`UserError`; other errors pass."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        reasons = {
            errno.ENOSPC: f"no space left on the disk while writing {where}: free some space and run the same "
            "command again, it goes on from what is complete",
            errno.EDQUOT: f"the disk quota is used up while writing {where}: free some space and run the same "
            "command again",
            errno.EACCES: f"no permission for {where}: choose a folder that you may write to, or change its rights",
            errno.EPERM: f"no permission for {where}: choose a folder that you may write to, or change its rights",
            errno.EROFS: f"{where} lies on a read-only file system: choose another folder",
            errno.ENOENT: f"{where} does not exist",
            errno.ENOTDIR: f"{where}: a part of this path is a file, not a folder",
            errno.EISDIR: f"{where} is a folder, a file is wanted",
        }
        if error.errno in reasons:
            raise UserError(reasons[error.errno]) from error
        raise
