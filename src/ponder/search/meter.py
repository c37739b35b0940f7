"""The meter: the one place that takes a call's worst case from a budget before it is sent, and gives the rest back.

A reservation that does not fit waits as long as other reservations may still give something back; then it is cut to
what is left (fewer samples, then a shorter one); if not even its minimum fits, it is refused and nothing is sent.
Meters nest (a request in a key in a server): a reservation is taken from the whole chain or from none of it. All state
changes happen between two awaits, so that any number of tasks of one event loop may share a meter. Threads may not.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from ponder.errors import BudgetExceeded, PonderError, UserError
from ponder.protocols import Checker, Engine, Scorer
from ponder.types import Budget, Completion, Delta, Problem, Request, Response, Spend, Verdict

_ROUNDING = 1e-12
"""Dollars that sums of floats may be off by."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What a model costs, in dollars per million tokens."""

    prompt: float = 0.0
    output: float = 0.0
    cached: float | None = None
    """Prompt tokens from a cache; None is the price of a prompt token."""

    def __post_init__(self) -> None:
        for name in ("prompt", "output", "cached"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < float("inf"):
                raise UserError(f"price {name} = {value!r}: give dollars per million tokens, 0 or more")

    def dollars(self, spend: Spend) -> float:
        """What a spend costs at these prices. Forced tokens cost what sampled ones do."""
        cached = self.prompt if self.cached is None else self.cached
        return (
            spend.prompt_tokens * self.prompt + spend.cached_tokens * cached + spend.response_tokens * self.output
        ) * 1e-6

    @property
    def worst_prompt(self) -> float:
        """Dollars of one prompt token, at worst."""
        return max(self.prompt, self.cached or 0.0) * 1e-6


@dataclass(frozen=True, slots=True)
class _Call:
    """The worst case of a call, per sample."""

    prompt: int
    max_tokens: int
    n: int
    minimum: int
    answer: int
    final: bool = False

    @property
    def _times(self) -> int:
        return 2 if self.answer else 1

    def tokens(self, response: int) -> int:
        return self._times * (self.prompt + response) + self.answer

    def longest(self, tokens: int) -> int:
        """Longest response that so many tokens suffice for (negative: not even the prompt fits)."""
        return (tokens - self.answer) // self._times - self.prompt

    def dollars(self, response: int, prices: Prices) -> float:
        output = prices.output * 1e-6
        return self._times * (self.prompt * prices.worst_prompt + response * output) + self.answer * output


class Reservation:
    """What was taken from a chain of budgets for one call; `settle` it exactly once."""

    __slots__ = ("_dollars", "_meter", "_open", "_tokens", "max_tokens", "n")

    def __init__(self, meter: Meter, n: int, max_tokens: int, tokens: int, dollars: float) -> None:
        self.n = n
        """Samples: what was asked for, or fewer."""
        self.max_tokens = max_tokens
        """Tokens that each response may have: what was asked for, or less."""
        self._meter, self._tokens, self._dollars, self._open = meter, tokens, dollars, True

    def settle(self, spend: Spend) -> None:
        """Book what was really spent and give the rest back. A second call changes nothing."""
        if self._open:
            self._open = False
            self._meter._book(spend, self._tokens, self._dollars)


class Meter:
    """Counts what a search spends and keeps it within a budget and the budgets around it.

    `spend` is the total so far, every branch counted. `clock` is for tests; a nested meter has its parent's.
    Raises `UserError` for a budget that makes no sense.
    """

    def __init__(
        self,
        budget: Budget = Budget(),  # noqa: B008  (frozen)
        *,
        prices: Prices | None = None,
        parent: Meter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for unit in ("tokens", "seconds", "dollars"):
            value = getattr(budget, unit)
            if value is not None and not value >= 0:
                raise UserError(f"a budget of {value} {unit}: give 0 or more, or leave it out for no limit")
        self.budget = budget
        self.spend = Spend()
        self.prices: Prices | None = prices or (parent.prices if parent else None)
        if budget.dollars is not None and self.prices is None:
            raise UserError(f"a budget of {budget.dollars} dollars needs the prices of the model, and none are known")
        self._clock: Callable[[], float] = parent._clock if parent else clock
        self._started = self._clock()
        self._chain: tuple[Meter, ...] = (self, *(parent._chain if parent else ()))
        self._limits = tuple(m for m in self._chain if m.budget.tokens is not None or m.budget.dollars is not None)
        deadlines = [m._started + m.budget.seconds for m in self._chain if m.budget.seconds is not None]
        self.deadline = min(deadlines, default=None)
        """When the seconds of the tightest budget run out, on this meter's clock."""
        self._tokens = 0
        self._dollars = 0.0
        self._outstanding = 0
        self._kept = (0, 0.0)
        """Tokens and dollars that only final calls may take, of this meter and all below it."""
        self._keeps = (0, 0.0)
        """The part of it that is this meter's own."""
        self._waiters: deque[asyncio.Future[None]] = deque()

    # What is left -------------------------------------------------------------------------------------------------

    @property
    def limited(self) -> bool:
        """True if tokens or dollars are limited, here or further up."""
        return bool(self._limits)

    @property
    def seconds_left(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - self._clock())

    @property
    def left(self) -> Budget:
        """What may still be reserved, by the tightest budget in each unit."""
        tokens = [m.budget.tokens - m.spend.tokens - m._tokens for m in self._chain if m.budget.tokens is not None]
        dollars = [m.budget.dollars - m.spend.dollars - m._dollars for m in self._chain if m.budget.dollars is not None]
        return Budget(
            max(0, min(tokens)) if tokens else None, self.seconds_left, max(0.0, min(dollars)) if dollars else None
        )

    def keep(self, prompt_tokens: int, response_tokens: int) -> None:
        """Keep enough for one last call free from all calls but those that are `final`; replaces what was kept."""
        if not self._limits:
            return
        dollars = 0.0
        if self.prices is not None:
            dollars = prompt_tokens * self.prices.worst_prompt + response_tokens * self.prices.output * 1e-6
        keeps = (prompt_tokens + response_tokens, dollars)
        if keeps == self._keeps:
            return
        for meter in self._chain:
            tokens = meter._kept[0] + keeps[0] - self._keeps[0]
            meter._kept = (tokens, meter._kept[1] + keeps[1] - self._keeps[1] if tokens else 0.0)
            if meter._waiters:
                meter._wake()
        self._keeps = keeps

    # Reserve and settle -------------------------------------------------------------------------------------------

    async def reserve(
        self,
        prompt_tokens: int,
        max_tokens: int,
        n: int = 1,
        *,
        minimum: int = 1,
        answer: int = 0,
        final: bool = False,
    ) -> Reservation:
        """Reserve the worst case of a call: `n` × (`prompt_tokens` + `max_tokens`).

        If that is more than what is left: fewer samples, then, for one sample, fewer tokens, to `minimum` at least.
        With `answer`, enough is left over for each sample to be continued by a second call (prompt and response
        again, and `answer` tokens more). A `final` call may take what this meter keeps. Raises `BudgetExceeded` with
        the numbers if not even that fits.
        """
        call = _Call(prompt_tokens, max_tokens, n, minimum, answer, final)
        woken: Meter | None = None
        try:
            while True:
                want, blocked = self._fit(call, queue=woken is None)
                if blocked is None:
                    return self._take(call, *want)
                turn = asyncio.get_running_loop().create_future()
                if blocked is woken:
                    blocked._waiters.appendleft(turn)
                else:
                    blocked._waiters.append(turn)
                    if woken is not None:
                        woken._wake()
                woken = None
                try:
                    await turn
                except asyncio.CancelledError:
                    if turn.cancelled():
                        blocked._waiters.remove(turn)
                    else:
                        woken = blocked
                    raise
                woken = blocked
        finally:
            if woken is not None:
                woken._wake()

    def _fit(self, call: _Call, queue: bool) -> tuple[tuple[int, int], Meter | None]:
        """Samples and tokens of each that fit, and the meter to wait for if more will fit later."""
        want, rooms = (call.n, call.max_tokens), []
        for meter in self._limits:
            own = self._keeps if call.final else (0, 0.0)
            kept = (meter._kept[0] - own[0], meter._kept[1] - own[1])
            room = meter._room(call, self.prices, kept)
            if meter._outstanding:
                rooms.append((meter, room))
            elif room < want:
                want = room
                if want[1] < call.minimum:
                    raise BudgetExceeded(meter._refusal(call, kept))
        for meter, room in rooms:
            if room < want or (queue and meter._waiters):
                return want, meter
        return want, None

    def _room(self, call: _Call, prices: Prices | None, kept: tuple[int, float]) -> tuple[int, int]:
        """Samples that this budget has room for now and tokens of each: whole ones, or one that is cut short."""
        rooms = [(call.n, call.max_tokens)]
        if self.budget.tokens is not None:
            left = self.budget.tokens - self.spend.tokens - self._tokens - kept[0]
            whole = left // call.tokens(call.max_tokens)
            rooms.append((whole, call.max_tokens) if whole >= 1 else (1, call.longest(left)))
        if self.budget.dollars is not None and prices is not None:
            left_dollars = self.budget.dollars - self.spend.dollars - self._dollars - kept[1] + _ROUNDING
            cost, least = call.dollars(call.max_tokens, prices), call.dollars(0, prices)
            if cost <= 0.0 or left_dollars >= cost:
                rooms.append((call.n if cost <= 0.0 else int(min(left_dollars / cost, call.n)), call.max_tokens))
            elif cost > least:
                share = (left_dollars - least) / (cost - least)
                rooms.append((1, int(share * call.max_tokens) if share >= 0 else -1))
            else:
                rooms.append((1, -1))
        return min(rooms)

    def _refusal(self, call: _Call, kept: tuple[int, float]) -> str:
        what = f"prompt of {call.prompt} + at least {call.minimum}"
        if call.answer:
            what += f", twice, + {call.answer} for the answer"
        parts = []
        if self.budget.tokens is not None:
            left = max(0, self.budget.tokens - self.spend.tokens - self._tokens - kept[0])
            parts.append(f"{left} of the budget's {self.budget.tokens} tokens are left")
        if self.budget.dollars is not None:
            left_dollars = max(0.0, self.budget.dollars - self.spend.dollars - self._dollars - kept[1])
            parts.append(f"${left_dollars:.6g} of the budget's ${self.budget.dollars:.6g} are left")
        return f"{' and '.join(parts)}, and a call needs at least {call.tokens(call.minimum)} tokens ({what})"

    def _take(self, call: _Call, n: int, granted: int) -> Reservation:
        tokens = n * (call.prompt + granted)
        dollars = 0.0
        if self.prices is not None:
            dollars = n * (call.prompt * self.prices.worst_prompt + granted * self.prices.output * 1e-6)
        for meter in self._chain:
            meter._tokens += tokens
            meter._dollars += dollars
            meter._outstanding += 1
        return Reservation(self, n, granted, tokens, dollars)

    def _book(self, spend: Spend, tokens: int, dollars: float) -> None:
        spend = self._priced(spend)
        for meter in self._chain:
            meter._tokens -= tokens
            meter._outstanding -= 1
            # Exactly nothing when nothing is reserved: rounding must not pile up.
            meter._dollars = meter._dollars - dollars if meter._outstanding else 0.0
            meter.spend = meter.spend + spend
            if meter._waiters:
                meter._wake()

    def add(self, spend: Spend) -> None:
        """Book a spend that needed no reservation (a verifier call, a call without limits)."""
        spend = self._priced(spend)
        for meter in self._chain:
            meter.spend = meter.spend + spend

    def _priced(self, spend: Spend) -> Spend:
        if self.prices is None or spend.dollars:
            return spend
        return dataclasses.replace(spend, dollars=self.prices.dollars(spend))

    def _wake(self) -> None:
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    # Calls --------------------------------------------------------------------------------------------------------

    async def generate(
        self,
        engine: Engine,
        request: Request,
        *,
        minimum: int = 1,
        answer: int = 0,
        final: bool = False,
        on_delta: Callable[[Delta], None] | None = None,
    ) -> tuple[Completion, ...]:
        """Reserve, call the engine, settle; options as in `reserve`. May return fewer than `request.n`.

        With `on_delta` the call is streamed. A call that failed or was cancelled is booked with what its exception
        carries as `spend`; without that, with what was streamed; without that, at its worst case (but a `UserError`
        was refused before any work: nothing). Raises `BudgetExceeded`, also when the time is up, and what the
        engine raises.
        """
        if self.deadline is None:
            return await self._generate(engine, request, minimum, answer, final, on_delta)
        async with self._clocked():
            return await self._generate(engine, request, minimum, answer, final, on_delta)

    async def check(self, checker: Checker, problem: Problem, response: Response) -> Verdict:
        """Run a checker, on a thread if it says that it is `slow`, and book the call. Raises what it raises."""
        async with self._clocked():
            started = time.perf_counter()
            try:
                if getattr(checker, "slow", False):
                    return await asyncio.to_thread(checker, problem, response)
                return checker(problem, response)
            finally:
                self.add(Spend(verifier_calls=1, seconds=time.perf_counter() - started))

    async def score(self, scorer: Scorer, problem: Problem, responses: Sequence[Response]) -> Sequence[float]:
        """Run a scorer and book one verifier call per response. Raises what it raises."""
        async with self._clocked():
            started = time.perf_counter()
            try:
                return await scorer.score(problem, responses)
            finally:
                self.add(Spend(verifier_calls=len(responses), seconds=time.perf_counter() - started))

    @contextlib.asynccontextmanager
    async def _clocked(self) -> AsyncIterator[None]:
        left = self.seconds_left
        if left is None:
            yield
            return
        refusal = BudgetExceeded(f"the budget of {self._seconds():g} seconds is used up")
        if left <= 0:
            raise refusal
        limit = asyncio.timeout(left)
        try:
            async with limit:
                yield
        except TimeoutError:
            if limit.expired():
                raise refusal from None
            raise

    def _seconds(self) -> float:
        timed = [(m._started + m.budget.seconds, m.budget.seconds) for m in self._chain if m.budget.seconds is not None]
        return min(timed)[1]

    async def _generate(
        self,
        engine: Engine,
        request: Request,
        minimum: int,
        answer: int,
        final: bool,
        on_delta: Callable[[Delta], None] | None,
    ) -> tuple[Completion, ...]:
        reservation = prompt_tokens = None
        if self._limits:
            params = request.params
            prompt_tokens = engine.count_tokens(request.prompt)
            reservation = await self.reserve(
                prompt_tokens, params.max_tokens, request.n, minimum=minimum, answer=answer, final=final
            )
            if reservation.max_tokens < params.max_tokens:
                request = clamp(request, reservation.max_tokens)
            if reservation.n < request.n:
                request = dataclasses.replace(request, n=reservation.n)
        streamed = _Streamed(on_delta) if on_delta is not None else None
        try:
            if streamed is None:
                completions = await engine.generate(request)
            else:
                completions = await streamed.run(engine, request)
        except BaseException as error:
            if prompt_tokens is None:
                # The engine may be what failed; its error must come through.
                with contextlib.suppress(Exception):
                    prompt_tokens = engine.count_tokens(request.prompt)
            spend = _spent(error, prompt_tokens or 0, request, streamed)
            if reservation is None:
                self.add(spend)
            else:
                reservation.settle(spend)
            raise
        spend = completions[0].spend if len(completions) == 1 else sum((c.spend for c in completions), Spend())
        if reservation is None:
            self.add(spend)
        else:
            reservation.settle(spend)
        return completions


def clamp(request: Request, max_tokens: int) -> Request:
    """The same request with fewer tokens: the thought gives way, the answer's share stays."""
    params = request.params
    thinking = params.thinking
    if thinking is not None and thinking.max_tokens is not None:
        thought = max(0, thinking.max_tokens - (params.max_tokens - max_tokens))
        thinking = dataclasses.replace(thinking, max_tokens=thought, min_tokens=min(thinking.min_tokens, thought))
    return dataclasses.replace(request, params=dataclasses.replace(params, max_tokens=max_tokens, thinking=thinking))


class _Streamed:
    """One streamed call: passes pieces on and remembers how much came."""

    def __init__(self, on_delta: Callable[[Delta], None]) -> None:
        self._on_delta = on_delta
        self._tokens: dict[int, int] = {}
        self.completions: dict[int, Completion] = {}

    async def run(self, engine: Engine, request: Request) -> tuple[Completion, ...]:
        stream = engine.stream(request)
        try:
            async for delta in stream:
                self._tokens[delta.sample] = self._tokens.get(delta.sample, 0) + (len(delta.ids) or bool(delta.text))
                if delta.completion is not None:
                    self.completions[delta.sample] = delta.completion
                self._on_delta(delta)
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
        missing = [i for i in range(request.n) if i not in self.completions]
        if missing:
            raise PonderError(f"the engine's stream ended without the completion of sample {missing[0]}")
        return tuple(self.completions[i] for i in range(request.n))

    def spend(self, prompt_tokens: int, n: int) -> Spend:
        done = sum((c.spend for c in self.completions.values()), Spend())
        seen = sum(t for i, t in self._tokens.items() if i not in self.completions)
        return done + Spend(prompt_tokens=prompt_tokens * (n - len(self.completions)), sampled_tokens=seen)


def _spent(error: BaseException, prompt_tokens: int, request: Request, streamed: _Streamed | None) -> Spend:
    spend = getattr(error, "spend", None)
    if isinstance(spend, Spend):
        return spend
    if isinstance(error, UserError):
        return Spend()
    if streamed is not None:
        return streamed.spend(prompt_tokens, request.n)
    return Spend(prompt_tokens=prompt_tokens * request.n, sampled_tokens=request.n * request.params.max_tokens)
