"""Protocols of engines, environments, scorers and strategies. Any object with these members fits.

Engines are asynchronous: a search waits on many calls at once. `ponder.sync.run` is the synchronous face.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ponder import types
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

if TYPE_CHECKING:
    from torch import Tensor, nn


def _nothing() -> None:
    """Nobody waits for the call's beginning."""


def _unlimited() -> None:
    """There is no limit."""


@dataclass
class Receipt:
    """What a call has used, however it ends: the caller passes one in, the engine settles it before the call is over.

    So the cost of a call that failed, was cancelled or whose stream was closed is known without its exception.
    """

    spend: Spend | None = None
    """None while it is not known: the meter then books the worst case."""
    completions: tuple[Completion, ...] = ()
    """What had been sampled by then."""
    begin: Callable[[], None] = _nothing
    """An engine with `queues` calls this when it takes the call out of its queue and begins to work on it: the seconds
    of a search do not pass while its first call waits for those of others. On any thread, more than once if need be."""
    left: Callable[[], float | None] = _unlimited
    """Seconds that the call may still take; None is no limit. An engine that computes in this process looks at it
    between its steps, on any thread, and ends a late call with `OutOfTime`: the event loop may be too busy to cancel
    it."""

    def settle(self, spend: Spend, completions: tuple[Completion, ...] = ()) -> None:
        self.spend, self.completions = spend, completions


@dataclass(frozen=True)
class WeightsUpdate:
    """New weights for an engine."""

    source: nn.Module | Mapping[str, Tensor] | Path
    """A module (the engine's own is only announced), tensors by name, or a folder of safetensors."""
    version: int
    """Rises with each update, so that staleness is a number: the trainer's version less that of what was sampled."""
    digest: str = ""
    """The expected `Delivery.digest`, if the sender gives one: other bytes are refused."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The proof that new weights arrived."""

    version: int
    digest: str
    """Of the tensors as they are in the engine now (BLAKE2b over names, shapes, dtypes and bytes); empty where it
    shares the trainer's module, so that nothing was sent."""


@runtime_checkable
class Engine(Protocol):
    """Samples from a model. Cancelling the task that awaits a call ends its samples at once.

    A call that is given a receipt settles it before it is over, however it ends: done, failed, cancelled or closed. It
    leaves it unsettled where it cannot know what was used, and with a `UserError`, which is raised before any work.
    """

    info: ModelInfo
    capabilities: Capabilities

    @property
    def weights_version(self) -> int:
        """Of the weights that the next token is sampled with; 0 until others are loaded."""
        ...

    @property
    def grace(self) -> float:
        """Seconds that a cancelled call may still run before it ends."""
        ...

    @property
    def queues(self) -> bool:
        """A call may wait for others before it is worked on; then it says `Receipt.begin`."""
        ...

    @property
    def opening(self) -> Spend:
        """What opening it has cost, such as asking an endpoint what it can do. It is in no completion's spend."""
        ...

    @property
    def known(self) -> Mapping[str, Any]:
        """What was found out about an endpoint, as plain values: given to `OpensWithin.open_within`, it is not asked
        for again. Empty if nothing was."""
        ...

    async def generate(self, request: Request, receipt: Receipt | None = None) -> tuple[Completion, ...]:
        """Sample `request.n` completions, in sample order.

        Raises `TooLong` if the prompt and `max_tokens` do not fit the context (with the numbers),
        `Unsupported` if the request asks for what `capabilities` denies, `EngineClosed`.
        """
        ...

    def stream(self, request: Request, receipt: Receipt | None = None) -> AsyncGenerator[Delta, None]:
        """Like `generate`, piece by piece, as its reader asks for them; closing it cancels what is still running.

        What is buffered for a slow reader is bounded: an endpoint gets back-pressure, in-process pieces are merged.
        """
        ...

    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        """Number of prompt tokens that a request with this prompt costs (template included)."""
        ...

    async def load_weights(self, update: WeightsUpdate) -> Delivery:
        """Take new weights under a new version, and drop what was cached with the old ones.

        Raises `Unsupported` where `capabilities.load_weights` is false, and `UserError` for weights that do not fit,
        whose digest is not the expected one, or whose version does not rise: then the old ones stay.
        """
        ...

    async def drop_caches(self) -> None:
        """Free cached prefixes that no request or lease needs. Does nothing if none are cached."""
        ...

    async def close(self) -> None:
        """End every request with `EngineClosed` and free what the engine holds. Idempotent."""
        ...


@runtime_checkable
class Opens(Protocol):
    """An engine's options, as the registry finds them: a dataclass that opens engines."""

    def open(self, model: str) -> Engine:
        """An engine for a model. Raises `UserError` for a model that it cannot open."""
        ...


@runtime_checkable
class OpensWithin(Opens, Protocol):
    """An engine's options whose `open` spends something, which is kept within a budget."""

    def open_within(
        self,
        model: str,
        tokens: int | None = None,
        seconds: float | None = None,
        known: Mapping[str, Any] | None = None,
    ) -> Engine:
        """`open` under a budget of which so many tokens and seconds are left (None is no limit).

        `known` is that of an earlier engine for this model: what it holds is not asked for again.
        """
        ...


class PrefixHolder(Protocol):
    """An engine whose `capabilities.leases` is true."""

    def hold(self, ids: Sequence[int]) -> AbstractAsyncContextManager[None]:
        """Keep the KV cache of a prefix while the context is open; charged to the memory limit."""
        ...


class Checker(Protocol):
    """Decides without gold, from the problem alone. A search may use it."""

    def __call__(self, problem: Problem, response: Response) -> Verdict: ...


@dataclass(frozen=True, slots=True)
class Turn:
    """What an environment returns after a response: more messages (a tool's result, a next question), or the end."""

    messages: tuple[Message, ...] = ()
    done: bool = True
    reward: float = 0.0
    """What the response earned by itself, any number. No search sees it."""


class Episode(Protocol):
    """One conversation with an environment, opened for a problem.

    It depends on the problem and the responses alone, so that it can be replayed from its opening.
    """

    async def step(self, response: Response) -> Turn:
        """Take the model's next response. Tools run here. Raises `ValueError` after the end."""
        ...

    def fork(self) -> Episode:
        """An independent copy as of now, for a branch of a search.

        Raises `Unsupported` where it cannot be copied: the search then replays the responses from the opening.
        """
        ...

    async def close(self) -> None:
        """Free what it holds (a process, a connection), also before its end. Called once; a fork is closed by itself.

        `environments.turns.BaseEpisode` has one that does nothing.
        """
        ...


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a search may ask besides the model. Never the gold."""

    checker: Checker | None = None
    scorer: Scorer | None = None
    answers: Answers | None = None
    """For votes; None compares answers as they are written."""
    slow: bool = False
    """Checker and answers may take so long that they are run on a thread."""
    episode: Callable[[Problem], Episode] | None = None
    """Opens an episode, if the environment has several turns."""


@runtime_checkable
class Environment(Protocol):
    """A seeded, index-addressable source of problems with a judge. `environments.base.SingleTurn` does most of it."""

    name: str
    turns: bool
    """Its problems are conversations: its episodes have several turns. Only strategies that play turns solve them."""
    turn_rewards: bool
    """Turns may earn something by themselves (`Turn.reward`): judging a path for a reward then replays its episode."""
    slow_judge: bool
    """Judging may take so long that it is done on a thread (`environments.judging.judge`)."""

    @property
    def feedback(self) -> Feedback:
        """What a search of its problems may ask: all of it without gold."""
        ...

    def size(self, split: Split) -> int | None:
        """Number of problems of a split; None if it is unlimited."""
        ...

    def problem(self, split: Split, index: int) -> Problem:
        """The problem at an index, the same each time; train and test never share one. Raises `IndexError`."""
        ...

    def gold(self, problem: Problem) -> Gold:
        """What only the judge may see."""
        ...

    def judge(self, problem: Problem, response: Response) -> Verdict:
        """Decide with the gold. Never raises: an infrastructure error is a `judge_error` verdict.

        What a judge of yours raises all the same, or gives in place of a verdict, becomes a `judge_error` that names
        the environment and the line (`environments.judging.judge`). Rewards may be shaped within what `Verdict` allows.
        """
        ...

    def gold_response(self, problem: Problem) -> str:
        """An answer text (no thought) that the judge gives reward 1; for the self-check."""
        ...

    def episode(self, problem: Problem) -> Episode:
        """Open a conversation; without `turns` it ends with the first response."""
        ...


class Caller(Protocol):
    """An engine as a scorer may call it: behind the search's meter, so that no call can exceed the budget."""

    info: ModelInfo
    capabilities: Capabilities

    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        """As `Engine.count_tokens`."""
        ...

    async def generate(self, request: Request, *, minimum: int = 1) -> tuple[Completion, ...]:
        """As `Meter.generate`: reserves the worst case, calls, books what it cost.

        A tight budget gives fewer samples than `request.n`, or one of fewer tokens (`minimum` at least). Raises
        `BudgetExceeded` if not even that fits.
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """Scores responses, partial or whole, without gold. `scorers.base.BaseScorer` does most of it."""

    @property
    def engine(self) -> str | None:
        """Which engine it calls, by the names of `Generate.engine` (empty is the search's own); None if it calls none.

        `solve` refuses a search whose scorer calls an engine that is not there.
        """
        ...

    def worst(self, problem: Problem, responses: Sequence[Response]) -> Spend:
        """The most tokens and dollars that scoring these may cost besides metered calls: reserved before it begins.

        For a scorer that does its own work (a reward model of its own, another service): then `engine` is None.
        """
        ...

    async def score(
        self, problem: Problem, responses: Sequence[Response], engine: Caller | None
    ) -> Sequence[types.Score]:
        """One score for each response, higher is better. `engine` is the one that `self.engine` names."""
        ...


@runtime_checkable
class Answers(Protocol):
    """Reads answers and says which are the same, without gold: what votes need."""

    def extract(self, problem: Problem, response: Response) -> str | None:
        """The answer as it will be compared and shown; None if there is none to vote with."""
        ...

    def same(self, a: str, b: str) -> bool:
        """Whether two extracted answers say the same. Need not be transitive: votes close over it."""
        ...


@dataclass(frozen=True, slots=True)
class Generate:
    """Sample; the answer is a tuple of `Completion`, shorter than `request.n` where the budget had no room for all."""

    request: Request
    engine: str = ""
    """Which of `SearchContext.others`; empty is the search's own."""
    minimum: int = 1
    """Fewest `max_tokens` that are worth a call: a tight budget may clamp a request to that; below, it is refused."""
    answer_reserve: int = 0
    """A second call will end each response: keep so many tokens for the answer, and the prompt and response again."""
    final: bool = False
    """The last call: it may use what `Search.reserve` keeps."""


@dataclass(frozen=True, slots=True)
class Check:
    """Run the checker; the answer is a `Verdict`."""

    response: Response


@dataclass(frozen=True, slots=True)
class Score:
    """Score responses, partial or whole; the answer is a sequence of floats."""

    responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Read the answers and group those that say the same; the answer is one `Vote` or None for each response."""

    responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True)
class Vote:
    """What a response votes for. Equal answers have the same `cluster`: the index of the first response with it."""

    cluster: int
    answer: str


@dataclass(frozen=True, slots=True)
class Act:
    """Give the environment the last response of a conversation, all of which are here; the answer is a `Turn`.

    The turn comes without its reward.
    """

    responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep the KV cache of these ids until the search is done or `Release`d; the answer is None.

    Only for engines with the capability `leases`.
    """

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """End the lease of an ask; the answer is None."""

    ask: int


Work = Generate | Check | Score | Group | Act | Hold | Release


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing that a search wants done. `id` is unique within the search and says nothing of order."""

    id: int
    work: Work


class Search(Protocol):
    """A running search as ask and tell, deterministic in its seed.

    What it asks depends only on what it was told, never on the order of telling. `tell` with the same id a second time
    changes nothing. So a search is saved by writing down what it was told (`search.journal`). `search.asking.Asking`
    does most of it.
    """

    def ask(self) -> Sequence[Ask]:
        """What may run now and was not asked before; empty if it waits for answers or is done."""
        ...

    def tell(self, ask_id: int, answer: Any) -> None:
        """Report the answer of an ask, or the exception that it failed with (`CallCancelled` if it was dropped)."""
        ...

    def unwanted(self) -> Sequence[int]:
        """Asks whose answers no longer matter and were not named before: the runner cancels them."""
        ...

    def reserve(self) -> tuple[int, int]:
        """(prompt, response) tokens that a last call, `Generate.final`, would need: other calls may not use them."""
        ...

    @property
    def done(self) -> bool:
        """No answer is waited for; what still runs is cancelled."""
        ...

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
    others: Mapping[str, tuple[ModelInfo, Capabilities]] = field(default_factory=dict)
    """Further engines by the name under which `Generate` asks for them."""
    turns: bool = False
    """The environment has several turns: it may be asked with `Act`."""


class Strategy(Protocol):
    """A search algorithm: a frozen dataclass whose fields are its options. `search.runner.solve` runs it."""

    def start(self, problem: Problem, context: SearchContext) -> Search:
        """Begin a search. Raises `Unsupported` if the context lacks what the strategy needs."""
        ...


@runtime_checkable
class TurnPlayer(Protocol):
    """A strategy that can solve an environment with `turns`; all others are refused there."""

    plays_turns: bool
