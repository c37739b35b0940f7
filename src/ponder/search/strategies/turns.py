"""A conversation with an environment, turn by turn."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from ponder.errors import Unfinished, Unsupported, UserError
from ponder.protocols import Act, Ask, Generate, SearchContext, Turn
from ponder.search.asking import Asking
from ponder.search.prompts import instructed
from ponder.search.sampling import check_sampling
from ponder.search.seeds import derive
from ponder.search.trace import samples
from ponder.types import (
    Completion,
    FinishReason,
    Message,
    Node,
    Outcome,
    Problem,
    Request,
    Response,
    SamplingParams,
    Spend,
    StopReason,
    as_messages,
)


@dataclass(frozen=True)
class Turns:
    """Converse with an environment: call its tools, answer what it asks; cost ≤ n × most_turns × max_tokens.

    Each call also reads the conversation so far (from the cache where the engine kept it), which a budget counts.
    Each response goes to the environment, and the messages that it returns into the next prompt, until the environment
    ends the conversation: the last response is the answer. A conversation that ends otherwise (by
    `most_turns`, the budget, a prompt longer than the context) abstains. The `n` conversations are independent; the
    first that ended is the outcome. As in ReAct (Yao et al. 2022, arXiv:2210.03629), with the
    model's own format of tool calls.
    """

    n: int = 1
    """Conversations; the first is the outcome."""
    most_turns: int = 16
    """Most responses of a conversation; the environment may end it earlier."""
    temperature: float = 1.0
    """0 is greedy."""
    max_tokens: int = 512
    """Most tokens of one response, thought and answer."""
    top_p: float = 1.0
    """Sample from the likeliest ids that make up this share of the probability; 1 is off."""
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    """0 is off."""
    instruction: str = ""
    """Added to the first prompt, on a line of its own."""

    plays_turns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_sampling(self.n, self.temperature, self.top_p, self.top_k, self.min_p)
        for name in ("most_turns", "max_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: give at least 1")

    def start(self, problem: Problem, context: SearchContext) -> _Conversations:
        if not context.turns:
            raise Unsupported("turns plays environments of several turns, and this one asks one question: use direct")
        if not context.info.chat:
            raise Unsupported(f"turns needs a model that takes messages, and {context.info.name} continues plain text")
        return _Conversations(problem, context, self)


class _Conversations(Asking):
    """Turn `t` of conversation `i` is node `t · n + i`; its call is ask `2 · node`, the environment the next one."""

    def __init__(self, problem: Problem, context: SearchContext, options: Turns) -> None:
        super().__init__(problem, context)
        self._options = options
        prompt = as_messages(instructed(problem.prompt, options.instruction, context.info.chat))
        self._prompts = [prompt] * options.n
        """By conversation: all messages so far."""
        self._paths: list[tuple[Node, ...]] = [()] * options.n
        self._ended: set[int] = set()
        """Nodes with which the environment ended a conversation."""
        for index in range(options.n):
            self._respond(index)

    def _respond(self, index: int) -> None:
        """Ask for the next response."""
        o, turn = self._options, len(self._paths[index])
        name = self.problem.id if turn == 0 else f"{self.problem.id}\x1fturn {turn}"
        seed = derive(self.context.seed, name, index)
        params = SamplingParams(o.max_tokens, o.temperature, o.top_p, o.top_k, o.min_p, seed=seed)
        where = {"problem": self.problem.id, "sample": index, "seed": self.context.seed}
        request = Request(self._prompts[index], params, metadata=where)
        self.push(Ask(2 * (turn * o.n + index), Generate(request)))

    def told(self, ask_id: int, answer: Any) -> None:
        node_id, acted = divmod(ask_id, 2)
        index = node_id % self._options.n
        if isinstance(answer, Exception):
            self._cut(index, node_id, answer)
        elif acted:
            self._said(index, answer)
        else:
            self._responded(index, node_id, answer[0])

    def _responded(self, index: int, node_id: int, completion: Completion) -> None:
        node = self._add(index, node_id, completion)
        if completion.error is not None or completion.finish_reason is FinishReason.CANCELLED:
            self.tree.aside(node_id, f"cut short: {completion.error or 'cancelled'}")
            return
        self.push(Ask(2 * node.id + 1, Act(tuple(n.response for n in self._paths[index]))))

    def _add(self, index: int, node_id: int, completion: Completion) -> Node:
        path = self._paths[index]
        node = self.tree.add(node_id, completion, path[-1].id if path else None)
        self._paths[index] = (*path, node)
        return node

    def _said(self, index: int, turn: Turn) -> None:
        """The environment has returned its turn."""
        path, o = self._paths[index], self._options
        node = path[-1]
        if turn.done:
            self._ended.add(node.id)
            if node.response.tool_calls:
                self.tree.aside(node.id, "the conversation ended with a call of a tool")
        elif len(path) == o.most_turns:
            self.tree.aside(node.id, f"the environment would continue after most_turns = {o.most_turns}")
        else:
            self._prompts[index] += (self._message(node), *turn.messages)
            self._respond(index)

    def _message(self, node: Node) -> Message:
        """A response as a message of the conversation: by its ids where the engine has them."""
        response, completion = node.response, node.completion
        ids = completion.ids if self.context.capabilities.ids else ()
        content = response.text if response.answer is None else response.answer
        return Message("assistant", content, tool_calls=response.tool_calls, ids=ids)

    def _cut(self, index: int, node_id: int, error: Exception) -> None:
        """A call or the environment failed: the conversation abstains."""
        note = f"cut short: {error}"
        for completion in error.completions if isinstance(error, Unfinished) else ():
            self._add(index, node_id, completion)
        if self._paths[index]:
            self.tree.aside(self._paths[index][-1].id, note)

    def outcome(self, spend: Spend, stop: StopReason) -> Outcome:
        trace = self.tree.trace()
        leaves = samples(trace)
        if not leaves:
            return Outcome(Response(None), None, trace, spend, stop)
        first = next((n for n in leaves if n.id in self._ended), None)
        if first is None:
            # Still open: its last response is not an answer.
            return Outcome(dataclasses.replace(leaves[0].response, answer=None), None, trace, spend, stop)
        chosen = first.id if first.response.answer is not None else None
        return Outcome(first.response, None, trace, spend, stop, chosen)
