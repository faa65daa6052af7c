"""SQLite files as a process leaves them that is killed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


def killed_while_changing(path: Path, change: str) -> Path:
    """Leaves the file with half of the change in it, and beside it the journal that takes that back; returns this."""
    journal = path.with_name(f"{path.name}-journal")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")  # pages are written before the commit
        connection.execute("BEGIN")
        connection.execute(change)
        left = {file: file.read_bytes() for file in (path, journal)}
    for file, content in left.items():
        file.write_bytes(content)
    return journal
