"""The record of a search: one line of `rollouts.jsonl`, and of a recorded pool. The one place that defines the format.

A line is one problem:

    {"problem", "prompt", "metadata", "thought"?, "gold"?, …, "samples": [sample]}

`thought` is how the model marks its thought (`types.ThoughtFormat`); `gold` is in pools only, since an evaluation
keeps it in the environment. A search's line has `chosen`, `vote_share`, `stop`, `reason` and `spend` too; an evaluation
adds what `evaluation.rollouts` says. In `samples` are all nodes of a search's trace; of a pool only whole responses.

A sample is one node:

    {"id", "parent", "text", "answer", "finish", "tokens", "mean_logprob", "score", "verdict", "check", "spend",
     "weights_version", "vote"?, "note"?, "error"?}

`text`, `tokens` (sampled and forced) and `mean_logprob` (of the sampled tokens, in nats) are of the whole response up
to there, over all calls that it took; `spend` is that of its own call. `verdict` is the judge's, which no search sees,
and `check` the checker's: `{"kind", "reward", "reason", "answer"?}`. What is marked with `?` is left out, and all else
null, where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ponder.search.confidence import mean_logprob
from ponder.types import Node, Outcome, Problem, Spend, ThoughtFormat, Verdict, to_json


def to_row(
    problem: Problem,
    outcome: Outcome,
    *,
    extra: Mapping[int, Mapping[str, Any]] | None = None,
    logprobs: bool = False,
    thought: ThoughtFormat | None = None,
) -> dict[str, Any]:
    """The line of a search: the problem and every node.

    `extra` adds fields to nodes by id (reward and advantage, say); with `logprobs`, ids and log-probabilities too.
    """
    return {
        **problem_row(problem, thought),
        "chosen": outcome.chosen,
        "vote_share": outcome.vote_share,
        "stop": outcome.stop.value,
        "reason": outcome.reason,
        "spend": _spend(outcome.spend),
        "samples": [
            sample_row(path, logprobs=logprobs) | {k: to_json(v) for k, v in (extra or {}).get(path[-1].id, {}).items()}
            for path in _paths(outcome.trace.nodes)
        ],
    }


def problem_row(problem: Problem, thought: ThoughtFormat | None = None) -> dict[str, Any]:
    """What a line says of its problem."""
    row = {"problem": problem.id, "prompt": to_json(problem.prompt), "metadata": to_json(problem.metadata)}
    return row if thought is None else row | {"thought": to_json(thought)}


def sample_row(path: Sequence[Node], *, logprobs: bool = False) -> dict[str, Any]:
    """The record of the last node of a path from the root."""
    node, calls = path[-1], [n.completion for n in path]
    call = node.completion
    row: dict[str, Any] = {
        "id": node.id,
        "parent": node.parent,
        "text": call.text,
        "answer": node.response.answer,
        "finish": call.finish_reason.value,
        "tokens": sum(c.spend.response_tokens for c in calls),
        "mean_logprob": mean_logprob(calls),
        "score": node.score,
        "verdict": _verdict(node.verdict),
        "check": _verdict(node.check),
        "spend": _spend(call.spend),
        "weights_version": call.weights_version,
    }
    row |= {k: v for k, v in (("vote", node.vote), ("note", node.note)) if v}
    if call.error is not None:
        row["error"] = call.error
    if logprobs:
        row |= {"prompt_ids": list(call.prompt_ids), "segments": to_json(call.segments)}
    return row


def _paths(nodes: Sequence[Node]) -> list[list[Node]]:
    """The path from the root to each node."""
    by_id = {n.id: n for n in nodes}
    paths = []
    for node in nodes:
        path = [node]
        while (parent := path[-1].parent) is not None:
            path.append(by_id[parent])
        paths.append(path[::-1])
    return paths


def _verdict(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    row = {"kind": verdict.kind.value, "reward": verdict.reward, "reason": verdict.reason}
    return row if verdict.answer is None else row | {"answer": verdict.answer}


def _spend(spend: Spend) -> dict[str, Any]:
    return {k: v for k, v in to_json(spend).items() if v}
