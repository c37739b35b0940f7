"""Samples whose answers are read and compared, so that they can vote: what the voting strategies share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ponder.protocols import Ask, Group, Vote
from ponder.search.clusters import Cluster, TextAnswers, by_index, cluster_answers, result, shown, standings
from ponder.search.sampling import Sampling
from ponder.types import FinishReason, Node, Outcome, Response, Spend, StopReason


class Voting(Sampling):
    """Samples that vote; the answer with the most weight wins, of equals the one that came up at the lower index.

    A response without an answer, or with one that cannot be read, abstains. If the comparison of answers fails, they
    are compared as text. The ask that groups the first `k` samples is ask `-1 - k`; subclasses may use -1
    and what is below `-1 - n`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.votes: dict[int, Vote | None] | None = None
        """By sample, of the last `group`; None before the first."""
        self.by_text = False
        """The comparison of answers failed."""
        self._asked: dict[int, tuple[int, ...]] = {}
        super().__init__(*args, **options)

    # For subclasses -----------------------------------------------------------------------------------------------

    def all_sampled(self) -> None:
        self.group(self.n)

    def answered(self, upto: int | None = None) -> tuple[int, ...]:
        """Of the first `upto` samples (all, if not given) those that have an answer."""
        ended = sorted(self.leaves) if upto is None else (i for i in sorted(self.leaves) if i < upto)
        return tuple(i for i in ended if self.leaves[i].response.answered)

    def group(self, upto: int) -> bool:
        """Ask which of the first `upto` samples say the same; `grouped` comes next. False if none has an answer."""
        indices = self.answered(upto)
        if indices:
            self._asked[-1 - upto] = indices
            self.push(Ask(-1 - upto, Group(tuple(self.leaves[i].response for i in indices))))
        return bool(indices)

    def grouped(self, upto: int) -> None:
        """`votes` are those of the first `upto` samples now."""

    def told_more(self, ask_id: int, answer: Any) -> None:
        indices = self._asked[ask_id]
        failed = isinstance(answer, Exception)
        self.by_text = self.by_text or failed
        self.votes = self._text_votes(indices) if failed else by_index(answer, indices)
        self.grouped(-1 - ask_id)

    def weights(self, votes: Mapping[int, Vote | None]) -> dict[int, float] | None:
        """The weight of each sample's vote; None is 1 for all."""
        return None

    def standings(self) -> tuple[Cluster, ...]:
        """The clusters by what is known, the leader first; empty if no response votes."""
        votes = self._votes_now()
        return standings(votes, self.weights(votes))

    def explain(self, ranked: tuple[Cluster, ...]) -> str:
        """Why the leader of `standings` won, in a sentence."""
        said = result(ranked)
        if len(ranked) > 1 and ranked[1].weight == ranked[0].weight:
            said += f", as many as for {shown(ranked[1].answer)}: the earlier sample decides"
        counted = len(self.leaves.keys() - self.late())
        silent = counted - sum(len(p.members) for p in ranked)
        if silent > 0:
            said += f"; {silent} of {counted} responses abstained"
        return said + self.by_text * "; answers were compared as text"

    # The outcome --------------------------------------------------------------------------------------------------

    def outcome(self, spend: Spend, stop: StopReason) -> Outcome:
        self._mark()
        ranked = self.standings()
        first = super().outcome(spend, stop)
        if not ranked:
            response = Response(None, first.response.thought, first.response.text)
            return Outcome(response, None, first.trace, spend, stop, reason="no response had an answer to vote with")
        total = sum(p.weight for p in ranked)
        node = self.leaves[self.representative(ranked[0])]
        several = sum(len(p.members) for p in ranked) > 1
        share = ranked[0].weight / total if several and total > 0 else None
        return Outcome(node.response, share, first.trace, spend, stop, node.id, self.explain(ranked))

    def representative(self, cluster: Cluster) -> int:
        """The sample that represents a cluster: the first."""
        return cluster.members[0]

    def _votes_now(self) -> dict[int, Vote | None]:
        return self._text_votes(self.answered()) if self.votes is None else self.votes

    def _text_votes(self, indices: tuple[int, ...]) -> dict[int, Vote | None]:
        responses = [self.leaves[i].response for i in indices]
        return by_index(cluster_answers(TextAnswers(), self.problem, responses), indices)

    def late(self) -> set[int]:
        """Samples that have ended and were not looked at."""
        return set() if self.votes is None else set(self.answered()) - self.votes.keys()

    def _mark(self) -> None:
        """Write into the trace who voted for what, and who did not."""
        said = {i: p.answer for p in standings(self._votes_now()) for i in p.members}
        late = self.late()
        for index, leaf in self.leaves.items():
            if index in said:
                self.tree.vote(leaf.id, said[index])
            note = "" if index in said else _LATE if index in late else _silence(leaf)
            if note != self.tree[leaf.id].note:
                self.tree.note(leaf.id, note)


_LATE = "not counted: the search had stopped"


def _silence(node: Node) -> str:
    if node.response.tool_calls:
        return "abstains: it calls a tool"
    if node.response.answer is not None:
        return "abstains: the answer cannot be read"
    if node.completion.finish_reason is FinishReason.STOP:
        return "abstains: the thought never closed"
    return "abstains: cut off before its answer"
