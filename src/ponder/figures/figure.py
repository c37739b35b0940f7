"""What is known of a number that is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ponder.numbers import quantity, with_interval


@dataclass(frozen=True, slots=True)
class Figure:
    """What a number is. `meaning` is one sentence, of which the unit is a part where it is not a share."""

    key: str
    """In JSON."""
    label: str
    """On the console, in reports and in the viewer."""
    unit: str
    meaning: str
    write: Callable[[Any], str] = quantity

    def text(self, value: Any) -> str:
        """A number, or an estimate with its interval; a dash for none."""
        if value is None:
            return "–"
        return with_interval(value, self.write) if hasattr(value, "low") else self.write(value)
