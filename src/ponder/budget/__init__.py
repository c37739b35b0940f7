"""Budgets: reserve the worst case of a call before it is sent, settle with what was spent after."""

from ponder.budget.meter import Meter, Prices

__all__ = ["Meter", "Prices"]
