"""Compare strategies on a recorded pool of samples: accuracy against tokens, without a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ponder import figures, registry, threads
from ponder.cli._common import value_of
from ponder.cli._output import say
from ponder.config import Options, parse
from ponder.errors import UserError
from ponder.numbers import percent, points, quantity, span
from ponder.runs.files import plain
from ponder.runs.progress import Progress
from ponder.show import estimate, visible

if TYPE_CHECKING:
    from ponder.engines.recorded import RecordedPool
    from ponder.evaluation.pools.analysis import Replayed
    from ponder.evaluation.pools.judges import Judge
    from ponder.evaluation.pools.judging import JudgedPool

DESCRIPTION = """Compare strategies on a recorded pool of samples (ponder eval --record, or the rollouts.jsonl of an
evaluation, judged by its --environment). Every text is judged again, and accuracy is reported against the recorded
tokens, at 1, 2, 4, … samples per problem.

strategies, joined by commas:
  direct, majority                exact over all draws of k samples
  best_of_n:checker               the same, by the environment's checker (which sees no gold answer)
  best_of_n:score, :logprob       the same, by recorded score or mean_logprob
  weighted:score, :logprob        votes weighted by these; exact for few samples, else over random orders
  adaptive:beta, :dirichlet, :esc votes that stop early; a limit may follow, as in adaptive:beta:0.9 or adaptive:esc:4
  live:NAME[:KEY=VALUE+...]       a strategy of `ponder list strategies`, run on the samples in several orders
  NAME                            the same for any other strategy

best_of_n and weighted alone rank as they do in a search: best_of_n by the checker where --environment has one, else by
score, else by logprob; weighted by logprob. Each except direct and majority is compared with majority at the same mean
response tokens per search (paired by problem). The highest point of several is marked as chosen, with an interval that
allows for the choice.

examples:
  ponder replay pool.jsonl
  ponder replay pool.jsonl --strategies majority,best_of_n:score,adaptive --json > replay.json
  ponder replay pool.jsonl --environment countdown --strategies majority,live:best_of_n
  ponder replay runs/majority-of-8/rollouts.jsonl --environment countdown
"""


@dataclass(frozen=True)
class ReplayConfig:
    """Options of `ponder replay`."""

    pool: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="POOL.jsonl")]
    """The pool: one problem with its samples per line; or the run directory of an evaluation."""
    strategies: str = ""
    """Names joined by commas (default: all that the pool has the data for)."""
    verifier: str | None = None
    """The verifier that judges against the gold: math, numeric, exact (default: numeric if all golds are numbers, else
    math)."""
    verifier_options: Options = field(default_factory=dict)
    """Options of the verifier."""
    environment: str | None = None
    """Judge with this environment instead; it finds the problems by their ids."""
    environment_options: Options = field(default_factory=dict)
    """Options of the environment; give those that the pool was recorded with."""
    trust_recorded: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """For problems without a gold, use the recorded judgement (default: leave them out)."""
    thought: tuple[str, str] | None = None
    """The markers of the model's thought, such as <think> </think>, if the pool does not name them."""
    budgets: tuple[int, ...] = ()
    """Samples per problem (default: 1, 2, 4, … and all)."""
    at_least: int = 1
    """Leave out problems with fewer samples."""
    orders: int | None = None
    """Random orders of the samples, where there is no formula (default: 256; 8 for live:NAME, which runs whole
    searches)."""
    seed: int = 0
    """Seed of those orders."""
    threads: int | None = None
    """Workers that judge at once (default: as many as there are cores)."""
    show: int = 10
    """How many recorded judgements that differ from the judge's to show; --json has all."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the result as JSON, all recorded judgements that differ included."""


def main(args: list[str]) -> int:
    if (file := value_of(args, "--json")) is not None and file.endswith(".json"):
        raise UserError(f"--json prints to stdout: give --json alone and redirect it, as in --json > {file}")
    config = parse(ReplayConfig, args, prog="ponder replay", description=DESCRIPTION)
    check(config)
    threads.use(config.threads)
    from ponder.evaluation.pools import analysis
    from ponder.evaluation.pools.judges import EnvironmentJudge
    from ponder.evaluation.pools.judging import judgeable
    from ponder.evaluation.pools.record import at_least, read_pool

    recorded = at_least(read_pool(_file(config.pool)), config.at_least)
    judge = judge_of(config, recorded)
    # Judging can take long: what can be refused is refused first.
    rows = judgeable(recorded, judge, config.trust_recorded).rows
    counts = analysis.ladder(rows, config.budgets or None)
    checker = judge.checker if isinstance(judge, EnvironmentJudge) else None
    named = [name.strip() for name in config.strategies.split(",") if name.strip()] or analysis.defaults(rows, checker)
    built = [(n, analysis.build(n, rows, checker=checker, seed=config.seed, orders=config.orders)) for n in named]
    strategies = {analysis.full_name(name, strategy): strategy for name, strategy in built}
    for strategy in strategies.values():
        strategy.check(rows)
    pool = _judged(config, recorded, judge)
    result = analysis.replay(pool, strategies, counts)
    say(json.dumps(plain(result.to_json()), indent=1) if config.json else "\n".join(text(config, pool, result)))
    return 0


def _file(pool: str) -> str:
    """The pool's file: of a run directory that of its searches."""
    inside = Path(pool) / "rollouts.jsonl"
    return str(inside) if inside.is_file() else pool


def check(config: ReplayConfig) -> None:
    """Raises `UserError` that names the flag whose value is invalid."""
    for name, least in (("at_least", 1), ("orders", 2), ("show", 0)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: give at least {least}")
    if config.environment is not None and (config.verifier is not None or config.verifier_options):
        raise UserError("--verifier and --environment both judge: give one")
    if config.environment is None and config.environment_options:
        raise UserError("--environment-options needs --environment")
    if config.environment is not None and config.trust_recorded:
        raise UserError("--trust-recorded is for problems without a gold; --environment has all golds: give one")


def judge_of(config: ReplayConfig, pool: RecordedPool) -> Judge:
    """The judge that the options name, or the one that suits the pool's golds."""
    from ponder.evaluation.pools.judges import EnvironmentJudge, VerifierJudge, default_verifier

    if config.environment is not None:
        environment = registry.build("environments", config.environment, config.environment_options)
        return EnvironmentJudge(environment, config.environment)
    name = default_verifier(pool) if config.verifier is None else config.verifier
    return VerifierJudge(registry.build("verifiers", name, config.verifier_options), name)


def _judged(config: ReplayConfig, pool: RecordedPool, judge: Judge) -> JudgedPool:
    """Judge every sample of the pool."""
    from ponder.evaluation.pools.judging import judge_pool
    from ponder.types import ThoughtFormat

    thought = None if config.thought is None else ThoughtFormat(*config.thought)
    with Progress(f"judging by {judge.name}", len(pool.rows), unit="problems") as progress:
        return judge_pool(
            pool,
            judge,
            trust_recorded=config.trust_recorded,
            thought=thought,
            on_progress=lambda done, _: progress.update(done),
        )


def in_points(value: float, low: float, high: float) -> str:
    """A difference in percentage points, with its interval, in columns."""
    return f"{points(value).removesuffix(' points'):>7}  {span(low, high, points):<16}"


def text(config: ReplayConfig, pool: JudgedPool, result: Replayed) -> Iterator[str]:
    """What is printed: coverage, strategies by budget, pairs, and recorded judgements that differ."""
    from ponder.evaluation.intervals import too_few

    counts = sorted({len(p.row.samples) for p in pool.problems})
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    yield f"{config.pool}: {result.n:,} problems × {many} samples, judged by {pool.judge.name}, seed {config.seed}"
    yield "verdicts  " + " · ".join(f"{kind} {count:,}" for kind, count in pool.kinds.items())
    yield from (f"note: {visible(note, 500)}" for note in pool.notes)
    if len(counts) > 1:
        yield (
            f"note: the budgets end at {counts[0]}, the fewest samples of a problem; all samples of each are drawn from"
            f" (--at-least {counts[-1]} leaves problems with fewer out)"
        )
    yield f"\n{'coverage (pass@k)':<24}{'k':>8}{'':20}{'value':>10}  95 % interval"
    for c in result.coverage:
        yield f"{'':24}{c.k:>8}{'':20}{percent(c.value):>10}  {span(c.low, c.high)}"
    few = too_few(max(p.high - p.low for points in result.strategies.values() for p in points), result.n)
    if few:
        yield f"note: {few}"
    tokens, accuracy = figures.label("mean_response_tokens_per_search"), figures.label("accuracy")
    head = f"{'strategy':<24}{'budget':>8}{'samples':>9}{tokens:>28}{accuracy:>10}  {'95 % interval':<17}"
    yield f"\n{head}" + ("against majority, same tokens" if any(result.equal_spend.values()) else "").rstrip()
    for name, reached in result.strategies.items():
        beside = result.equal_spend.get(name, (None,) * len(reached))
        for i, (p, found) in enumerate(zip(reached, beside, strict=True)):
            tokens = quantity(p.mean_response_tokens_per_search)
            spent = f"{p.budget:>8}{quantity(p.mean_samples_per_search):>9}{tokens:>28}"
            line = f"{name if i == 0 else '':<24}{spent}{percent(p.accuracy):>10}  {span(p.low, p.high):<17}"
            if found is not None:
                line += in_points(found.difference.value, found.difference.low, found.difference.high)
            yield line.rstrip()
    for what, best in (("highest", result.highest), ("highest against majority", result.highest_gain)):
        if best is not None:
            unit = " %" if best is result.highest else " points"
            budget = f"{best.strategy} at {best.budget}"
            yield f"{what}: {budget}: {estimate(best.estimate, 100, unit)}"
    error = max(result.errors.values())
    if error > 0:
        drawn = ", ".join(name for name, e in result.errors.items() if e > 0)
        yield f"{drawn}: over random orders, standard error of the accuracy at most {error * 100:.2f} points"
    if result.paired:
        yield "\na - b at the largest budget, in points, paired over problems; p by McNemar's exact test, each alone"
    for pair in result.paired:
        yield f"  {f'{pair.a} - {pair.b}':<44}{in_points(pair.difference, pair.low, pair.high)}  p = {pair.p:.2g}"
    recorded = sum(s.correct is not None for p in pool.problems for s in p.row.samples)
    if recorded:
        yield f"\n{len(result.disagreements)} of {recorded} recorded judgements differ from the judge's"
    for d in result.disagreements[: config.show]:
        words = {True: "correct", False: "wrong"}
        what = f"recorded {words[d.recorded]}, judged {d.verdict}"
        yield f"  {visible(d.problem_id, 60)} sample {d.sample}: {what}: {visible(' '.join(d.reason.split()), 160)}"
    if len(result.disagreements) > config.show:
        yield f"  and {len(result.disagreements) - config.show} more (--show, --json)"
