"""Answer one question: the thought as it streams, then the answer and what it cost."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from ponder.budget.prices import priced
from ponder.cli._budget import budget_of, check_opening, check_prices, prices_of
from ponder.cli._common import Stopped, build_strategy, check_target, engine_options, engines_for
from ponder.cli._feedback import feedback_of
from ponder.cli._outcome import as_json, limits, status, why
from ponder.cli._output import note, results, say
from ponder.cli._screen import Screen
from ponder.cli._solve_config import SolveConfig
from ponder.config import parse
from ponder.engines.opening import OpeningBudget
from ponder.errors import PonderError, UserError
from ponder.show import visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ponder.budget.meter import Meter
    from ponder.cli._saved import Saved
    from ponder.protocols import Engine, Environment, Feedback, Strategy
    from ponder.types import Outcome, Problem, Spend

DESCRIPTION = """Answer one question. The leading thought streams to stderr (dim on a terminal), the answer goes to
stdout, why the search stopped and what it cost to stderr. The exit code is 1 if there is no answer, such as when the
response was cut off or the budget is too small for the prompt. A question that an environment could have asked, such
as "Make 24 from 3 5 7 2." (countdown) or "What is 17 + 25?" (arithmetic), is judged, and a search
may use the environment's checker.

examples:
  ponder solve "Make 24 from 3 5 7 2." --strategy best_of_n
  ponder solve "Make 24 from 3 5 7 2." --thought-tokens 64 --seed 3
  ponder solve --environment countdown --problem test:1 --strategy best_of_n --max-tokens 96 --budget-tokens 600
  echo "What is 17 + 25?" | ponder solve - --model smollm2-135m --temperature 0

With --save FILE a search that was stopped, by Ctrl-C or by its budget, can be resumed in another process:
  ponder solve --continue FILE --budget-tokens 4000
"""


def main(args: list[str]) -> int:
    from ponder.environments.recognising import recognised

    saved, config, question = read_config(args)
    asked = engine_options(config)
    if config.save is not None:
        check_target("--save", config.save)
    elif config.continue_ is not None:
        check_target("--continue", config.continue_)
    environment = environment_of(config)
    known = recognised(question) if environment is None else None
    if known is not None:
        environment, problem = known
    else:
        problem = problem_of(environment, config, question)
    feedback = feedback_of(config, environment)
    strategy = strategy_of(config)
    from ponder.search.runner import check_turns

    check_turns(strategy, feedback, problem)
    if config.environment is not None and not config.json:
        note(f"{config.environment} {config.problem}: {visible(_text(problem), 2000)}")
    check_opening(config, asked, budget_of(config))
    from ponder import sync
    from ponder.environments.judging import judge

    opening = opening_of(config, saved)
    with engines_for(asked, opening) as (engine, others):
        check_prices(config, (engine, *others.values()))
        thinks = engine.info.thought is not None
        screen = None if config.json else Screen(engine.info.thought, single(strategy), results(), sys.stderr)
        paid = opening.spend
        if saved is not None:
            # It may have been started without prices.
            prices = [prices_of(config).of(e.info.name) for e in (engine, *others.values())]
            saved.journal.spend = priced(saved.journal.spend, prices)
            paid += priced(saved.opening, prices)
        outcome, whole = _solve(config, problem, strategy, feedback, engine, others, screen, saved, paid, opening.known)
        outcome = dataclasses.replace(outcome, spend=outcome.spend + paid)
        seconds = whole.elapsed
        verdict = None if environment is None else sync.run(judge(environment, problem, outcome.response))
        if config.json:
            say(json.dumps(as_json(_text(problem), config, outcome, verdict, seconds, paid), indent=1))
        if screen is not None:
            screen.finish(outcome)
    where = config.save or config.continue_
    if where is not None and not config.json:
        from ponder.cli._saved import command
        from ponder.types import StopReason

        resumed = command(where, limits(config), used_up=outcome.stop is StopReason.BUDGET)
        ended = outcome.stop in (StopReason.FINISHED, StopReason.ACCEPTED)
        note(f"saved: {where}" + ("" if ended else f" (continue with: {resumed})"))
    answered = bool(outcome.response.answer and outcome.response.answer.strip())
    if not config.json and (answered or outcome.trace.nodes):
        for line in status(outcome, verdict if answered else None, seconds, paid):
            note(line)
    if not answered:
        raise PonderError(f"no answer: {why(outcome, thinks, config, cut=bool(whole.shortened))}")
    return 0


def opening_of(config: SolveConfig, saved: Saved | None) -> OpeningBudget:
    """What is left of the budget for opening engines."""
    budget, prices = budget_of(config), prices_of(config)
    if saved is None:
        return OpeningBudget(budget, prices)
    before, passed = saved.journal.spend + saved.opening, saved.journal.seconds + saved.opening.seconds
    return OpeningBudget(budget, prices, before, passed, saved.known)


def read_config(args: list[str]) -> tuple[Saved | None, SolveConfig, str]:
    """The search to resume, the config of the command line, and the question."""
    from ponder.cli import _saved

    # tyro reads a lone dash as a flag.
    stdin = "-" in args
    words = [a for a in args if a != "-"]
    saved = _saved.read(words, SolveConfig)
    config = parse(SolveConfig, words, prog="ponder solve", description=DESCRIPTION, default=saved and saved.config)
    if saved is not None:
        saved.refuse_changed(config)
        return saved, config, saved.config.question
    return None, config, _question(config, stdin)


def _question(config: SolveConfig, stdin: bool) -> str:
    if stdin and config.question:
        raise UserError("give the question as words or as -, not both")
    question = (sys.stdin.read() if stdin else config.question).strip()
    if config.environment is not None:
        if question:
            raise UserError("give a question or --environment, not both")
        return ""
    if not question:
        raise UserError('there is no question; give one, as in: ponder solve "Make 24 from 3 5 7 2."')
    return question


def environment_of(config: SolveConfig) -> Environment | None:
    """The environment that the question is from, if one is named."""
    if config.environment is None:
        for flag, given in (("--environment-options", config.environment_options), ("--problem", config.problem)):
            if given and given != "test:0":
                raise UserError(f"{flag} goes with --environment; name one, or leave it out")
        return None
    from ponder import registry

    environment: Environment = registry.build("environments", config.environment, config.environment_options)
    return environment


def problem_of(environment: Environment | None, config: SolveConfig, question: str) -> Problem:
    """What is to be solved. Raises `UserError` for a problem that the environment does not have."""
    from ponder.environments.loading import problem_at
    from ponder.types import Problem

    if environment is None:
        return Problem("question", question)
    split, _, index = config.problem.partition(":")
    if split not in ("train", "test") or not (index.isascii() and index.isdigit()):
        raise UserError(f"--problem {config.problem}: give SPLIT:INDEX, such as test:3")
    try:
        return problem_at(environment, split, int(index))  # type: ignore[arg-type]
    except IndexError as error:
        raise UserError(f"--problem {config.problem}: {config.environment} has no such problem ({error})") from None


def _text(problem: Problem) -> str:
    """The prompt of a problem, as one text."""
    if isinstance(problem.prompt, str):
        return problem.prompt
    return "\n".join(f"{m.role}: {m.content}" for m in problem.prompt)


def strategy_of(config: SolveConfig) -> Strategy:
    """The strategy that the flags ask for."""
    options = dict(config.strategy_options)
    name = config.strategy or ("direct" if config.thought_tokens is None else "budget_forcing")
    shortcuts: dict[str, Any] = {
        "max_tokens": config.max_tokens,
        "thought_tokens": config.thought_tokens,
        "temperature": config.temperature,
    }
    if config.max_tokens is not None and config.thought_tokens is not None and name == "budget_forcing":
        if config.max_tokens <= config.thought_tokens:
            raise UserError(
                f"--max-tokens {config.max_tokens} leaves no token for an answer after --thought-tokens "
                f"{config.thought_tokens}: give more"
            )
        shortcuts["answer_tokens"] = config.max_tokens - config.thought_tokens
        del shortcuts["max_tokens"]
    return build_strategy(name, options, shortcuts)


def single(strategy: Strategy) -> bool:
    """True if the one response that streams is the one that the strategy will choose."""
    return type(strategy).__name__ in ("Direct", "Cot", "BudgetForcing") and getattr(strategy, "n", 1) == 1


def _solve(
    config: SolveConfig,
    problem: Problem,
    strategy: Strategy,
    feedback: Feedback,
    engine: Engine,
    others: Mapping[str, Engine],
    screen: Screen | None,
    saved: Saved | None,
    paid: Spend,
    known: dict[str, Any],
) -> tuple[Outcome, Meter]:
    """The outcome, and the meter of all that this search may spend, `paid` for opening the engines included.

    `known` is what opening them found out; it is saved with the search.
    """
    from ponder import sync
    from ponder.budget.meter import Meter
    from ponder.cli._saved import Saved, command
    from ponder.search.journal import Journal
    from ponder.search.runner import solve

    where = config.save or config.continue_
    journal = saved.journal if saved is not None else Journal() if where else None
    passed = paid.seconds + (journal.seconds if journal is not None else 0.0)
    whole = Meter(budget_of(config), prices=prices_of(config), passed=passed)
    whole.add(paid)
    search = solve(
        strategy,
        problem,
        engine,
        parent=whole,
        seed=config.seed,
        feedback=feedback,
        others=others,
        journal=journal,
        on_delta=None if screen is None else screen.follow,
    )
    try:
        return sync.run(search), whole
    except KeyboardInterrupt:
        if screen is not None:
            screen.cut()
        if where is None:
            raise
        raise Stopped(f"stopped; continue with: {command(where, limits(config))}") from None
    finally:
        if where is not None and journal is not None:
            # On the clock of the budget, which started before the search's own.
            journal.seconds = whole.elapsed - paid.seconds
            question = problem.prompt if config.environment is None and isinstance(problem.prompt, str) else ""
            Saved.of(config, question, journal, paid, known).write(where)
