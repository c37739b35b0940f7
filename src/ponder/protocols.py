"""What engines, environments, scorers and strategies must do. Anything with these members will serve.

Engines are asynchronous: a search waits on many calls at once. `ponder.sync.run` is the synchronous face.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ponder.types import (
    Capabilities,
    Completion,
    Delta,
    Gold,
    Message,
    ModelInfo,
    Outcome,
    Problem,
    Prompt,
    Request,
    Response,
    Spend,
    Split,
    StopReason,
    Verdict,
)


@runtime_checkable
class Engine(Protocol):
    """Samples from a model. Cancelling the task that awaits a call ends its samples at once."""

    info: ModelInfo
    capabilities: Capabilities

    @property
    def weights_version(self) -> str:
        """Names the weights that the next token is sampled with."""
        ...

    async def generate(self, request: Request) -> tuple[Completion, ...]:
        """Sample `request.n` completions, in sample order.

        Raises `UserError` if the prompt and `max_tokens` do not fit the context (with the numbers),
        `Unsupported` if the request asks for what `capabilities` denies, `EngineClosed`.
        """
        ...

    def stream(self, request: Request) -> AsyncIterator[Delta]:
        """Like `generate`, piece by piece; closing the iterator cancels what is still running."""
        ...

    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        """Number of prompt tokens that a request with this prompt costs (template included)."""
        ...

    async def load_weights(self, source: Any, version: str) -> None:
        """Take new weights (a module, a state dict or a folder) under a new version; drops stale caches."""
        ...

    async def close(self) -> None:
        """End every request with `EngineClosed` and free what the engine holds. Idempotent."""
        ...


class PrefixHolder(Protocol):
    """An engine whose `capabilities.leases` is true."""

    def hold(self, ids: Sequence[int]) -> AbstractAsyncContextManager[None]:
        """Keep the cache of a prefix while the context is open; charged to the memory limit."""
        ...


class Checker(Protocol):
    """Decides without gold, from the problem alone. A search may use it."""

    def __call__(self, problem: Problem, response: Response) -> Verdict: ...


@dataclass(frozen=True, slots=True)
class Turn:
    """What an environment says after a response: more messages (a tool's result, a next question), or the end."""

    messages: tuple[Message, ...] = ()
    done: bool = True


@runtime_checkable
class Environment(Protocol):
    """A seeded, index-addressable source of problems with a judge. `environments.base.SingleTurn` does most of it."""

    name: str

    def size(self, split: Split) -> int | None:
        """Number of problems of a split; None if there is no end to them."""
        ...

    def problem(self, split: Split, index: int) -> Problem:
        """The problem at an index, the same each time; train and test never share one. Raises `IndexError`."""
        ...

    def gold(self, problem: Problem) -> Gold:
        """What only the judge may see."""
        ...

    def judge(self, problem: Problem, response: Response) -> Verdict:
        """Decide with the gold. Never raises: a failure of ours is a `judge_error` verdict."""
        ...

    @property
    def checker(self) -> Checker | None:
        """The checker that a search may use, if the problems can be checked without gold."""
        ...

    def gold_response(self, problem: Problem) -> str:
        """An answer text (no thought) that the judge gives reward 1; for the self-check."""
        ...

    async def turn(self, problem: Problem, responses: Sequence[Response]) -> Turn:
        """The environment's answer to the last response. Single-turn environments are done at once."""
        ...


class Scorer(Protocol):
    """Scores responses, partial or whole, without gold; a higher score is better."""

    async def score(self, problem: Problem, responses: Sequence[Response]) -> Sequence[float]: ...


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing that a search wants done. `id` is unique within the search and says nothing of order."""

    id: int
    request: Request | None = None
    """Generate this; the answer is a tuple of `Completion`."""
    check: Response | None = None
    """Run the checker on this response; the answer is a `Verdict`."""
    score: tuple[Response, ...] | None = None
    """Score these; the answer is a sequence of floats."""
    minimum: int = 1
    """Fewest `max_tokens` that are worth a call: a tight budget may clamp a request to that, and refuses it below."""
    answer_reserve: int = 0
    """A second call will end each response: keep so many tokens for the answer, and the prompt and response again."""


class Search(Protocol):
    """A running search as ask and tell. Deterministic in its seed: what it asks depends only on what it was told,

    never on the order of telling. `tell` with the same id a second time changes nothing.
    """

    def ask(self) -> Sequence[Ask]:
        """What may run now and was not asked before; empty if it waits for answers or is done."""
        ...

    def tell(self, ask_id: int, answer: Any) -> None:
        """Report the answer of an ask: completions, a verdict, scores, or the exception that it failed with."""
        ...

    @property
    def done(self) -> bool: ...

    def outcome(self, spend: Spend, stop: StopReason) -> Outcome:
        """The best result so far; may be called at any time."""
        ...


@dataclass(frozen=True, slots=True)
class SearchContext:
    """What a search may know besides the problem."""

    info: ModelInfo
    capabilities: Capabilities
    seed: int
    checker: bool = False
    """A checker is there to be asked."""
    scorer: bool = False


class Strategy(Protocol):
    """A search algorithm: a frozen dataclass whose fields are its options. `search.runner.solve` runs it."""

    def start(self, problem: Problem, context: SearchContext) -> Search:
        """Begin a search. Raises `Unsupported` if the context lacks what the strategy needs."""
        ...
