"""What step-wise tree searches share: responses that grow by one step at a time, in waves.

A step ends at a delimiter or after `step_tokens` tokens. Engines with ids stop at the delimiter, say so
(`Completion.stopped_by`), and continue from the same ids. The others cannot say whether a delimiter or an end token
stopped them, so they are asked for `step_tokens` tokens without stop strings, and the text is cut back to the last
delimiter in them: what follows it is paid for and discarded. Where a thought has closed, the answer is sampled to its
end at once: an answer is never cut into steps.

A wave is some calls, then the answers that they began, then checks, then scores; each part begins when all of the part
before is there, and everything is looked at in the order of node ids. Ids are given out when a wave is asked for, and
seeds follow from them, so nothing depends on timing. Left out: stopping before a wave's calls are all there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ponder.errors import BudgetExceeded, Unfinished, Unsupported
from ponder.protocols import Ask, Check, Generate, Score, SearchContext
from ponder.search.asking import Asking
from ponder.search.step import (
    CALL,
    CHECK,
    HOLD,
    MORE,
    SCORE,
    Step,
    StepOptions,
    ask_about,
    asked_about,
    content,
    unfinished,
)
from ponder.search.step_calls import Continuing, Leases
from ponder.types import Completion, FinishReason, Outcome, Problem, Response, Spend, StopReason


@dataclass(slots=True)
class _Call:
    parent: Step | None
    answers: bool
    """It ends responses."""
    final: bool = False
    completions: tuple[Completion, ...] | None = None
    """None while it runs; empty if it failed."""


class Stepping(Asking):
    """Base of step-wise searches. A subclass calls `grow` and `close`, and gets a finished wave in `advance`."""

    def __init__(self, problem: Problem, context: SearchContext, growth: StepOptions) -> None:
        """Raises `Unsupported` for engines that cannot continue a response, or with nothing to rank steps by."""
        super().__init__(problem, context)
        can, name = context.capabilities, context.info.name
        if not can.prefix:
            raise Unsupported(
                f"the engine of {name} cannot continue a response, so it cannot be searched step by step; "
                "use best_of_n, or the torch engine"
            )
        if not context.scorer and not (can.ids and can.logprobs):
            raise Unsupported(
                f"the engine of {name} gives no log-probabilities and there is no scorer, so there is nothing "
                "to rank steps by; give a scorer, or use best_of_n"
            )
        self.growth = growth
        self.roots: list[Step] = []
        self.steps: dict[int, Step] = {}
        self.spent = False
        """A call did not fit into what is left of the budget."""
        self.failed = False
        """No call of the last wave brought anything."""
        self.scored = context.scorer
        """There is a scorer, and it has not failed."""
        self._next = 0
        self._prompt: tuple[int, ...] = ()
        self._prompt_tokens = 0
        self._longest = 0
        """Tokens of the longest response that there is or may come to be by the calls that run."""
        self._calls: dict[int, _Call] = {}
        self._part = ""
        """What is waited for: calls, checks or scores; empty between waves."""
        self._fresh: list[Step] = []
        self._scoring: list[Step] = []
        self._closing = self._final = False
        self._asking = Continuing(problem, context, growth)
        self._leases = Leases(self.push)

    # For subclasses -------------------------------------------------------------------------------------------------

    def advance(self, steps: list[Step]) -> None:
        """A wave is complete: its new steps by id, checked and scored, none accepted. Ask for more, or `close`."""
        raise NotImplementedError

    def concluded(self) -> None:
        """The last answers are there, checked and scored, none accepted."""

    def told_more(self, answer_id: int, answer: Any) -> None:
        """The answer of an ask of the kind `MORE`, or the exception that it failed with."""

    def new_id(self, count: int = 1) -> int:
        """The first of so many new ids."""
        first, self._next = self._next, self._next + count
        return first

    def can_grow(self, step: Step) -> bool:
        """Whether another step and an answer have room within depth and context."""
        g = self.growth
        most = self._prompt_tokens + step.tokens + g.step_tokens + g.answer_tokens
        fits = step.depth < g.depth and most <= self.context.info.context
        return fits and not step.ended and not step.closed

    def answered(self, step: Step) -> bool:
        """It is a whole response with an answer."""
        return self.tree[step.id].response.answered

    def value(self, step: Step) -> float:
        """What guides the search: the score; the mean log-probability if there is no scorer or it has failed.

        With a scorer, -inf without a score or for NaN: a log-probability is on another scale and cannot replace it.
        """
        if not self.scored:
            return step.mean_logprob
        return -math.inf if step.score is None or math.isnan(step.score) else step.score

    def grow(self, parent: Step | None, count: int) -> None:
        """Ask for `count` further steps of a response; None is the empty one."""
        self._longest = max(self._longest, self.growth.step_tokens + (0 if parent is None else parent.tokens))
        each = count if self.context.capabilities.n else 1
        for _ in range(count // each):
            # As many ids again for the answers that these steps may begin.
            first = self.new_id(2 * each)
            self._call(first, _Call(parent, False), self._asking.grow(parent, each, first))

    def close(self, steps: Sequence[Step | None]) -> None:
        """The last wave: answer these responses, forcing open thoughts to end. The first may use the answer reserve."""
        self._closing, self._final = True, bool(steps)
        for i, step in enumerate(steps):
            self._end(step, self.new_id(), final=i == 0)
        self.lease([step for step in steps if step is not None])
        if not steps:
            self.concluded()

    def lease(self, steps: Sequence[Step]) -> None:
        """Keep the prefixes of these steps in the engine's KV cache, and no others."""
        if self.context.capabilities.leases and self._prompt:
            self._leases.keep(self._prompt, steps)

    def best_answer(self) -> Step | None:
        """The best whole response: accepted by a checker before unchecked before rejected, then the highest value.

        Of equal values (such as -inf of steps that were not scored) the most likely, then the first.
        """
        whole = [s for s in self.steps.values() if s.ended and self.answered(s)]
        return max(whole, key=lambda s: (s.rank, self.value(s), s.mean_logprob, -s.id), default=None)

    # What is asked --------------------------------------------------------------------------------------------------

    def _call(self, ask_id: int, call: _Call, work: Generate) -> None:
        self._calls[ask_id] = call
        self._part = "calls"
        self.push(Ask(ask_id, work))

    def _end(self, step: Step | None, ask_id: int, *, final: bool = False) -> None:
        self._call(ask_id, _Call(step, True, final), self._asking.end(step, ask_id, final=final))

    def reserve(self) -> tuple[int, int]:
        if not self._prompt_tokens or (self._closing and not self._final):
            return 0, 0
        return self._prompt_tokens + self._longest, self.growth.answer_tokens

    # What is told ---------------------------------------------------------------------------------------------------

    def told(self, ask_id: int, answer: Any) -> None:
        failed = isinstance(answer, Exception)
        number, kind = asked_about(ask_id)
        if kind == CALL:
            call = self._calls[ask_id]
            call.completions = () if failed else tuple(answer)
            self.spent = self.spent or isinstance(answer, BudgetExceeded)
            for i, completion in enumerate(answer.completions if isinstance(answer, Unfinished) else ()):
                self.tree.add(ask_id + i, completion, None if call.parent is None else call.parent.id)
                self.tree.note(ask_id + i, f"cut short: {answer}")
            self._final = self._final and not call.final
        elif kind == CHECK and not failed:
            self.steps[number].verdict = answer
            self.tree.check(number, answer)
        elif kind == SCORE:
            scoring, self._scoring = self._scoring, []
            self.scored = self.scored and not failed and len(answer) == len(scoring)
            for step, score in zip(scoring, answer, strict=True) if self.scored else ():
                step.score = float(score)
                self.tree.score(step.id, step.score)
        elif kind == HOLD:
            self._leases.told(number, there=not failed)
        elif kind == MORE:
            self.told_more(number, answer)
        if kind in (CALL, CHECK, SCORE):
            self._proceed()

    def _proceed(self) -> None:
        """Advance the wave as far as the answers allow."""
        if self._part == "calls":
            if any(call.completions is None for call in self._calls.values()) or self._collect():
                return
            self._part = "checks"
            for step in self._fresh:
                if self.context.checker and self.answered(step):
                    self.push(Ask(ask_about(step.id, CHECK), Check(self.tree[step.id].response)))
        if self._part == "checks":
            if any(ask_about(step.id, CHECK) in self._waiting for step in self._fresh):
                return
            if any(step.rank == 2 for step in self._fresh):
                self._part = ""
                self.drop(*self.waiting)
                return
            self._part = "scores"
            self._scoring = [s for s in self._fresh if not s.ended or (self.answered(s) and not s.rejected)]
            if self.scored and self._scoring:
                responses = tuple(self.tree[s.id].response for s in self._scoring)
                self.push(Ask(ask_about(self._scoring[0].id, SCORE), Score(responses)))
                return
        fresh, self._fresh, self._part = self._fresh, [], ""
        if self._closing:
            self.lease(())
            self.concluded()
        elif not self.steps:
            # If the budget has no room for the first step, it may for an answer without steps.
            self.close([None] if self.spent else [])
        else:
            self.advance(fresh)

    def _collect(self) -> bool:
        """Turn completions into steps; True if some have to be answered first."""
        calls, self._calls = sorted(self._calls.items()), {}
        if not self._fresh:
            self.failed = not any(call.completions for _, call in calls)
        for ask_id, call in calls:
            completions = call.completions or ()
            for i, completion in enumerate(completions):
                step = self._add(ask_id + i, call, completion)
                if step is not None and not step.ended and self._thought_over(step.completion.text):
                    step.closed = True
                    self._end(step, ask_id + len(completions) + i)
        self._fresh.sort(key=lambda step: step.id)
        return bool(self._calls)

    def _thought_over(self, text: str) -> bool:
        thought = self.context.info.thought
        return thought is not None and thought.close in text

    def _add(self, node_id: int, call: _Call, completion: Completion) -> Step | None:
        """A completion as a step; None if it is one that there is already."""
        parent, new = call.parent, completion.spend.response_tokens
        if not self._prompt_tokens:
            self._prompt = completion.prompt_ids
            seen = completion.spend.prompt_tokens + completion.spend.cached_tokens
            self._prompt_tokens = len(self._prompt) or max(1, seen)
        ended = call.answers or completion.finish_reason is FinishReason.CANCELLED or completion.error is not None
        ended = ended or (completion.finish_reason is FinishReason.STOP and completion.stopped_by is None)
        if not ended:
            begun = "" if parent is None else parent.completion.text
            stops, whole = self.context.capabilities.ids, self._thought_over(completion.text)
            completion, new = unfinished(completion, begun, self.growth.delimiters, stops=stops, whole=whole)
        self.tree.add(node_id, completion, None if parent is None else parent.id)
        siblings = self.roots if parent is None else parent.children
        same = next((s for s in siblings if content(s.completion) == content(completion)), None)
        if same is not None:
            same.times += 1
            self.tree.note(node_id, f"the same as node {same.id}")
            return None
        step = self.steps[node_id] = Step.after(parent, node_id, completion, new, ended=ended)
        siblings.append(step)
        if call.answers and parent is not None:
            parent.ended = True
            self._fresh = [s for s in self._fresh if s is not parent]
        self._longest = max(self._longest, step.tokens)
        self._fresh.append(step)
        return step

    # The result -----------------------------------------------------------------------------------------------------

    def outcome(self, spend: Spend, stop: StopReason) -> Outcome:
        best, trace = self.best_answer(), self.tree.trace()
        if best is None:
            first = trace.nodes[0].response if trace.nodes else Response(None)
            return Outcome(first, None, trace, spend, stop)
        reason = "chosen by score" if self.scored and best.score is not None else ""
        if best.rank != 1 and best.verdict is not None:
            reason = "chosen by the checker" if best.verdict.correct else "the checker accepted none of the answers"
        if best.rank == 2 and stop is StopReason.FINISHED:
            stop = StopReason.ACCEPTED
        reason = reason or "chosen by mean log-probability"
        return Outcome(self.tree[best.id].response, None, trace, spend, stop, best.id, reason)
