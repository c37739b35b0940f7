"""Opening the engines of a command under its budget: to find out what an endpoint can do costs, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ponder.budget.meter import Meter
from ponder.budget.prices import PriceList
from ponder.errors import UserError
from ponder.protocols import Engine
from ponder.types import Budget, Spend


class Opening:
    """What is left for opening engines, and what it has cost; give it to `engine_for`."""

    def __init__(
        self,
        budget: Budget,
        prices: PriceList,
        before: Spend = Spend(),  # noqa: B008  (frozen)
        passed: float = 0.0,
        known: Mapping[str, Any] | None = None,
    ) -> None:
        """`budget` is the one that the openings count against; `before` and `passed` (seconds) are used of it.

        `known` is what an earlier process has found out, by model: what is gone on with must not change under way.
        """
        self.known = dict(known or {})
        """What the engines know of their endpoints, by model."""
        self.spend = Spend()
        """Of all engines that were opened, with their dollars."""
        self._prices = prices
        self._meter = Meter(budget, prices=prices, passed=passed)
        self._meter.add(before)

    def left(self, model: str) -> tuple[int | None, float | None]:
        """Tokens and seconds for opening a model; dollars are in tokens at its dearest price.

        Raises `UserError` if dollars are limited and its prices are not known.
        """
        left = self._meter.left
        tokens, seconds = left.tokens, left.seconds
        if left.dollars is not None:
            try:
                prices = self._prices.need(model)
            except UserError as error:
                raise UserError(f"{error}, or give it with --prices") from None
            if prices.worst_token:
                paid = int(left.dollars / prices.worst_token)
                tokens = paid if tokens is None else min(tokens, paid)
            if prices.per_second:
                paid_seconds = left.dollars / prices.per_second
                seconds = paid_seconds if seconds is None else min(seconds, paid_seconds)
        return tokens, seconds

    def book(self, engine: Engine, model: str) -> None:
        """Count what an engine says that its opening took, and keep what it found out."""
        self.spend += self._meter.add_opening(engine)
        if engine.known:
            self.known[model] = engine.known
