"""Questions that are problems of an environment: then its checker can tell a right answer from a wrong one."""

from __future__ import annotations

from ponder import registry
from ponder.environments.base import SingleTurn
from ponder.protocols import Environment
from ponder.types import Problem

QUESTION = "question"
"""The id of a problem that somebody asked; no environment made it, so it has no gold."""


def recognised(question: str) -> tuple[Environment, Problem] | None:
    """The environment whose question this is, by its default options, and the question as its problem; None if none."""
    for name in registry.names("environments"):
        cls = registry.find("environments", name)[0] if name.isidentifier() else None
        if cls is None or not issubclass(cls, SingleTurn) or cls.recognise is SingleTurn.recognise:
            continue
        environment = registry.build("environments", name)
        problem = environment.recognise(question)
        if problem is not None:
            return environment, problem
    return None
