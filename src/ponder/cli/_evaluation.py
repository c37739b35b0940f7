"""Running an evaluation for `ponder eval`: progress, the run directory, resuming a stopped one, recording a pool."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ponder import numbers, registry, sync
from ponder.budget.meter import Meter
from ponder.budget.prices import PriceList, priced
from ponder.cli import _output
from ponder.cli._budget import branch_prices
from ponder.cli._common import Stopped, model_facts
from ponder.config import to_toml
from ponder.engines.opening import OpeningBudget
from ponder.environments.loading import gold_of
from ponder.errors import PonderError, UserError
from ponder.evaluation.evaluate import CONCURRENCY, Plan, evaluate
from ponder.evaluation.results import Earlier, Evaluation, Searched, so_far
from ponder.evaluation.results import Progress as Done
from ponder.evaluation.rollouts import earlier, to_line
from ponder.runs.progress import Progress
from ponder.runs.run import Run, read_manifest
from ponder.types import Budget, Spend, Trace, to_json

if TYPE_CHECKING:
    from ponder.cli._eval_config import EvalConfig
    from ponder.cli._scratch import Scratch
    from ponder.evaluation.pools.record import Writer
    from ponder.protocols import Engine, Environment, Feedback, Strategy
    from ponder.types import Problem


@dataclass
class Recording:
    """Writes a problem to a pool when all its searches have ended."""

    writer: Writer
    environment: Environment
    samples: int
    _traces: dict[int, dict[int, Trace]] = field(default_factory=dict)

    def add(self, searched: Searched) -> None:
        if searched.problem.id in self.writer.done_ids:
            return
        traces = self._traces.setdefault(searched.index, {})
        traces[searched.sample] = searched.outcome.trace
        if len(traces) == self.samples:
            del self._traces[searched.index]
            ordered = [traces[s] for s in range(self.samples)]
            self.writer.add(searched.problem, gold_of(self.environment, searched.problem), ordered)


@dataclass(frozen=True)
class Job:
    """Everything that an evaluation needs besides its engines."""

    config: EvalConfig
    strategy: Strategy
    environment: Environment
    problems: Sequence[Problem]
    budget: Budget
    total: Budget
    prices: PriceList
    feedback: Feedback
    scratch: Scratch | None = None
    """What `config.out` is, where the command line names no directory."""

    @property
    def ranking(self) -> str | None:
        """What the strategy ranks responses by, where it has a choice: in the words of `ponder replay`."""
        ranking = getattr(self.strategy, "ranking", None)
        return ranking(self.feedback.checker is not None, self.feedback.scorer is not None) if ranking else None

    @property
    def name(self) -> str:
        """The strategy with what it ranks by: `best_of_n:checker`."""
        return f"{self.config.strategy}:{self.ranking}" if self.ranking else self.config.strategy

    def before(self) -> Earlier:
        """The results in the run directory to resume. Raises `UserError` if they are of another evaluation."""
        return self._found() if self.config.resume else Earlier()

    def _found(self) -> Earlier:
        path = Path(self.config.out or "")
        found = earlier(path / "rollouts.jsonl", self.problems, self.config.samples)
        lost, opening = found.lost + _noted(path, "lost"), _noted(path, "opening")
        # What ran when it was stopped took time, too.
        seconds = max(found.seconds, float(read_manifest(path).get("seconds") or 0.0))
        return Earlier(found.results, lost, seconds, opening)

    def priced(self, before: Earlier, engines: Sequence[Engine]) -> Earlier:
        """The same with the dollars of what was spent before prices were known."""
        prices = [self.prices.of(e.info.name) for e in engines]
        results = {place: dataclasses.replace(r, spend=priced(r.spend, prices)) for place, r in before.results.items()}
        return Earlier(results, priced(before.lost, prices), before.seconds, priced(before.opening, prices))

    def opening(self, before: Earlier) -> OpeningBudget:
        """What the total budget leaves for opening engines."""
        known = read_manifest(Path(self.config.out or "")).get("known") if self.config.resume else None
        passed = before.seconds + before.opening.seconds
        return OpeningBudget(self.total, self.prices, _together(before), passed, known)

    def so_far(self) -> Evaluation | None:
        """What the run directory of a stopped evaluation holds, counted; None if no search has ended."""
        config = self.config
        if not Path(config.out or "").is_dir():  # it could not be made
            return None
        at_once = min(config.concurrency or CONCURRENCY, len(self.problems) * config.samples)
        return so_far(self.problems, self._found(), config.samples, at_once, config.seed)

    def run_in(
        self,
        run: Run,
        engine: Engine,
        others: Mapping[str, Engine],
        before: Earlier,
        known: Mapping[str, Any],
        recording: Recording | None,
    ) -> Evaluation:
        """Resume from `before`, which includes what opening these engines cost.

        `known` (about the endpoints) is kept for another resume.

        Raises `Stopped` on Ctrl-C.
        """
        facts: dict[str, Any] = {"model": model_facts(engine, self.config)}
        facts |= {"others": {n: model_facts(e, self.config) for n, e in others.items()}} if others else {}
        if self.config.resume:
            _refuse_other_model(run, facts)
        # Written now, so that it counts even if this process is killed.
        facts |= {} if before.opening == Spend() else {"opening": before.opening}
        facts |= {"known": known} if known else {}
        strategy = {"name": self.config.strategy, "options": registry.options_of(self.strategy)}
        run.note(**to_json(facts), strategy=strategy)
        if recording is not None:
            before = _only_recorded(before, recording, self.problems)
        meter = self._meter(before)
        written = _together(before)
        branches = branch_prices(self.config, engine, others)

        def note(searched: Searched) -> None:
            nonlocal written
            run.log_rollout(to_line(searched, branches, engine.info.thought))
            written += searched.judged.spend
            if recording is not None:
                recording.add(searched)

        try:
            return self._evaluate(engine, others, before, meter, note)
        except BaseException as error:
            # What was in flight was spent too, and is run again.
            lost = less(meter.spend, written)
            seconds = meter.elapsed - before.opening.seconds
            run.note(lost=to_json(_noted(run.path, "lost") + lost), seconds=seconds)
            more = f"; continue with: ponder eval --resume --out {shlex.quote(str(run.path))}"
            if self.scratch is not None:
                self.scratch.keep = bool(self._found().results)
                more = more if self.scratch.keep else ""
            if isinstance(error, KeyboardInterrupt):
                raise Stopped(f"stopped{more}") from None
            if isinstance(error, PonderError) and not isinstance(error, UserError):
                raise PonderError(f"{error}{more}") from error
            raise

    def _meter(self, before: Earlier) -> Meter:
        """The total budget, with what was already spent of it."""
        meter = Meter(self.total, prices=self.prices, passed=before.seconds + before.opening.seconds)
        meter.add(_together(before))
        return meter

    def recording(self, engine: Engine) -> Recording | None:
        """The pool that --record names, open. Raises `UserError` if it holds something else already."""
        if self.config.record is None:
            return None
        from ponder.evaluation.pools.record import Writer

        writer = Writer(self.config.record, thought=engine.info.thought)
        for note in writer.notes:
            _output.note(f"note: {note}")
        if writer.done_ids and not self.config.resume:
            raise UserError(
                f"--record {self.config.record}: holds {len(writer.done_ids)} problems already; choose another file, "
                "or resume its evaluation (--resume --out RUN)"
            )
        return Recording(writer, self.environment, self.config.samples)

    def _evaluate(
        self,
        engine: Engine,
        others: Mapping[str, Engine],
        before: Earlier,
        meter: Meter,
        on_search: Callable[[Searched], None] | None,
    ) -> Evaluation:
        config = self.config
        concurrency = config.concurrency or CONCURRENCY
        plan = Plan(config.samples, config.seed, self.budget, concurrency, keep_texts=max(config.show, KEPT))
        total = len(self.problems) * config.samples
        with Progress(config.environment, total, unit="searches", at_once=min(concurrency, total)) as progress:

            def show(p: Done) -> None:
                progress.update(
                    p.done,
                    **p.so_far(),
                    failures=p.masked or None,
                    response_tokens_per_s=p.response_tokens / p.seconds if p.seconds else None,
                    tokens=p.spend.tokens,
                    dollars=numbers.money(p.spend.dollars) if p.spend.dollars else None,
                )

            return sync.run(
                evaluate(
                    self.strategy,
                    self.environment,
                    engine,
                    self.problems,
                    plan,
                    feedback=self.feedback,
                    others=others,
                    parent=meter,
                    earlier=before,
                    on_progress=show,
                    on_search=on_search,
                )
            )


KEPT = 8
"""Minimum number of problems whose responses are in `samples.json`."""


def open_run(config: EvalConfig) -> Run:
    """A new run directory, or the one to resume."""
    if config.resume:
        return Run.open(config.out or "")
    text = to_toml(dataclasses.replace(config, resume=False, overwrite=False))
    return Run.create(config.out or "", text, config.seed, overwrite=config.overwrite)


_MAY_DIFFER = ("device", "products", "microseconds_by_rows")
"""What decides only the last bits of a result."""


def _refuse_other_model(run: Run, facts: Mapping[str, Any]) -> None:
    manifest = read_manifest(run.path)
    for name, now in facts.items():
        then = manifest.get(name)
        if isinstance(then, dict):
            for key in now.keys() | then.keys():
                if key not in _MAY_DIFFER and to_json(now.get(key)) != then.get(key):
                    raise UserError(
                        f"--resume: {name} has {key} {now.get(key)!r} now, and had {then.get(key)!r} when {run.path} "
                        "was started; resume with the same model, or start again with another --out"
                    )


def _noted(path: Path, name: str) -> Spend:
    """A spend that the run's manifest holds."""
    return msgspec.convert(read_manifest(path).get(name) or {}, Spend)


def _only_recorded(before: Earlier, recording: Recording, problems: Sequence[Problem]) -> Earlier:
    """Without the results of problems missing from the pool: it needs their whole responses, so they run again."""
    kept = {place: r for place, r in before.results.items() if problems[place[0]].id in recording.writer.done_ids}
    again = sum((r.spend for place, r in before.results.items() if place not in kept), Spend())
    return dataclasses.replace(before, results=kept, lost=before.lost + again)


def _together(before: Earlier) -> Spend:
    return sum((r.spend for r in before.results.values()), before.lost + before.opening)


def less(a: Spend, b: Spend) -> Spend:
    """a − b, never below 0 (sums of floats round)."""
    return Spend(**{f.name: max(0, getattr(a, f.name) - getattr(b, f.name)) for f in dataclasses.fields(Spend)})
