"""Arithmetic with numbers too large to do in the head, and a calculator to call: the smallest environment of turns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ponder.environments._expressions import Tree, evaluate
from ponder.environments.arithmetic import Arithmetic
from ponder.environments.base import Item
from ponder.environments.turns import Offer, ToolEpisode
from ponder.errors import UserError
from ponder.types import Problem, Split, Tool, as_messages

CALCULATE = Tool(
    "calculate",
    "Calculates an arithmetic expression of whole numbers with + - * / and parentheses, exactly.",
    '{"type": "object", "properties": {"expression": {"type": "string", "description": "for example (12 + 34) * 5"}}, '
    '"required": ["expression"]}',
)


async def calculate(expression: str) -> str:
    """The value of an expression, a fraction as `7/2`. Raises `ValueError` with the reason."""
    value, _, _ = evaluate(str(expression))
    return str(value)


@dataclass(frozen=True)
class Calculator(Arithmetic):
    """Arithmetic with a calculator to call; the options are those of arithmetic, with larger numbers.

    The model may call the tool `calculate` as often as it wants to; the response that calls nothing is its answer.
    """

    digits: int = 5
    """Most digits of an operand."""
    max_result: int = 999_999_999
    """Largest result, of every step too."""
    most_turns: int = 8
    """Most responses of a conversation; one that calls a tool then is no answer."""

    name = "calculator"
    turns = True
    turn_rewards = False

    def __post_init__(self) -> None:
        if self.few_shot and self.few_shot_style != "chat":
            raise UserError("few_shot_style must be chat: tools are offered and called in messages")
        if self.most_turns < 1:
            raise UserError(f"most_turns = {self.most_turns}: give at least 1")
        super().__post_init__()

    def item(self, drawn: tuple[Tree, int], split: Split, index: int) -> Item:
        item = super().item(drawn, split, index)
        first, *rest = as_messages(item.prompt)
        return dataclasses.replace(item, prompt=(dataclasses.replace(first, tools=(CALCULATE,)), *rest))

    def episode(self, problem: Problem) -> ToolEpisode:
        return ToolEpisode([Offer(CALCULATE, calculate)], most_turns=self.most_turns)
