"""Does an environment judge as it should? For every environment in this package, and for your own:

    from ponder.environments.selfcheck import self_check
    failures = self_check(Mine(), "test", range(20))

Every gold response must earn 1; what is no answer, or ends with another answer, must earn 0; nothing may raise, be an
infrastructure error (`judge_error`) or take long.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ponder import outside
from ponder.environments.judging import judge_now
from ponder.protocols import Environment
from ponder.responses import split_response
from ponder.types import FinishReason, Problem, Response, Split, ThoughtFormat, Verdict

SECONDS = 30.0
"""Longest that one verdict may take."""
_THOUGHT = ThoughtFormat("<think>", "</think>")
_OPENED = ThoughtFormat("<think>", "</think>", opened_by_template=True)
_LAST_RESORTS = ("-7919.25", "none of these", "0", "no")


@dataclass(frozen=True, slots=True)
class Failure:
    """One check that failed."""

    problem_id: str
    case: str
    """Which response."""
    message: str


def self_check(environment: Environment, split: Split, indices: Iterable[int]) -> list[Failure]:
    """Judge the gold response and the bad ones of each problem; an empty list if all is well."""
    indices = list(indices)
    failures: list[Failure] = []
    seen: dict[str, int] = {}
    for index in indices:
        problem = environment.problem(split, index)
        if (before := seen.setdefault(problem.id, index)) != index:
            failures.append(Failure(problem.id, "problem", f"indices {before} and {index} gave the same id"))
        again = environment.problem(split, index)
        if (again.id, again.prompt) != (problem.id, problem.prompt):
            failures.append(Failure(problem.id, "problem", "the same index gave two different problems"))
        failures += check_problem(environment, problem, [environment.problem(split, i) for i in indices if i != index])
    return failures


def check_problem(environment: Environment, problem: Problem, others: Iterable[Problem] = ()) -> list[Failure]:
    """Judge the gold response and the bad ones of one problem; the golds of `others` serve as different answers."""
    try:
        gold = environment.gold_response(problem)
    except BaseException as error:
        return [Failure(problem.id, "gold", f"gold_response raised {outside.sentence(outside.failure(error))}")]
    failures = list(_failures(environment, problem, "gold", Response(gold), 1.0))
    failures += _failures(environment, problem, "gold after a thought", _split(f"<think>no 0</think>{gold}"), 1.0)
    for case, response in bad_responses(problem, gold, _different(environment, problem, others)):
        failures += _failures(environment, problem, case, response, 0.0)
    return failures


def bad_responses(problem: Problem, gold: str, different: str | None) -> Iterator[tuple[str, Response]]:
    """Responses that must earn 0, each with its name."""
    prompt = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1].content
    numbers = [str(n) for n in range(1000)]
    texts = {
        "empty": "",
        "blank": " \n\t ",
        "prompt echoed": prompt,
        "prompt echoed twice": f"{prompt}\n{prompt}",
        "0 to 999, spaces": " ".join(numbers),
        "0 to 999, lines": "\n".join(numbers),
        "0 to 999, commas": ", ".join(numbers),
        "0 to 999, then the marker": f"The answer is {' '.join(numbers)}",
        "1 MB of digits": "7" * (1 << 20),
        "100 kB of digits": "7" * 100_000,
        "NUL bytes": "\x00" * 64,
        "lone surrogates": "\ud800\udfff" * 32,
        "9**9**9": "9**9**9",
        "deep nesting": "(" * 10_000 + ")" * 10_000,
    }
    for case, text in texts.items():
        yield case, Response(text, text=text)
    yield "answer in an unclosed thought", _split(f"<think>{gold}")
    yield "answer in an unclosed thought that the template opened", _split(gold, _OPENED)
    yield "answer cut off", split_response(gold, FinishReason.LENGTH, None)
    if different is not None:
        yield "right answer, then a different one", Response(f"{gold}\n\n{different}")
        yield "right answer, then a different one in the next line", Response(f"{gold}\n{different}")
        yield "right answer, then a different one by name", Response(f"{gold}\n\nThe answer is {different}")
        yield "right answer by name, then a different one", Response(f"The answer is {gold}\nThe answer is {different}")


def _different(environment: Environment, problem: Problem, others: Iterable[Problem]) -> str | None:
    """An answer that is wrong for this problem, if one can be found."""
    for other in others:
        try:
            answer = environment.gold_response(other)
        except Exception:
            continue
        if judge_now(environment, problem, Response(answer)).reward == 0.0:
            return answer
    for answer in _LAST_RESORTS:
        if judge_now(environment, problem, Response(answer)).reward == 0.0:
            return answer
    return None


def _split(text: str, thought: ThoughtFormat = _THOUGHT) -> Response:
    return split_response(text, FinishReason.STOP, thought)


def _failures(
    environment: Environment, problem: Problem, case: str, response: Response, reward: float
) -> Iterator[Failure]:
    began = time.monotonic()
    try:
        verdict: Verdict = environment.judge(problem, response)
    except BaseException as error:
        yield Failure(problem.id, case, f"judge raised {outside.sentence(outside.failure(error))}")
        return
    seconds = time.monotonic() - began
    if not isinstance(verdict, Verdict):
        yield Failure(problem.id, case, f"judge gave a {type(verdict).__name__}, not a Verdict")
        return
    if verdict.reward != reward:
        said = f"{verdict.kind.value}, {verdict.reward}: {verdict.reason}"
        yield Failure(problem.id, case, f"must earn {reward:g}, got {said}")
    if seconds > SECONDS:
        yield Failure(problem.id, case, f"took {seconds:.0f} s")
