"""A generative verifier: a language model says whether a response is right (Zhang et al. 2024, arXiv:2408.15240)."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ponder.errors import BudgetExceeded, UserError
from ponder.protocols import Caller
from ponder.responses import split_response
from ponder.scorers.base import BaseScorer
from ponder.sync import gather_all
from ponder.types import Completion, Problem, Request, Response, SamplingParams, Score, SegmentKind

_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_REASONING = 256
"""Tokens of a judgement by a model that thinks first."""


@dataclass(frozen=True)
class Generative(BaseScorer):
    """Ask a model whether a response is right; the score is the probability that it says Yes, in [0, 1].

    With `max_tokens` of 1 and an engine that gives log-probabilities, it is the probability of the greedy token if that
    is Yes, and 1 minus it if that is No: one call a response. Otherwise it is the share of Yes among `samples`
    judgements: each may reason first, its last Yes or No counts, and one with neither, or truncated, is not a Yes.

    Every call is within the search's budget: if the judgements do not fit, the search continues without scores.
    """

    engine: str = ""
    """Which model judges: a name of --others; empty is the search's own."""
    instruction: str = "Is the answer correct? Answer Yes or No."
    """What is asked of the model."""
    template: str = "{problem}\n\nProposed answer:\n{response}\n\n{instruction}\n"
    """The whole question, with {problem}, {response} (thought and answer, as far as they are there), {instruction}."""
    max_tokens: int | None = None
    """Most tokens of a judgement (default: 1, the word alone; 256 for a model that thinks first)."""
    samples: int = 4
    """Judgements of a response, where no token probability gives the score."""
    temperature: float = 1.0
    """Of these."""
    seed: int = 0
    """Seed of the judgements; the same response has the same score, whatever else is scored."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} = {value}: give at least 1")
        if not 0.0 <= self.temperature < math.inf:
            raise UserError(f"temperature = {self.temperature}: give 0 (greedy) or more")
        for part in ("{problem}", "{response}"):
            if part not in self.template:
                raise UserError(f"template must contain {part}")

    async def score(self, problem: Problem, responses: Sequence[Response], engine: Caller | None) -> Sequence[Score]:
        """One score in [0, 1] for each response. Raises `BudgetExceeded` if there is no room for all judgements."""
        assert engine is not None
        return await gather_all(self._score(problem, response, engine) for response in responses)

    async def _score(self, problem: Problem, response: Response, engine: Caller) -> Score:
        prompt = self.question(problem, response)
        most = self.max_tokens or (1 if engine.info.thought is None else _REASONING)
        word_alone = most == 1 and engine.info.thought is None
        if word_alone and engine.capabilities.logprobs:
            params = SamplingParams(1, temperature=0.0, logprobs_of="raw")
            (said,) = await engine.generate(Request(prompt, params))
            return Score(_first_word(said))
        seeds = [self._seed(prompt, i) for i in range(1 if engine.capabilities.n else self.samples)]
        requests = [
            Request(
                prompt,
                SamplingParams(most, temperature=self.temperature, seed=seed),
                n=self.samples if engine.capabilities.n else 1,
            )
            for seed in seeds
        ]
        answers = await gather_all(engine.generate(request, minimum=most) for request in requests)
        judgements = [_says_yes(c, engine, word_alone) for completions in answers for c in completions]
        if len(judgements) < self.samples:
            raise BudgetExceeded(f"{len(judgements)} of the {self.samples} judgements of a response fit the budget")
        return Score(sum(judgements) / len(judgements))

    def question(self, problem: Problem, response: Response) -> str:
        """The question to the model. A response that contains a placeholder is inserted as it is."""
        asked = problem.prompt
        text = asked if isinstance(asked, str) else "\n\n".join(message.content for message in asked)
        said = [part.strip() for part in (response.thought, response.answer) if part and part.strip()]
        parts = {
            "{problem}": text.strip(),
            "{response}": "\n".join(said) or response.text.strip(),
            "{instruction}": self.instruction,
        }
        return re.sub("|".join(map(re.escape, parts)), lambda found: parts[found[0]], self.template)

    def _seed(self, prompt: str, index: int) -> int:
        key = f"{self.seed}\x1f{index}\x1f{prompt}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")


def _first_word(said: Completion) -> float:
    """The probability of Yes, by that of the token that was said: a word, or its beginning."""
    word = said.text.strip().strip("*\"'").lower()
    logprobs = said.logprobs or tuple(
        x for s in said.segments if s.kind is SegmentKind.SAMPLED for x in (s.logprobs or ())
    )
    if not word or not logprobs:
        return 0.0
    p = math.exp(min(0.0, logprobs[0]))
    if word.startswith("yes") or "yes".startswith(word):
        return p
    return 1.0 - p if word.startswith("no") or "no".startswith(word) else 0.0


def _says_yes(said: Completion, engine: Caller, word_alone: bool) -> bool:
    """Whether a judgement is Yes."""
    response = split_response(said.text, said.finish_reason, engine.info.thought)
    words = _WORD.findall(said.text if word_alone else response.answer or "")
    return bool(words) and words[-1].lower() == "yes"
