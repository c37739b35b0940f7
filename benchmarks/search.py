"""What the search itself costs: processor time per sampled response, and memory over many searches.

    python benchmarks/search.py [--searches 1000] [--samples 8] [--rounds 5] [--finished 20000] [--json] [--quick]

Many searches run at once on the simulated engine (`engines/simulated.py`), each with a budget of its own within a
shared one. What the engine itself takes is measured by the same requests without any search, alternating, and
subtracted: the rest is ask and tell, the meter, the trace and the tasks of the event loop. Processor time, so that
other load on the machine does not count. Memory is the blocks that Python's allocator has handed out, before and after
many more searches.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
from _compare import Printer, Row, median_interval
from _limits import machine

from ponder.engines.simulated import Simulated, SimulatedEngine
from ponder.environments.simulated import Simulated as Problems
from ponder.protocols import Feedback, Receipt, Strategy
from ponder.search import Meter, solve
from ponder.search.strategies.best_of_n import BestOfN
from ponder.search.strategies.budget_forcing import BudgetForcing
from ponder.search.strategies.direct import Direct
from ponder.types import Budget, Completion, Request

BAR = 1e-3
"""Seconds of processor time that a response may cost, in issue 4."""
ENV = Problems()


class Replaying(SimulatedEngine):
    """Writes down every request, so that the same can be asked again without a search."""

    def __init__(self, options: Simulated) -> None:
        super().__init__(options)
        self.requests: list[Request] = []

    async def generate(self, request: Request, receipt: Receipt | None = None) -> tuple[Completion, ...]:
        self.requests.append(request)
        return await super().generate(request, receipt)


@dataclass(frozen=True)
class Task:
    """Searches that run at once."""

    name: str
    strategy: Strategy
    n: bool = True
    """The engine takes several samples in a call."""
    checked: bool = False

    def options(self) -> Simulated:
        return Simulated(n=self.n, thinking=self.n)

    async def searches(self, count: int) -> tuple[float, int, list[Request]]:
        """Processor seconds and responses of `searches` searches at once, and what they asked."""
        engine = Replaying(self.options())
        parent = Meter(Budget(tokens=10**12, seconds=10**6))
        budget = Budget(tokens=10**9)
        feedback = Feedback(ENV.checker if self.checked else None)
        problems = [ENV.problem("test", i) for i in range(count)]
        started = time.process_time()
        outcomes = await asyncio.gather(
            *(solve(self.strategy, p, engine, budget=budget, feedback=feedback, parent=parent) for p in problems)
        )
        seconds = time.process_time() - started
        assert all(o.chosen is not None or o.trace.nodes for o in outcomes)
        return seconds, sum(r.n for r in engine.requests), engine.requests

    async def bare(self, requests: Sequence[Request]) -> float:
        """Processor seconds of the same requests at once without a search."""
        engine = self.options().open()
        started = time.process_time()
        await asyncio.gather(*(engine.generate(r) for r in requests))
        return time.process_time() - started

    def overhead(self, count: int) -> tuple[float, float]:
        """Processor seconds per response of the search itself, and of the engine."""
        gc.collect()
        searched, responses, requests = asyncio.run(self.searches(count))
        gc.collect()
        engine = asyncio.run(self.bare(requests))
        return (searched - engine) / responses, engine / responses


def finish(searches: int, at_once: int) -> tuple[int, int]:
    """Blocks of memory that Python holds after more searches have finished, and bytes of the process."""

    async def some() -> None:
        engine = Simulated(steps=4, step_tokens=20).open()
        parent, budget = Meter(Budget(tokens=10**15)), Budget(tokens=10**6, seconds=3600)
        for first in range(0, searches, at_once):
            problems = (ENV.problem("train", i) for i in range(first, first + at_once))
            await asyncio.gather(*(solve(BestOfN(n=2), p, engine, budget=budget, parent=parent) for p in problems))
        assert parent.idle

    asyncio.run(some())
    gc.collect()
    return sys.getallocatedblocks(), psutil.Process().memory_info().rss


def memory_row(searches: int, at_once: int) -> Row:
    finish(2 * at_once, at_once)  # what is created once
    blocks, rss = finish(at_once, at_once)
    more_blocks, more_rss = finish(searches, at_once)
    return Row(
        f"memory of each of {searches:,} finished searches",
        "blocks",
        (more_blocks - blocks) / searches,
        note=f"{blocks:,} blocks of memory before, {more_blocks:,} after; "
        f"resident {rss / 2**20:.1f} and {more_rss / 2**20:.1f} MiB",
        details={"blocks": [blocks, more_blocks], "resident_bytes": [rss, more_rss], "searches": searches},
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=1000, help="searches at once")
    parser.add_argument("--samples", type=int, default=8, help="samples of each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--finished", type=int, default=20_000, help="finished searches of the row on memory")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes that still run every row")
    args = parser.parse_args()
    if args.quick:
        args.searches, args.samples, args.rounds, args.finished = 20, 2, 2, 200
    n = args.samples
    printer = Printer(as_json=args.json, machine=machine())
    for task in (
        Task("direct", Direct(max_tokens=1000)),
        Task(f"best of {n}, checked, one call", BestOfN(n=n, max_tokens=1000), checked=True),
        Task(f"best of {n}, a call each", BestOfN(n=n, max_tokens=1000), n=False),
        Task(f"budget forcing × {n}, two calls", BudgetForcing(200, n=n), n=False),
    ):
        pairs = [task.overhead(args.searches) for _ in range(args.rounds)]
        estimate = median_interval([own for own, _ in pairs])
        printer.show(
            Row(
                f"search of a response: {task.name}",
                "µs",
                estimate.value * 1e6,
                rounds=estimate.n,
                low=None,
                method=estimate.method,
                mode=f"{args.searches:,} searches at once",
                note=f"{estimate.low * 1e6:.0f} to {estimate.high * 1e6:.0f} µs of processor time ({estimate.method}), "
                f"bar {BAR * 1e6:.0f}; the engine itself {statistics.median(e for _, e in pairs) * 1e6:.0f} µs",
                details={
                    "low": estimate.low * 1e6,
                    "high": estimate.high * 1e6,
                    "bar": BAR * 1e6,
                    "engine": statistics.median(e for _, e in pairs) * 1e6,
                },
            )
        )
    printer.show(memory_row(args.finished, min(args.searches, args.finished // 2)))
    return printer.end()


if __name__ == "__main__":
    sys.exit(main())
