"""Votes: which answer each response gives, and which of them are the same.

An answer that cannot be read abstains. Equal answers are found over all pairs of different texts and closed under
"the same as" (union-find), so that the parties do not depend on the order of the responses, even where an equality
test is not transitive (0.33 = 1/3 within a tolerance, say).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from ponder.protocols import Answers, Vote
from ponder.types import Problem, Response


@dataclass(frozen=True, slots=True)
class TextAnswers:
    """Answers as they are written, spaces and capitals aside: what is left where nobody knows better."""

    def extract(self, problem: Problem, response: Response) -> str | None:
        text = " ".join((response.answer or "").split())
        return text or None

    def same(self, a: str, b: str) -> bool:
        return a.casefold() == b.casefold()


def parties(answers: Answers, problem: Problem, responses: Sequence[Response]) -> tuple[Vote | None, ...]:
    """The vote of each response; None where it abstains. Raises what `answers` raises."""
    given = [None if r.answer is None else answers.extract(problem, r) for r in responses]
    texts = list(dict.fromkeys(g for g in given if g is not None))
    root = {text: text for text in texts}

    def find(text: str) -> str:
        while root[text] != text:
            root[text] = root[root[text]]
            text = root[text]
        return text

    # Symmetric by asking both ways: a gold-and-answer comparison need not be.
    for a, b in combinations(texts, 2):
        if find(a) != find(b) and (answers.same(a, b) or answers.same(b, a)):
            root[find(b)] = find(a)
    first: dict[str, int] = {}
    for i, text in enumerate(given):
        if text is not None:
            first.setdefault(find(text), i)
    return tuple(None if text is None else Vote(first[find(text)], text) for text in given)


async def group(answers: Answers, problem: Problem, responses: Sequence[Response]) -> tuple[Vote | None, ...]:
    """`parties`, on a thread if the answers say that they are `slow`."""
    if getattr(answers, "slow", False):
        return await asyncio.to_thread(parties, answers, problem, responses)
    return parties(answers, problem, responses)
