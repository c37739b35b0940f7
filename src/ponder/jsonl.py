"""JSON Lines: one JSON object a line, in UTF-8, `.gz` too. The one reader of all such files.

Blank lines and a byte order mark are skipped. A torn last line is left by a writer that was killed while writing: it
has no line end and is not a JSON object.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ponder.errors import UserError
from ponder.reading import loads, reason, refuse_special

LONGEST = 1 << 28
"""Bytes of the longest line that is read."""


def objects(
    path: str | Path, *, torn: list[str] | None = None, some: bool = True
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The number (from 1), the place (`FILE: line N`, for messages) and the object of each line, one at a time.

    A torn last line is refused like any other bad one; with a list for `torn` it is skipped, and a sentence about it
    is added there. With `some` a file must be there and hold an object (a torn line alone is a bad one); without it
    a missing file has none.

    Raises `UserError`, one sentence that names the file and, where it is one, the line (and the byte, if it is not
    UTF-8): a missing or empty file, a folder, what cannot be read or unpacked, what is not a JSON object.
    """
    path = Path(path)
    refuse_special(path)
    if not path.is_file():
        if some:
            raise UserError(f"{path}: no such file")
        if not path.exists():
            return
    number, found = 0, False
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
                if len(line) > LONGEST:
                    raise UserError(f"{path}: line {number} has more than {LONGEST:,} bytes; is it a JSON Lines file?")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line.strip():
                    continue
                where = f"{path}: line {number}"
                try:
                    value = parse(line, where)
                except UserError:
                    # Only the last line can be torn.
                    if torn is None or line.endswith(b"\n") or (some and not found):
                        raise
                    torn.append(f"{where} is torn ({len(line)} bytes) and was skipped")
                    return
                found = True
                yield number, where, value
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        after = f" after line {number}" if number else ""
        raise UserError(f"{path}: cannot be read{after}: {reason}") from None
    if some and not found:
        raise UserError(f"{path}: is empty; it must hold one JSON object a line")


def parse(line: bytes, where: str) -> dict[str, Any]:
    """A line as a JSON object. Raises `UserError` that says where, and what it is instead."""
    try:
        value = loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8: {error.reason} at its byte {error.start + 1}") from None
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {reason(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a JSON object but {type(value).__name__}")
    return value
