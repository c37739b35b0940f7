"""What a search and an evaluation cost in speed: tokens/s of `evaluate` over those of the bare engine.

    python benchmarks/eval_throughput.py [--model ponder-tiny] [--strategy majority] [--rounds 6] [--json] [--quick]

Both sides are the same engine in this process, alternating, with its caches dropped before each run. ponder's is
`evaluation.evaluate` with the strategy: searches, meter (with a budget that is never reached, so that every call is
reserved and settled), votes, judge, and each search written to a `rollouts.jsonl`. The peer is `engine.generate` of
the same requests, with as many in flight. To reach: a ratio of 0.9.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _compare import Printer, Row, alternate, compare, paired_ratio
from _limits import machine
from _workers import settle

from ponder import registry, sync
from ponder.engines.torch import TorchEngine
from ponder.evaluation.evaluate import Plan, each, evaluate
from ponder.evaluation.results import Searched
from ponder.evaluation.rollouts import to_line
from ponder.models.load import load
from ponder.protocols import Environment, Receipt, Strategy
from ponder.runs.files import append_line
from ponder.types import Budget, Completion, Estimate, Problem, Request

NEVER = Budget(tokens=10_000_000)


@dataclass
class Recorder:
    """The engine, with the requests that went through it."""

    engine: TorchEngine
    requests: list[Request] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def generate(self, request: Request, receipt: Receipt | None = None) -> tuple[Completion, ...]:
        self.requests.append(request)
        return await self.engine.generate(request, receipt)


@dataclass(frozen=True)
class Case:
    """How many searches are in flight, and samples per search."""

    searches: int
    n: int
    problems: int
    max_tokens: int

    @property
    def name(self) -> str:
        return f"{self.searches} searches × {self.n} samples in flight"


@dataclass
class Sides:
    """Both sides of a case, and what the first asked for in its last run."""

    case: Case
    engine: TorchEngine
    environment: Environment
    strategy: Strategy
    folder: Path
    requests: list[Request] = field(default_factory=list)
    tokens: dict[str, list[int]] = field(default_factory=lambda: {"ours": [], "bare": []})
    processor: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "bare": []})
    """Processor seconds of all threads, which other load on the machine stretches less than wall-clock time."""

    def ours(self, number: int) -> float:
        """Tokens/s of an evaluation."""
        problems = self._problems(number)
        engine, path = Recorder(self.engine), self.folder / f"rollouts-{number}.jsonl"

        def write(searched: Searched) -> None:
            append_line(path, to_line(searched))

        self._quiet()
        began, busy = time.perf_counter(), time.process_time()
        found = sync.run(
            evaluate(
                self.strategy,
                self.environment,
                engine,
                problems,
                Plan(seed=number, budget=NEVER, concurrency=self.case.searches, keep_texts=0),
                on_search=write,
            )
        )
        seconds = time.perf_counter() - began
        self.requests = engine.requests
        self._note("ours", found.spend.response_tokens, busy)
        return found.spend.response_tokens / seconds

    def bare(self, number: int) -> float:
        """Tokens/s of the same requests without a search."""
        self._quiet()
        began, busy = time.perf_counter(), time.process_time()
        tokens = sync.run(_generate(self.engine, self.requests, self.case.searches * self._calls()))
        seconds = time.perf_counter() - began
        self._note("bare", tokens, busy)
        return tokens / seconds

    def _note(self, side: str, tokens: int, busy: float) -> None:
        self.tokens[side].append(tokens)
        self.processor[side].append(time.process_time() - busy)

    def processor_ratio(self) -> Estimate:
        """Tokens per second of processor time, of `evaluate` over the bare engine."""
        rates = (
            [t / s for t, s in zip(self.tokens[side], self.processor[side], strict=True)] for side in ("ours", "bare")
        )
        return paired_ratio(*rates)

    def _calls(self) -> int:
        """Requests that a search has in flight."""
        return max(1, self.case.n // self.requests[0].n)

    def _problems(self, number: int) -> list[Problem]:
        first = number * self.case.problems
        return [self.environment.problem("test", first + i) for i in range(self.case.problems)]

    def _quiet(self) -> None:
        self.engine.drop_caches_now()
        settle()


async def _generate(engine: TorchEngine, requests: Sequence[Request], in_flight: int) -> int:
    tokens = 0

    async def one(number: int) -> None:
        nonlocal tokens
        completions = await engine.generate(requests[number])
        tokens += sum(c.spend.response_tokens for c in completions)

    await each(len(requests), one, in_flight)
    return tokens


def measured(sides: Sides, rounds: int, model: str, strategy: str) -> Row:
    sides.ours(rounds)
    sides.bare(rounds)
    for values in (*sides.tokens.values(), *sides.processor.values()):
        values.clear()
    found = alternate({"ours": sides.ours, "bare": sides.bare}, rounds)
    busy = sides.processor_ratio()
    share = sum(sides.tokens["bare"]) / sum(sides.tokens["ours"])
    return compare(
        f"{strategy}, {sides.case.name}, over the bare engine",
        "tokens/s",
        found["ours"],
        found["bare"],
        better="more",
        dtype="float32",
        mode=model,
        note=f"{sides.case.problems} problems a round; `evaluate` writes rollouts; the bare engine sampled {share:.2%} "
        f"as many tokens; by processor time the ratio is {busy.value:.2f} ({busy.low:.2f} to {busy.high:.2f})",
        details={"runs": found, "tokens": sides.tokens, "processor_s": sides.processor},
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ponder-tiny")
    parser.add_argument("--strategy", default="majority")
    parser.add_argument("--environment", default="countdown")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", default="", help="only cases whose name contains this text")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="few problems, one round: does it run?")
    options = parser.parse_args()
    cases = [Case(64, 8, 128, 96), Case(8, 8, 64, 96)]
    if options.quick:
        cases = [Case(4, 2, 6, 16)]
    rounds = 1 if options.quick else options.rounds
    printer = Printer(as_json=options.json, machine=machine())
    environment = registry.build("environments", options.environment)
    engine = TorchEngine(load(options.model, device="cpu"))
    try:
        for case in cases:
            if options.only not in case.name:
                continue
            strategy = registry.build(
                "search.strategies", options.strategy, {"n": case.n, "max_tokens": case.max_tokens}
            )
            with tempfile.TemporaryDirectory() as folder:
                sides = Sides(case, engine, environment, strategy, Path(folder))
                printer.show(measured(sides, rounds, options.model, options.strategy))
    finally:
        engine.close_now()
    return printer.end()


if __name__ == "__main__":
    sys.exit(main())
