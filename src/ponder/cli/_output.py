"""What the command prints: results on stdout, all else on stderr, with control characters made visible.

stdout is the command's own: what a user's code, a library or a child process prints there goes to stderr, so that the
output of `--json` is JSON alone and that of `solve` the answer alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from ponder.show import WHOLE, visible

_results: TextIO | None = None
"""stdout, while it is kept for the command."""


def results() -> TextIO:
    """Where results go."""
    return sys.stdout if _results is None else _results


def say(text: str) -> None:
    """Print a result; numbers, JSON, the path of a report."""
    stream = results()
    print(_encoded(visible(text, WHOLE), stream), file=stream)


def note(text: str) -> None:
    """Print anything else, to stderr. A terminal that is gone is no error."""
    with contextlib.suppress(OSError, ValueError):
        print(_encoded(visible(text, WHOLE), sys.stderr), file=sys.stderr, flush=True)


def _encoded(text: str, stream: TextIO) -> str:
    """The text with what the stream's encoding lacks as escapes."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """While open, stdout takes results alone; the rest of what is printed goes to stderr, from child processes too."""
    global _results
    if _results is not None or sys.stdout is None or sys.stderr is None:
        yield
        return
    own = sys.stdout
    own.flush()
    _results, saved = _apart(own)
    sys.stdout = sys.stderr
    try:
        yield
        _results.flush()
    finally:
        stream, _results, sys.stdout = _results, None, own
        if saved is not None:
            with contextlib.suppress(OSError):
                sys.stderr.flush()
            os.dup2(saved, 1)
            os.close(saved)
            # What a reader that has gone (`| head`) did not take is dropped.
            with contextlib.suppress(OSError):
                stream.close()


def _apart(own: TextIO) -> tuple[TextIO, int | None]:
    """A stream that keeps writing to stdout, and its descriptor, while descriptor 1 becomes that of stderr."""
    try:
        if own.fileno() != 1:
            return own, None
        saved, copy = os.dup(1), os.dup(1)
        os.dup2(2, 1)
    except (OSError, ValueError):  # a stream without a descriptor, or a closed stderr
        return own, None
    return open(copy, "w", encoding=own.encoding, errors=own.errors, buffering=1 if own.isatty() else -1), saved
