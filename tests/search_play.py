"""Playing a search by hand: asks answered in any order, by a mock engine. For tests of strategies."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable
from typing import Any

from mocks import MockEngine

from ponder.environments.turns import BaseEpisode
from ponder.protocols import (
    Act,
    Answers,
    Ask,
    Check,
    Checker,
    Engine,
    Feedback,
    Generate,
    Group,
    Score,
    Scorer,
    Search,
    SearchContext,
    Strategy,
    Turn,
    TurnPlayer,
)
from ponder.scorers.base import BaseScorer
from ponder.search import solve
from ponder.search.clusters import TextAnswers, cluster_answers
from ponder.search.trace import samples, with_verdicts
from ponder.types import Message, Outcome, Problem, Response, Spend, StopReason, Trace, Verdict


def searched(
    strategy: Strategy,
    problem: Problem,
    engine: Engine,
    *,
    checker: Checker | None = None,
    scorer: Scorer | None = None,
    answers: Answers | None = None,
    **options: Any,
) -> Outcome:
    """`solve` by itself, the parts of its feedback by name; strategies that play turns play those of `Asks`."""
    feedback = Feedback(checker, scorer, answers, episode=(lambda p: Asks()) if plays(strategy) else None)
    return asyncio.run(solve(strategy, problem, engine, feedback=feedback, **options))


def plays(strategy: Strategy) -> bool:
    return isinstance(strategy, TurnPlayer) and strategy.plays_turns


def judged(trace: Trace, problem: Problem, judge: Callable[[Problem, Response], Verdict]) -> Trace:
    """The trace with the judge's verdict on each of its samples."""
    return with_verdicts(trace, {n.id: judge(problem, n.response) for n in samples(trace)})


class Asks(BaseEpisode):
    """An episode that asks one thing more, then ends."""

    def __init__(self) -> None:
        self.turns = 0

    async def step(self, response: Response) -> Turn:
        assert self.turns < 2
        self.turns += 1
        return Turn((Message("user", "2 * 21 ="),), done=False) if self.turns == 1 else Turn()

    def fork(self) -> Asks:
        return copy.copy(self)


class Rule(BaseScorer):
    """Scores a text by a rule; keeps what it was asked."""

    def __init__(self, rule: Callable[[str], float]) -> None:
        self.rule = rule
        self.seen: list[str] = []

    def value(self, problem: Problem, response: Response) -> float:
        self.seen.append(response.text)
        return self.rule(response.text)


def context(engine: MockEngine, checker: bool = False, scorer: bool = False, seed: int = 7) -> SearchContext:
    """What a search of this engine is told."""
    return SearchContext(engine.info, engine.capabilities, seed, checker, scorer)


def answer_to(
    ask: Ask,
    problem: Problem,
    engine: MockEngine,
    checker: Checker | None = None,
    scorer: Callable[[str], float] = len,
) -> Any:
    """What the runner would tell."""
    match ask.work:
        case Generate(request):
            return tuple(engine.complete(request, i) for i in range(request.n))
        case Check(response):
            assert checker is not None
            return checker(problem, response)
        case Score(responses):
            return tuple(scorer(r.text) for r in responses)
        case Act(responses):
            episode = Asks()
            episode.turns = len(responses) - 1
            return asyncio.run(episode.step(responses[-1]))
        case Group(responses):
            return cluster_answers(TextAnswers(), problem, responses)
    return None


def play(
    search: Search, answer: Callable[[Ask], Any], rng: random.Random | None = None
) -> tuple[Outcome, dict[int, Ask], dict[int, Any]]:
    """Run a search to its end; with `rng` the asks are answered in random order, each a second time too.

    Returns the outcome, all that was asked and all that was told. Fails if an ask comes twice or is left over.
    """
    waiting: list[Ask] = []
    asked: dict[int, Ask] = {}
    told: dict[int, Any] = {}
    while not search.done:
        for ask in search.ask():
            assert ask.id not in asked, f"ask {ask.id} comes twice"
            asked[ask.id] = ask
            waiting.append(ask)
        gone = set(search.unwanted())
        waiting = [ask for ask in waiting if ask.id not in gone]
        if search.done:
            break
        assert waiting, "the search waits for nothing that was asked"
        ask = waiting.pop(rng.randrange(len(waiting)) if rng is not None else 0)
        told[ask.id] = answer(ask)
        search.tell(ask.id, told[ask.id])
        search.tell(ask.id, ConnectionError("told twice"))
    assert not search.ask()
    return search.outcome(Spend(), StopReason.FINISHED), asked, told


def start(strategy: Strategy, problem: Problem, engine: MockEngine, checker: bool = False, scorer: bool = False) -> Any:
    """A search of a strategy on a mock engine."""
    return strategy.start(problem, context(engine, checker, scorer))
