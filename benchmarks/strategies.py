"""Every strategy compared with majority at equal spend, on a real model or the simulated one.

    python benchmarks/strategies.py [--only countdown|arithmetic|tree|cot|simulated] [--problems 200] [--json]

For each case majority's curve is drawn first: `most` samples of each problem, and from them what a vote over k of them
reaches, exact over all draws. Then each strategy runs on the same problems, and its accuracy is compared with that
curve at the same mean tokens a problem, paired by problem: once with all tokens that a budget counts (repeated
prompts and dropped branches included), once with the sampled ones alone. `best_of_n, one by one` draws until
the checker accepts: what a checker is worth without any search. Accuracies are by the judge.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _limits import machine

from ponder import registry
from ponder.engines.simulated import Simulated
from ponder.engines.torch import TorchEngine
from ponder.environments.countdown import Partial
from ponder.evaluation.equal_spend import Compared, Floats, Yardstick, at_equal_spend, counts_up_to
from ponder.evaluation.evaluate import Plan, evaluate
from ponder.evaluation.intervals import mean_of_problems
from ponder.evaluation.pools.formulas import Majority
from ponder.evaluation.pools.judges import EnvironmentJudge
from ponder.evaluation.pools.judging import JudgedPool, judge_pool
from ponder.evaluation.pools.record import Writer, read_pool
from ponder.evaluation.results import Searched
from ponder.models.load import load
from ponder.protocols import Engine, Environment, Scorer, Strategy
from ponder.search.trace import samples as samples_of
from ponder.types import StopReason

CONCURRENCY = 64
"""Searches at once."""


@dataclass(frozen=True)
class Side:
    """A strategy with its options, as on the command line; `scorer` guides it."""

    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    scorer: Scorer | None = None
    label: str = ""

    @property
    def name(self) -> str:
        return " ".join(t for t in (self.strategy, *_shown(self.options), self.label) if t)

    def build(self) -> Strategy:
        strategy: Strategy = registry.build("search.strategies", self.strategy, self.options)
        return strategy


def _shown(options: Mapping[str, Any]) -> list[str]:
    """What distinguishes a side from the others."""
    same = ("max_tokens", "delimiters", "instruction", "depth", "step_tokens", "answer_tokens")
    return [
        f"{k}=({' '.join(_shown(v))})" if isinstance(v, Mapping) else f"{k}={v}"
        for k, v in options.items()
        if k not in same
    ]


@dataclass(frozen=True)
class Case:
    """Strategies on the same problems."""

    name: str
    environment: str
    model: str
    """`simulated`, or what `ponder eval --model` takes."""
    max_tokens: int
    sides: tuple[Side, ...]
    most: int = 32
    """Samples of each problem for majority's curve."""
    problems: int = 200
    environment_options: Mapping[str, Any] = field(default_factory=dict)
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Of majority's samples."""
    one_by_one: tuple[int, ...] = ()
    """Most samples of the rows that draw until the checker accepts."""


def flat(max_tokens: int) -> tuple[Side, ...]:
    """The strategies without a tree."""
    m = {"max_tokens": max_tokens}
    return (
        Side("cot", m),
        Side("weighted", {"n": 4, "by": "logprob", **m}),
        Side("weighted", {"n": 8, "by": "logprob", **m}),
        Side("weighted", {"n": 8, "by": "tail", "window": 32, **m}),
        Side("best_of_n", {"n": 4, "by": "logprob", **m}),
        Side("best_of_n", {"n": 8, "by": "logprob", **m}),
        Side("adaptive", {"n": 16, **m}),
        Side("adaptive", {"n": 32, "rule": "esc", **m}),
        Side("cascade", {"n": 2, "unsure": "agreement", "agreement": 1.0, "slow_options": {"n": 8, **m}, **m}),
        Side("cascade", {"n": 4, "unsure": "logprob", "logprob": -0.1, "slow_options": {"n": 16, **m}, **m}),
        Side("budget_forcing", {"thought_tokens": max_tokens // 4, "answer_tokens": 20}),
        Side("budget_forcing", {"thought_tokens": 2 * max_tokens, "answer_tokens": 20}),
        Side(
            "budget_forcing",
            {"thought_tokens": 2 * max_tokens, "min_thought_tokens": 64, "extend": ";", "answer_tokens": 20},
        ),
        Side("refine", {"n": 4, "feedback": "self", **m}),
    )


CHECKED = (
    Side("best_of_n", {"n": 4, "by": "checker", "max_tokens": 320}),
    Side("refine", {"n": 4, "feedback": "checker", "max_tokens": 320}),
    Side("refine", {"n": 8, "feedback": "checker", "max_tokens": 320}),
    Side("cascade", {"n": 2, "unsure": "checker", "slow_options": {"n": 8, "max_tokens": 320}, "max_tokens": 320}),
    Side(
        "cascade",
        {
            "n": 1,
            "unsure": "checker",
            "slow": "best_of_n",
            "slow_options": {"n": 8, "max_tokens": 320},
            "max_tokens": 320,
        },
    ),
)
"""The rows that use Countdown's checker."""


def countdown_trees() -> tuple[Side, ...]:
    step = {"delimiters": (",", ";"), "step_tokens": 24, "answer_tokens": 20, "depth": 24}
    mcts = {"expand": 4, "parallel": 2, "per_move": 4, **step}
    return tuple(
        Side(name, options, Partial(ahead), f"lookahead={ahead}")
        for name, options in (("beam", {"width": 2, "expand": 4, **step}), ("mcts", {"simulations": 32, **mcts}))
        for ahead in (3, 1)
    )


def simulated_trees(environment: Any) -> tuple[Side, ...]:
    step = {"depth": 16, "step_tokens": 120, "delimiters": ("\n",), "answer_tokens": 32}
    scorer = environment.scorer
    return (
        Side("best_of_n", {"n": 22, "by": "scorer", "max_tokens": 2000}, scorer),
        Side("beam", {"width": 2, "expand": 2, **step}, scorer),
        Side("beam", {"width": 4, "expand": 4, **step}, scorer),
        Side("mcts", {"simulations": 32, "expand": 2, "per_move": 3, "parallel": 1, **step}, scorer),
        Side("mcts", {"simulations": 32, "expand": 2, "per_move": 3, "parallel": 4, **step}, scorer),
        Side("mcts", {"simulations": 64, "expand": 2, "per_move": 6, "parallel": 2, **step}, scorer),
    )


def cases() -> tuple[Case, ...]:
    noisy = {"noise": 1.0, "checked": False}
    simulated = registry.build("environments", "simulated", noisy)
    return (
        Case("countdown", "countdown", "ponder-tiny", 320, (*flat(320), *CHECKED), one_by_one=(4, 16)),
        Case("arithmetic", "arithmetic", "ponder-tiny", 256, flat(256)),
        Case("tree", "countdown", "ponder-tiny", 320, countdown_trees(), problems=100, one_by_one=(4, 16)),
        Case(
            "cot",
            "arithmetic",
            "smollm2-135m",
            100,
            (
                Side("cot", {"temperature": 0.5, "max_tokens": 100}),
                Side(
                    "majority",
                    {"n": 4, "temperature": 0.5, "instruction": "Let's think step by step.", "max_tokens": 100},
                    label="with cot's instruction",
                ),
            ),
            most=8,
            problems=70,
            environment_options={"digits": 1, "operations": "+-"},
            sampling={"temperature": 0.5},
        ),
        *(
            Case(
                f"simulated, step success {success}",
                "simulated",
                "simulated",
                2000,
                simulated_trees(simulated),
                most=128,
                environment_options=noisy,
                engine_options={"steps": 8, "step_success": success},
            )
            for success in (0.8, 0.95)
        ),
    )


@dataclass(frozen=True)
class Ran:
    """A side on all problems."""

    correct_P: Floats
    tokens_P: Floats
    """Prompts and responses, all branches."""
    written_P: Floats
    """Responses alone."""
    seconds: float


class Table:
    """One case: runs its sides and prints their rows."""

    def __init__(self, case: Case, engine: Engine, count: int, seed: int, as_json: bool) -> None:
        self.case, self.engine, self.seed, self.as_json = case, engine, seed, as_json
        self.environment: Environment = registry.build("environments", case.environment, case.environment_options)
        self.problems = [self.environment.problem("test", i) for i in range(count)]

    async def run(self) -> None:
        pool, prompts = await self._pool()
        self._sticks = [self._yardstick(pool, prompts), self._yardstick(pool, np.zeros(len(prompts)))]
        self._head()
        for k in (1, 2, 4, 8, 16, 32, 64, 128):
            if k <= self.case.most:
                stick, bare = self._sticks
                values = stick.accuracy_PK[:, np.abs(stick.counts_K - k).argmin()]
                ran = Ran(values, k * stick.tokens_P, k * bare.tokens_P, 0.0)
                self._show(f"majority of {k}", ran, compared=False)
        for k in self.case.one_by_one:
            self._show(f"best_of_n, one by one, at most {k}", self._one_by_one(pool, prompts, k))
        for side in self.case.sides:
            self._show(side.name, await self._ran(side))

    async def _pool(self) -> tuple[JudgedPool, Floats]:
        """Samples of each problem, and the tokens of each prompt."""
        options = {"n": self.case.most, "max_tokens": self.case.max_tokens, **self.case.sampling}
        strategy = registry.build("search.strategies", "direct", options)
        with tempfile.TemporaryDirectory() as folder:
            writer = Writer(Path(folder) / "pool.jsonl", self.engine.info.thought)

            def keep(searched: Searched) -> None:
                writer.add(searched.problem, None, searched.outcome.trace)

            await evaluate(
                strategy,
                self.environment,
                self.engine,
                self.problems,
                Plan(seed=self.seed, concurrency=CONCURRENCY),
                on_search=keep,
            )
            pool = judge_pool(read_pool(writer.path), EnvironmentJudge(self.environment, self.case.environment))
        judged = {p.problem.id: p for p in pool.problems}
        pool = dataclasses.replace(pool, problems=tuple(judged[p.id] for p in self.problems))
        return pool, np.array([self.engine.count_tokens(p.prompt) for p in self.problems], dtype=np.float64)

    def _yardstick(self, pool: JudgedPool, prompts: Floats) -> Yardstick:
        counts = counts_up_to(self.case.most, self.case.most)
        reached = Majority().reach(pool.problems, counts.tolist())
        tokens = np.array([p.tokens_G.mean() for p in pool.problems])
        return Yardstick(counts, np.stack([r.accuracy_K for r in reached]), tokens + prompts)

    def _one_by_one(self, pool: JudgedPool, prompts: Floats, most: int) -> Ran:
        correct, tokens, written = [], [], []
        for problem, prompt in zip(pool.problems, prompts, strict=True):
            right = problem.correct_G[:most]
            drawn = int(right.argmax()) + 1 if right.any() else most
            correct.append(float(right.any()))
            written.append(float(problem.tokens_G[:drawn].sum()))
            tokens.append(written[-1] + drawn * prompt)
        return Ran(np.array(correct), np.array(tokens), np.array(written), 0.0)

    async def _ran(self, side: Side) -> Ran:
        began = time.perf_counter()
        found: dict[int, Searched] = {}

        def keep(searched: Searched) -> None:
            found[searched.index] = searched

        await evaluate(
            side.build(),
            self.environment,
            self.engine,
            self.problems,
            Plan(seed=self.seed + 1, concurrency=CONCURRENCY),
            feedback=dataclasses.replace(self.environment.feedback, scorer=side.scorer),
            on_search=keep,
        )
        ordered = [found[i] for i in range(len(self.problems))]
        failed = [s.outcome.reason for s in ordered if s.outcome.stop is StopReason.FAILED]
        if failed:
            raise SystemExit(f"{side.name}: {len(failed)} searches failed, the first: {failed[0]}")
        assert all(samples_of(s.outcome.trace) for s in ordered)
        spends = [s.outcome.spend for s in ordered]
        return Ran(
            np.array([float(s.judged.verdict.correct) for s in ordered]),
            np.array([float(s.tokens) for s in spends]),
            np.array([float(s.response_tokens) for s in spends]),
            time.perf_counter() - began,
        )

    # What is printed ----------------------------------------------------------------------------------------------

    def _head(self) -> None:
        if not self.as_json:
            case = self.case
            print(f"\n## {case.name}: {case.model} on {case.environment}, {len(self.problems)} problems\n")
            print("| strategy | accuracy | tokens | of these written | against majority, same tokens | same written |")
            print("|---|---|---|---|---|---|", flush=True)

    def _show(self, name: str, ran: Ran, compared: bool = True) -> None:
        found = [
            at_equal_spend(ran.correct_P, tokens, stick)
            for tokens, stick in zip((ran.tokens_P, ran.written_P), self._sticks, strict=True)
        ]
        share, count = float(ran.correct_P.mean()), len(ran.correct_P)
        interval = "" if not compared else " ({:.0f} to {:.0f})".format(*_percent(mean_of_problems(ran.correct_P)))
        if self.as_json:
            print(json.dumps({
                "case": self.case.name, "strategy": name, "n": count, "accuracy": share,
                "tokens": float(ran.tokens_P.mean()), "written": float(ran.written_P.mean()),
                "equal_tokens": dataclasses.asdict(found[0]) if compared else None,
                "equal_written": dataclasses.asdict(found[1]) if compared else None,
                "seconds": ran.seconds, "machine": machine(),
            }), flush=True)  # fmt: skip
            return
        against = [_cell(c) if compared else "–" for c in found]
        print(
            f"| {name} | {share:.1%}{interval} | {ran.tokens_P.mean():,.0f} | {ran.written_P.mean():,.0f} | "
            f"{against[0]} | {against[1]} |",
            flush=True,
        )


def _percent(share: Any) -> tuple[float, float]:
    return 100 * share.low, 100 * share.high


def _cell(found: Compared) -> str:
    d = found.difference
    beyond = "" if found.within else " (of one sample)" if found.samples < 1 else f" (of {found.most}, all there are)"
    return f"{100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f}){beyond}"


async def run(chosen: Sequence[Case], options: argparse.Namespace) -> None:
    engines: dict[str, Engine] = {}
    try:
        for case in chosen:
            model = options.model if options.model and case.model != "simulated" else case.model
            if model == "simulated":
                engine: Engine = Simulated(**case.engine_options).open()
            else:
                engine = engines.get(model) or TorchEngine(load(model, device="cpu"))
                engines[model] = engine
            table = Table(dataclasses.replace(case, model=model), engine, options.problems or case.problems,
                          options.seed, options.json)  # fmt: skip
            await table.run()
    finally:
        for engine in engines.values():
            await engine.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only cases whose name contains this text")
    parser.add_argument("--side", default="", help="only strategies whose name contains this text")
    parser.add_argument("--model", default="", help="instead of the cases' own models (the simulated one stays)")
    parser.add_argument("--problems", type=int, default=0, help="instead of each case's own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="few problems and samples: does it run?")
    options = parser.parse_args()
    chosen = [c for c in cases() if options.only in c.name]
    if not chosen:
        parser.error(f"--only {options.only}: there are {', '.join(c.name for c in cases())}")
    chosen = [dataclasses.replace(c, sides=tuple(s for s in c.sides if options.side in s.name)) for c in chosen]
    if options.quick:
        options.problems = 3
        chosen = [dataclasses.replace(c, most=4) for c in chosen]
    if not options.json:
        print(machine())
    asyncio.run(run(chosen, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
