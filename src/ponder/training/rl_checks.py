"""What can be refused before a model is loaded, and what before a run begins: problems, strategies, their requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ponder import registry
from ponder.environments.loading import first_problems, size_of, with_data
from ponder.errors import UserError
from ponder.protocols import Feedback, Generate, SearchContext
from ponder.search.runner import check_turns
from ponder.training.rl import parts_of
from ponder.training.rl_config import RLConfig
from ponder.training.source import EngineSource

if TYPE_CHECKING:
    from ponder.protocols import Engine, Environment, Strategy
    from ponder.types import Problem, Request


def environment_of(config: RLConfig) -> Environment:
    """The environment of a run. Raises `UserError` for one that does not exist, or options that it does not have."""
    options = with_data(config.environment, config.environment_options, config.data)
    environment: Environment = registry.build("environments", config.environment, options)
    return environment


def held_out_of(config: RLConfig, environment: Environment) -> tuple[Problem, ...]:
    """The problems of the held-out evaluation; none if there is to be none.

    Raises `UserError` if there are too few of them, or too few training problems for a step.
    """
    train, test = size_of(environment, "train"), size_of(environment, "test")
    if train is not None and train < config.problems:
        what = f"give problems = {train}" if train else "it needs more"
        raise UserError(
            f"{config.environment}: {_count(train, 'training')} are fewer than the {config.problems} of a step; {what}"
        )
    if not config.eval_problems:
        return ()
    if test is not None and test < config.eval_problems:
        more = ", or a second file for testing (environment option test_data)" if _takes(environment) else ""
        fewer = f"give at most {test}, or 0 for no evaluation" if test else "give 0 for no evaluation"
        raise UserError(
            f"eval_problems = {config.eval_problems}: {config.environment} has {_count(test, 'test')}; {fewer}{more}"
        )
    return tuple(first_problems(environment, "test", config.eval_problems))


def _takes(environment: Environment) -> bool:
    return dataclasses.is_dataclass(environment) and "test_data" in [f.name for f in dataclasses.fields(environment)]


def _count(number: int, kind: str) -> str:
    return f"{number} {kind} problem{'s' * (number != 1)}"


def strategy_of(config: RLConfig) -> Strategy:
    """What samples the rollouts. Raises `UserError` for one that does not exist or cannot draw groups."""
    if "n" in config.strategy_options:
        raise UserError("strategy_options: n is the group size; give it as group_size")
    options = {**config.rollout_options, "n": config.group_size}
    strategy: Strategy = registry.build("search.strategies", config.strategy, options)
    return strategy


def refuse_unknown_parts(config: RLConfig) -> None:
    """Raises `UserError` for a strategy, an advantage estimator or a loss that does not exist or does not fit."""
    strategy_of(config)
    registry.build("search.strategies", *config.evaluation)
    parts_of(config)


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
    check_turns(strategy, feedback, longest)
    search = strategy.start(
        longest,
        SearchContext(
            engine.info,
            engine.capabilities,
            0,
            bool(feedback.checker),
            bool(feedback.scorer),
            turns=feedback.episode is not None,
        ),
    )
    requests = [ask.work.request for ask in search.ask() if isinstance(ask.work, Generate)]
    for request in requests:
        prompt, response = engine.count_tokens(request.prompt), request.params.max_tokens
        if prompt + response > engine.info.context:
            raise UserError(
                f"strategy_options: prompts of {prompt} tokens and responses of {response} do not fit the context of "
                f"{engine.info.context} tokens of {engine.info.name}"
            )
    return requests
