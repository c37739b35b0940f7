"""What models cost: a small table in TOML, which the user extends.

Prices belong to the engine that is called, by the name in its `info`. The table is `prices.toml` next to this file, and
then, over it, the file that the environment variable `PONDER_PRICES` names.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ponder import reading
from ponder.errors import UserError, nearest
from ponder.types import Spend

VARIABLE = "PONDER_PRICES"
"""Environment variable with the path of the user's own table."""
ANY = "*"
"""Name of the entry for models that have none."""
PACKAGED = Path(__file__).with_name("prices.toml")


@dataclass(frozen=True, slots=True)
class Prices:
    """What a model costs, in dollars per million tokens, and per hour of the machine that it runs on."""

    prompt: float = 0.0
    output: float = 0.0
    cached: float | None = None
    """Prompt tokens from a cache; None is the price of a prompt token."""
    per_hour: float = 0.0
    """Dollars per hour of the machine (`Spend.device_seconds`), for your own hardware."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and not _is_price(value):
                unit = "dollars per hour" if f.name == "per_hour" else "dollars per million tokens"
                raise UserError(f"price {f.name} = {value!r}: give {unit}, 0 or more")

    def dollars(self, spend: Spend) -> float:
        """What a spend costs at these prices. Forced tokens cost what sampled ones do."""
        cached = self.prompt if self.cached is None else self.cached
        tokens = spend.prompt_tokens * self.prompt + spend.cached_tokens * cached + spend.response_tokens * self.output
        return tokens * 1e-6 + spend.device_seconds * self.per_second

    @property
    def worst_prompt(self) -> float:
        """Dollars of one prompt token, at worst."""
        return max(self.prompt, self.cached or 0.0) * 1e-6

    @property
    def output_token(self) -> float:
        """Dollars of one token of a response."""
        return self.output * 1e-6

    @property
    def worst_token(self) -> float:
        """Dollars of one token that may be of a prefix or of a response."""
        return max(self.worst_prompt, self.output_token)

    @property
    def per_second(self) -> float:
        """Dollars of one second of the machine."""
        return self.per_hour / 3600.0


@dataclass(frozen=True)
class PriceList:
    """Prices by the name of the model."""

    models: Mapping[str, Prices] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    """Files that it was read from."""

    def of(self, model: str) -> Prices | None:
        """The prices of a model; None if neither it nor `"*"` is there."""
        return self.models.get(model) or self.models.get(ANY)

    def need(self, model: str) -> Prices:
        """The prices of a model. Raises `UserError` if they are not known."""
        prices = self.of(model)
        if prices is None:
            raise UserError(
                f"a budget in dollars needs the prices of {model!r}, and none are known: write them to a TOML file "
                f'(["{model}"], then prompt, cached and output in dollars per million tokens, or per_hour for your own '
                f"hardware) and set {VARIABLE} to its path{nearest(model, _likely(model, self.models))}"
            )
        return prices


def load(path: str | Path | None = None) -> PriceList:
    """The packaged table, and over it the file at `path` (default: what `PONDER_PRICES` names, if it is set).

    Raises `UserError` for a file that cannot be read, and for an entry with an unknown key or a wrong number.
    """
    return _load(str(path or os.environ.get(VARIABLE, "")))


@functools.lru_cache(maxsize=8)
def _load(path: str) -> PriceList:
    models = _read(PACKAGED)
    if not path:
        return PriceList(models, (str(PACKAGED),))
    return PriceList({**models, **_read(Path(path))}, (str(PACKAGED), path))


def _read(path: Path) -> dict[str, Prices]:
    table = reading.toml_table(path, "table of prices")
    return {name: _entry(path, name, values) for name, values in table.items()}


def _entry(path: Path, name: str, values: Any) -> Prices:
    known = [f.name for f in fields(Prices)]
    if not isinstance(values, dict):
        raise UserError(f'{path}: {name!r} is not a table: write ["{name}"] and then {", ".join(known)}')
    for key in values:
        if key not in known:
            raise UserError(f"{path}: [{name}] has an unknown key {key!r}{nearest(key, known)}")
    if not values:
        raise UserError(f"{path}: [{name}] has no price: give some of {', '.join(known)} (0 is free)")
    try:
        prices = Prices(**values)
    except UserError as error:
        raise UserError(f"{path}: [{name}]: {error}") from None
    # What is left out would be free, and a budget in dollars no limit.
    missing = [] if "per_hour" in values else [key for key in ("prompt", "output") if key not in values]
    if missing:
        raise UserError(
            f"{path}: [{name}] has no {' and no '.join(missing)}: give dollars per million tokens (0 is free)"
        )
    return prices


def dearest(prices: Iterable[Prices]) -> Prices:
    """The highest of each price: what a call costs at most if its model is not known."""
    every = list(prices)
    if not every:
        return Prices()
    return Prices(
        max(p.prompt for p in every),
        max(p.output for p in every),
        max(p.prompt if p.cached is None else p.cached for p in every),
        max(p.per_hour for p in every),
    )


def priced(spend: Spend, prices: Iterable[Prices | None]) -> Spend:
    """A spend that was booked before prices were known, with its dollars at the highest of these, so never too few.

    One that has dollars stays as it is.
    """
    known = [p for p in prices if p is not None]
    if spend.dollars or not known:
        return spend
    costs = dearest(known)
    if costs.per_hour and not spend.device_seconds:
        spend = replace(spend, device_seconds=spend.seconds)
    return replace(spend, dollars=costs.dollars(spend))


def _is_price(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value < float("inf")


def _likely(model: str, names: Iterable[str]) -> list[str]:
    """Likely names; all of them would be a long list."""
    return [name for name in names if name[:3] == model.rpartition("/")[2][:3]]
