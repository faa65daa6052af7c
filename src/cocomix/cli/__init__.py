"""The command line: one file a verb; a room is imported only when its verb is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code: 0 done, 2 a user's mistake, 75 stopped and resumable."""
    from cocomix.cli.app import app
    from cocomix.errors import UserError, explained
    from cocomix.stopping import EXIT_STOPPED, Stopped

    try:
        with explained("the output"):
            app(args=None if words is None else list(words), prog_name="cocomix")
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print("interrupted: finished steps are kept, run the same command to go on", file=sys.stderr)
        return 130
    return 0
