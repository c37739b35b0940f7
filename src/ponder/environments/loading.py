"""Problems as they come out of an environment, checked: what a user's environment gives instead is one sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ponder import outside, registry
from ponder.errors import PartFailed, UserError
from ponder.protocols import Environment
from ponder.types import Gold, Message, Problem, Split


def name_of(name: str, options: Mapping[str, Any], data: str | None) -> str:
    """The environment's name where none is given: a file of one's own is read by jsonl, else it is countdown."""
    return name or ("jsonl" if data is not None or "data" in options else "countdown")


def with_data(name: str, options: Mapping[str, Any], data: str | None) -> dict[str, Any]:
    """The options of an environment, with the file that `data` is short for.

    Raises `UserError` if it is given twice, or if the environment reads no file.
    """
    if data is None:
        return dict(options)
    if "data" in options:
        raise UserError("data is given twice, by --data and in --environment-options: give it once")
    cls, _ = registry.find("environments", name)
    if dataclasses.is_dataclass(cls) and "data" not in {f.name for f in dataclasses.fields(cls)}:
        raise UserError(f"--data {data}: the environment {name!r} reads no file; give --environment jsonl for your own")
    return {**options, "data": data}


def problem_at(environment: Environment, split: Split, index: int) -> Problem:
    """The problem at an index.

    Raises `IndexError` if there is none, `PartFailed` if the environment raises anything else or gives no `Problem`.
    """
    who = outside.whose(environment, "environment")
    problem = outside.call(f"{who}: problem({split!r}, {index})", environment.problem, split, index)
    where = f"{who}: problem({split!r}, {index}){outside.defined(environment.problem)} gave"
    if not isinstance(problem, Problem):
        raise PartFailed(f"{where} a {type(problem).__name__}, not a Problem")
    if not isinstance(problem.id, str) or not problem.id:
        raise PartFailed(f"{where} the id {problem.id!r}: it must be text, and not empty")
    prompt = problem.prompt
    if isinstance(prompt, str):
        return problem
    if not isinstance(prompt, tuple) or not prompt or not all(isinstance(m, Message) for m in prompt):
        raise PartFailed(f"{where} a prompt that is neither text nor a tuple of messages (a {type(prompt).__name__})")
    return problem


def size_of(environment: Environment, split: Split) -> int | None:
    """The number of problems of a split; None if it is unlimited. Raises `PartFailed`."""
    who = outside.whose(environment, "environment")
    size = outside.call(f"{who}: size({split!r})", environment.size, split)
    if size is None or (isinstance(size, int) and not isinstance(size, bool) and size >= 0):
        return size
    at = outside.defined(environment.size)
    raise PartFailed(f"{who}: size({split!r}){at} gave {size!r}: it must be a whole number, or None for no end")


def gold_of(environment: Environment, problem: Problem) -> Gold:
    """What only the judge may see. Raises `PartFailed`."""
    who = outside.whose(environment, "environment")
    gold = outside.call(f"{who}: gold of {problem.id!r}", environment.gold, problem)
    if not isinstance(gold, Gold):
        at = outside.defined(environment.gold)
        raise PartFailed(f"{who}: gold of {problem.id!r} is a {type(gold).__name__}, not a Gold{at}")
    return gold


def first_problems(environment: Environment, split: Split, n: int, *, exact: bool = True) -> list[Problem]:
    """The first `n` problems of a split; all of them if there are fewer.

    Raises `UserError` if there are none, if a split of unknown size ends before (unless `exact` is False), or if two
    have the same id; `PartFailed`.
    """
    size = size_of(environment, split)
    if size == 0:
        raise UserError(f"{environment.name} has no {split} problems; choose another split or other data")
    found: list[Problem] = []
    try:
        for index in range(n if size is None else min(n, size)):
            found.append(problem_at(environment, split, index))
    except IndexError as error:
        if exact or not found:
            raise UserError(f"{n} {split} problems: {error}; give fewer") from None
    refuse_same_ids(found, f"{outside.whose(environment, 'environment')}: {split} ")
    return found


def refuse_same_ids(problems: Iterable[Problem], where: str = "") -> None:
    """Raises `UserError` if two problems have the same id: results are kept, compared and resumed by it."""
    seen: dict[str, int] = {}
    for index, problem in enumerate(problems):
        before = seen.setdefault(problem.id, index)
        if before != index:
            raise UserError(f"{where}problems {before} and {index} have the same id {problem.id!r}: give each its own")
