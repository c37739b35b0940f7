"""What judges the responses of a pool: a verifier with each row's gold, or the environment of its problems."""

from __future__ import annotations

import re
from typing import Any, Protocol

from ponder.engines.recorded import RecordedPool, RecordedRow
from ponder.environments.base import guarded
from ponder.environments.judging import judge_now
from ponder.environments.loading import problem_at
from ponder.errors import UserError
from ponder.protocols import Answers, Checker, Environment
from ponder.types import Problem, Response, Verdict
from ponder.verifiers.answers import VerifierAnswers

_NUMBER = re.compile(r"\s*[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?\s*%?\s*")


class Judge(Protocol):
    """Judges the responses of a pool."""

    name: str
    threads: bool
    """May be called from several threads at once."""
    answers: Answers | None
    """How answers are read and compared for votes; None: as the verdicts read them."""

    def problem(self, row: RecordedRow, where: str) -> Problem:
        """The problem of the row. Raises `UserError` if this judge cannot judge it."""
        ...

    def verdict(self, row: RecordedRow, problem: Problem, response: Response) -> Verdict: ...


class VerifierJudge:
    """A verifier with the gold of each row."""

    def __init__(self, verifier: Any, name: str) -> None:
        self.name = name
        self.threads = True
        self.answers: Answers | None = VerifierAnswers(verifier)
        self._verifier = verifier

    def problem(self, row: RecordedRow, where: str) -> Problem:
        check = getattr(self._verifier, "check_gold", None)
        if row.gold is not None:
            if not isinstance(row.gold, str | int | float) or isinstance(row.gold, bool):
                raise UserError(f"{where}: a verifier needs a gold that is text or a number; judge by --environment")
            try:
                if check is not None:
                    check(row.gold)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
        return Problem(row.id, row.prompt or "")

    def verdict(self, row: RecordedRow, problem: Problem, response: Response) -> Verdict:
        # Without a gold only the answer is read; any gold serves for that.
        gold = "0" if row.gold is None else row.gold
        return guarded(lambda _, answer: self._verifier(gold, answer), problem, response)


class EnvironmentJudge:
    """The judge of the environment that the problems came from, found by their ids."""

    def __init__(self, environment: Environment, name: str) -> None:
        self.name = name
        self.threads = environment.slow_judge
        self.answers: Answers | None = environment.feedback.answers
        self.checker: Checker | None = environment.feedback.checker
        self._environment = environment

    def problem(self, row: RecordedRow, where: str) -> Problem:
        address = getattr(self._environment, "address", None)
        try:
            if address is None:
                raise UserError("it cannot find a problem by its id")
            problem: Problem = problem_at(self._environment, *address(Problem(row.id, "")))
        except (UserError, IndexError) as error:
            raise UserError(
                f"{where}: problem {row.id!r} cannot be judged by --environment {self.name}: {error}; give the "
                "environment and --environment-options that it was recorded with, or a --verifier"
            ) from None
        if row.prompt is not None and row.prompt != problem.prompt:
            raise UserError(
                f"{where}: problem {row.id!r} asks something else in --environment {self.name}; give the "
                "--environment-options that it was recorded with"
            )
        return problem

    def verdict(self, row: RecordedRow, problem: Problem, response: Response) -> Verdict:
        return judge_now(self._environment, problem, response)


def default_verifier(pool: RecordedPool) -> str:
    """`numeric` if every gold is a number, else `math`. Raises `UserError` if one is neither text nor a number."""
    golds = [row.gold for row in pool.rows if row.gold is not None]
    return "numeric" if all(_is_number(g) for g in golds) else "math"


def _is_number(gold: Any) -> bool:
    if isinstance(gold, str):
        return any(c.isdigit() for c in gold) and _NUMBER.fullmatch(gold) is not None
    return isinstance(gold, int | float) and not isinstance(gold, bool)
