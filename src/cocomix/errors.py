"""Mistakes that a user can mend, told in one sentence."""

from __future__ import annotations

import difflib
import errno
import re
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
    except UserError:
        raise
    except Exception as error:
        # Of a copy or a rename that failed, the second name is the one that was written.
        where = getattr(error, "filename2", None) or getattr(error, "filename", None) or path
        reasons = {
            errno.ENOSPC: f"no space left on the disk while writing {where}: free some space and run the same "
            "command again, it goes on from what is complete",
            errno.EDQUOT: f"the disk quota is used up while writing {where}: free some space and run the same "
            "command again",
            errno.EACCES: f"no permission for {where}: choose a folder that you may write to, or change its rights",
            errno.EPERM: f"no permission for {where}: choose a folder that you may write to, or change its rights",
            errno.EROFS: f"{where} lies on a read-only file system: choose another folder",
            errno.ENOENT: f"{where} does not exist",
            errno.ENOTDIR: f"{where}: a part of this path is a file, not a folder: choose another path",
            errno.EEXIST: f"{where} is a file, a folder is wanted: choose another path",
            errno.EISDIR: f"{where} is a folder, a file is wanted",
        }
        number = _number(error)
        if number is not None and number in reasons:
            raise UserError(reasons[number]) from error
        raise


def _number(error: Exception) -> int | None:
    """The system's error number; of a refusal to write also where a library says it in words alone."""
    if isinstance(error, OSError):
        return error.errno
    text = str(error)
    if found := re.search(r"\(os error (\d+)\)", text):  # safetensors and tokenizers
        number = int(found[1])
        return number if number in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS) else None
    # SQLite, and torch.save after a write that came out short
    if text == "database or disk is full" or ("inline_container" in text and "unexpected pos" in text):
        return errno.ENOSPC
    return None
