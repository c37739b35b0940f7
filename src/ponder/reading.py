"""Whole files that users name, TOML and JSON: what is no such file is one sentence, and nothing waits for it."""

from __future__ import annotations

import json
import stat
import sys
import tomllib
from pathlib import Path
from typing import Any

from ponder.errors import UserError

CONFIG_BYTES = 16 << 20
"""Of the largest file that is read as a config or as prices."""
STATE_BYTES = 1 << 30
"""Of the largest file that is read as JSON: the state of a search holds all its responses."""


DEEPEST = 100
"""Levels of nesting that are read: code that walks through values calls itself for each of them."""


def loads(text: str | bytes) -> Any:
    """`json.loads`. Raises `ValueError`, for what is nested too deeply too."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    opening = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if opening > DEEPEST:
        _refuse_deep(found)
    return found


_TOO_DEEP = f"it is nested more than {DEEPEST} levels deep"


def _refuse_deep(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def refuse_nul(path: Path, what: str) -> None:
    """Raises `UserError` for a name that no system can have; TOML can write it."""
    if "\0" in str(path):
        raise UserError(f"{what} {str(path)!r}: holds a NUL character, which no file name can; give another name")


def refuse_special(path: Path) -> None:
    """Raises `UserError` for what exists and is no regular file: a folder, a pipe (it may never end), a device."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # opening it says why
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a folder, name a file in it")
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise UserError(f"{path}: is {kind}, not a regular file; write what it gives to a file first")


def text(path: Path, most: int, what: str = "file") -> str:
    """The text of a file. Raises `UserError` that names it, as `what` if it is missing."""
    refuse_special(path)
    try:
        with path.open("rb") as file:
            found = file.read(most + 1)
        if len(found) <= most:
            return found.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: not UTF-8 at byte {error.start + 1}") from None
    except (OSError, ValueError) as error:  # ValueError: a name that holds a NUL
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    raise UserError(f"{path}: has more than the {most:,} bytes that are read of such a file; is it the right one?")


def json_value(path: Path) -> Any:
    """The JSON in a file. Raises `UserError` that names the file."""
    written = text(path, STATE_BYTES)
    try:
        return loads(written)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {reason(error)}") from None


def toml_table(path: Path, what: str = "config file") -> dict[str, Any]:
    """The table in a TOML file. Raises `UserError` that names the file and the line."""
    written = text(path, CONFIG_BYTES, what)
    try:
        found = tomllib.loads(written)
        _refuse_deep(found)
        return found
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {reason(error)}") from None


def reason(error: ValueError | RecursionError) -> str:
    """Why a parser of JSON or TOML gave up, in words for a user."""
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    if "integer string conversion" in str(error):  # Python's own limit, which has no exception of its own
        return f"it holds a whole number of more than {sys.get_int_max_str_digits():,} digits; write it as text"
    return str(error)
