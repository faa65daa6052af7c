"""The command line: one file a verb; a room is imported only when its verb is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence

INTERRUPTED = 130
"""What typer makes of Ctrl-C (128 + SIGINT)."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code: 0 done, 2 a user's mistake, 75 stopped and resumable."""
    from cocomix.cli.app import UsageError, app, told
    from cocomix.errors import UserError, explained
    from cocomix.stopping import EXIT_STOPPED, Stopped

    try:
        with explained("the output"):
            code = app(args=None if words is None else list(words), prog_name="cocomix", standalone_mode=False)
    except UsageError as error:
        print(told(error), file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        return EXIT_STOPPED
    if code == INTERRUPTED:
        print("interrupted: finished steps are kept, run the same command to go on", file=sys.stderr)
    return code if isinstance(code, int) else 0
