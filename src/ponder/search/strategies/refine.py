"""Refine: a sequence of answers, each a revision of the last one by feedback on it."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from ponder.errors import Unsupported, UserError
from ponder.protocols import Ask, Check, SearchContext
from ponder.search.clusters import shown
from ponder.search.confidence import check_rank, usable
from ponder.search.options import SamplingOptions, check_choice
from ponder.search.prompts import continued
from ponder.search.sampling import Sampling
from ponder.types import Node, Outcome, Problem, Prompt, Spend, StopReason

FEEDBACK = ("auto", "checker", "self")
_QUOTED = 4_000
"""Characters of an answer that a prompt repeats, from its end."""
_CUT_OFF = "Your last response had no final answer; it was too long. Be brief."


@dataclass(frozen=True)
class Refine(SamplingOptions):
    """Revise by feedback (Self-Refine, Madaan et al. 2023, arXiv:2303.17651); cost n × max_tokens, × 2 unchecked.

    The feedback is what the environment's checker says, where there is one (never the judge), and stops the search when
    it accepts; else the model's own critique of its answer, one more call each, which stops it by saying `approve`.
    Only the last answer and the feedback on it are in a prompt, so that prompts do not grow. The outcome is the answer
    that the checker rates highest, of equals the latest. Rounds run one after the other.
    """

    n: int = 4
    """Most answers: the first one and n - 1 revisions."""
    feedback: str = "auto"
    """`checker`, `self` (the model's own), or `auto`: the checker if there is one."""
    revise: str = "Feedback on your answer: {feedback}\nSolve the problem again and give a corrected answer."
    """What asks for a revision."""
    critique: str = (
        "Check this answer step by step. If all of it is right, reply only: CORRECT. Otherwise say what is wrong, "
        "without solving the problem again."
    )
    """What asks for feedback by the model itself."""
    approve: str = "CORRECT"
    """A critique that begins with this accepts the answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("feedback", self.feedback, FEEDBACK)
        if "{feedback}" not in self.revise:
            raise UserError("revise must contain {feedback}, where the feedback goes")
        for name in ("critique", "approve"):
            if not getattr(self, name).strip():
                raise UserError(f"{name} is empty: say what asks for feedback, and what accepts an answer")

    def start(self, problem: Problem, context: SearchContext) -> Sampling:
        if self.feedback == "checker" and not context.checker:
            raise Unsupported("refine by the checker's feedback needs one and there is none; choose feedback = self")
        prompt = self.prompt(problem, context)
        checks = self.feedback != "self" and context.checker
        return _Refine(self, checks, problem, context, self.params(), 2 * self.n, self.thought_budget(), prompt)


class _Refine(Sampling):
    """Answer number `r` is sample `2 r`, the model's critique of it sample `2 r + 1`; its check is ask `-1 - r`."""

    def __init__(self, options: Refine, checks: bool, *args: Any) -> None:
        self._options = options
        self._checks = checks
        self._broken = False
        """The checker failed; the model's own feedback replaces it."""
        self._prompts: dict[int, Prompt] = {}
        self._at = 0
        """The sample that is drawn."""
        self._accepted = ""
        """Who accepted the last answer."""
        super().__init__(*args)

    def begin(self) -> None:
        self._draw(0, self._prompt)

    def _draw(self, index: int, prompt: Prompt) -> None:
        self._at, self._prompts[index] = index, prompt
        self.draw(index, 1)

    def prompt_of(self, index: int) -> Prompt:
        return self._prompts[index]

    def all_sampled(self) -> None:
        node = self.leaves.get(self._at)
        if node is None:
            return
        number, critique = divmod(self._at, 2)
        if critique:
            self._criticised(number, node)
        elif not node.response.answered:
            self._revise(number, _CUT_OFF)
        elif self._checks:
            self.push(Ask(-1 - number, Check(node.response)))
        else:
            self._criticise(number)

    def told_more(self, ask_id: int, answer: Any) -> None:
        number = -1 - ask_id
        if not isinstance(answer, Exception):
            self.tree.check(self.leaves[2 * number].id, answer)
        if isinstance(answer, Exception) or not usable(answer):
            self._checks, self._broken = False, True
            self._criticise(number)
        elif answer.correct:
            self._accepted = "the checker"
        else:
            self._revise(number, answer.reason)

    def _criticise(self, number: int) -> None:
        if number + 1 < self._options.n:
            prompt = continued(self._prompt, self._quoted(number), self._options.critique, self.context.info.chat)
            self._draw(2 * number + 1, prompt)

    def _criticised(self, number: int, node: Node) -> None:
        self.tree.aside(node.id, f"feedback on answer {number + 1}, node {self.leaves[2 * number].id}")
        said = (node.response.answer or "").strip()
        if re.match(rf"\W*{re.escape(self._options.approve.strip())}(?!\w)", said, re.IGNORECASE):
            self._accepted = "the model's own feedback"
        else:
            self._revise(number, said or "Something in it may be wrong.")

    def _revise(self, number: int, feedback: str) -> None:
        leaf = self.leaves[2 * number]
        self.tree.note(leaf.id, f"revised: {shown(feedback)}" if number + 1 < self._options.n else "the last answer")
        if number + 1 < self._options.n:
            request = self._options.revise.replace("{feedback}", feedback.strip())
            prompt = continued(self._prompt, self._quoted(number), request, self.context.info.chat)
            self._draw(2 * number + 2, prompt)

    def _quoted(self, number: int) -> str | None:
        answer = self.leaves[2 * number].response.answer
        return None if answer is None else answer.strip()[-_QUOTED:]

    def outcome(self, spend: Spend, stop: StopReason) -> Outcome:
        first = super().outcome(spend, stop)
        answers = [self.tree[self.leaves[i].id] for i in sorted(self.leaves) if i % 2 == 0]
        answered = [n for n in answers if n.response.answered]
        if not answered:
            return dataclasses.replace(first, chosen=None, reason=self._reason(len(answers), None))
        best = max(enumerate(answered), key=lambda pair: (check_rank(pair[1].check), pair[0]))[1]
        if self._accepted and stop in (StopReason.FINISHED, StopReason.BUDGET):
            stop = StopReason.ACCEPTED
        reason = self._reason(len(answers), answers.index(best))
        return Outcome(best.response, None, first.trace, spend, stop, best.id, reason)

    def _reason(self, rounds: int, best: int | None) -> str:
        if best is None:
            said = f"none of {rounds} responses had an answer"
        elif self._accepted:
            said = f"{self._accepted} accepted answer {best + 1} of at most {self._options.n}"
        else:
            said = f"answer {best + 1} of {rounds}, none of them accepted"
        return said + self._broken * "; the checker failed, the model's own feedback replaced it"
