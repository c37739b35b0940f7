"""Your own environment: problems, gold answers and a verdict, checked for what a judge must do."""

from dataclasses import dataclass

import ponder
from ponder.environments.selfcheck import self_check


@dataclass(frozen=True)
class Backwards(ponder.SingleTurn):
    """Reverse a number's digits."""

    name = "backwards"

    def problem(self, split, index):
        number = 100 + 2 * index + (split == "test")
        return ponder.Problem(f"backwards-{split}-{index}", f"Write {number} backwards.", {"number": number})

    def gold(self, problem):
        return ponder.Gold(str(problem.public["number"])[::-1])

    def verdict(self, problem, answer):
        right = answer == self.gold(problem).answer
        kind = ponder.VerdictKind.CORRECT if right else ponder.VerdictKind.WRONG
        return ponder.Verdict(kind, float(right), f"the answer is {answer!r}", answer)


assert not self_check(Backwards(), "test", range(20))
print(ponder.evaluate(Backwards(), "ponder-tiny", problems=20, strategy="direct", max_tokens=32))
