"""One call of an engine under a meter: a request that fits, a counted stream, and its cost, even if it fails."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable
from typing import Protocol

from ponder.budget.ledger import Ledger, Reservation
from ponder.budget.machine import MachineTime
from ponder.budget.prices import Prices
from ponder.budget.streams import Pieces, Reader, streamed
from ponder.errors import BudgetExceeded, Retryable, UserError
from ponder.protocols import Engine, Receipt
from ponder.types import Completion, FinishReason, Request, Spend


class Account(Protocol):
    """What a call needs of the meter that it goes through."""

    clock: Callable[[], float]
    machines: dict[int, MachineTime]

    @property
    def limited(self) -> bool: ...

    @property
    def seconds_left(self) -> float | None: ...

    def beginning(self) -> Callable[[], None]: ...

    async def reserve(
        self,
        prompt_tokens: int,
        max_tokens: int,
        n: int = 1,
        *,
        minimum: int = 1,
        answer: int = 0,
        prefix: int | None = 0,
        final: bool = False,
        engine: Engine | None = None,
    ) -> Reservation: ...

    def add(self, spend: Spend) -> None: ...

    def cut_short(self, given: int, asked: int, ledger: Ledger) -> None: ...


def clamp(request: Request, max_tokens: int) -> Request:
    """The same request with fewer tokens: the thought shrinks, the answer's share stays."""
    params = request.params
    thinking = params.thinking
    if thinking is not None and thinking.max_tokens is not None:
        thought = max(0, thinking.max_tokens - (params.max_tokens - max_tokens))
        thinking = dataclasses.replace(thinking, max_tokens=thought, min_tokens=min(thinking.min_tokens, thought))
    return dataclasses.replace(request, params=dataclasses.replace(params, max_tokens=max_tokens, thinking=thinking))


class Deadline:
    """The time limit of what runs inside `Meter.clocked`."""

    def __init__(self, seconds: float | None) -> None:
        self.timeout = asyncio.timeout(seconds)
        self.refusal = ""
        """The message once it has passed; empty where a budget's seconds decide."""

    def tighten(self, seconds: float, refusal: str = "") -> None:
        """End in so many seconds, if that is earlier."""
        when, end = self.timeout.when(), asyncio.get_running_loop().time() + seconds
        if when is None or end < when:
            self.timeout.reschedule(end)
            self.refusal = refusal


class Metered:
    """A call from its reservation to its booking; `run` it once.

    An engine's own retries stay within what was reserved. When that is used up, it raises `Retryable`: then the call
    is reserved again, as the budget allows (fewer samples, but no shorter ones: a retry does not use up a budget on
    truncated samples). Each attempt has its own receipt and is booked at the spend in it, or else at its worst case.
    """

    def __init__(
        self,
        meter: Account,
        engine: Engine,
        request: Request,
        receipt: Receipt,
        prices: Prices | None,
        minimum: int,
        answer: int,
        final: bool,
    ) -> None:
        """`receipt` gets what was booked for all attempts, and what the last one brought; options as in `reserve`."""
        self._receipt = receipt
        self._meter, self._engine, self._request, self._prices = meter, engine, request, prices
        self._minimum, self._answer, self._final = minimum, answer, final
        self._reservation: Reservation | None = None
        self._machine: MachineTime | None = None
        self._begun = 0.0

    async def run(self, deadline: Deadline | None, on_delta: Reader | None) -> tuple[Completion, ...]:
        """Reserve, call, settle; see `Meter.generate`."""
        request, pieces = self._request, None if on_delta is None else Pieces(on_delta)
        failure: Retryable | None = None
        tries = left = 0
        while True:
            tries += 1
            try:
                return await self._attempt(deadline, pieces)
            except BudgetExceeded as error:
                if failure is None:
                    raise
                failure.args = (f"{failure}, and {error}",)
                raise failure from None
            except Retryable as error:
                left = error.attempts_left if failure is None else min(left - 1, error.attempts_left)
                if left <= 0:
                    if tries > 1:
                        error.args = (f"{error}, {tries} reservations in a row",)
                    raise
                failure = error
            self._request, self._minimum = request, request.params.max_tokens
            await asyncio.sleep(failure.wait)
            if pieces is not None:
                pieces.again()

    async def _attempt(self, deadline: Deadline | None, on_delta: Pieces | None) -> tuple[Completion, ...]:
        meter, asked = self._meter, self._request.params.max_tokens
        if meter.limited:
            await self._reserve(deadline)
        if self._prices is not None and self._prices.per_hour:
            self._machine = meter.machines.setdefault(id(self._engine), MachineTime())
            self._begun = self._machine.begin(self._request.n, meter.clock())
        used = Receipt(begin=meter.beginning(), left=self._left)
        try:
            if on_delta is None:
                completions = await self._engine.generate(self._request, used)
            else:
                completions = await streamed(self._engine, self._request, on_delta, used)
        except BaseException as error:
            # After a piece it is the reader's, and the engine worked.
            began = on_delta is not None and on_delta.began
            refused = used.spend is None and isinstance(error, UserError) and not began
            self._book(Spend() if refused else used.spend, used.completions)
            raise
        self._book(sum((c.spend for c in completions), Spend()) if used.spend is None else used.spend, completions)
        given, reservation = self._request.params.max_tokens, self._reservation
        cut = given < asked and any(c.finish_reason is FinishReason.LENGTH for c in completions)
        if cut and reservation is not None:
            meter.cut_short(given, asked, reservation.narrowest)
        return completions

    def _left(self) -> float | None:
        """Seconds that the call may still take, by the clock and by what its machine costs."""
        left, reservation = self._meter.seconds_left, self._reservation
        if reservation is None or reservation.deadline is None:
            return left
        paid = reservation.deadline - self._meter.clock()
        return paid if left is None else min(left, paid)

    async def _reserve(self, deadline: Deadline | None) -> None:
        """Take what the call may cost, and cut the request to it."""
        meter, engine, request, prices = self._meter, self._engine, self._request, self._prices
        params = request.params
        reservation = self._reservation = await meter.reserve(
            engine.count_tokens(request.prompt),
            params.max_tokens,
            request.n,
            minimum=self._minimum,
            answer=self._answer,
            prefix=None if isinstance(request.prefix, str) and request.prefix else len(request.prefix),
            final=self._final,
            engine=engine,
        )
        if reservation.max_tokens < params.max_tokens:
            request = clamp(request, reservation.max_tokens)
        if reservation.n < request.n:
            request = dataclasses.replace(request, n=reservation.n)
        self._request = request
        if reservation.deadline is not None and deadline is not None and prices is not None:
            deadline.tighten(
                reservation.deadline - meter.clock(),
                f"the budget in dollars is used up by the time of {engine.info.name} at ${prices.per_hour:g} per hour",
            )

    def _book(self, spend: Spend | None, completions: tuple[Completion, ...]) -> None:
        """Book what it cost; None is its worst case. Machine time that its engine does not report is its share."""
        n, prices, reservation = self._request.n, self._prices, self._reservation
        seconds = 0.0
        if self._machine is not None:
            seconds = n * self._machine.end(n, self._begun, self._meter.clock())
            if self._machine.idle:
                self._meter.machines.pop(id(self._engine), None)
        if spend is None:
            tokens = self._request.params.max_tokens
            spend = Spend(prompt_tokens=n * self._prompt_tokens(), sampled_tokens=n * tokens, device_seconds=seconds)
            if prices is not None and reservation is not None:
                spend = dataclasses.replace(spend, dollars=reservation.dollars + seconds * prices.per_second)
        elif not spend.device_seconds and seconds:
            spend = dataclasses.replace(spend, device_seconds=seconds)
        if prices is not None and not spend.dollars:
            spend = dataclasses.replace(spend, dollars=prices.dollars(spend))
        if reservation is None:
            self._meter.add(spend)
        else:
            reservation.settle(spend)
        self._receipt.settle(spend if self._receipt.spend is None else self._receipt.spend + spend, completions)

    def _prompt_tokens(self) -> int:
        if self._reservation is not None:
            return self._reservation.prompt_tokens
        # The engine may be what failed; its error must come through.
        with contextlib.suppress(Exception):
            return self._engine.count_tokens(self._request.prompt)
        return 0
