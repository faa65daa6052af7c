"""SQLite files as a process leaves them that is killed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


def killed_while_changing(path: Path, change: str) -> Path:
    """Leaves the file with half of a large change in it, and beside it the journal that takes it back; returns this."""
    journal, before = path.with_name(f"{path.name}-journal"), path.read_bytes()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")  # pages are written before the commit
        connection.execute("BEGIN")
        connection.execute(change)
        left = {file: file.read_bytes() for file in (path, journal)}
    assert left[path] != before, "a small change is written with the commit: nothing is half done"
    for file, content in left.items():
        file.write_bytes(content)
    return journal
