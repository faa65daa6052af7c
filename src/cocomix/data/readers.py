"""Readers of text files: each yields (a document's text, bytes of the file read so far), piece by piece."""

from __future__ import annotations

import codecs
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cocomix.data.settings import PrepareSettings
from cocomix.errors import UserError, explained, near_name

TYPES = ".txt, .jsonl (both also .gz or .zst) or .parquet"
PIECE = 1 << 17
"""Bytes read at once; a compressed piece may grow a thousandfold."""
WHOLE = 1 << 16
"""A text file of no more characters is one document."""
CUT = 1 << 14
"""In a longer one a document ends at the first blank line behind so many characters."""
LONGEST = 1 << 26
"""Characters in which a separator must be found."""

Reader = Callable[[Path, PrepareSettings], Iterator[tuple[str, int]]]


def reader_for(path: Path) -> Reader | None:
    """The reader for a file of this name, None where there is none."""
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
        return {".txt": read_txt, ".jsonl": read_jsonl}.get(suffixes[-1]) if suffixes else None
    readers: dict[str, Reader] = {".txt": read_txt, ".jsonl": read_jsonl, ".parquet": read_parquet}
    return readers.get(suffixes[-1]) if suffixes else None


def read_txt(path: Path, settings: PrepareSettings) -> Iterator[tuple[str, int]]:
    """Documents between separators; without one the whole file, or a long file cut at blank lines."""
    separator, rest, read, cut_any = settings.separator, "", 0, False
    if separator is not None:  # the text's line ends are made one character
        separator = separator.replace("\r\n", "\n").replace("\r", "\n")
    for piece, read in _characters(path):
        rest += piece
        if separator is not None:
            *whole, rest = rest.split(separator)
            if len(rest) > LONGEST:
                raise UserError(f"{path}: separator={separator!r} is not found within {LONGEST:,} characters")
            yield from ((text.strip("\n"), read) for text in whole)
            continue
        while len(rest) > WHOLE:
            end = _cut(rest)
            cut_any = True
            yield rest[:end].strip("\n"), read
            rest = rest[end:]
    # What is left of a cut file is up to four pieces long: it is cut on, so that pieces stay alike.
    while cut_any and len(rest) > 2 * CUT:
        end = _cut(rest)
        yield rest[:end].strip("\n"), read
        rest = rest[end:]
    if rest.strip("\n"):
        yield rest.strip("\n"), read


def _cut(text: str) -> int:
    """Where a document of a long text ends: behind a blank line, else a line, else a word, else anywhere."""
    for gap in ("\n\n", "\n", " "):
        found = text.find(gap, CUT, WHOLE)
        if found >= 0:
            return found + len(gap)
    return WHOLE if len(text) > WHOLE else len(text)


def read_jsonl(path: Path, settings: PrepareSettings) -> Iterator[tuple[str, int]]:
    """One JSON object a line; blank lines are passed over."""
    offset = 0
    for number, (line, read) in enumerate(_lines(path), start=1):
        where = f"{path}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            row = json.loads(text) if text.strip() else None
        except UnicodeDecodeError as error:
            raise _not_utf8(path, offset + error.start) from error
        except (ValueError, RecursionError) as error:  # also of a number too long to be read
            raise UserError(f"{where} is no valid JSON ({error}): mend or remove that line") from error
        offset += len(line) + 1
        if row is None and not text.strip():
            continue
        if not isinstance(row, dict):
            raise UserError(
                f"{where} is a JSON {type(row).__name__} where an object with the field {settings.field!r} is wanted"
            )
        yield text_of(row, settings.field, where), read


def read_parquet(path: Path, settings: PrepareSettings) -> Iterator[tuple[str, int]]:
    """One document a row of the column ``field``."""
    import pyarrow
    import pyarrow.parquet

    size = path.stat().st_size
    try:
        with explained(path), pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if settings.field not in names:
                raise _no_field(settings.field, names, str(path))
            row, rows = 0, max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=256, columns=[settings.field]):
                for value in _values(batch.column(0), f"{path}, rows {row + 1} … {row + len(batch)}"):
                    row += 1
                    text = text_of({settings.field: value}, settings.field, f"{path}, row {row}")
                    yield text, size * row // rows
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is no whole parquet file ({str(error).splitlines()[0]}): fetch it again") from error
    except OSError as error:  # arrow tells of a page cut short by an OSError without a number
        if error.errno is not None:
            raise
        raise UserError(f"{path} is no whole parquet file ({error}): fetch it again") from error


def _values(column: Any, where: str) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: the text is not UTF-8 ({error}): write the file again") from error


def text_of(row: Mapping[str, Any], field: str, where: str) -> str:
    """The text in ``field`` of a row; null is an empty text, a lone surrogate becomes U+FFFD."""
    if field not in row:
        raise _no_field(field, list(row), where)
    value = row[field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: field={field} holds a {type(value).__name__}, text is wanted")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _no_field(field: str, names: list[str], where: str) -> UserError:
    known = ", ".join(map(str, names)) or "none"
    return UserError(f"{where}: there is no field={field}{near_name(field, map(str, names))}; fields here: {known}")


def _not_utf8(path: Path, offset: int) -> UserError:
    unpacked = " of the unpacked text" if path.suffix.lower() in (".gz", ".zst") else ""
    return UserError(f"{path} is not UTF-8: byte {offset:,}{unpacked} is wrong; convert the file to UTF-8")


def _characters(path: Path) -> Iterator[tuple[str, int]]:
    """The file's text in pieces, line ends as ``\\n``, without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    fed, read = 0, 0
    try:
        for piece, read in _pieces(path):
            pending = len(decoder.getstate()[0])
            text = line_ends.decode(decoder.decode(piece))
            yield text if fed else text.removeprefix("\ufeff"), read
            fed += len(piece)
        pending = len(decoder.getstate()[0])
        yield line_ends.decode(decoder.decode(b"", final=True), final=True), read
    except UnicodeDecodeError as error:
        raise _not_utf8(path, fed - pending + error.start) from error


def _lines(path: Path) -> Iterator[tuple[bytes, int]]:
    rest: list[bytes] = []
    read = 0
    for piece, read in _pieces(path):
        first, *others = piece.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest), read
            yield from ((line, read) for line in others[:-1])
            rest = [others[-1]]
    if last := b"".join(rest):
        yield last, read


def _pieces(path: Path) -> Iterator[tuple[bytes, int]]:
    """The file's bytes, unpacked where its name says so, each piece with the bytes of the file read so far.

    zstandard's own file reader takes a truncated file for a whole one; the objects used here know where a
    frame ends.
    """
    with explained(path), path.open("rb") as file:
        raw = iter(lambda: file.read(PIECE), b"")
        suffix = path.suffix.lower()
        if suffix == ".gz":
            yield from _unpacked(path, raw, lambda: zlib.decompressobj(31))
        elif suffix == ".zst":
            import zstandard

            # files packed with --long have windows above zstandard's own limit
            yield from _unpacked(path, raw, lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj())
        else:
            read = 0
            for piece in raw:
                read += len(piece)
                yield piece, read


def _unpacked(path: Path, raw: Iterable[bytes], frame: Callable[[], Any]) -> Iterator[tuple[bytes, int]]:
    import zstandard

    current, read = None, 0
    for packed in raw:
        read += len(packed)
        if current is None and read > len(packed):
            packed = packed.lstrip(b"\0")  # gzip allows zeros behind the last member
        while packed:
            current = frame() if current is None else current
            try:
                piece = current.decompress(packed)
            except (zlib.error, zstandard.ZstdError) as error:
                raise UserError(f"{path} is damaged before byte {read:,} ({error}): fetch it again") from error
            packed = b""
            if current.eof:
                packed = current.unused_data.lstrip(b"\0")
                current = None
            yield piece, read
    if current is not None:
        raise UserError(f"{path} is truncated: it ends after {read:,} bytes in the middle of its data; fetch it again")
