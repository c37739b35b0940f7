"""Machine time: the seconds of one machine, shared among the calls that ran on it."""

from __future__ import annotations


class MachineTime:
    """Gives every call its share of the time that passes: with k rows running, each row has 1/k of it.

    The shares of calls that have ended add up to no more than the time during which at least one ran.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._share = 0.0
        """Seconds that a row would have had, had it run from the beginning."""
        self._now = 0.0

    @property
    def idle(self) -> bool:
        return not self._rows

    def begin(self, rows: int, now: float) -> float:
        """Begin a call of so many rows; give the result to `end`."""
        self._pass(now)
        self._rows += rows
        return self._share

    def end(self, rows: int, begun: float, now: float) -> float:
        """End it: the seconds of the machine that each of its rows had."""
        self._pass(now)
        self._rows -= rows
        return self._share - begun

    def _pass(self, now: float) -> None:
        if self._rows:
            self._share += (now - self._now) / self._rows
        else:
            self._share = 0.0
        self._now = now
