"""Budgets: reserve the worst case of a call before it is sent, settle with what it used after.

| file | idea |
|---|---|
| `meter.py` | reserves from the whole chain of budgets, calls, settles; deadlines |
| `calling.py` | one call of an engine, from its reservation to its booking; retries with a new reservation |
| `ledger.py` | the books of one budget, and how much of a call it has room for |
| `hourly.py`, `machine.py` | machines paid by the hour: dollars as a deadline, seconds shared among concurrent calls |
| `prices.py`, `prices.toml` | dollars per million tokens and per hour, by the model's name |
| `streams.py` | pieces of a streamed call, pulled by their reader |
| `caller.py` | an engine behind the meter, for scorers |

The worst case in tokens is prompt and `max_tokens`; in dollars the same at the prices of the engine that is called. A
given prefix costs what prompt tokens do; where its length is not known, the higher price counts for all of the
response. The call's `Receipt` says what it used, however it ended: finished, failed, cancelled, its stream closed. A
receipt that stays unsettled is booked at the worst case; a `UserError` with one was refused before any work and costs
nothing.

Seconds are a deadline. A call that still runs is cancelled; what it had sampled reaches the search in the
`BudgetExceeded`, and it is over after the engine's `grace` at most. An engine in this process looks at the deadline
between its steps as well (`Receipt.left`), since the event loop may be busy. The seconds of a search begin when its
first call is worked on: an engine that keeps calls in a queue (`Engine.queues`) says when that is (`Receipt.begin`), so
that searches in flight do not use up each other's. Those of an enclosing budget count from its beginning.

A stream is pulled: the meter takes one piece, awaits its reader, then takes the next. A slow reader gives an endpoint
back-pressure, and what the endpoint may have sampled meanwhile is booked if the stream is cut. An engine in this
process is shared and does not wait: what a reader has not taken is merged, one entry per sample.

A machine that is paid by the hour is billed by `Spend.device_seconds`. The torch engine shares each step among its
rows and each prefill among its tokens; for engines that do not report it, the meter shares the time among calls in
flight. One engine object counts as one machine.

Prices: without `per_hour`, `prompt` and `output` must both be given. `PONDER_PRICES=FILE.toml` adds to the packaged
file and wins; `"*"` is every model that is not named. The packaged ones are public list prices of the date in the
file: check them before you rely on a budget in dollars. A dollar budget with a model of unknown price is refused
before anything is sent.
"""

from ponder.budget.meter import Meter, Prices

__all__ = ["Meter", "Prices"]
