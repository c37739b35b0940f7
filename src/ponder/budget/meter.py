"""The meter: the one place that takes a call's worst case from a budget before it is sent, and gives the rest back.

A reservation that does not fit waits as long as other reservations may still give something back; then it is cut to
what is left (fewer samples, then a shorter one); if not even its minimum fits, it is refused and nothing is sent.
Meters nest (a request in a key in a server): a reservation is taken from the whole chain or from none of it. All state
changes happen between two awaits, so that any number of tasks of one event loop may share a meter. Threads may not.

Seconds, and dollars of machines that are paid by the hour, are kept by deadlines: a call that still runs is cancelled
then, and is over after the engine's grace at most (`engine.grace`, seconds).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Sequence

from ponder import sync
from ponder.budget.calling import Deadline, Metered, clamp
from ponder.budget.ledger import NOTHING, ROUNDING, Call, Ledger, Reservation, check_budget
from ponder.budget.machine import MachineTime
from ponder.budget.prices import PriceList, Prices, dearest, load
from ponder.budget.streams import Reader
from ponder.errors import BudgetExceeded, OutOfTime, PonderError
from ponder.protocols import Caller, Checker, Engine, Receipt, Scorer
from ponder.types import Budget, Completion, Problem, Request, Response, Score, Spend, Verdict

__all__ = ["Meter", "Prices", "Reservation", "clamp"]


class Meter:
    """Counts what a search spends and keeps it within a budget and its enclosing budgets.

    `prices` is what every engine costs, or a list by the models' names; None is the list of the enclosing budget, or
    `budget.prices.load()`. `passed` are seconds of the budget that were used before, by the search that is resumed.
    With `waits` its seconds begin to count with its first work (`begin`): a call that an engine still keeps in its
    queue (`Engine.queues`) is none. `clock` is for tests; a nested meter has its parent's. Raises `UserError` for an
    invalid budget.
    """

    def __init__(
        self,
        budget: Budget = Budget(),  # noqa: B008  (frozen)
        *,
        prices: Prices | PriceList | None = None,
        parent: Meter | None = None,
        passed: float = 0.0,
        waits: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_budget(budget)
        self.budget = budget
        self.prices: Prices | PriceList | None = prices or (parent.prices if parent else None)
        self._ledger = self._narrowest = Ledger(budget)
        self.shortened = ""
        """How the first response was truncated for lack of this budget or an enclosing one; empty if none was."""
        self.outer = False
        """An enclosing budget refused, truncated or ended a call."""
        self.clock: Callable[[], float] = parent.clock if parent else clock
        self._passed = passed
        self._started: float | None = None if waits else self.clock() - passed
        self._deadlines: set[Deadline] = set()
        """Of what runs now."""
        self._chain: tuple[Meter, ...] = (self, *(parent._chain if parent else ()))
        ledgers = [m._ledger for m in self._chain]
        self._limits = tuple(g for g in ledgers if g.budget.tokens is not None or g.budget.dollars is not None)
        self._paid = tuple(g for g in ledgers if g.budget.dollars is not None)
        self._keeps = NOTHING
        self._asked_to_keep = (0, 0)
        self._known: dict[str, Prices | None] = {}
        self.machines: dict[int, MachineTime] = parent.machines if parent else {}
        """By engine: the time of those that are paid by the hour, shared among what runs."""

    # What is left -------------------------------------------------------------------------------------------------

    @property
    def spend(self) -> Spend:
        """The total so far, every branch counted."""
        return self._ledger.spend

    @property
    def limited(self) -> bool:
        """True if tokens or dollars are limited, here or further up."""
        return bool(self._limits)

    def begin(self) -> None:
        """Let its seconds count from now on, and those of the meters around it, if they do not yet. On any thread."""
        now = self.clock()
        for meter in self._chain:
            if meter._started is None:
                meter._started = now - meter._passed

    @property
    def deadline(self) -> float | None:
        """When the seconds of the tightest budget run out, on this meter's clock; budgets that wait do not count."""
        return min((end for m in self._chain if (end := m._end) is not None), default=None)

    @property
    def _end(self) -> float | None:
        """When its own seconds run out."""
        if self._started is None or self.budget.seconds is None:
            return None
        return self._started + self.budget.seconds

    @property
    def timed(self) -> bool:
        """True if seconds are limited, here or further up."""
        return any(m.budget.seconds is not None for m in self._chain)

    @property
    def seconds_left(self) -> float | None:
        now = self.clock()
        left = [
            m.budget.seconds - (m._passed if m._started is None else now - m._started)
            for m in self._chain
            if m.budget.seconds is not None
        ]
        return max(0.0, min(left)) if left else None

    @property
    def elapsed(self) -> float:
        """Seconds since it began, those that had passed before included."""
        return self._passed if self._started is None else self.clock() - self._started

    @property
    def left(self) -> Budget:
        """What may still be reserved, by the tightest budget in each unit."""
        tokens = [t for g in self._limits if (t := g.tokens_left()) is not None]
        dollars = [d - g.hourly.committed for g in self._paid if (d := g.dollars_left()) is not None]
        return Budget(
            max(0, min(tokens)) if tokens else None, self.seconds_left, max(0.0, min(dollars)) if dollars else None
        )

    @property
    def idle(self) -> bool:
        """Nothing is reserved, kept or waited for in this budget."""
        return self._ledger.idle

    def expect(self, *engines: Engine) -> None:
        """Declare which engines may be called, so that what is kept for the last call suffices for any of them.

        Raises `UserError` if dollars are limited and the prices of one are not known.
        """
        for engine in engines:
            self._prices_of(engine)

    def keep(self, prompt_tokens: int, response_tokens: int) -> None:
        """Keep enough for one last call free from all calls but those that are `final`; replaces what was kept.

        In dollars it is the worst over the engines that are known (`expect`). A search that ends keeps (0, 0).
        """
        if not self._limits or (prompt_tokens, response_tokens) == self._asked_to_keep:
            return
        prices = dearest(p for p in self._known.values() if p is not None)
        dollars = prompt_tokens * prices.worst_prompt + response_tokens * prices.worst_token
        keeps = (prompt_tokens + response_tokens, dollars)
        for ledger in self._limits:
            tokens = ledger.kept[0] + keeps[0] - self._keeps[0]
            ledger.kept = (tokens, max(0.0, ledger.kept[1] + keeps[1] - self._keeps[1]) if tokens else 0.0)
            ledger.wake()
        self._keeps, self._asked_to_keep = keeps, (prompt_tokens, response_tokens)

    # Reserve and settle -------------------------------------------------------------------------------------------

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
    ) -> Reservation:
        """Reserve the worst case of a call: `n` × (`prompt_tokens` + `max_tokens`).

        If that is more than what is left: fewer samples, then, for one sample, fewer tokens, to `minimum` at least.
        With `answer`, enough is left over for each sample to be continued by a second call (prompt and response
        again, and `answer` tokens more). `prefix` tokens of each response are given and cost what prompt tokens do
        (None: how many is not known, so all cost the higher price). A `final` call may take what this meter keeps. The
        prices are those of `engine`. Raises `BudgetExceeded` with the numbers if not even that fits.
        """
        prices, machine, grace = None, 0, 0.0
        if engine is not None:
            prices = self._prices_of(engine)
            if prices is not None and prices.per_hour:
                machine, grace = id(engine), engine.grace
        minimum = max(minimum, (prefix or 0) + 1)
        return await self._reserve(
            Call(prompt_tokens, max_tokens, n, minimum, answer, prices, prefix, final, machine, grace)
        )

    async def _reserve(self, call: Call) -> Reservation:
        woken: Ledger | None = None
        try:
            while True:
                want, blocked = self._fit(call, queue=woken is None)
                if blocked is None:
                    return self._take(call, *want)
                turn = blocked.wait(first=blocked is woken)
                if woken is not None and blocked is not woken:
                    woken.wake()
                woken = None
                try:
                    await turn
                except asyncio.CancelledError:
                    if turn.cancelled():
                        blocked.forget(turn)
                    else:
                        woken = blocked
                    raise
                woken = blocked
        finally:
            if woken is not None:
                woken.wake()

    def _fit(self, call: Call, queue: bool) -> tuple[tuple[int, int], Ledger | None]:
        """Samples and tokens of each that fit, and the budget to wait for if more may fit later."""
        want, rooms, now = (call.n, call.max_tokens), [], self.clock()
        own = self._keeps if call.final else NOTHING
        self._narrowest = self._ledger
        for ledger in self._limits:
            room = ledger.room(call, own, now)
            if ledger.outstanding:
                rooms.append((ledger, room))
            elif room < want:
                want, self._narrowest = room, ledger
                if want[1] < call.minimum:
                    self.outer = self.outer or ledger is not self._ledger
                    raise BudgetExceeded(ledger.refusal(call, own))
        for ledger, room in rooms:
            if room < want or (queue and ledger.waited_for):
                return want, ledger
        return want, None

    def _take(self, call: Call, n: int, granted: int) -> Reservation:
        reservation = Reservation(self._book, self._narrowest, call, n, granted)
        for ledger in self._limits:
            ledger.tokens += reservation.tokens
            ledger.dollars += reservation.dollars
            ledger.outstanding += 1
        if call.machine and self._paid:
            now, own = self.clock(), self._keeps[1] if call.final else 0.0
            ends = [
                g.hourly.until(now, g.budget.dollars - g.spend.dollars - g.dollars - g.kept[1] + own)
                for g in self._paid
                if g.budget.dollars is not None
            ]
            reservation.deadline = min(ends) - call.grace
            until = reservation.deadline if self.deadline is None else min(reservation.deadline, self.deadline)
            for ledger in self._paid:
                ledger.hourly.begin(reservation, now, until + call.grace)
        return reservation

    def _book(self, reservation: Reservation, spend: Spend) -> None:
        for ledger in self._limits:
            ledger.tokens -= reservation.tokens
            ledger.outstanding -= 1
            # Exactly nothing when nothing is reserved: rounding must not pile up.
            ledger.dollars = ledger.dollars - reservation.dollars if ledger.outstanding else 0.0
            ledger.hourly.end(reservation)
        self.add(spend)

    def add(self, spend: Spend) -> None:
        """Book a spend that needed no reservation (a verifier call, a call without limits)."""
        for meter in self._chain:
            ledger = meter._ledger
            ledger.spend = ledger.spend + spend
            if ledger.waited_for:
                ledger.wake()

    def add_opening(self, engine: Engine) -> Spend:
        """Book what an engine spent by being opened (`Engine.opening`); returns it with its dollars."""
        opening = engine.opening
        if opening == Spend():
            return opening
        prices = self._prices_of(engine)
        if prices is not None:
            if prices.per_hour and not opening.device_seconds:
                opening = dataclasses.replace(opening, device_seconds=opening.seconds)
            opening = dataclasses.replace(opening, dollars=opening.dollars or prices.dollars(opening))
        self.add(opening)
        return opening

    def _prices_of(self, engine: Engine) -> Prices | None:
        name = engine.info.name
        if name not in self._known:
            prices = self.prices
            if not isinstance(prices, Prices):
                prices = (prices or load()).need(name) if self._paid else (prices or load()).of(name)
            self._known[name] = prices
        prices = self._known[name]
        if prices is not None and prices.per_hour:
            for ledger in self._paid:
                ledger.hourly.rates[id(engine)] = prices.per_second
        return prices

    # Calls --------------------------------------------------------------------------------------------------------

    async def generate(
        self,
        engine: Engine,
        request: Request,
        *,
        minimum: int = 1,
        answer: int = 0,
        final: bool = False,
        on_delta: Reader | None = None,
        receipt: Receipt | None = None,
    ) -> tuple[Completion, ...]:
        """Reserve, call the engine, settle; options as in `reserve`. May return fewer than `request.n`.

        With `on_delta` the call is streamed: it is awaited with each piece before the next one is asked for. A call
        that failed or was cancelled is booked at what its engine reports, or else at its worst case (but a `UserError`,
        which is raised before any work, costs nothing). `receipt` gets what was booked, however it ends, and what had
        been sampled. Raises `BudgetExceeded`, also at the deadline (with the completions so far, if the engine reports
        them), and what the engine and `on_delta` raise.
        """
        prices, receipt = self._prices_of(engine), receipt or Receipt()
        call = Metered(self, engine, request, receipt, prices, minimum, answer, final)
        if not self.timed and not (self._paid and prices is not None and prices.per_hour):
            self.begin()
            return await call.run(None, on_delta)
        async with self.clocked(receipt, begin=not engine.queues) as deadline:
            return await call.run(deadline, on_delta)

    def beginning(self) -> Callable[[], None]:
        """What an engine calls when it begins to work on a call: on any thread."""
        loop = asyncio.get_running_loop()

        def begin() -> None:
            self.begin()
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the caller
                loop.call_soon_threadsafe(self._began)

        return begin

    async def check(self, checker: Checker, problem: Problem, response: Response, *, slow: bool = False) -> Verdict:
        """Run a checker, on a thread if it is `slow`, and book the call.

        Raises what it raises, and `PonderError` for a result that is not a verdict.
        """
        async with self.clocked():
            started = time.perf_counter()
            try:
                if slow:
                    verdict = await sync.on_thread(checker, problem, response)
                else:
                    verdict = checker(problem, response)
            finally:
                self.add(Spend(verifier_calls=1, seconds=time.perf_counter() - started))
        if not isinstance(verdict, Verdict):
            raise PonderError(f"it gave a {type(verdict).__name__}, not a verdict")
        return verdict

    async def score(
        self, scorer: Scorer, problem: Problem, responses: Sequence[Response], engine: Caller | None = None
    ) -> Sequence[float]:
        """Reserve the worst case of a scorer, run it, settle, and book one verifier call per response.

        `engine` is what it may call, behind this meter (`budget.caller.MeteredEngine`): those calls reserve and book by
        themselves. A scorer that failed or was cancelled is booked at its worst case. Raises `BudgetExceeded` if there
        is no room for that, what the scorer raises, `PonderError` for anything but one `Score` for each response, and
        for scores that cost more than the worst case.
        """
        worst = scorer.worst(problem, responses)
        if worst != Spend() and engine is not None:
            # Deadlock: its calls might wait for what is reserved for itself.
            raise PonderError("it calls an engine and also declares a cost itself: it may do one of the two")
        async with self.clocked():
            reservation = None
            if self.limited and (worst.tokens or worst.dollars):
                call = Call(0, worst.tokens, 1, worst.tokens, 0, Prices(), flat=worst.dollars)
                reservation = await self._reserve(call)
            began, spend, scores = time.perf_counter(), worst, None
            try:
                scores = tuple(await scorer.score(problem, responses, engine))
                if all(isinstance(s, Score) for s in scores):
                    spend = sum((s.spend for s in scores), Spend())
            finally:
                # The seconds of an engine's calls are booked with these.
                seconds = 0.0 if engine is not None else time.perf_counter() - began
                seconds = max(0.0, seconds - spend.seconds)
                spend += Spend(verifier_calls=len(responses), seconds=seconds)
                if reservation is None:
                    self.add(spend)
                else:
                    reservation.settle(spend)
        wrong = next((s for s in scores if not isinstance(s, Score)), None)
        if wrong is not None:
            raise PonderError(f"it gave a {type(wrong).__name__}, not a score")
        if len(scores) != len(responses):
            raise PonderError(f"it gave {len(scores)} scores for {len(responses)} responses")
        if spend.tokens > worst.tokens or spend.dollars > worst.dollars + ROUNDING:
            raise PonderError(
                f"it cost {spend.tokens} tokens and ${spend.dollars:.6g}, more than the {worst.tokens} tokens and "
                f"${worst.dollars:.6g} that it declared as its worst case"
            )
        return tuple(float(s.value) for s in scores)

    @contextlib.asynccontextmanager
    async def clocked(self, receipt: Receipt | None = None, *, begin: bool = True) -> AsyncIterator[Deadline]:
        """Cancel what runs inside when the seconds are used up. Raises `BudgetExceeded`, also if they already are.

        What had been sampled by then is taken from the `receipt` of what runs inside. Without `begin` what runs inside
        may still wait, until it calls what `beginning` gives.
        """
        if begin:
            self.begin()
        left = self.seconds_left
        deadline = Deadline(None)
        if left is not None and left <= 0:
            raise self._used_up(deadline)
        try:
            async with deadline.timeout:
                self._limit(deadline)
                self._deadlines.add(deadline)
                yield deadline
        except (TimeoutError, OutOfTime) as error:
            if isinstance(error, OutOfTime) or deadline.timeout.expired():
                raise self._used_up(deadline, () if receipt is None else receipt.completions) from None
            raise
        finally:
            self._deadlines.discard(deadline)

    def _began(self) -> None:
        """The first of the calls that waited is worked on: its clock runs, for the others too."""
        for deadline in self._deadlines:
            if not deadline.timeout.expired():
                self._limit(deadline)

    def _limit(self, deadline: Deadline) -> None:
        """Set when what runs has to end, as far as that is known."""
        end = self.deadline
        if end is not None:
            deadline.tighten(end - self.clock())

    def _used_up(self, deadline: Deadline, completions: tuple[Completion, ...] = ()) -> BudgetExceeded:
        """The refusal, by the budget that is used up first."""
        if deadline.refusal:
            return BudgetExceeded(deadline.refusal, completions)
        now = self.clock()
        timed = [
            ((m._passed if m._started is None else now - m._started) - m.budget.seconds, m)
            for m in self._chain
            if m.budget.seconds is not None
        ]
        tightest = max(timed, key=lambda pair: pair[0])[1]
        self.outer = self.outer or tightest is not self
        before = f" ({tightest._passed:.3g} before the search began or resumed)" if tightest._passed else ""
        return BudgetExceeded(f"the budget of {tightest.budget.seconds:g} seconds is used up{before}", completions)

    def cut_short(self, given: int, asked: int, ledger: Ledger) -> None:
        """Note that a response was truncated for lack of budget, by the ledger that limited its length."""
        self.outer = self.outer or ledger is not self._ledger
        said = f"a response was cut off at {given} of {asked} tokens: {ledger.name} had room for no more"
        for meter in self._chain:
            meter.shortened = meter.shortened or said
