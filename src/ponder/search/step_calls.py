"""The calls of a step-wise search: for one more step of a response, for the rest of it, and leases on its prefix.

A lease keeps a prefix in the engine's KV cache while a search may still grow it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ponder.protocols import Ask, Generate, Hold, Release, SearchContext
from ponder.search.seeds import derive
from ponder.search.step import HOLD, RELEASE, Step, StepOptions, ask_about
from ponder.types import Problem, Request, SamplingParams, Thinking


@dataclass(frozen=True, slots=True)
class Continuing:
    """The calls of one search. Their seeds follow from their ids; a step that is None is the empty response."""

    problem: Problem
    context: SearchContext
    options: StepOptions

    def grow(self, step: Step | None, n: int, ask_id: int) -> Generate:
        """Sample `n` further steps."""
        most = self.options.step_tokens + (0 if step is None else step.tokens)
        stop = tuple(self.options.delimiters) if self.context.capabilities.ids else ()
        # Before the first call the prompt's length is not known, so that call reserves the answer's tokens.
        answer = self.options.answer_tokens if step is None else 0
        prefix = "" if step is None else self._prefix(step)
        request = Request(self.problem.prompt, self._params(most, ask_id, stop), n=n, prefix=prefix)
        return Generate(request, minimum=most, answer_reserve=answer)

    def end(self, step: Step | None, ask_id: int, *, final: bool = False) -> Generate:
        """Sample the end of a response, forcing the end of an open thought, without stopping at delimiters."""
        thought, thinking, can = self.context.info.thought, None, self.context.capabilities
        prefix = "" if step is None else self._prefix(step)
        text = "" if step is None else step.completion.text
        if thought is not None and thought.close not in text:
            opened = thought.opened_by_template or thought.open in text
            if can.thinking and (opened or step is None):
                thinking = Thinking(max_tokens=0)
            elif opened or step is None:
                prefix = text + ("" if opened else thought.open) + thought.close
        most = self.options.answer_tokens + (0 if step is None else step.tokens)
        params = dataclasses.replace(self._params(most, ask_id), thinking=thinking)
        return Generate(Request(self.problem.prompt, params, prefix=prefix), minimum=most, final=final)

    def _params(self, max_tokens: int, ask_id: int, stop: tuple[str, ...] = ()) -> SamplingParams:
        o, seed = self.options, derive(self.context.seed, f"{self.problem.id}\x1fstep", ask_id)
        return SamplingParams(max_tokens, o.temperature, o.top_p, o.top_k, o.min_p, stop=stop, seed=seed)

    def _prefix(self, step: Step) -> str | tuple[int, ...]:
        return step.completion.ids if self.context.capabilities.ids else step.completion.text


class Leases:
    """The leases of a search; `push` asks the runner."""

    def __init__(self, push: Callable[[Ask], None]) -> None:
        self._push = push
        self._held: dict[int, int] = {}
        """Number of the lease of a step; a step may be held again later, under another number."""
        self._there: list[bool | None] = []
        """By number: None while asked for, then whether it is held."""

    def keep(self, prompt: tuple[int, ...], steps: Sequence[Step]) -> None:
        """Hold the prefixes of these steps, and no others."""
        # New leases are asked for first, so that a prefix shared with an old one is always held.
        before, self._held = self._held, {}
        for step in steps:
            if step.id not in before:
                before[step.id] = len(self._there)
                self._there.append(None)
                self._push(Ask(ask_about(before[step.id], HOLD), Hold(prompt + step.completion.ids)))
            self._held[step.id] = before.pop(step.id)
        for number in before.values():
            self._release(number)

    def told(self, number: int, *, there: bool) -> None:
        """The answer of the ask of a lease: whether the engine holds it."""
        self._there[number] = there
        if number not in self._held.values():
            self._release(number)

    def _release(self, number: int) -> None:
        """End a lease that is held; one that is not held yet is ended once it is."""
        if self._there[number]:
            self._push(Ask(ask_about(number, RELEASE), Release(ask_about(number, HOLD))))
