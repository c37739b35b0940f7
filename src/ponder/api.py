"""The Python API: what `import ponder` gives; calls that wait have an asynchronous twin.

The synchronous calls run on one background event loop (`ponder.sync`), so they work in a script, in a thread and in a
notebook whose own loop is running. `await` the twins (`solve_async`, …) in asynchronous code. An open engine
serves any number of calls; given the name of a model, a call opens an engine for itself and closes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ponder import registry, sync
from ponder.config import from_mapping
from ponder.errors import UserError
from ponder.protocols import Delivery, Engine, Environment, Feedback, Strategy, WeightsUpdate
from ponder.types import Budget, Delta, Message, Outcome, Problem, Prompt, Request, SamplingParams, Split

if TYPE_CHECKING:
    from torch import nn

    from ponder.engines.base import BaseEngine
    from ponder.engines.opening import EngineOptions, OpeningBudget
    from ponder.evaluation.compare import Comparison
    from ponder.evaluation.results import Evaluation
    from ponder.runs.results import Results
    from ponder.training.rl_config import RLConfig

DEFAULT = "ponder-tiny"
"""The model of calls that do not name one."""


P = ParamSpec("P")
T = TypeVar("T")


def _blocking(twin: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """The synchronous face of an asynchronous call: same parameters, same help."""

    @functools.wraps(twin)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return sync.run(twin(*args, **kwargs))

    call.__name__ = call.__qualname__ = twin.__name__.removesuffix("_async")
    return call


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


def open_engine(
    model: str = DEFAULT, engine: str = "torch", *, budget: Budget | None = None, **options: Any
) -> BaseEngine:
    """Open an engine on a model; `with` closes it, otherwise it is closed when Python exits.

    `model` is a built-in name, a folder, a run directory, a `.gguf` file or a hub id (with an engine other
    than torch, that engine's name of the model). `engine` is a name of `ponder list engines`; `options` are its
    options, such as `exact=True` or `base_url=…`. Finding out what an endpoint can do costs tokens
    (`engine.opening`), at most a quarter of `budget`. Raises `UserError` for a model that cannot be loaded.
    """
    from ponder.engines.opening import opened

    return _closable(opened(*_to_open(model, engine, options, budget)))


async def open_engine_async(
    model: str = DEFAULT, engine: str = "torch", *, budget: Budget | None = None, **options: Any
) -> BaseEngine:
    """`open_engine` for asynchronous code: loading runs on a thread, and a cancelled opening leaves no engine open."""
    from ponder.engines.opening import opened_async

    return _closable(await opened_async(*_to_open(model, engine, options, budget)))


def _to_open(
    model: str, engine: str, options: dict[str, Any], budget: Budget | None
) -> tuple[EngineOptions, OpeningBudget | None]:
    from ponder.budget.prices import load
    from ponder.engines.opening import EngineOptions, OpeningBudget

    return EngineOptions(model, engine, options), None if budget is None else OpeningBudget(budget, load())


def _closable(engine: Engine) -> BaseEngine:
    from ponder.engines.base import BaseEngine

    if not isinstance(engine, BaseEngine):
        raise UserError(f"{type(engine).__name__} is not a ponder.engines.base.BaseEngine: derive it from that")
    return engine


@contextlib.asynccontextmanager
async def _engine(model: str | Engine) -> AsyncIterator[Engine]:
    """The open engine, or one that is opened for this call."""
    if not isinstance(model, str):
        yield model
        return
    engine = await open_engine_async(model)
    async with engine:
        yield engine


async def generate_async(model: str | Engine, prompt: Prompt | Sequence[Prompt], *, n: int = 1, **params: Any) -> Any:
    """Sample `n` completions of a prompt; for a list of prompts a list with those of each, sampled in one batch.

    `params` are fields of `SamplingParams` (`max_tokens` is 512 if not given), or `params=SamplingParams(…)`. Raises
    `UserError` for a prompt that does not fit the context; the other prompts are then cancelled.
    """
    given = params.pop("params", None)
    if given is not None and params:
        raise UserError(f"{next(iter(params))} and params: give sampling parameters once")
    sampling = given or from_mapping(SamplingParams, {"max_tokens": 512, **params}, "generate")
    many = isinstance(prompt, list)
    prompts: list[Any] = list(prompt) if isinstance(prompt, list) else [prompt]
    for one in prompts:
        if not isinstance(one, str) and not all(isinstance(part, Message | int) for part in one):
            raise UserError("generate: a prompt is a text, a tuple of messages or of ids; give several as a list")
    async with _engine(model) as engine:
        found = await sync.gather_all(engine.generate(Request(p, sampling, n=n)) for p in prompts)
    return found if many else found[0]


generate = _blocking(generate_async)


async def publish_async(engine: Engine, module: nn.Module, version: int) -> Delivery:
    """Give an engine new weights with a higher version number; the engine's own module is not copied.

    Raises `UserError` for weights that do not fit or a version that is not higher, `Unsupported` for engines whose
    weights cannot be set.
    """
    return await engine.load_weights(WeightsUpdate(module, version))


publish = _blocking(publish_async)


# Searching and measuring --------------------------------------------------------------------------------------------

OnDelta = Callable[[Delta], Any]
"""Hears the pieces of a response; if it gives an awaitable, the next piece waits for that."""


async def solve_async(
    question: str | Problem,
    model: str | Engine = DEFAULT,
    *,
    strategy: str | Strategy = "direct",
    environment: str | Environment | Feedback | None = None,
    budget: Budget = Budget(),  # noqa: B008  (frozen)
    seed: int = 0,
    others: Mapping[str, Engine] | None = None,
    on_delta: OnDelta | None = None,
    **options: Any,
) -> Outcome:
    """Answer one question with a strategy under a hard budget; the outcome has the answer, its trace and what it cost.

    `question` is a text, or a problem of an environment (`environment.problem("test", 3)`). With a problem, give its
    `environment`: the search uses its checker, scorer and comparison of answers, never its gold; `Feedback()` is for a
    search without any. `options` are the strategy's, such as `n=8`; `others` are further engines that it may call by
    name. `on_delta` receives the leading response as it is sampled. Raises `UserError` for bad input, `Unsupported` if
    the strategy does not work with this engine, and what `on_delta` raises; later errors are in `outcome.stop` and
    `outcome.reason`.
    """
    from ponder.search import runner

    if environment is None and isinstance(question, Problem):
        raise UserError(
            f"problem {question.id!r}: give its environment too, which checks answers and says which are the same "
            "(environment=…; Feedback() for a search without any)"
        )
    problem = Problem("question", question) if isinstance(question, str) else question
    chosen: Strategy = _part("search.strategies", strategy, options)
    feedback = _part("environments", environment, {}) if isinstance(environment, str) else environment

    async def show(delta: Delta) -> None:
        assert on_delta is not None
        taken = on_delta(delta)
        if inspect.isawaitable(taken):
            await taken

    reader = None if on_delta is None else show
    async with _engine(model) as engine:
        return await runner.solve(
            chosen, problem, engine, feedback=feedback, budget=budget, seed=seed, others=others, on_delta=reader
        )


solve = _blocking(solve_async)


async def evaluate_async(
    environment: str | Environment,
    model: str | Engine = DEFAULT,
    *,
    problems: int = 64,
    split: Split = "test",
    strategy: str | Strategy = "direct",
    samples: int = 1,
    budget: Budget = Budget(),  # noqa: B008  (frozen)
    total: Budget = Budget(),  # noqa: B008  (frozen)
    seed: int = 0,
    others: Mapping[str, Engine] | None = None,
    **options: Any,
) -> Evaluation:
    """Measure how many of the first `problems` of a split a strategy solves, with a 95 % interval.

    `budget` is that of one search, `total` that of all; `options` are the strategy's, such as `n=8`. One response to
    each problem of `gsm8k` or `jsonl` is greedy unless `temperature` is given, as the field measures them. Raises what
    `ponder eval` refuses: `UserError` for bad input, `PonderError` if too many searches or judgements failed.
    """
    from ponder.budget import Meter
    from ponder.environments.loading import first_problems
    from ponder.evaluation.evaluate import Plan
    from ponder.evaluation.evaluate import evaluate as measured
    from ponder.evaluation.greedy import greedy_by_default

    source: Environment = _part("environments", environment, {})
    if isinstance(strategy, str) and greedy_by_default(source, strategy, options, samples):
        options["temperature"] = 0.0
    chosen: Strategy = _part("search.strategies", strategy, options)
    asked = first_problems(source, split, problems)
    async with _engine(model) as engine:
        plan = Plan(samples, seed, budget)
        return await measured(chosen, source, engine, asked, plan, others=others, parent=Meter(total))


evaluate = _blocking(evaluate_async)


def compare(a: Evaluation | str | Path, b: Evaluation | str | Path) -> Comparison:
    """Compare two evaluations of the same problems, or their run directories, problem by problem.

    Raises `UserError` if one is not an evaluation, or if the two did not answer the same problems.
    """
    from ponder.evaluation.compare import compare as compared

    return compared(a, b)


# Training and runs --------------------------------------------------------------------------------------------------


def train_rl(config: RLConfig | None = None, **fields: Any) -> Results:
    """Train by reinforcement learning in a run directory (`config.out`), with progress on stderr.

    Returns the results in it. `fields` are those of `RLConfig`; they replace a config or change some of one. Raises as
    `ponder train rl` does; on Ctrl-C a checkpoint is written and the run can be resumed.
    """
    from ponder.runs.results import read
    from ponder.training.rl_config import RLConfig
    from ponder.training.rl_run import train

    given = {} if config is None else {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    config = from_mapping(RLConfig, {**given, **fields}, "train_rl")
    train(config)
    return read(config.out)


async def train_rl_async(config: RLConfig | None = None, **fields: Any) -> Results:
    """`train_rl` for asynchronous code: it runs on a thread, and cancelling does not stop it."""
    return await asyncio.to_thread(train_rl, config, **fields)


def read_run(path: str | Path) -> Results:
    """What a run directory holds: curves, metrics, samples, searches. Raises `UserError` if it is not a run."""
    from ponder.runs.results import read

    return read(path)


def report(run: Results | str | Path) -> Path:
    """Draw a run's plots and write `report.md` and `report.html` into its directory; returns the page.

    Raises `UserError` if the directory is not a run.
    """
    from ponder.runs.report import render

    return render(run if isinstance(run, str | Path) else run.path)[1]
