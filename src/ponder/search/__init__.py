"""Search at inference under a hard budget."""

from ponder.budget.meter import Meter, Prices
from ponder.search.runner import solve
from ponder.search.seeds import derive

__all__ = ["Meter", "Prices", "derive", "solve"]
