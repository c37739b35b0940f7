"""Progress of long work on stderr: one live line on a terminal, an occasional plain line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from ponder.numbers import duration, quantity
from ponder.show import WHOLE, visible

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Progress:
    """Shows how far work is, with fields such as reward, length and tokens/s, and the time left.

    `total` is in any unit that `update` counts in (steps, problems, seconds); None if it is not known. `at_once` of
    them are under way at the same time: while only the quickest eighth of so many is done, the time left is not said.
    Use `with`.
    Off a terminal a line is printed at most every `every` seconds, so that a log stays short.
    """

    def __init__(
        self,
        label: str,
        total: float | None = None,
        *,
        unit: str = "",
        at_once: int = 0,
        every: float = 10.0,
        stream: TextIO | None = None,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._total, self._unit, self._every, self._quiet = visible(label), total, unit, every, quiet
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._start = clock()
        self._printed: float | None = None
        self._line = ""
        self._at_once = at_once
        self._seen: list[tuple[float, float]] = []
        """What was done at which time, the oldest first."""
        self._first: tuple[float, float] | None = None
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        self._start = self._clock()
        if not self._quiet and self._stream.isatty():
            self._bar = _bar(self._stream)
            self._bar.start()
            self._bar.add_task(self._label.replace("[", "\\["), total=self._total, fields="")
        return self

    def update(
        self, done: float, *, total: float | None = None, left: float | None = None, **fields: float | str | None
    ) -> None:
        """Say that `done` of `total` is done; a total that became known meanwhile replaces the first.

        `left` is the time left in seconds, estimated from the rate if None.
        Fields are shown in order, `tokens_per_s` as `tokens/s`, `_` as a space; None is left out.
        """
        self._seen.append((done, self._clock()))
        self._first = self._first or self._seen[0]
        self._total = self._total if total is None else total
        left = self._left(done) if left is None else left
        shown = [f"{_name(k)} {v if isinstance(v, str) else quantity(v)}" for k, v in fields.items() if v is not None]
        if left is not None:
            shown.append(f"{duration(left)} left")
        text = " · ".join(shown)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=self._total, fields=text)
            return
        count = quantity(done) + (f"/{quantity(self._total)}" if self._total is not None else "")
        self._line = f"{self._label} {count}{' ' + self._unit if self._unit else ''}  {text}".rstrip()
        if self._printed is None or self._clock() - self._printed >= self._every:
            self._print()

    def note(self, text: str) -> None:
        """Print a separate line, such as an evaluation's result, without disturbing the bar."""
        if self._quiet:
            return
        text = visible(text, WHOLE)
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def _left(self, done: float) -> float | None:
        """Seconds left, at the rate of the later half of what was done; None while too little is.

        A resumed run's first steps cost it nothing: they are not counted.
        """
        first = self._first or (0.0, self._start)
        if self._total is None or done <= 0 or (done < self._total and done - first[0] < self._at_once / 8):
            return None
        since, began = first if done > first[0] else (0.0, self._start)
        # Done by half: the rate of what finished since then is not that of the quickest first ones.
        while len(self._seen) > 2 and self._seen[1][0] <= since + (done - since) / 2:
            del self._seen[0]
        if self._seen[0][0] < done:
            since, began = self._seen[0]
        return (self._clock() - began) / (done - since) * max(0.0, self._total - done)

    def _print(self) -> None:
        if self._line and not self._quiet:
            print(self._line, file=self._stream, flush=True)
            self._line = ""
            self._printed = self._clock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        else:
            self._print()


def _name(field: str) -> str:
    return field.replace("_per_", "/").replace("_", " ")


def _bar(stream: TextIO) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[fields]}"),
        console=Console(file=stream),
        refresh_per_second=4,
    )
