"""Independent samples of one problem, each with its thought bounded or not: what the sampling strategies share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ponder.errors import Unfinished, Unsupported, UserError
from ponder.protocols import Ask, Generate, SearchContext
from ponder.search.asking import Asking
from ponder.search.seeds import derive
from ponder.search.trace import samples, spent_tokens
from ponder.types import (
    Completion,
    FinishReason,
    Node,
    Outcome,
    Problem,
    Prompt,
    Request,
    Response,
    SamplingParams,
    Spend,
    StopReason,
    Thinking,
)


@dataclass(frozen=True, slots=True)
class ThoughtBudget:
    """How long a thought may be, and what is kept for the answer, in tokens."""

    thought_tokens: int
    answer_tokens: int = 16
    """Of the end-of-thought marker and the answer."""
    min_thought_tokens: int = 0
    extend: str = ""

    def __post_init__(self) -> None:
        if self.thought_tokens < 0:
            raise UserError(f"thought_tokens = {self.thought_tokens}: give 0 or more")
        if self.answer_tokens < 1:
            raise UserError(f"answer_tokens = {self.answer_tokens}: give at least 1")
        if not 0 <= self.min_thought_tokens <= self.thought_tokens:
            raise UserError(
                f"min_thought_tokens = {self.min_thought_tokens}: give 0 to thought_tokens ({self.thought_tokens})"
            )
        if self.min_thought_tokens and not self.extend:
            raise UserError('min_thought_tokens needs extend, the text that replaces an early end of thought ("Wait")')

    @property
    def max_tokens(self) -> int:
        return self.thought_tokens + self.answer_tokens

    @property
    def thinking(self) -> Thinking:
        return Thinking(self.thought_tokens, self.min_thought_tokens, self.extend)


def check_sampling(n: int, temperature: float, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0) -> None:
    """Refuse invalid sampling options. Raises `UserError` that names the field."""
    for name, value, fine, fix in (
        ("n", n, n >= 1, "at least 1"),
        ("temperature", temperature, 0.0 <= temperature < float("inf"), "0 (greedy) or more"),
        ("top_p", top_p, 0.0 < top_p <= 1.0, "more than 0, at most 1"),
        ("top_k", top_k, top_k >= 0, "0 (off) or more"),
        ("min_p", min_p, 0.0 <= min_p <= 1.0, "0 (off) to 1"),
    ):
        if not fine:
            raise UserError(f"{name} = {value!r}: give {fix}")


class Sampling(Asking):
    """A search that draws `n` samples and takes the first; subclasses say what happens to them and which one wins.

    A subclass may draw them in parts (`begin`, `draw`). It sets what that needs before it calls `__init__`.

    Where the engine cannot bound a thought itself but can continue a response, a thought is bounded by a second
    call: the first stops at the end-of-thought marker or at the limit, the second continues from the closed thought.

    Sample `i` in its call number `s` is ask and node `s · n + i`; where the engine takes `n`, ask 0 is all of them, and
    if the budget had room for `k` only, ask `k` is the rest.
    """

    def __init__(
        self,
        problem: Problem,
        context: SearchContext,
        params: SamplingParams,
        n: int,
        budget: ThoughtBudget | None = None,
        prompt: Prompt | None = None,
    ) -> None:
        """`params.max_tokens` and `params.thinking` follow from `budget`, if given; `prompt` defaults to the problem's.

        Raises `Unsupported`.
        """
        super().__init__(problem, context)
        self.n = n
        self.leaves: dict[int, Node] = {}
        """Samples that have ended with a response, by index."""
        self.drawn = 0
        """Samples that were asked for."""
        self.run = 0
        """How many samples, from the first on without a gap, have ended or failed."""
        self._budget = budget
        self._params = params
        self._prompt = problem.prompt if prompt is None else prompt
        self._answers: set[int] = set()
        self._counts: dict[int, int] = {}
        self._over: set[int] = set()
        self._last: dict[int, Node] = {}
        self._by_calls = self._bounds_by_calls()
        self.begin()

    # What the strategies share ------------------------------------------------------------------------------------

    def told(self, ask_id: int, answer: Any) -> None:
        if ask_id < 0:
            self.told_more(ask_id, answer)
        else:
            stage, first = divmod(ask_id, self.n)
            count = self._counts.pop(ask_id)
            completions = () if isinstance(answer, Exception) else answer
            for i, completion in enumerate(completions, first):
                self._grown(i, stage, completion)
            if 0 < len(completions) < count:
                self._first_call(first + len(completions), count - len(completions))
            elif not completions:
                self._cut(ask_id, answer, f"cut short: {answer}")
                for i in range(first, first + count):
                    self._ended(i, self._last.get(i))

    def outcome(self, spend: Spend, stop: StopReason) -> Outcome:
        trace = self.tree.trace()
        leaves = samples(trace)
        if not leaves:
            return Outcome(Response(None), None, trace, spend, stop)
        # A cancelled response is in the trace, but one that ended is preferred.
        first = next((n for n in leaves if n.completion.finish_reason is not FinishReason.CANCELLED), leaves[0])
        chosen = first.id if first.response.answered else None
        return Outcome(first.response, None, trace, spend, stop, chosen)

    def cut(self, ask_id: int, answer: Any) -> None:
        if ask_id >= 0:
            self._cut(ask_id, answer, "cancelled: no longer needed")

    def _cut(self, ask_id: int, answer: Any, note: str) -> None:
        """Put what an unfinished call had sampled into the trace."""
        stage, first = divmod(ask_id, self.n)
        if isinstance(answer, Unfinished):
            answer = answer.completions
        for i, completion in enumerate(answer if isinstance(answer, tuple) else (), first):
            parent = self._last.get(i)
            self.tree.add(stage * self.n + i, completion, None if parent is None else parent.id)
            self.tree.note(stage * self.n + i, note)

    def begin(self) -> None:
        """Ask for the first samples."""
        self.draw(0, self.n)

    def draw(self, first: int, count: int) -> None:
        """Ask for samples `first` to `first + count - 1`, in one call if the engine takes several."""
        self.drawn += count
        if self.context.capabilities.n:
            self._first_call(first, count)
        else:
            for i in range(first, first + count):
                self._first_call(i, 1)

    def prompt_of(self, index: int) -> Prompt:
        """What sample `index` is asked."""
        return self._prompt

    def sampled(self, index: int, node: Node) -> None:
        """A sample has ended; `node` is its leaf."""

    def run_grew(self) -> None:
        """`run` has grown."""

    def all_sampled(self) -> None:
        """Every sample that was drawn has ended or failed."""

    def calls_of(self, node: Node) -> tuple[Completion, ...]:
        """The completions of the calls that a response took, the first first."""
        calls = [node.completion]
        while node.parent is not None:
            node = self.tree[node.parent]
            calls.append(node.completion)
        return tuple(reversed(calls))

    def told_more(self, ask_id: int, answer: Any) -> None:
        """The answer of an ask of the subclass (ids below 0), or the exception that it failed with."""

    # How a sample grows -------------------------------------------------------------------------------------------

    def _bounds_by_calls(self) -> bool:
        if self._budget is None:
            return False
        info, can = self.context.info, self.context.capabilities
        if info.thought is None:
            raise Unsupported(
                f"{info.name} has no thought markers, so its thought cannot be bounded; use the strategy direct"
            )
        if can.thinking:
            return False
        if not can.prefix:
            raise Unsupported(
                f"the engine of {info.name} can neither bound a thought nor continue a response; "
                "use the strategy direct, or the torch engine"
            )
        return True

    def _first_call(self, first: int, count: int) -> None:
        """Ask for samples `first` to `first + count - 1`."""
        params, budget = self._params, self._budget
        minimum, reserve, prefix = 1, 0, ""
        if budget is not None and not self._by_calls:
            params = dataclasses.replace(params, max_tokens=budget.max_tokens, thinking=budget.thinking)
            minimum = budget.answer_tokens
        elif budget is not None and budget.thought_tokens > 0:
            params = dataclasses.replace(params, max_tokens=budget.thought_tokens, stop=(self._close,))
            reserve = budget.answer_tokens
        elif budget is not None:
            params = dataclasses.replace(params, max_tokens=budget.answer_tokens)
            prefix = ("" if self._format.opened_by_template else self._format.open) + self._close
            minimum = budget.answer_tokens
            self._answers.update(range(first, first + count))
        params = dataclasses.replace(params, seed=derive(self.context.seed, self.problem.id, first))
        self._generate(first, self._request(first, params, prefix, count), minimum, reserve)

    def _request(self, first: int, params: SamplingParams, prefix: str, count: int = 1) -> Request:
        where = {"problem": self.problem.id, "sample": first, "seed": self.context.seed}
        return Request(self.prompt_of(first), params, n=count, prefix=prefix, metadata=where)

    def _generate(self, ask_id: int, request: Request, minimum: int, reserve: int) -> None:
        self._counts[ask_id] = request.n
        self.push(Ask(ask_id, Generate(request, minimum=minimum, answer_reserve=reserve)))

    @property
    def _format(self) -> Any:
        return self.context.info.thought

    @property
    def _close(self) -> str:
        return self._format.close

    def _grown(self, index: int, stage: int, completion: Completion) -> None:
        parent = self._last.get(index)
        node = self.tree.add(stage * self.n + index, completion, None if parent is None else parent.id)
        self._last[index] = node
        if not (self._by_calls and self._continued(index, stage, completion)):
            self._ended(index, node)

    def _continued(self, index: int, stage: int, completion: Completion) -> bool:
        """Ask for the rest of a response whose thought has ended or is to end; False if it is whole."""
        budget = self._budget
        assert budget is not None
        ask_id = stage * self.n + index
        if ask_id in self._answers or completion.error is not None:
            return False
        if completion.finish_reason is FinishReason.CANCELLED:
            return False
        text = completion.text
        stopped = completion.finish_reason is FinishReason.STOP
        if stopped and not self._format.opened_by_template and self._format.open not in text:
            return False
        used = len(completion.ids) or spent_tokens(self.tree.trace(), self._last[index])
        next_id = ask_id + self.n
        seed = derive(self.context.seed, f"{self.problem.id}\x1f{stage + 1}", index)
        # The end-of-thought marker does not count as thought.
        if stopped and used - 1 < budget.min_thought_tokens:
            prefix, most, minimum, reserve = text + budget.extend, budget.thought_tokens, used + 1, budget.answer_tokens
            stop: tuple[str, ...] = (self._close,)
        else:
            prefix, most, reserve = text + self._close, used + budget.answer_tokens, 0
            minimum, stop = most, self._params.stop
            self._answers.add(next_id)
        params = dataclasses.replace(self._params, max_tokens=most, stop=stop, seed=seed)
        self._generate(next_id, self._request(index, params, prefix), minimum, reserve)
        return True

    def _ended(self, index: int, node: Node | None) -> None:
        self._over.add(index)
        if node is not None:
            self.leaves[index] = node
            self.sampled(index, node)
        before = self.run
        while self.run in self._over:
            self.run += 1
        if self.run > before:
            self.run_grew()
        if len(self._over) == self.drawn:
            self.all_sampled()
