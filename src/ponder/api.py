"""The Python face of ponder: what `import ponder` gives, each call with an asynchronous twin where it waits.

The synchronous calls run on one background event loop (`ponder.sync`), so they work in a script, in a thread and in a
notebook whose own loop is running. `await` the twins (`solve_async`, …) in asynchronous code. An engine that is opened
once serves any number of calls; given a model's name, a call opens an engine for itself and closes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ponder import registry, sync
from ponder.errors import UserError
from ponder.protocols import Delivery, Engine, Environment, Strategy, WeightsUpdate
from ponder.types import (
    Budget,
    Completion,
    Delta,
    Outcome,
    Problem,
    Prompt,
    Request,
    SamplingParams,
    Split,
)

if TYPE_CHECKING:
    from torch import nn

    from ponder.engines.base import BaseEngine
    from ponder.evaluation.compare import Comparison
    from ponder.evaluation.results import Evaluation
    from ponder.runs.results import Results
    from ponder.training.rl_config import RLConfig

DEFAULT = "ponder-tiny"
"""The model of calls that name none."""


# Parts --------------------------------------------------------------------------------------------------------------


def environment(name: str | Environment, **options: Any) -> Environment:
    """An environment by name (`ponder list environments`) or `PATH.py:Class`, with its options.

    Raises `UserError` for an unknown name or option, with the nearest known one.
    """
    return _part("environments", name, options)


def strategy(name: str | Strategy, **options: Any) -> Strategy:
    """A search strategy by name (`ponder list strategies`) or `PATH.py:Class`, with its options.

    Raises `UserError` for an unknown name or option, with the nearest known one.
    """
    return _part("search.strategies", name, options)


def _part(room: str, part: Any, options: dict[str, Any]) -> Any:
    if isinstance(part, str):
        return registry.build(room, part, options)
    if options:
        raise UserError(f"{next(iter(options))}: an option of a part by name; {type(part).__name__} is built already")
    return part


# Engines ------------------------------------------------------------------------------------------------------------


def open_engine(model: str = DEFAULT, engine: str = "torch", **options: Any) -> BaseEngine:
    """Open an engine on a model; `with` closes it, or else it is closed when Python ends.

    `model` is a built-in name, a folder, a run directory, a `.gguf` file or a hub id (with another engine than torch,
    what that engine takes). `engine` is a name of `ponder list engines`; `options` are its options, such as
    `exact=True` or `base_url=…`. Raises `UserError` for a model that cannot be loaded.
    """
    opened: BaseEngine = registry.build("engines", engine, options).open(model)
    return opened


async def open_engine_async(model: str = DEFAULT, engine: str = "torch", **options: Any) -> BaseEngine:
    """`open_engine` for asynchronous code: loading runs on a thread."""
    return await asyncio.to_thread(open_engine, model, engine, **options)


@contextlib.asynccontextmanager
async def _engine(model: str | Engine) -> AsyncIterator[Engine]:
    """An engine that is open already, or one for this call."""
    if not isinstance(model, str):
        yield model
        return
    opened = await open_engine_async(model)
    try:
        yield opened
    finally:
        await opened.close()


@overload
def generate(model: str | Engine, prompt: str, *, n: int = 1, **params: Any) -> tuple[Completion, ...]: ...
@overload
def generate(
    model: str | Engine, prompt: Sequence[Prompt], *, n: int = 1, **params: Any
) -> list[tuple[Completion, ...]]: ...
def generate(model: str | Engine, prompt: Any, *, n: int = 1, **params: Any) -> Any:
    """Sample `n` completions of a prompt, or of each prompt of a list (all in one batch where the engine can).

    `params` are fields of `SamplingParams` (`max_tokens` is 512 if not given), or `params=SamplingParams(…)`. Raises
    `UserError` for what does not fit the context.
    """
    return sync.run(generate_async(model, prompt, n=n, **params))


async def generate_async(model: str | Engine, prompt: Any, *, n: int = 1, **params: Any) -> Any:
    """`generate` for asynchronous code."""
    given = params.pop("params", None)
    if given is not None and params:
        raise UserError(f"{next(iter(params))} and params: give sampling parameters once")
    sampling = given or SamplingParams(**{"max_tokens": 512, **params})
    many = isinstance(prompt, list)
    async with _engine(model) as engine:
        requests = [Request(p, sampling, n=n) for p in (prompt if many else [prompt])]
        found = await sync.gather_all(engine.generate(r) for r in requests)
    return found if many else found[0]


def publish(engine: Engine, module: nn.Module, version: int) -> Delivery:
    """Give an engine new weights under a version that rises; its own module is only announced.

    Raises `UserError` for weights that do not fit or a version that does not rise, `Unsupported` for engines without
    weights of their own.
    """
    return sync.run(engine.load_weights(WeightsUpdate(module, version)))


# Searching and measuring --------------------------------------------------------------------------------------------


def solve(
    question: str | Problem,
    model: str | Engine = DEFAULT,
    *,
    strategy: str | Strategy = "direct",
    environment: str | Environment | None = None,
    budget: Budget = Budget(),  # noqa: B008  (frozen)
    seed: int = 0,
    on_delta: Callable[[Delta], None] | None = None,
    **options: Any,
) -> Outcome:
    """Answer one question with a strategy under a hard budget; the outcome has the answer, its trace and what it cost.

    `question` is a text, or a problem of an environment (`environment.problem("test", 3)`), whose checker, scorer and
    comparison of answers the search then uses (never its gold). `options` are the strategy's, such as `n=8`.
    `on_delta` hears the leading response as it is sampled. Raises `UserError` for bad input, `Unsupported` if the
    strategy does not go with this engine; what fails later is in `outcome.stop` and `outcome.reason`.
    """
    more: dict[str, Any] = {"strategy": strategy, "environment": environment, "budget": budget, "seed": seed}
    return sync.run(solve_async(question, model, on_delta=on_delta, **more, **options))


async def solve_async(
    question: str | Problem,
    model: str | Engine = DEFAULT,
    *,
    strategy: str | Strategy = "direct",
    environment: str | Environment | None = None,
    budget: Budget = Budget(),  # noqa: B008  (frozen)
    seed: int = 0,
    on_delta: Callable[[Delta], None] | None = None,
    **options: Any,
) -> Outcome:
    """`solve` for asynchronous code."""
    from ponder.search import runner

    problem = Problem("question", question) if isinstance(question, str) else question
    chosen: Strategy = _part("search.strategies", strategy, options)
    feedback = None if environment is None else _part("environments", environment, {})

    async def show(delta: Delta) -> None:
        assert on_delta is not None
        on_delta(delta)

    async with _engine(model) as engine:
        return await runner.solve(
            chosen,
            problem,
            engine,
            feedback=feedback,
            budget=budget,
            seed=seed,
            on_delta=None if on_delta is None else show,
        )


def evaluate(
    environment: str | Environment,
    model: str | Engine = DEFAULT,
    *,
    n: int = 64,
    split: Split = "test",
    strategy: str | Strategy = "direct",
    samples: int = 1,
    budget: Budget = Budget(),  # noqa: B008  (frozen)
    seed: int = 0,
    **options: Any,
) -> Evaluation:
    """Measure how many of the first `n` problems of a split a strategy solves, with a 95 % interval.

    `budget` is of each search; `options` are the strategy's. Raises what `ponder eval` refuses: `UserError` for bad
    input, `PonderError` if too many searches or judgements failed.
    """
    more: dict[str, Any] = {"n": n, "split": split, "strategy": strategy, "samples": samples, "budget": budget}
    return sync.run(evaluate_async(environment, model, seed=seed, **more, **options))


async def evaluate_async(
    environment: str | Environment,
    model: str | Engine = DEFAULT,
    *,
    n: int = 64,
    split: Split = "test",
    strategy: str | Strategy = "direct",
    samples: int = 1,
    budget: Budget = Budget(),  # noqa: B008  (frozen)
    seed: int = 0,
    **options: Any,
) -> Evaluation:
    """`evaluate` for asynchronous code."""
    from ponder.evaluation.evaluate import Plan
    from ponder.evaluation.evaluate import evaluate as measured

    source: Environment = _part("environments", environment, {})
    chosen: Strategy = _part("search.strategies", strategy, options)
    size = source.size(split)
    problems = [source.problem(split, i) for i in range(n if size is None else min(n, size))]
    async with _engine(model) as engine:
        return await measured(chosen, source, engine, problems, Plan(samples, seed, budget))


def compare(a: Evaluation | str | Path, b: Evaluation | str | Path, seed: int = 0) -> Comparison:
    """Compare two evaluations of the same problems, or their run directories, problem by problem.

    Raises `UserError` if one is no evaluation, or if the two did not answer the same problems.
    """
    from ponder.evaluation.compare import compare as compared

    return compared(a, b, seed)


# Training and runs --------------------------------------------------------------------------------------------------


def train_rl(config: RLConfig | None = None, **fields: Any) -> Results:
    """Train by reinforcement learning in a run directory (`config.out`), with progress on stderr.

    Returns what the directory holds. `fields` are those of `RLConfig`, in place of a config or changing one. Raises as
    `ponder train rl` does; on Ctrl-C a checkpoint is written and the run can be resumed.
    """
    from ponder.runs.results import read
    from ponder.training.rl_config import RLConfig
    from ponder.training.rl_run import train

    config = RLConfig(**fields) if config is None else dataclasses.replace(config, **fields)
    train(config)
    return read(config.out)


async def train_rl_async(config: RLConfig | None = None, **fields: Any) -> Results:
    """`train_rl` for asynchronous code: it runs on a thread, and cancelling does not stop it."""
    return await asyncio.to_thread(train_rl, config, **fields)


def read_run(path: str | Path) -> Results:
    """What a run directory holds: curves, metrics, samples, searches. Raises `UserError` if it is none."""
    from ponder.runs.results import read

    return read(path)


def report(run: Results | str | Path) -> Path:
    """Draw a run's plots and write `report.md` and `report.html` into its directory; returns the page.

    Raises `UserError` if the directory is no run.
    """
    from ponder.runs.report import render

    return render(run if isinstance(run, str | Path) else run.path)[1]
