"""Calls on machines that are paid by the hour, under a budget in dollars.

How long a call takes is not known before, so its dollars cannot be reserved; but they can be bounded by a deadline. The
calls that run now began at `oldest` or later, and the seconds of a machine that are shared among them are at most those
that pass (`Spend.device_seconds`). So until a time t they cost at most rate × (t - oldest), where the rate is that of
all machines together, and with `left` dollars left, all of them may run until oldest + left / rate.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Hourly:
    """The calls of one budget that are paid by the hour."""

    rates: dict[int, float] = field(default_factory=dict)
    """Dollars per second of each machine that may be called, by engine."""
    _calls: dict[object, float] = field(default_factory=dict)
    """When each running call began, in that order."""
    _machines: frozenset[int] = frozenset()
    _rate: float = 0.0
    _latest: float = 0.0
    """When the last of the running calls will have ended."""

    def open_to(self, machine: int) -> bool:
        """Whether a call of a machine may begin; one that was not known when others began waits for them to end."""
        return not self._calls or machine in self._machines

    def until(self, now: float, left: float) -> float:
        """When calls that begin now must have ended, with `left` dollars left besides what runs."""
        if not self._calls:
            return now + left / sum(self.rates.values())
        return max(self._latest, self._oldest + left / self._rate)

    def least(self, grace: float) -> float:
        """Dollars that a call needs at least, if it may need so many seconds to stop; 0 if others run."""
        return 0.0 if self._calls else grace * sum(self.rates.values())

    @property
    def committed(self) -> float:
        """Dollars that running calls may still cost."""
        return max(0.0, (self._latest - self._oldest) * self._rate) if self._calls else 0.0

    @property
    def _oldest(self) -> float:
        return next(iter(self._calls.values()))

    def begin(self, call: object, now: float, until: float) -> None:
        if not self._calls:
            self._machines, self._rate, self._latest = frozenset(self.rates), sum(self.rates.values()), until
        self._calls[call] = now
        self._latest = max(self._latest, until)

    def end(self, call: object) -> None:
        self._calls.pop(call, None)
