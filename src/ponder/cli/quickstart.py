"""Teach the built-in base model to think, and draw accuracy against train-time and test-time compute."""

from __future__ import annotations

import dataclasses
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder import figures, numbers, threads
from ponder.cli._output import say
from ponder.config import from_mapping, load_toml, parse, refuse_changed, to_toml
from ponder.errors import UserError
from ponder.numbers import duration, percent
from ponder.runs.kinds import refuse_other
from ponder.runs.progress import Progress
from ponder.runs.run import Run, refuse_existing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ponder.evaluation.curves import Curves
    from ponder.evaluation.testtime import Ladder, Parallel
    from ponder.training.rl_config import RLConfig
    from ponder.training.rl_run import RLRun

DESCRIPTION = f"""{__doc__}

examples:
  ponder quickstart
  ponder quickstart --minutes 4 --out runs/short
  ponder quickstart --resume
  ponder quickstart --config runs/quickstart/config.toml --out runs/again   # the same steps, without a clock
"""
RUNGS = (20, 40, 80, 160, 320)
"""Tokens of thought of the sequential curve; the smallest fits one whole attempt with four numbers (18 tokens)."""
ANSWER_TOKENS = 16
TRAINED_AT = 40
"""Tokens of thought in training and along the train-compute curve."""
COMPARED_AT = 40
"""The rung at which base and trained model are compared."""
PARALLEL_AT = 20
"""Tokens of thought of each parallel sample."""
SHOWN = 6
"""Problems whose responses before and after training are in the report."""


@dataclass(frozen=True)
class QuickstartConfig:
    """Train ponder-tiny by RL on Countdown and draw both curves, with a report."""

    out: str = "runs/quickstart"
    """Run directory to create."""
    minutes: float = 8.0
    """Wall-clock time for everything; what the evaluations leave is for training."""
    steps: int | None = None
    """Training steps, instead of as many as the time allows; the config of a finished run holds the number."""
    decay_from: int | None = None
    """Of `steps`: steps before the learning rate begins to fall; the config of a finished run holds the number."""
    decay_steps: int | None = None
    """Of `steps`: steps in which it falls; the config of a finished run holds the number."""
    eval_every: int | None = None
    """Steps between the points of the train-time curve (default: about a fifth of the training)."""
    seed: int = 0
    """Seed of problems and samples."""
    problems: int = 500
    """Held-out problems, the same at every point."""
    samples: int = 64
    """Maximum number of parallel samples per problem."""
    model: str = "ponder-tiny"
    """The base model; it must have thought markers."""
    threads: int | None = None
    """Threads of the processor (default: as many as there are cores)."""
    overwrite: bool = False
    """Replace the run that `out` holds."""
    resume: bool = False
    """Continue the run in `out`: the training from its last checkpoint; the base is evaluated again, with the same
    seeds."""
    json: bool = False
    """Print curves.json instead of the table."""

    def __post_init__(self) -> None:
        threads.check(self.threads)
        if not self.minutes >= 1:
            raise UserError(f"minutes = {self.minutes}: the evaluations alone need more than that; give at least 1")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"steps = {self.steps}: give at least 1")
        if self.steps is None and (self.decay_from is not None or self.decay_steps is not None):
            raise UserError("decay_from and decay_steps are steps among `steps`: give steps too")
        if self.problems < 50:
            raise UserError(f"problems = {self.problems}: give at least 50, or the intervals are too wide")
        if self.samples < 2:
            raise UserError(f"samples = {self.samples}: give at least 2")
        if self.resume and self.overwrite:
            raise UserError("resume and overwrite contradict each other: give one of them")


def main(args: list[str]) -> int:
    """Run the quickstart; prints a table and the path of the report."""
    config = parse(QuickstartConfig, args, prog="ponder quickstart", description=DESCRIPTION)
    began = time.monotonic()
    for module in ("torch", "safetensors", "tokenizers"):
        _need(module)
    from ponder.evaluation.curves import to_mapping
    from ponder.runs.report import render
    from ponder.training.interrupt import Interrupted
    from ponder.training.rl_run import RLRun

    if config.resume:
        config = _resumed(config)
        rl = RLRun.prepare(_resumed_rl(config), within=True)
    else:
        refuse_existing(config.out, config.overwrite)
        rl = RLRun.prepare(rl_config(config), within=True)
    try:
        with _open(config) as run:
            try:
                curves = quickstart(config, rl, run, began)
            except KeyboardInterrupt:
                raise Interrupted(f"stopped; continue with: {_command(config)}") from None
    finally:
        rl.close()
    _, page = render(config.out)
    if config.json:
        import json

        say(json.dumps(to_mapping(curves)))
    else:
        say(table(curves))
        say(f"\nreport: {page}")
    return 0


def _need(module: str) -> None:
    import importlib.util

    from ponder.errors import MissingExtra

    if importlib.util.find_spec(module) is None:
        raise MissingExtra("the quickstart", "torch,plots")


def _own_config(config: QuickstartConfig) -> str:
    """The config that the run directory keeps: running it again must neither replace a run nor change the output."""
    return to_toml(dataclasses.replace(config, overwrite=False, resume=False, json=False))


RESOLVED = ("decay_from", "decay_steps", "eval_every")
"""Fields that the clock decides where no number of steps is given."""
FREE = ("out", "minutes", "steps", *RESOLVED, "threads", "overwrite", "resume", "json")
"""Fields that may differ when a run is resumed."""


def _resumed(config: QuickstartConfig) -> QuickstartConfig:
    """The config of the run in `out`. Raises `UserError` if there is none or it is another run."""
    path = Path(config.out) / "config.toml"
    refuse_other(Path(config.out), "quickstart")
    saved = refuse_changed(config, path, FREE)
    return dataclasses.replace(saved, out=config.out, resume=True, json=config.json, threads=config.threads)


def _resumed_rl(config: QuickstartConfig) -> RLConfig:
    """The training as the run started it; from the beginning if no checkpoint was written yet."""
    from ponder.training import checkpoint
    from ponder.training.rl_config import RLConfig

    path = Path(config.out) / "rl.toml"
    if not path.exists() or not checkpoint.by_step(Path(config.out) / "checkpoints"):
        return rl_config(config)
    saved = from_mapping(RLConfig, load_toml(path), where=str(path))
    return dataclasses.replace(saved, out=config.out, resume=True, threads=config.threads)


def _open(config: QuickstartConfig) -> Run:
    if config.resume:
        return Run.open(config.out)
    return Run.create(config.out, _own_config(config), config.seed, overwrite=config.overwrite)


def _command(config: QuickstartConfig) -> str:
    return f"ponder quickstart --config {shlex.quote(str(Path(config.out) / 'config.toml'))} --resume"


def quickstart(config: QuickstartConfig, rl: RLRun, run: Run, began: float) -> Curves:
    """Evaluate the base, train, evaluate again; writes `curves.json`, `summary.json` and `samples.json`."""
    from ponder.evaluation import curves as files
    from ponder.evaluation.intervals import OF_PROBLEMS
    from ponder.training.rl_run import cost, show

    quiet = config.json
    measured = time.monotonic()
    base, base_pool = _test_time(rl, config, "base", quiet)
    evaluation_seconds = time.monotonic() - measured
    rl.start(run)
    rl.command = _command(config)
    earlier = rl.trainer.state.spend.seconds + rl.trainer.state.evaluation.seconds
    at = RUNGS.index(COMPARED_AT)
    before_seconds = base.evaluations[at].run_seconds
    if not rl.config.resume and config.steps is None:
        left = config.minutes * 60 - (time.monotonic() - began) - REPORT_SECONDS
        rl.limit(minutes=max(left, LEAST_SECONDS) / 60)
    limit = 60 * (rl.config.minutes or 0.0)

    def reserve() -> float:
        looks = [look.run_seconds for look in rl.results.values()]
        return min(MARGIN * seconds_again(evaluation_seconds, before_seconds, looks), limit - LEAST_SECONDS)

    rl.reserve = reserve
    rl.train()
    done = {name: getattr(rl.config, name) for name in ("steps", *RESOLVED)}
    run.write_text("config.toml", _own_config(dataclasses.replace(config, **done)))
    trained, trained_pool = _test_time(rl, config, "trained", quiet)
    before, after = base.evaluations[at], trained.evaluations[at]
    seconds = time.monotonic() - began + earlier
    from ponder.runs.manifest import peak_memory_bytes

    curves = files.Curves(
        train=tuple(files.TrainPoint(**p) for p in rl.evaluations),
        test=files.TestTime(trained.points, trained_pool.points),
        base=files.TestTime(base.points, base_pool.points),
        base_accuracy=before.accuracy.value,
        trained_accuracy=after.accuracy.value,
        run_seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(),
        seed=config.seed,
        interval=OF_PROBLEMS,
    )
    files.write(run.path / "curves.json", curves)
    run.write_json("samples.json", _samples(rl, before, after))
    costs = [
        _cost("evaluation of the base", base, base_pool),
        *cost(rl),
        _cost("evaluation of the trained model", trained, trained_pool),
    ]
    run.write_json("summary.json", _summary(rl, curves, base, trained, costs, show))
    return curves


REPORT_SECONDS = 8.0
LEAST_SECONDS = 20.0
"""Of training, where the evaluations leave less."""
MARGIN = 1.1
"""On the time that the second evaluation is expected to take."""
QUICKER = 0.6


def seconds_again(evaluation: float, before: float, looks: Sequence[float]) -> float:
    """How long the evaluation of the trained model will take: as long as the base's took, at the speed of now.

    All are seconds, and all but the first of the same work: `before` of the rung that is held out in training, within
    the base's evaluation, and `looks` of those evaluations since. What the base's evaluation would take now follows
    from the mean of the two that it lies between. One slow look of the last two does not count, and a stall in the few
    seconds of `before` must not shorten the minute of all of it: less than `QUICKER` of it is not expected.
    """
    if not looks:
        return evaluation
    return evaluation * max(QUICKER, min(looks[-2:]) / ((before + looks[0]) / 2))


def rl_config(config: QuickstartConfig) -> RLConfig:
    """The training run of the quickstart."""
    from ponder.training.rl_config import RLConfig

    return RLConfig(
        model=config.model,
        threads=config.threads,
        out=config.out,
        environment="countdown",
        strategy="budget_forcing",
        strategy_options={"thought_tokens": TRAINED_AT, "answer_tokens": ANSWER_TOKENS},
        problems=32,
        group_size=16,
        learning_rate=2e-4,
        updates=4,
        final_share=0.5,
        eval_problems=config.problems,
        checkpoint_every=50,
        steps=config.steps,
        decay_from=config.decay_from,
        decay_steps=config.decay_steps,
        eval_every=config.eval_every,
        seed=config.seed,
    )


def _test_time(rl: RLRun, config: QuickstartConfig, who: str, quiet: bool) -> tuple[Ladder, Parallel]:
    from ponder import registry, sync
    from ponder.evaluation.evaluate import Plan
    from ponder.evaluation.testtime import ladder, parallel

    def strategy(thought_tokens: int) -> Any:
        options = {"thought_tokens": thought_tokens, "answer_tokens": ANSWER_TOKENS}
        return registry.build("search.strategies", "budget_forcing", options)

    environment, engine = rl.source.environment, rl.source.engine
    total = len(RUNGS) * config.problems
    plan, done = Plan(seed=config.seed), 0
    at_once = min(plan.concurrency, config.problems)
    with Progress(f"{who}: thinking longer", total, unit="searches", at_once=at_once, quiet=quiet) as progress:

        def step(p: Any) -> None:
            progress.update(done + p.done, response_tokens_per_s=p.response_tokens / max(1e-9, p.seconds), **p.so_far())

        results = []
        for rung in RUNGS:
            results.append(
                sync.run(ladder(strategy(rung), environment, engine, rl.held_out, (rung,), plan, on_progress=step))
            )
            done += config.problems
    label = f"{who}: sampling more"
    with Progress(label, config.problems, unit="problems", at_once=at_once, quiet=quiet) as progress:
        pool = sync.run(
            parallel(
                strategy(PARALLEL_AT),
                environment,
                engine,
                rl.held_out,
                n=config.samples,
                seed=config.seed,
                on_progress=lambda p: progress.update(
                    p.done, response_tokens_per_s=p.response_tokens / max(1e-9, p.seconds)
                ),
            )
        )
    joined = dataclasses.replace(
        results[0],
        points=tuple(p for r in results for p in r.points),
        evaluations=tuple(e for r in results for e in r.evaluations),
    )
    return joined, pool


def _samples(rl: RLRun, before: Any, after: Any) -> list[dict[str, Any]]:
    """Responses of both models to the same problems: first those that were learned, then the rest."""
    pairs = list(zip(rl.held_out, before.rows, after.rows, strict=True))
    learned = [p for p in pairs if p[1].correct == 0 and p[2].correct == 1]
    unsolved = [p for p in pairs if p[2].correct == 0]
    both = [p for p in pairs if p[1].correct == 1 and p[2].correct == 1]
    chosen = [*learned[: SHOWN - 3], *both[:1], *unsolved[:2]]

    def response(row: Any) -> dict[str, Any]:
        return {"text": row.texts[0], "verdict": row.kinds[0].value, "reason": row.reasons[0]}

    return [
        {
            "problem_id": problem.id,
            "prompt": problem.prompt,
            "gold": str(rl.source.environment.gold(problem).answer),
            "before": response(a),
            "after": response(b),
        }
        for problem, a, b in chosen
    ]


def _cost(phase: str, ladder: Ladder, pool: Parallel) -> dict[str, Any]:
    from ponder.evaluation.results import cost
    from ponder.types import Spend

    spend = sum((e.spend for e in ladder.evaluations), Spend()) + pool.pool.spend
    return cost(phase, spend, sum(e.run_seconds for e in ladder.evaluations) + pool.pool.seconds)


def _summary(rl: RLRun, curves: Curves, base: Ladder, trained: Ladder, cost: Any, show: Any) -> dict[str, Any]:
    from ponder.evaluation.intervals import paired_difference
    from ponder.types import to_json

    out = shlex.quote(str(rl.run.path))
    at = RUNGS.index(COMPARED_AT)
    before, after = base.evaluations[at], trained.evaluations[at]
    first, last = trained.evaluations[0], trained.evaluations[-1]
    gain = paired_difference(after.correct_P, before.correct_P)
    return {
        "title": "Quickstart: a next-token model learns to think",
        "facts": {
            f"Base, {COMPARED_AT} tokens of thought": show(before),
            f"Trained, {COMPARED_AT} tokens of thought": show(after),
            "Gain by training (paired)": numbers.difference(gain),
            f"Trained, {RUNGS[0]} tokens of thought": show(first),
            f"Trained, {RUNGS[-1]} tokens of thought": show(last),
            "Gain by thinking longer (paired)": numbers.difference(paired_difference(last.correct_P, first.correct_P)),
            "Training steps": rl.trainer.state.step,
            figures.label("run_seconds").capitalize(): duration(curves.run_seconds),
            "Peak memory": f"{curves.peak_memory_bytes / 2**20:.0f} MiB",
        },
        "gain": to_json(gain),
        "cost": cost,
        "next": [
            f'ponder solve "Make 24 from 3 5 7 2." --model {out}',
            f"ponder eval --model {out} --environment countdown --environment-options max_numbers=5 -n 200",
            f"ponder quickstart --minutes 20 --out {out}-20-minutes",
            "ponder train rl --model ponder-tiny --environment arithmetic --steps 50 --out runs/arithmetic",
            f"ponder export {out} my-model",
        ],
    }


def table(curves: Curves) -> str:
    """Both curves as a short table."""
    lines = ["", "thinking longer      base                     trained                  no answer"]
    for a, b in zip(curves.base.sequential, curves.test.sequential, strict=True):
        silent = f"{percent(a.no_answer)} -> {percent(b.no_answer)}"
        lines.append(f"{a.budget_tokens:>5} tokens     {_cell(a)}   {_cell(b)}   {silent}")
    heading = "sampling more        base                     trained"
    lines += ["", f"{heading}                  (best by the checker, thoughts of {PARALLEL_AT} tokens)"]
    for c, d in zip(curves.base.parallel, curves.test.parallel, strict=True):
        lines.append(f"{c.samples:>5} samples    {_cell(c)}   {_cell(d)}")
    lines += [
        "",
        f"{duration(curves.run_seconds)}, {curves.peak_memory_bytes / 2**20:.0f} MiB at most, seed {curves.seed}",
    ]
    return "\n".join(lines)


def _cell(point: Any) -> str:
    from ponder.types import Estimate

    value, low, high = (
        (point.accuracy, point.low, point.high)
        if point.accuracy is not None
        else (point.coverage, point.coverage_low, point.coverage_high)
    )
    return figures.text("accuracy", Estimate(value, low, high, point.n)).ljust(22)
