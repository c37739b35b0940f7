"""The trace of a search: building it, finding its samples, attaching verdicts. `search.record` writes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ponder.responses import split_response
from ponder.types import (
    Completion,
    Node,
    ThoughtFormat,
    ToolFormat,
    Trace,
    Verdict,
)


class Tree:
    """A trace that grows. Node ids are the strategy's, so that they do not depend on the order of answers."""

    def __init__(self, problem_id: str, thought: ThoughtFormat | None, tools: ToolFormat | None = None) -> None:
        self._problem_id = problem_id
        self._thought, self._tools = thought, tools
        self._nodes: dict[int, Node] = {}

    def add(self, node_id: int, completion: Completion, parent: int | None = None) -> Node:
        """Add a completion under a parent; its text is split into thought, calls and answer by the model's own markers.

        Calls that came separately from the text are the response's, too.
        """
        response = split_response(completion.text, completion.finish_reason, self._thought, self._tools)
        if completion.tool_calls:
            response = dataclasses.replace(response, tool_calls=response.tool_calls + completion.tool_calls)
        node = self._nodes[node_id] = Node(node_id, parent, completion, response)
        return node

    def __getitem__(self, node_id: int) -> Node:
        return self._nodes[node_id]

    def check(self, node_id: int, verdict: Verdict) -> None:
        """Attach a checker's verdict."""
        self._nodes[node_id] = dataclasses.replace(self._nodes[node_id], check=verdict)

    def score(self, node_id: int, score: float) -> None:
        """Attach a scorer's score."""
        self._nodes[node_id] = dataclasses.replace(self._nodes[node_id], score=score)

    def vote(self, node_id: int, answer: str) -> None:
        """Attach what it voted for."""
        self._nodes[node_id] = dataclasses.replace(self._nodes[node_id], vote=answer)

    def note(self, node_id: int, note: str) -> None:
        """Attach what became of it."""
        self._nodes[node_id] = dataclasses.replace(self._nodes[node_id], note=note)

    def aside(self, node_id: int, note: str) -> None:
        """Say that it is no response to the problem (a critique of one): it has no answer."""
        node = self._nodes[node_id]
        response = dataclasses.replace(node.response, answer=None)
        self._nodes[node_id] = dataclasses.replace(node, response=response, note=note)

    def __contains__(self, node_id: int) -> bool:
        return node_id in self._nodes

    def trace(self) -> Trace:
        """Everything so far, by node id."""
        return Trace(self._problem_id, tuple(self._nodes[i] for i in sorted(self._nodes)))


def spent_tokens(trace: Trace, node: Node) -> int:
    """Tokens that were sampled or forced for a response, over all calls that it took."""
    return sum(n.completion.spend.response_tokens for n in trace.path(node.id))


def samples(trace: Trace) -> tuple[Node, ...]:
    """The whole responses of a trace: its leaves, in the order of the samples that they began as."""
    parents = {n.parent for n in trace.nodes if n.parent is not None}
    if not parents:
        return trace.nodes
    leaves = [n for n in trace.nodes if n.id not in parents]
    return tuple(sorted(leaves, key=lambda n: [m.id for m in trace.path(n.id)]))


def with_verdicts(trace: Trace, verdicts: Mapping[int, Verdict]) -> Trace:
    """The trace with the judge's verdicts by node id."""
    nodes = (dataclasses.replace(n, verdict=verdicts[n.id]) if n.id in verdicts else n for n in trace.nodes)
    return Trace(trace.problem_id, tuple(nodes))
