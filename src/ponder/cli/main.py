"""The `ponder` command: finds the verb's file, runs it, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import ast
import contextlib
import errno
import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from ponder import outside, signals
from ponder.cli import _output
from ponder.errors import PonderError, nearest

HELPERS = {"main", "common"}
"""Modules of `ponder.cli` that are not verbs; names with a leading underscore are skipped too."""


def verbs() -> dict[str, str]:
    """Each verb with its one-line summary, read from the files without importing them."""
    folder = Path(__file__).parent
    found = {}
    for module in pkgutil.iter_modules([str(folder)]):
        if module.name in HELPERS or module.name.startswith("_"):
            continue
        file = folder / module.name / "__init__.py" if module.ispkg else folder / f"{module.name}.py"
        doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        found[module.name.replace("_", "-")] = doc.partition("\n")[0]
    return found


def help_text() -> str:
    """What `ponder --help` prints."""
    known = verbs()
    width = max(map(len, known), default=0)
    rows = "\n".join(f"  {verb:<{width}}  {summary}" for verb, summary in known.items())
    return (
        "usage: ponder VERB ...\n\n"
        "An open reasoning lab: teach a language model to think before it answers, search under a hard budget,\n"
        "and see what every extra token buys.\n\n"
        f"verbs:\n{rows}\n\n"
        "`ponder VERB --help` explains a verb and gives an example; `ponder --version` prints the version.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 bad usage or input, 130 interrupted.

    A second signal ends the process at once, with 128 and its number.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    with signals.handled():
        try:
            # Help is printed by the parser of flags, to stdout.
            with contextlib.nullcontext() if _asks_for_help(args) else _output.kept():
                code = _dispatch(args)
            sys.stdout.flush()
            return code
        except BaseException as error:
            return _failed(error)


def _failed(error: BaseException) -> int:
    """The exit code of an error, after its one sentence."""
    if isinstance(error, BrokenPipeError):
        # The reader (`| head`) closed the pipe; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    if isinstance(error, PonderError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, MemoryError):
        return _fail("out of memory: use a smaller batch, fewer samples or a smaller model", 1)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}the disk is full; free some space and try again", 1)
    if outside.took_part(error) and not signals.is_real(error):
        return _fail(f"code outside ponder failed: {outside.sentence(error)}", 1)
    if isinstance(error, KeyboardInterrupt):
        return _fail("interrupted", 130)
    if isinstance(error, SystemExit):
        return _exit_code(error)
    what = " ".join(str(error).split()) or "no message"
    return _fail(f"{type(error).__name__}: {what}; this is a bug; run with PONDER_DEBUG=1 for the traceback", 1)


def _asks_for_help(args: Sequence[str]) -> bool:
    return any(word in ("-h", "--help") or word.startswith("--tyro-") for word in args)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        _output.say(help_text().rstrip("\n"))
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        from importlib.metadata import version

        _output.say(f"ponder {version('ponder')}")
        return 0
    known = verbs()
    verb = args[0].replace("_", "-")
    if verb not in known:
        _output.note(f"ponder: unknown verb {args[0]!r}{nearest(verb, known)}; see ponder --help")
        return 2
    run: Callable[[list[str]], int] = importlib.import_module(f"ponder.cli.{verb.replace('-', '_')}").main
    return run(args[1:])


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    _output.note(str(error.code))
    return 1


def _fail(sentence: str, code: int) -> int:
    if os.environ.get("PONDER_DEBUG"):
        _output.note(traceback.format_exc())
    _output.note(f"ponder: {sentence}")
    return code
