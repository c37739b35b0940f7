"""Chain of thought by asking for it."""

from __future__ import annotations

from dataclasses import dataclass

from ponder.errors import UserError
from ponder.protocols import SearchContext
from ponder.search.options import SamplingOptions, check_choice
from ponder.search.prompts import instructed
from ponder.search.sampling import Sampling
from ponder.types import Problem

WHERE = ("end", "system")


@dataclass(frozen=True)
class Cot(SamplingOptions):
    """Ask the model to think step by step (Kojima et al. 2022, arXiv:2205.11916); cost n × max_tokens.

    Chain-of-thought prompting (Wei et al. 2022, arXiv:2201.11903) without examples; those of few-shot prompts belong
    to the environment. For models that do not think by themselves: the chain of thought is then part of the answer,
    which ends with a line that verifiers find. The first sample is the outcome.
    """

    n: int = 1
    """Samples; the first is the outcome."""
    instruction: str = "Let's think step by step."
    """What asks for the thought (Kojima et al., §3)."""
    answer_line: str = "End with a line that says: The answer is ..."
    """What asks for a final answer that can be found; empty to leave it out."""
    where: str = "end"
    """Where both go: `end` of the prompt, or the `system` message of a chat model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("where", self.where, WHERE)
        if not self.instruction.strip():
            raise UserError("instruction is empty: say what asks for the thought, or use the strategy direct")

    def start(self, problem: Problem, context: SearchContext) -> Sampling:
        text = " ".join(filter(None, (self.answer_line, self.instruction)))
        prompt = instructed(problem.prompt, text, context.info.chat, system=self.where == "system")
        return Sampling(problem, context, self.params(), self.n, self.thought_budget(), prompt)
