"""What an engine is asked, for one more step of a response or for the rest of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ponder.protocols import Generate, SearchContext
from ponder.search.seeds import derive
from ponder.search.steps import Step, StepOptions
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
        # Before the first call the prompt's length is not known: it asks for the answer's room itself.
        answer = self.options.answer_tokens if step is None else 0
        prefix = "" if step is None else self._prefix(step)
        request = Request(self.problem.prompt, self._params(most, ask_id, stop), n=n, prefix=prefix)
        return Generate(request, minimum=most, answer_reserve=answer)

    def end(self, step: Step | None, ask_id: int, *, final: bool = False) -> Generate:
        """Sample the end of a response, an open thought closed by force, without stopping at delimiters."""
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
