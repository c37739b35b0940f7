"""What can be refused before a model is loaded, and what before a run begins: problems, strategies, their requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ponder import registry
from ponder.environments.loading import first_problems, name_of, size_of, with_data
from ponder.errors import Refusals, UserError
from ponder.models.load import resolve
from ponder.protocols import Feedback, Generate
from ponder.runs import trackers
from ponder.runs.run import refuse_existing
from ponder.search.runner import begin
from ponder.training import cadence
from ponder.training.rl import parts_of
from ponder.training.rl_config import MAX_TOKENS, PROBLEMS, RLConfig
from ponder.training.source import EngineSource

if TYPE_CHECKING:
    from ponder.protocols import Engine, Environment, Strategy
    from ponder.types import Problem, Request


@dataclass(frozen=True)
class Checked:
    """What is known of a run before its model is loaded."""

    config: RLConfig
    """The environment's name and the numbers of problems filled in."""
    environment: Environment
    held_out: tuple[Problem, ...]
    """Of the held-out evaluation; none if there is to be none."""
    notes: tuple[str, ...]
    """What was filled in, where it follows from the data."""


def checked(config: RLConfig, *, new: bool = True) -> Checked:
    """Check all that needs no model. With `new` the run is to begin in `out`.

    Raises `UserError` that lists everything that is refused, each with what to do.
    """
    refused = Refusals()
    with refused.collected():
        trackers.names(config.track)
    with refused.collected():
        resolve(config.model)
    if new:
        with refused.collected():
            refuse_existing(config.out, config.overwrite)
    with refused.collected():
        _refuse_unknown_strategy(config)
    if config.eval_strategy:
        with refused.collected():
            registry.build("search.strategies", config.eval_strategy, config.eval_strategy_options)
    with refused.collected():
        parts_of(config)
    config = dataclasses.replace(
        config, environment=name_of(config.environment, config.environment_options, config.data)
    )
    known: Checked | None = None
    with refused.collected():
        known = _with_problems(config, environment_of(config), refused)
    refused.raise_all()
    assert known is not None
    return known


def environment_of(config: RLConfig) -> Environment:
    """The environment of a run. Raises `UserError` for one that does not exist, or options that it does not have."""
    options = with_data(config.environment, config.environment_options, config.data)
    environment: Environment = registry.build("environments", config.environment, options)
    return environment


def _with_problems(config: RLConfig, environment: Environment, refused: Refusals) -> Checked:
    """Fill in the numbers of problems that the config leaves open, as far as there are so many."""
    train, test = size_of(environment, "train"), size_of(environment, "test")
    problems, wanted, notes = config.problems, config.eval_problems, []
    if problems is None:
        problems = PROBLEMS if train is None else max(1, min(PROBLEMS, train))
        if problems < PROBLEMS:
            notes.append(f"each step takes {_all(problems, 'training')}")
    if train is not None and train < problems:
        what = f"give problems = {train}" if train else "there must be one at least"
        refused.add(
            f"{config.environment}: {_count(train, 'training')} are fewer than the {problems} of a step; {what}"
        )
    if wanted is not None and test is not None and test < wanted:
        more = ", or a second file for testing (environment option test_data)" if _takes(environment) else ""
        fewer = f"give at most {test}, or 0 for no evaluation" if test else "give 0 for no evaluation"
        refused.add(f"eval_problems = {wanted}: {config.environment} has {_count(test, 'test')}; {fewer}{more}")
    held_out: list[Problem] = []
    count = held_out_count(config, problems) if wanted is None else wanted
    if count and test != 0:
        with refused.collected():
            held_out = first_problems(environment, "test", count, exact=wanted is not None)
    if wanted is None and not held_out:
        notes.append("no held-out evaluation: there are no test problems")
    elif wanted is None and len(held_out) < count:
        few = ", too few to show a gain" if len(held_out) < FEW else ""
        notes.append(f"the held-out evaluation takes {_all(len(held_out), 'test')}{few}")
    config = dataclasses.replace(config, problems=problems, eval_problems=len(held_out))
    return Checked(config, environment, tuple(held_out), tuple(notes))


def held_out_count(config: RLConfig, problems: int) -> int:
    """The number of held-out problems where none is given, for steps of so many problems."""
    if config.minutes is not None or config.planned_steps is None:
        return cadence.MOST_PROBLEMS
    return cadence.eval_problems(config.planned_steps, problems * config.group_size, config.eval_every)


FEW = 30
"""With fewer test problems an interval is so wide that hardly any gain is outside of it."""


def _takes(environment: Environment) -> bool:
    return dataclasses.is_dataclass(environment) and "test_data" in [f.name for f in dataclasses.fields(environment)]


def _all(number: int, kind: str) -> str:
    return f"all {number} {kind} problems" if number > 1 else f"the one {kind} problem there is"


def _count(number: int, kind: str) -> str:
    return f"{number} {kind} problem{'s' * (number != 1)}"


def strategy_of(config: RLConfig) -> Strategy:
    """What samples the rollouts. Raises `UserError` for one that does not exist or cannot draw groups."""
    if "n" in config.strategy_options:
        raise UserError("strategy_options: n is the group size; give it as group_size")
    options = {**config.rollout_options, "n": config.group_size}
    strategy: Strategy = registry.build("search.strategies", config.strategy, options)
    return strategy


def with_strategy(config: RLConfig, thinks: bool) -> RLConfig:
    """The config with its strategy filled in: a thought can only be bounded where the model marks it (`thinks`)."""
    if config.strategy:
        return config
    if thinks:
        return dataclasses.replace(config, strategy="budget_forcing")
    options = {"max_tokens": MAX_TOKENS, **config.strategy_options}
    return dataclasses.replace(config, strategy="direct", strategy_options=options)


def _refuse_unknown_strategy(config: RLConfig) -> None:
    """Raises `UserError` for a strategy that does not exist, or options that fit none that may be filled in."""
    reasons = []
    for thinks in (True, False):
        try:
            strategy_of(with_strategy(config, thinks))
            return
        except UserError as error:
            reasons.append(str(error))
    first, second = reasons
    raise UserError(first if first == second else f"strategy_options: {first}; without thought markers, {second}")


def source_of(config: RLConfig, environment: Environment, engine: Engine) -> EngineSource:
    """The rollouts of a run. Raises `UserError` if the strategy cannot make them."""
    strategy = strategy_of(config)
    return EngineSource(strategy, environment, engine, config.group_size, config.resample, config.seed)


def first_requests(
    strategy: Strategy, engine: Engine, problems: Sequence[Problem], feedback: Feedback
) -> list[Request]:
    """What a search would request first for the longest problem; nothing is sent to the engine.

    Raises `UserError` if its responses do not fit the context.
    """
    longest = max(problems, key=lambda p: engine.count_tokens(p.prompt))
    search = begin(strategy, longest, engine, feedback)
    requests = [ask.work.request for ask in search.ask() if isinstance(ask.work, Generate)]
    for request in requests:
        prompt, response = engine.count_tokens(request.prompt), request.params.max_tokens
        if prompt + response > engine.info.context:
            raise UserError(
                f"strategy_options: prompts of {prompt} tokens and responses of {response} do not fit the context of "
                f"{engine.info.context} tokens of {engine.info.name}"
            )
    return requests
