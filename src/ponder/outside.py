"""Code that is not ponder's: users' environments, scorers, verifiers, strategies. Whose fault an error is, and where.

What such code raises is its own fault, whatever it is: `SystemExit` must not end the command, `KeyboardInterrupt` that
nobody pressed and `CancelledError` that nobody asked for must not look like a stop. `PartFailed` then says which part
it was, what it raised, and the file and line of the user's code.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sysconfig
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ponder import signals
from ponder.errors import PartFailed, PonderError

P = ParamSpec("P")
T = TypeVar("T")
_LONGEST = 300
"""Characters of an exception's text that are shown."""


def call(what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function of a user's part; `what` names it in the `PartFailed` that is raised in place of its errors."""
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        found = fault(what, error, waits=False)
        if found is error:
            raise
        raise found from error


async def wait(what: str, work: Awaitable[T]) -> T:
    """`call` for what is awaited."""
    task = asyncio.current_task()
    try:
        return await work
    except BaseException as error:
        if isinstance(error, GeneratorExit) and _now() is not task:
            raise  # the task is thrown away
        found = fault(what, error)
        if found is error:
            raise
        raise found from error


def fault(what: str, error: BaseException, *, waits: bool = True) -> BaseException:
    """What to raise in place of an error of a part: `PartFailed`, or the error itself.

    It stays what it is if it is a `PonderError` (it has its sentence), a real interrupt or cancellation, an ordinary
    exception that no line of a user's code took part in, or an `IndexError` (there is no such problem). Without `waits`
    no cancellation is real.
    """
    if isinstance(error, PonderError | IndexError) or is_stop(error, waits=waits):
        return error
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration) and not place(error):
        return error
    return PartFailed(f"{what} failed: {sentence(error)}")


def is_stop(error: BaseException, *, waits: bool = True) -> bool:
    """Whether an error is a signal's interrupt or a cancellation of the running task, and no fault of a part."""
    if isinstance(error, asyncio.CancelledError) and waits:
        task = _now()
        return task is None or task.cancelling() > 0
    return signals.is_real(error)


def failure(error: BaseException) -> Exception:
    """An error of a part as an ordinary exception, for a caller that goes on without it. Raises what `is_stop`."""
    if is_stop(error) or (isinstance(error, GeneratorExit) and _now() is None):
        raise error
    if isinstance(error, Exception):
        return error
    found = PartFailed(sentence(error))
    found.__cause__ = error
    return found


def sentence(error: BaseException) -> str:
    """What was raised and where in the user's code: `ValueError: no such key (mine.py:12)`."""
    if isinstance(error, PonderError):
        return str(error)
    try:
        # The line of a SyntaxError is said below.
        text = " ".join((error.msg if isinstance(error, SyntaxError) and place(error) else str(error)).split())
    except Exception:
        text = "its text cannot be shown"
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    at = place(error)
    return f"{type(error).__name__}{': ' if text else ''}{text}{f' ({at})' if at else ''}"


def place(error: BaseException) -> str:
    """`FILE:LINE` of the innermost line of a user's code that took part in an error; empty if none did.

    A user's code is what belongs to neither Python, ponder nor an installed package, other than one whose part was
    `loaded`.
    """
    if isinstance(error, SyntaxError) and error.filename and _is_users(error.filename):
        return _shown(error.filename, error.lineno)
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    for name, line in reversed(lines):
        if _is_users(name) or _below(name, tuple(str(Path(part).parent) for part in _parts)):
            return _shown(name, line)
    return ""


def defined(thing: Any) -> str:
    """` (FILE:LINE)` where a class or a method of a user's code is defined; empty for anything else."""
    try:
        thing = inspect.unwrap(getattr(thing, "__func__", thing))
        name, line = inspect.getsourcefile(thing), inspect.getsourcelines(thing)[1]
    except (TypeError, OSError):
        return ""
    return f" ({_shown(name, line)})" if name and _is_users(name) else ""


def required(*, unless: str = "") -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Mark a method of a base class that each part gives, `unless` it gives the method that calls this one itself."""

    def mark(method: Callable[P, T]) -> Callable[P, T]:
        method.__dict__["required_unless"] = unless
        return method

    return mark


def lacking(part: type) -> list[str]:
    """The methods that a part must give (`required`) and does not."""
    found = []
    for name in dir(part):
        unless = getattr(inspect.getattr_static(part, name, None), "__dict__", {}).get("required_unless")
        if unless is not None and not (unless and _owner(part, unless) is not _owner(part, name)):
            found.append(name)
    return found


def _owner(part: type, name: str) -> type | None:
    return next((cls for cls in part.__mro__ if name in vars(cls)), None)


_parts: set[str] = set()
"""Files of the parts that were loaded by path or from an entry point."""


def loaded(part: type) -> None:
    """Remember the file of a user's part."""
    with contextlib.suppress(TypeError, OSError):
        _parts.add(inspect.getfile(part))


def took_part(error: BaseException) -> bool:
    """Whether a line of a part that was `loaded` took part in an error."""
    return any(frame.f_code.co_filename in _parts for frame, _ in traceback.walk_tb(error.__traceback__))


def whose(part: Any, kind: str) -> str:
    """A part as messages name it: `the environment countdown`; by its class where it has no name."""
    try:
        name = getattr(part, "name", "")
    except Exception:
        name = ""
    return f"the {kind} {name if isinstance(name, str) and name else type(part).__name__}"


def _now() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


@functools.cache
def _is_users(name: str) -> bool:
    paths = sysconfig.get_paths()
    others = (paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))
    return not name.startswith("<") and not _below(name, (str(Path(__file__).resolve().parent), *others))


def _shown(name: str, line: int | None) -> str:
    path = Path(name)
    with contextlib.suppress(ValueError, OSError):
        path = path.relative_to(Path.cwd())
    return f"{path}:{line}"


def _below(name: str, folders: tuple[str, ...]) -> bool:
    path = Path(name).absolute()
    return any(path.is_relative_to(folder) for folder in folders)
