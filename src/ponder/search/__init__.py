"""Search at inference under a hard budget."""

from ponder.budget.meter import Meter, Prices
from ponder.search.runner import solve, stream
from ponder.search.seeds import derive
from ponder.search.solving import Solving

__all__ = ["Meter", "Prices", "Solving", "derive", "solve", "stream"]
