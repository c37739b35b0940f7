"""How far the reader of a stream may be behind the endpoint that sends it."""

from __future__ import annotations

import time


class Lag:
    """Seconds for which the reader held up a stream, less the seconds for which it then waited for the endpoint."""

    def __init__(self) -> None:
        self._seconds, self._since, self._held = 0.0, time.perf_counter(), False

    @property
    def seconds(self) -> float:
        passed = time.perf_counter() - self._since
        return self._seconds + passed if self._held else max(0.0, self._seconds - passed)

    def turn(self, *, held: bool) -> None:
        """Note that the reader now has the last piece (`held`), or waits for the next one."""
        self._seconds, self._since, self._held = self.seconds, time.perf_counter(), held
