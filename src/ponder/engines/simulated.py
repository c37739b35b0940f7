"""A stochastic reasoner in place of a model: for tests of search itself, and for planning at any scale.

It reads nothing but the request and needs no weights. Time is simulated with `asyncio.sleep`, so that an event loop
with a virtual clock runs it as fast as the machine can. It leaves out a machine that slows down under load
(each sample has its speed with any batch composition) and greedy answers that are better than sampled ones.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ponder.budget.machine import MachineTime
from ponder.engines._deltas import collected, total
from ponder.engines._simulated_sample import Sample
from ponder.engines.base import BaseEngine
from ponder.engines.reasoner import CLOSE_TEXT, OPEN_TEXT, Mind, prompt_text
from ponder.errors import EngineClosed, PonderError, TooLong, Unsupported, UserError
from ponder.protocols import Delivery, Receipt, WeightsUpdate
from ponder.types import (
    Capabilities,
    Completion,
    Delta,
    ModelInfo,
    Prompt,
    Request,
    Spend,
    ThoughtFormat,
    offered_tools,
)

_STREAM_PIECE = 32
"""Tokens of a piece of a streamed response."""


@dataclass(frozen=True)
class Simulated:
    """A stochastic reasoner that needs no model: given step success, correlated errors, lengths, speed and failures.

    A response is a chain of steps, each right with `step_success` as long as the chain is right, and an answer. One
    character is one token. The problem is what is in `[problem …]` in the prompt, or the whole prompt; its answer
    is known to `environments.simulated`. The same request gives the same completions.
    """

    steps: int = 8
    """Steps of a whole solution."""
    step_success: float = 0.9
    """Probability that a step keeps a right chain right; at least `recover`."""
    correlation: float = 0.0
    """Intraclass correlation of errors: 0 is independent responses, 1 means the problem's difficulty alone decides."""
    recover: float = 0.0
    """Probability that a step corrects a wrong chain."""
    favourite: float = 0.5
    """Probability that a wrong answer is the problem's favourite wrong answer."""
    guess: float = 0.8
    """Success of a step that was not written since the thought was ended early, as a share of that of a written one."""
    step_tokens: int = 40
    """Mean tokens of a step (a step has 18 at least)."""
    step_spread: float = 10.0
    """Standard deviation of the tokens of a step."""
    thought: bool = True
    """Steps are inside a thought, between <think> and </think>."""
    opened: bool = True
    """The prompt ends inside the thought (as with templates that write <think>)."""
    certainty: float = 0.3
    """Correlation of a response's mean log-probability with being right."""
    tokens_per_second: float = 0.0
    """Tokens per second of each sample; 0 takes no time, but yields to other tasks."""
    latency: float = 0.0
    """Seconds before the first token."""
    failure_rate: float = 0.0
    """Probability that a call fails partway."""
    grace: float = 0.0
    """Seconds that a cancelled call continues before it stops."""
    context: int = 1_000_000
    """Most tokens of prompt and response together."""
    n: bool = True
    """Several samples in one call."""
    prefix: bool = True
    """Can continue a response."""
    thinking: bool = True
    """Bounds a thought within the call by forcing its end; only with `thought`."""
    ids: bool = True
    """Takes and returns ids, with log-probabilities."""
    leases: bool = True
    """Keeps prefixes (and counts them)."""

    def __post_init__(self) -> None:
        for name in ("step_success", "correlation", "recover", "favourite", "guess", "failure_rate"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} = {getattr(self, name)!r}: give a probability, 0 to 1")
        for name in ("step_spread", "tokens_per_second", "latency", "grace"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} = {getattr(self, name)!r}: give 0 or more")
        for name in ("steps", "step_tokens", "context"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)!r}: give at least 1")
        if self.recover > self.step_success:
            raise UserError(f"recover = {self.recover}: give at most step_success ({self.step_success})")
        if not -1.0 <= self.certainty <= 1.0:
            raise UserError(f"certainty = {self.certainty!r}: give a correlation, -1 to 1")

    def open(self, model: str = "simulated") -> SimulatedEngine:
        """An engine of this kind; `model` is its name in reports and price lists."""
        return SimulatedEngine(self, model)

    @property
    def mind(self) -> Mind:
        """The parameters of how it reasons."""
        return Mind(
            self.steps,
            self.step_success,
            self.correlation,
            self.recover,
            self.favourite,
            self.guess,
            self.step_tokens,
            self.step_spread,
            self.certainty,
            self.thought,
            self.opened,
        )


class SimulatedEngine(BaseEngine):
    """An open `Simulated`; see `protocols.Engine`. It counts what was truly used, however the call ended."""

    def __init__(self, options: Simulated, model: str = "simulated") -> None:
        self.options = options
        self._mind = options.mind
        self.grace = options.grace
        thought = ThoughtFormat(OPEN_TEXT, CLOSE_TEXT, options.opened) if options.thought else None
        self.info = ModelInfo(model, options.context, thought=thought)
        self.capabilities = Capabilities(
            ids=options.ids,
            logprobs=options.ids,
            seed=True,
            n=options.n,
            prefix=options.prefix,
            thinking=options.thinking and options.thought,
            leases=options.leases and options.ids,
            exact=True,
        )
        self.used = Spend()
        """Everything that was computed, failed and cancelled calls included."""
        self.calls = 0
        self.in_flight = 0
        self.peak = 0
        """Most samples in flight at once."""
        self.held: dict[tuple[int, ...], int] = {}
        """Leases by prefix."""
        self._machine = MachineTime()
        self._closed = False
        self._running: set[asyncio.Future[None]] = set()

    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        return len(prompt_text(prompt))

    async def generate(self, request: Request, receipt: Receipt | None = None) -> tuple[Completion, ...]:
        return await collected(self._run(request, receipt or Receipt(), pieces=False), request.n)

    def stream(self, request: Request, receipt: Receipt | None = None) -> AsyncGenerator[Delta, None]:
        """Its samples grow with time, whether their pieces are read or not."""
        return self._run(request, receipt or Receipt(), pieces=True)

    async def load_weights(self, update: WeightsUpdate) -> Delivery:
        raise Unsupported("the simulated engine has no weights: open another one with other options")

    async def close(self) -> None:
        self._closed = True
        for future in self._running:
            if not future.done():
                future.set_exception(EngineClosed("the engine was closed while the request ran"))

    @contextlib.asynccontextmanager
    async def hold(self, ids: Sequence[int]) -> AsyncIterator[None]:
        """Count a lease on a prefix while the context is open. Raises `Unsupported`, `EngineClosed`."""
        if not self.capabilities.leases:
            raise Unsupported("this simulated engine keeps no prefixes (leases = false)")
        self._refuse_closed()
        key = tuple(ids)
        self.held[key] = self.held.get(key, 0) + 1
        try:
            yield
        finally:
            self.held[key] -= 1
            if not self.held[key]:
                del self.held[key]

    # A call -------------------------------------------------------------------------------------------------------

    async def _run(self, request: Request, receipt: Receipt, *, pieces: bool) -> AsyncGenerator[Delta, None]:
        self._refuse_closed(receipt)
        prompt, prefix = prompt_text(request.prompt), prompt_text(request.prefix)
        self._check(request, len(prompt), len(prefix))
        samples = [Sample(self._mind, request, prompt, prefix, i, self.options.ids) for i in range(request.n)]
        fails = self._fails_after(request, prompt, max(s.new for s in samples))
        self.calls += 1
        self.in_flight += request.n
        self.peak = max(self.peak, self.in_flight)
        loop = asyncio.get_running_loop()
        begun, sampled = loop.time(), 0
        share = self._machine.begin(request.n, begun)
        try:
            for upto in _stops(samples, fails, pieces):
                await self._until(begun + self.options.latency + self._seconds(upto))
                before, sampled = sampled, upto
                for sample in samples if pieces else ():
                    if (piece := sample.piece(before, upto)) is not None:
                        yield piece
            if fails is not None:
                raise PonderError(f"the simulated engine failed after {sampled} tokens (failure_rate)")
        except BaseException as error:
            try:
                if self.grace and isinstance(error, asyncio.CancelledError | GeneratorExit):
                    # Cancelled again, it stops at once.
                    await asyncio.sleep(self.grace)
            finally:
                sampled = max(sampled, self._tokens_in(loop.time() - begun))
                sampled = sampled if fails is None else min(sampled, fails)
                seconds = loop.time() - begun, self._machine.end(request.n, share, loop.time())
                self._book(receipt, tuple(s.completion(*seconds, sampled) for s in samples))
            raise
        finally:
            self.in_flight -= request.n
        seconds = loop.time() - begun, self._machine.end(request.n, share, loop.time())
        completions = tuple(s.completion(*seconds) for s in samples)
        self._book(receipt, completions)
        for i, completion in enumerate(completions):
            yield Delta(i, "", (), completion)

    def _book(self, receipt: Receipt, completions: tuple[Completion, ...]) -> None:
        spend = total(completions)
        self.used = self.used + spend
        receipt.settle(spend, completions)

    def _seconds(self, tokens: int) -> float:
        return tokens / self.options.tokens_per_second if self.options.tokens_per_second else 0.0

    def _tokens_in(self, seconds: float) -> int:
        return max(0, int((seconds - self.options.latency) * self.options.tokens_per_second + 1e-6))

    async def _until(self, when: float) -> None:
        loop = asyncio.get_running_loop()
        if when <= loop.time():
            await asyncio.sleep(0)
            self._refuse_closed()
            return
        done = loop.create_future()
        timer = loop.call_at(when, lambda: None if done.done() else done.set_result(None))
        self._running.add(done)
        try:
            await done
        finally:
            timer.cancel()
            self._running.discard(done)

    def _fails_after(self, request: Request, prompt: str, longest: int) -> int | None:
        """Tokens after which the call fails; None if it does not. The same for the same request."""
        if not self.options.failure_rate:
            return None
        rng = Random(f"failure {request.params.seed} {request.prefix!r} {prompt}")
        return rng.randint(0, longest) if rng.random() < self.options.failure_rate else None

    def _refuse_closed(self, receipt: Receipt | None = None) -> None:
        if self._closed:
            if receipt is not None:
                receipt.settle(Spend())
            raise EngineClosed("the simulated engine is closed: open a new one")

    def _check(self, request: Request, prompt: int, prefix: int) -> None:
        can, params = self.capabilities, request.params
        for wrong, what in (
            (request.n > 1 and not can.n, "takes one sample a call (n = false)"),
            (bool(prefix) and not can.prefix, "continues no responses (prefix = false)"),
            (params.thinking is not None and not can.thinking, "bounds no thoughts (thinking or thought = false)"),
            (bool(offered_tools(request.prompt)), "calls no tools"),
            (not can.ids and (_is_ids(request.prompt) or _is_ids(request.prefix)), "takes no ids (ids = false)"),
        ):
            if wrong:
                raise Unsupported(f"this simulated engine {what}")
        if request.n < 1 or params.max_tokens < 1:
            raise UserError(f"n is {request.n} and max_tokens {params.max_tokens}: ask for at least one of each")
        if prompt + params.max_tokens > self.options.context:
            raise TooLong(
                f"the prompt has {prompt} tokens and max_tokens is {params.max_tokens}: together more than the "
                f"context of {self.options.context}; shorten the prompt or lower max_tokens"
            )
        if prefix >= params.max_tokens:
            raise UserError(
                f"the prefix has {prefix} tokens and max_tokens is {params.max_tokens}: nothing is left to sample"
            )


def _stops(samples: Sequence[Sample], fails: int | None, stream: bool) -> list[int]:
    """Numbers of tokens at which a call has something to do, ascending; the last is its end."""
    end = max(s.new for s in samples) if fails is None else fails
    if not stream:
        return [end]
    return sorted({*range(_STREAM_PIECE, end, _STREAM_PIECE), end})


def _is_ids(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], int)
