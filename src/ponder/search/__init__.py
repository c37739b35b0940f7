"""Search at inference under a hard budget.

`runner.solve` loops over a search's `ask()` and `tell()`; the work is `Generate`, `Check`, `Score`, `Group` (which
answers are the same), `Act` (an environment's turn after a response), `Hold` and `Release` (leases on prefixes).

- **A search is a value** (`asking.Asking`): it acts only on what it was told, in any order, and draws all
  randomness from its seed. So what it was told is its state: `journal.Journal` writes it down, each answer with a
  fingerprint of its question; `solve(journal=…)` replays it in another process and asks only for what is missing.
  With a larger budget a search may ask differently: an answer to another question is not used, and a response that a
  budget cut short is sampled again. Spend and seconds of a saved search count against the budget that it is resumed
  with.
- **Early stopping does not depend on order.** Samples are looked at by index: a rule sees the longest run of indices
  without a gap. What runs beyond it is cancelled, and its cost is booked and shown.
- **Branching.** A node's completion is the whole response up to there. A request that grows it gives its ids (or
  text, for engines without ids) as `Request.prefix`, which costs what prompt tokens do. `Trace.transcript` has the
  path to a leaf as one sequence of ids.
- **The answer reserve.** `Generate.answer_reserve` keeps room for a second call that ends the same response;
  `Search.reserve` keeps room for one last call of the whole search, which alone is `final`.
- **Turns.** `episodes.Episodes` keeps an environment's episodes by path; a branch forks one, or replays the path from
  the opening. A turn's reward is removed before the search sees the turn.
- **Scores cost.** A `Scorer` works by itself and declares its worst case (`worst`: reserved, then settled),
  or names an engine and is given it behind the meter (`budget.caller`). Without room, the search continues without
  scores.
- **Several engines.** `solve(others={"big": engine})` gives a strategy further engines by name, each with its prices.

`tests/test_search_budget.py` holds random searches on the simulated engine against what it really used, in virtual
time: 1,000 in each run of the suite, 10,000 by `pytest -m slow tests/test_search_budget.py`.
"""

from ponder.budget.meter import Meter, Prices
from ponder.search.runner import solve, stream
from ponder.search.seeds import derive
from ponder.search.solving import Solving

__all__ = ["Meter", "Prices", "Solving", "derive", "solve", "stream"]
