"""One budget's books: what was spent, what is reserved, and how much of a call it has room for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ponder.budget.hourly import Hourly
from ponder.budget.prices import Prices
from ponder.errors import UserError
from ponder.types import Budget, Spend

ROUNDING = 1e-12
"""Dollars that sums of floats may be off by."""
NOTHING = (0, 0.0)


@dataclass(frozen=True, slots=True)
class Call:
    """The worst case of a call, per sample."""

    prompt: int
    max_tokens: int
    n: int
    minimum: int
    answer: int
    """Tokens of a second call that ends the response; 0 if there is none."""
    prices: Prices | None = None
    prefix: int | None = 0
    """Tokens of the response that are given and cost what prompt tokens do; None if they are not known."""
    final: bool = False
    machine: int = 0
    """The engine, if its machine is paid by the hour."""
    grace: float = 0.0
    """Seconds that the engine may need to stop."""
    flat: float = 0.0
    """Dollars that it may cost besides those of its tokens."""

    def tokens(self, response: int) -> int:
        """Tokens of a response of this length and, with `answer`, of the call that ends it."""
        return (2 if self.answer else 1) * (self.prompt + response) + self.answer

    def longest(self, tokens: int) -> int:
        """Longest response that fits into so many tokens (negative: not even the prompt does)."""
        return (tokens - self.answer) // (2 if self.answer else 1) - self.prompt

    def dollars(self, response: int) -> float:
        """The same in dollars, without those of a machine's time."""
        first = self.reserved_dollars(response)
        if not self.answer or self.prices is None:
            return first
        return first + self.prompt * self.prices.worst_prompt + (response + self.answer) * self.prices.worst_token

    def reserved_dollars(self, response: int) -> float:
        """Dollars of this call alone."""
        prices = self.prices
        if prices is None:
            return self.flat
        if self.prefix is None:
            return self.flat + self.prompt * prices.worst_prompt + response * prices.worst_token
        given, sampled = self.prompt + self.prefix, response - self.prefix
        return self.flat + (given * prices.worst_prompt + sampled * prices.output_token)


class Reservation:
    """What was taken from a chain of budgets for one call; `settle` it exactly once."""

    __slots__ = ("_book", "_open", "deadline", "dollars", "max_tokens", "n", "narrowest", "prompt_tokens", "tokens")

    def __init__(
        self, book: Callable[[Reservation, Spend], None], narrowest: Ledger, call: Call, n: int, max_tokens: int
    ) -> None:
        self.n = n
        """Samples: what was asked for, or fewer."""
        self.max_tokens = max_tokens
        """Tokens that each response may have: what was asked for, or less."""
        self.narrowest = narrowest
        """Whose room decided on both."""
        self.prompt_tokens = call.prompt
        self.tokens = n * (call.prompt + max_tokens)
        self.dollars = n * call.reserved_dollars(max_tokens)
        """At worst, without those of a machine's time."""
        self.deadline: float | None = None
        """When the dollars for the machine's time run out, on the meter's clock; None if it is not paid by the hour."""
        self._book, self._open = book, True

    def settle(self, spend: Spend) -> None:
        """Book what was really spent, in dollars too, and give the rest back. A second call changes nothing."""
        if self._open:
            self._open = False
            self._book(self, spend)


def check_budget(budget: Budget) -> None:
    """Refuse an invalid limit. Raises `UserError` that names the unit."""
    for unit in ("tokens", "seconds", "dollars"):
        value = getattr(budget, unit)
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 <= value < float("inf")):
            raise UserError(f"a budget of {value} {unit}: give 0 or more, or leave it out for no limit")
        if unit == "tokens" and value != int(value):
            raise UserError(f"a budget of {value} tokens: give a whole number")


class Ledger:
    """The books of one budget. No await comes between checking its room and taking it."""

    __slots__ = ("_waiters", "budget", "dollars", "hourly", "kept", "outstanding", "spend", "tokens")

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.spend = Spend()
        self.tokens = 0
        """Reserved."""
        self.dollars = 0.0
        """Reserved."""
        self.outstanding = 0
        """Calls with a reservation."""
        self.kept = NOTHING
        """Tokens and dollars that only final calls may take."""
        self.hourly = Hourly()
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def name(self) -> str:
        """Which budget it is, by its numbers."""
        tokens, dollars = self.budget.tokens, self.budget.dollars
        parts = [] if tokens is None else [f"{tokens} tokens"]
        parts += [] if dollars is None else [f"${dollars:.6g}"]
        return f"the budget of {' and '.join(parts)}"

    @property
    def idle(self) -> bool:
        """Nothing is reserved, kept or waited for."""
        busy = self.tokens or self.dollars or self.outstanding or self._waiters or self.kept != NOTHING
        return not busy and not self.hourly.committed

    def tokens_left(self) -> int | None:
        """Tokens that are neither spent nor reserved; None without a limit."""
        return None if self.budget.tokens is None else self.budget.tokens - self.spend.tokens - self.tokens

    def dollars_left(self) -> float | None:
        """The same in dollars, those of running calls on machines that are paid by the hour included."""
        return None if self.budget.dollars is None else self.budget.dollars - self.spend.dollars - self.dollars

    def room(self, call: Call, own: tuple[int, float], now: float) -> tuple[int, int]:
        """Samples that there is room for now and tokens of each: whole ones, or one that is cut short.

        `own` is the part of what is kept that this call may take.
        """
        rooms = [(call.n, call.max_tokens)]
        tokens, dollars = self.tokens_left(), self.dollars_left()
        if tokens is not None:
            tokens -= self.kept[0] - own[0]
            need = call.tokens(call.max_tokens)
            whole = tokens // need if need else call.n
            rooms.append((whole, call.max_tokens) if whole >= 1 else (1, call.longest(tokens)))
        if dollars is not None and call.prices is not None:
            dollars -= self.kept[1] - own[1] - ROUNDING
            rooms.append(self._dollar_room(call, dollars - self.hourly.committed - self.hourly.least(call.grace)))
            room = min(rooms)
            if call.prices.per_hour and not self._has_time(
                call, dollars - room[0] * call.reserved_dollars(room[1]), now
            ):
                return 1, -1
        return min(rooms)

    def _has_time(self, call: Call, left: float, now: float) -> bool:
        """Whether a call on a machine that is paid by the hour could run, and still stop in time."""
        hourly = self.hourly
        return left > ROUNDING and hourly.open_to(call.machine) and hourly.until(now, left) - call.grace > now

    def _dollar_room(self, call: Call, left: float) -> tuple[int, int]:
        cost, least = call.dollars(call.max_tokens), call.dollars(0)
        if cost <= 0.0:
            return call.n, call.max_tokens
        if left >= cost:
            return int(min(left / cost, call.n)), call.max_tokens
        if cost <= least:
            return 1, -1
        share = (left - least) / (cost - least)
        return 1, int(share * call.max_tokens) if share >= 0 else -1

    def refusal(self, call: Call, own: tuple[int, float]) -> str:
        """Why there is no room, with the numbers."""
        what = f"prompt of {call.prompt} + at least {call.minimum}"
        if call.answer:
            what += f", twice, + {call.answer} for the answer"
        need = f"{call.tokens(call.minimum)} tokens ({what})"
        parts = []
        tokens, dollars = self.tokens_left(), self.dollars_left()
        if tokens is not None:
            tokens = max(0, tokens - self.kept[0] + own[0])
            parts.append(f"{tokens} of the budget's {self.budget.tokens} tokens are left")
        if dollars is not None and call.prices is not None:
            dollars = max(0.0, dollars - self.kept[1] + own[1])
            parts.append(f"${dollars:.6g} of the budget's ${self.budget.dollars:.6g} are left")
            if call.prices.per_hour:
                need += f", at ${call.prices.per_hour:g} per hour of its machine"
            else:
                need += f", ${call.dollars(call.minimum):.6g}"
        return f"{' and '.join(parts)}, and a call needs at least {need}"

    # Those who wait -----------------------------------------------------------------------------------------------

    @property
    def waited_for(self) -> bool:
        return bool(self._waiters)

    def wait(self, first: bool) -> asyncio.Future[None]:
        """A turn that comes when something was given back; `first` before all others."""
        turn = asyncio.get_running_loop().create_future()
        if first:
            self._waiters.appendleft(turn)
        else:
            self._waiters.append(turn)
        return turn

    def forget(self, turn: asyncio.Future[None]) -> None:
        self._waiters.remove(turn)

    def wake(self) -> None:
        """Let the next one try."""
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_result(None)
                return
