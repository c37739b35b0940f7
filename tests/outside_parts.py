"""An environment of a user, in every mood; `MOOD` or the option chooses. Printing is what users' code does."""

import asyncio
import os
import re
import sys
import time
from dataclasses import dataclass

from ponder.environments.base import SingleTurn
from ponder.types import Gold, Problem, Response, Split, Verdict, VerdictKind

print("printed at import")
if os.environ.get("AT_IMPORT") == "exit":
    sys.exit(0)
if os.environ.get("AT_IMPORT") == "interrupt":
    raise KeyboardInterrupt

RED = "\x1b[31mred\x1b]0;title\x07"
RAISED = {
    "exit": SystemExit(0),
    "interrupt": KeyboardInterrupt(),
    "error": ValueError(RED),
    "stop": StopIteration(),
    "generator": GeneratorExit(),
    "cancel": asyncio.CancelledError(),
}
NO_VERDICT = {"none": None, "text": "correct", "bool": True}


@dataclass(frozen=True)
class Moody(SingleTurn):
    """A user's environment."""

    mood: str = "fine"
    kind: str = "correct"
    reward: str = "1.0"
    """A Python expression."""

    name = "moody"

    def size(self, split: Split) -> int:
        return 20

    def problem(self, split: Split, index: int) -> Problem:
        if self.mood.startswith("problem-"):
            raise RAISED[self.mood.removeprefix("problem-")]
        print("a problem")
        os.write(1, b"from below\n")
        number = 0 if self.mood == "same" else index
        return Problem(f"moody-{split}-{number}", f"What is {index} + 1?")

    def gold(self, problem: Problem) -> Gold:
        return Gold("1")

    def judge(self, problem: Problem, response: Response) -> Verdict:
        print("a judgement")
        if self.mood in RAISED:
            raise RAISED[self.mood]
        if self.mood in NO_VERDICT:
            return NO_VERDICT[self.mood]  # type: ignore[return-value]
        if self.mood in ("sleep", "loop", "match"):
            os.write(2, b"READY\n")
        if self.mood == "sleep":
            time.sleep(60)
        while self.mood == "loop":
            pass
        if self.mood == "match":  # keeps Python's lock
            re.match("(a|a)*b", "a" * 60)
        return Verdict(VerdictKind(self.kind), eval(self.reward), "as it was told")


class Slow(Moody):
    """The same on a thread."""

    slow_judge = True
