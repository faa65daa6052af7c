"""The command line: one file a verb; a room is imported only when its verb is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cocomix.dist.world import RankLost, launched

INTERRUPTED = 130
"""What typer makes of Ctrl-C (128 + SIGINT)."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line (default: this process's) and returns its exit code, see :func:`run`."""
    code = run(words)
    if words is None and launched()[1] > 1:
        # A rank must not be torn down: PyTorch 2.13 may abort then, in threads of a process group, and hide the code.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def run(words: Sequence[str] | None = None) -> int:
    """The exit code of a command line: 0 done, 2 a user's mistake, 75 stopped and resumable, 69 another rank was lost.

    Of many ranks that meet the same error, rank 0 tells it.
    """
    from cocomix.cli.app import UsageError, app, told
    from cocomix.errors import UserError, explained
    from cocomix.progress import is_first_rank
    from cocomix.stopping import EXIT_LOST, EXIT_STOPPED, Stopped

    def tell(text: str, everywhere: bool = False) -> None:
        if everywhere or is_first_rank():
            print(text, file=sys.stderr, flush=True)

    try:
        with explained("the output"):
            code = app(args=None if words is None else list(words), prog_name="cocomix", standalone_mode=False)
    except UsageError as error:
        tell(told(error, sys.argv[1:] if words is None else words))
        return 2
    except UserError as error:
        rank = getattr(error, "rank", 0)  # one that was met by this rank alone, see dist/world.py
        tell(f"error: rank {rank}: {error}" if rank else f"error: {error}", everywhere=rank > 0)
        return 2
    except Stopped as stopped:
        tell(f"stopped: {stopped}")
        return EXIT_STOPPED
    except RankLost as lost:
        tell(f"error: {lost}; the same command goes on from the last checkpoint", True)
        return EXIT_LOST
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; it is not imported for its name alone
            raise
        first = str(error).split(". ")[0]
        tell(
            f"error: {first}: set more micro_batches= (training), or a smaller batch_windows= or batch= (all else); "
            "what was saved is kept",
            True,
        )
        return 2
    if code == INTERRUPTED:
        tell("interrupted: finished steps are kept, run the same command to go on")
    return code if isinstance(code, int) else 0
