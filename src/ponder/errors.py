"""The errors that reach a user. Each carries one clear sentence that says how to fix it.

`UserError` (exit code 2) is the user's to fix: a flag, a file, a request. `PonderError` (exit code 1)
is any other deliberate end of the work. The command line prints the sentence, never a traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ponder.types import Completion


class PonderError(Exception):
    """Work that had to stop; the message is one sentence for the user."""

    exit_code = 1


class UserError(PonderError, ValueError):
    """Bad input or usage: names the file, field or flag, and says how to fix it."""

    exit_code = 2


class Unsupported(UserError):
    """The engine, model or environment cannot do what was asked; the message says which can."""


class TooLong(UserError):
    """A prompt that does not fit the context with its response; the message has the numbers."""


class MissingExtra(UserError):
    """An optional dependency is not installed; the message gives the install command."""

    def __init__(self, what: str, extra: str, command: str | None = None) -> None:
        command = command or f"pip install 'ponder[{extra}]'"
        super().__init__(f"{what} needs the optional part {extra!r}: install it with: {command}")


class Unfinished(PonderError):
    """A call that did not finish; `completions` are what had been sampled by then, where that is known."""

    def __init__(self, message: str, completions: tuple[Completion, ...] = ()) -> None:
        super().__init__(message)
        self.completions = completions


class BudgetExceeded(Unfinished):
    """A reservation did not fit into what is left of a budget, or a call ran out of time."""


class OutOfTime(Unfinished):
    """A call that its engine ended because `Receipt.left` was used up; the meter says which budget it was."""


class CallCancelled(Unfinished):
    """A call that its search no longer wanted."""

    def __init__(self, completions: tuple[Completion, ...] = ()) -> None:
        super().__init__("cancelled: the search no longer needed it", completions)


class CallFailed(Unfinished):
    """A call whose engine failed after it had sampled something; the message is the engine's."""


class Retryable(PonderError):
    """A call that used up its reservation and may be tried again with another one.

    It may be tried `attempts_left` more times, after `wait` seconds.
    """

    def __init__(self, message: str, attempts_left: int = 0, wait: float = 0.0) -> None:
        super().__init__(message)
        self.attempts_left = attempts_left
        self.wait = wait


class PartFailed(PonderError):
    """A user's environment, scorer, verifier or strategy raised an error, or gave what it must not give.

    The message names the part and, where it raised, the line of its code (`ponder.outside`).
    """


class EngineClosed(PonderError):
    """The engine was closed while (or before) the request ran."""


class TrainingDiverged(PonderError):
    """A loss or gradient was not finite."""


class Refusals:
    """What is refused by several checks, collected so that a user is told all of it at once."""

    def __init__(self) -> None:
        self.found: list[UserError] = []

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """While open, a `UserError` is kept in place of being raised."""
        try:
            yield
        except UserError as error:
            self.found.append(error)

    def add(self, sentence: str) -> None:
        self.found.append(UserError(sentence))

    def raise_all(self) -> None:
        """Raises the one `UserError` there is, or one that lists them, a line each; nothing if there is none."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            lines = "".join(f"\n  {number}. {error}" for number, error in enumerate(self.found, 1))
            raise UserError(f"{len(self.found)} things have to be changed:{lines}")


ALIKE = 0.75
"""Least likeness of a known name that is suggested, if it begins with the same letter: a slip of the fingers."""
NEARLY = 0.85
"""The same for one that begins otherwise."""
MOST_MEANT = 4
"""Names of which the given one is a part and that are suggested together; more are no suggestion."""
SHORTEST = 3
"""Characters of a part."""


def alike(name: str, known: Iterable[str]) -> list[str]:
    """What may have been meant by a name: the known ones of which it is a part (`tokens`, `temp`), or the closest."""
    names = sorted(known)
    part = re.compile(rf"(?:^|[-_.]){re.escape(name)}")
    holding = [n for n in names if part.search(n)] if len(name) >= SHORTEST else []
    if 0 < len(holding) <= MOST_MEANT:
        return holding
    first = [n for n in names if n[:1] == name[:1]]
    return difflib.get_close_matches(name, first, 1, ALIKE) or difflib.get_close_matches(name, names, 1, NEARLY)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known names that are `alike`, or the list of known names."""
    names = sorted(known)
    if meant := [repr(n) for n in alike(name, names)]:
        return f"; did you mean {', '.join(meant[:-1])}{' or ' * (len(meant) > 1)}{meant[-1]}?"
    return f"; known: {', '.join(names)}" if names else ""
