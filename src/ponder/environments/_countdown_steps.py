"""How far a Countdown chain has come: what its last try has computed, and what can still come of the numbers left.

A chain is equations such as `12-10=2,2*8=16`, separated by commas or line ends; a semicolon, a question mark or an
empty line drops a try, and the next begins with all the numbers again.
"""

from __future__ import annotations

import functools
import re

from ponder.environments._expressions import Value, apply, evaluate

_TRIES = re.compile(r"[;?]|\n\s*\n")
_PARTS = re.compile(r"[,\n]")
_MOST_NUMBERS = 4
"""Of more numbers than this only some values are computed: those of fewer further operations."""

Numbers = tuple[Value, ...]


def progress(chain: str, numbers: list[int], target: int, operations: str, lookahead: int) -> float:
    """How promising an unfinished chain is, 0 to 1.

    1 if its last try has reached the target; 0 if the try computes wrongly or uses a number that is not there. Else,
    with n given numbers of which the try has put k together: (1 + k) / (1 + n) if at most `lookahead` further
    operations reach the target from what is left, and less than half of 1 / (1 + n), the less the further away they
    stay, if they do not. So a step that keeps the target in reach is worth more than a fresh try, and a fresh try more
    than one that is lost.
    """
    left: Numbers = tuple(sorted(numbers))
    written = _TRIES.split(chain)[-1]
    parts = _PARTS.split(written)
    for i, part in enumerate(parts):
        if "=" not in part:
            continue
        after = _after(left, part, operations, cut=i == len(parts) - 1)
        if after is None:
            return 0.0
        left = after
    steps = len(numbers) - len(left)
    if steps and target in left:
        return 1.0
    gap = min(abs(float(value - target)) for value in reachable(left, operations, lookahead))
    if not gap:
        return (1 + steps) / (1 + len(numbers))
    return 0.5 / (1 + len(numbers)) / (1 + gap)


def _after(left: Numbers, equation: str, operations: str, cut: bool) -> Numbers | None:
    """The numbers left after an equation, None if it is wrong; if it is `cut` and may yet get right, as before."""
    sides = equation.strip(" !.").split("=")
    try:
        value, used, ops = evaluate(sides[0])
    except ValueError:
        return None
    said = sides[1].strip()
    if cut and len(sides) == 2 and said != str(value) and str(value).startswith(said):
        return left
    if any(side.strip() != str(value) for side in sides[1:]) or set(ops) - set(operations):
        return None
    rest = list(left)
    for number in used:
        if number not in rest:
            return None
        rest.remove(number)
    return tuple(sorted([*rest, value]))


@functools.lru_cache(maxsize=65_536)
def reachable(numbers: Numbers, operations: str, most: int) -> frozenset[Value]:
    """Values of expressions of at most `most` operations on these numbers, each used once at most."""
    if len(numbers) > _MOST_NUMBERS:
        most = min(most, _MOST_NUMBERS - 2)
    values = set(numbers)
    if most < 1:
        return frozenset(values)
    for i in range(len(numbers)):
        for j in range(i + 1, len(numbers)):
            rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            for value in _results(numbers[i], numbers[j], operations):
                values |= reachable(tuple(sorted([*rest, value])), operations, most - 1)
    return frozenset(values)


def _results(a: Value, b: Value, operations: str) -> set[Value]:
    found = set()
    for op in operations:
        for x, y in ((a, b), (b, a)):
            if op != "/" or y:
                found.add(apply(op, x, y))
    return found
