"""Votes: which answer each response gives, and which of them are the same.

An answer that cannot be read abstains. Equal answers are found over all pairs of different texts and closed under
"the same as" (union-find), so that the clusters do not depend on the order of the responses, even where an equality
test is not transitive (0.33 = 1/3 within a tolerance, say).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from ponder import sync
from ponder.errors import PonderError
from ponder.protocols import Answers, Vote
from ponder.types import Problem, Response


@dataclass(frozen=True, slots=True)
class TextAnswers:
    """Answers compared as text, ignoring case and spacing: the fallback."""

    def extract(self, problem: Problem, response: Response) -> str | None:
        text = " ".join((response.answer or "").split())
        return text or None

    def same(self, a: str, b: str) -> bool:
        return a.casefold() == b.casefold()


def cluster_answers(answers: Answers, problem: Problem, responses: Sequence[Response]) -> tuple[Vote | None, ...]:
    """The vote of each response; None where it abstains.

    Raises what `answers` raises, `PonderError` for an answer that it reads as anything but text.
    """
    given = [answers.extract(problem, r) if r.answered else None for r in responses]
    for text in given:
        if not isinstance(text, str | None):
            raise PonderError(f"an answer was read as {type(text).__name__}, not as text")
    texts = list(dict.fromkeys(g for g in given if g is not None))
    root = {text: text for text in texts}

    def find(text: str) -> str:
        while root[text] != text:
            root[text] = root[root[text]]
            text = root[text]
        return text

    # Compared both ways: a gold-and-answer comparison need not be symmetric.
    for a, b in combinations(texts, 2):
        if find(a) != find(b) and (answers.same(a, b) or answers.same(b, a)):
            root[find(b)] = find(a)
    first: dict[str, int] = {}
    for i, text in enumerate(given):
        if text is not None:
            first.setdefault(find(text), i)
    return tuple(None if text is None else Vote(first[find(text)], text) for text in given)


async def group(
    answers: Answers, problem: Problem, responses: Sequence[Response], slow: bool = False
) -> tuple[Vote | None, ...]:
    """`cluster_answers`, on a thread if reading and comparing them is `slow`."""
    if slow:
        return await sync.on_thread(cluster_answers, answers, problem, responses)
    return cluster_answers(answers, problem, responses)


@dataclass(frozen=True, slots=True)
class Cluster:
    """All that vote for one answer."""

    answer: str
    """As the first of them gave it."""
    members: tuple[int, ...]
    """Indices of the samples, ascending."""
    weight: float
    """Sum of their weights: their number, where every vote counts the same."""


def standings(votes: Mapping[int, Vote | None], weights: Mapping[int, float] | None = None) -> tuple[Cluster, ...]:
    """The clusters, the heaviest first; of equals the one whose first sample has the lowest index.

    `votes` are by sample index, their `cluster` a sample index too. `weights` are 1 if not given; one that is missing
    is 0.
    """
    members: dict[int, list[int]] = {}
    for index in sorted(votes):
        vote = votes[index]
        if vote is not None:
            members.setdefault(vote.cluster, []).append(index)
    clusters = []
    for of in members.values():
        first = votes[of[0]]
        assert first is not None
        weight = float(len(of)) if weights is None else math.fsum(weights.get(i, 0.0) for i in of)
        clusters.append(Cluster(first.answer, tuple(of), weight))
    return tuple(sorted(clusters, key=lambda c: (-c.weight, c.members[0])))


def by_index(votes: Sequence[Vote | None], indices: Sequence[int]) -> dict[int, Vote | None]:
    """The answer of a `Group`, by the indices of the samples that it was asked about."""
    return {i: None if v is None else Vote(indices[v.cluster], v.answer) for i, v in zip(indices, votes, strict=True)}


def result(clusters: Sequence[Cluster]) -> str:
    """The result of the vote as a clause: `5 of 8 votes for 42`."""
    leader, cast = clusters[0], sum(len(c.members) for c in clusters)
    return f"{len(leader.members)} of {cast} vote{'s' * (cast > 1)} for {shown(leader.answer)}"


def shown(answer: str) -> str:
    """An answer, shortened to fit into a sentence."""
    answer = " ".join(answer.split())
    return answer if len(answer) <= 40 else answer[:39] + "…"
