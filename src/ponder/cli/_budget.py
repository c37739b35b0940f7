"""Budgets on the command line: of one search, of a whole evaluation, and the prices that dollars are counted in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ponder.budget.prices import PriceList, Prices, load
from ponder.engines.opening import EngineOptions, part_of
from ponder.errors import UserError
from ponder.protocols import Engine, OpensWithin
from ponder.types import Budget


@dataclass(frozen=True)
class BudgetOptions:
    """The hard limit of a search. A verb's config inherits these fields."""

    budget_tokens: int | None = None
    """Maximum tokens of a search, prompts and responses of every branch; a call that might exceed it is not sent."""
    budget_seconds: float | None = None
    """Maximum seconds of a search, from when its first call is worked on; calls that still run then are cancelled."""
    budget_dollars: float | None = None
    """Maximum dollars of a search, at the prices of the model."""
    prices: str | None = None
    """A TOML file with prices of models, which override the built-in ones (default: the file that PONDER_PRICES
    names)."""


@dataclass(frozen=True)
class TotalOptions(BudgetOptions):
    """The limits of a search and those of all searches of an evaluation together."""

    total_tokens: int | None = None
    """Maximum tokens of the whole evaluation, those before a resume included. Searches that it stops keep what they
    have; a resume with a larger budget runs them again."""
    total_seconds: float | None = None
    """Maximum seconds of the whole evaluation, those before a resume included."""
    total_dollars: float | None = None
    """Maximum dollars of the whole evaluation, those before a resume included."""


UNITS = ("tokens", "seconds", "dollars")


def budget_of(options: BudgetOptions, kind: str = "budget") -> Budget:
    """The budget that the flags `--KIND-tokens` and so on give. Raises `UserError` that names the flag."""
    values: dict[str, Any] = {}
    for unit in UNITS:
        value = values[unit] = getattr(options, f"{kind}_{unit}")
        if value is not None and not 0 <= value < float("inf"):
            raise UserError(f"--{kind}-{unit} {value}: give 0 or more, or leave it out for no limit")
    return Budget(**values)


def budgets_of(options: TotalOptions) -> tuple[Budget, Budget]:
    """The budgets of a search and of the whole evaluation. Raises `UserError` if the first is the larger."""
    each, total = budget_of(options), budget_of(options, "total")
    for unit in UNITS:
        one, all_ = getattr(each, unit), getattr(total, unit)
        if one is not None and all_ is not None and one > all_:
            raise UserError(
                f"--budget-{unit} {one:g} for one search is more than --total-{unit} {all_:g} for all of them: lower "
                "the first or raise the second"
            )
    return each, total


def check_opening(options: BudgetOptions, engine: EngineOptions, *budgets: Budget) -> None:
    """Check that the budgets allow opening an engine that costs something to open, such as one for an endpoint.

    Raises `UserError` for a budget of nothing, and for prices that are not known.
    """
    if not isinstance(part_of(engine), OpensWithin):
        return  # opened at no cost; the meter's refusal has the numbers of the prompt
    _need_prices(options, (engine.model, *engine.others.values()))
    for budget in budgets:
        for unit in ("tokens", "dollars"):
            if getattr(budget, unit) == 0:
                raise UserError(f"a budget of 0 {unit} allows no call, and nothing was sent: give more")


def prices_of(options: BudgetOptions) -> PriceList:
    """The known prices. Raises `UserError` for a file that cannot be read."""
    return load(options.prices)


def check_prices(options: BudgetOptions, engines: Iterable[Engine]) -> None:
    """Raises `UserError` if dollars are limited and what an engine costs is not known, before anything is sent."""
    _need_prices(options, (engine.info.name for engine in engines))


def _need_prices(options: BudgetOptions, models: Iterable[str]) -> None:
    if any(getattr(options, name, None) is not None for name in ("budget_dollars", "total_dollars")):
        for model in models:
            try:
                prices_of(options).need(model)
            except UserError as error:
                raise UserError(f"{error}, or give it with --prices") from None


def branch_prices(options: BudgetOptions, engine: Engine, others: Mapping[str, Engine]) -> Prices | None:
    """Prices of the branches of a trace; None where tokens alone do not give them (several models, hourly prices)."""
    prices = None if others else prices_of(options).of(engine.info.name)
    return None if prices is None or prices.per_hour else prices
