"""What a simulated model writes: a chain of steps that may go wrong, and an answer. Pure functions of their arguments.

A solution is lines such as `step 3: 4172 .......`, and then `answer 8060`. The number of a step is the problem's own
if the chain is right up to there, and some other number if it is not: only with the problem (`step_value`) can
the state of a partial response be read from its text.

One character is one token. Thought markers and the end of a response are one token each, written inside as characters
of the private use area.
"""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ponder.types import Message, SegmentKind, Thinking

END, OPEN, CLOSE = "\ue000", "\ue001", "\ue002"
OPEN_TEXT, CLOSE_TEXT = "<think>", "</think>"
SHORTEST_STEP = 18
"""Tokens of a step without any filler."""
_LOWEST, _NUMBERS = 1000, 9000
_KEY = re.compile(r"\[problem ([^\]]+)\]")
_STEP = re.compile(r"step (\d+): (\d{4}) ")
_ANSWER = re.compile(r"answer (\d{4})")
_MEAN_LOGPROB, _LOGPROB_SPREAD = -0.5, 0.1

Piece = tuple[SegmentKind, str]


def raw(text: str) -> str:
    """Text as one character a token."""
    return text.replace(OPEN_TEXT, OPEN).replace(CLOSE_TEXT, CLOSE)


def text_of(tokens: str) -> str:
    """The text of tokens; the end of a response has none."""
    return tokens.replace(OPEN, OPEN_TEXT).replace(CLOSE, CLOSE_TEXT).replace(END, "")


def prompt_text(prompt: str | Sequence[Message] | Sequence[int]) -> str:
    """A prompt as the simulated model reads it, one character a token."""
    if isinstance(prompt, str):
        return raw(prompt)
    return "".join(chr(p) if isinstance(p, int) else f"{p.role}: {raw(p.content)}\n" for p in prompt)


def key_of(prompt: str) -> str:
    """The key of a problem: what is in `[problem …]`, whatever instructions are around it; else the whole prompt."""
    found = _KEY.search(prompt)
    return found[1] if found else prompt


def _number(key: str, what: object) -> int:
    return _LOWEST + zlib.crc32(f"{what}\x1f{key}".encode("utf-8", "surrogatepass")) % _NUMBERS


def step_value(key: str, step: int) -> str:
    """The number that a right chain has at a step (from 1)."""
    return str(_number(key, step))


def right_answer(key: str) -> str:
    return str(_number(key, "answer"))


def favourite_wrong(key: str) -> str:
    """The wrong answer that errors of this problem concentrate on."""
    return _other(right_answer(key), Random(f"wrong {key}"))


def read_answer(text: str) -> str | None:
    """The answer that a text gives last; None if it gives none."""
    found = _ANSWER.findall(text)
    return found[-1] if found else None


def state(key: str, text: str) -> tuple[int, bool]:
    """Number of the last step written in a text (0 before the first) and whether the chain is right there."""
    found = _STEP.findall(text)
    if not found:
        return 0, True
    step = int(found[-1][0])
    return step, found[-1][1] == step_value(key, step)


def _other(value: str, rng: Random) -> str:
    return str(_LOWEST + (int(value) - _LOWEST + rng.randint(1, _NUMBERS - 1)) % _NUMBERS)


@dataclass(frozen=True, slots=True)
class Mind:
    """How the simulated model reasons; see `engines.simulated.Simulated` for the fields."""

    steps: int
    step_success: float
    correlation: float
    recover: float
    favourite: float
    guess: float
    step_tokens: int
    step_spread: float
    certainty: float
    thought: bool
    opened: bool

    @property
    def accuracy(self) -> float:
        """Probability that a whole response is right, over problems."""
        return _chain(self.step_success, self.recover, self.steps)

    def success_on(self, key: str) -> float:
        """Probability that a step of this problem stays right."""
        if self.correlation == 0.0 or self.step_success in (self.recover, 1.0):
            return self.step_success
        return _success_on(key, self.steps, self.step_success, self.recover, self.correlation)


def _chain(success: float, recover: float, steps: int) -> float:
    """Probability of being right after `steps` steps: x ← x · success + (1 - x) · recover, from x = 1."""
    change = success - recover
    if change == 1.0:
        return 1.0
    power = change**steps
    return recover * (1.0 - power) / (1.0 - change) + power


@functools.lru_cache(maxsize=8192)
def _success_on(key: str, steps: int, success: float, recover: float, correlation: float) -> float:
    """The step success with which a problem is solved as often as its difficulty says.

    The probability of a right response is r + (1 - r) · Beta with the mean that it has without correlation and an
    intraclass correlation of `correlation` (the beta-binomial model): 0 is the same for every problem, at 1 a problem
    is solved always or as seldom as recovery allows. The mean over problems does not depend on it.
    """
    rng = Random(f"difficulty {key}")
    mean = (_chain(success, recover, steps) - recover) / (1.0 - recover)
    if correlation == 1.0:
        share = float(rng.random() < mean)
    else:
        pseudo = 1.0 / correlation - 1.0
        share = rng.betavariate(max(mean * pseudo, 1e-9), max((1.0 - mean) * pseudo, 1e-9))
    wanted = recover + (1.0 - recover) * share
    low, high = recover, 1.0
    for _ in range(48):
        middle = (low + high) / 2
        low, high = (middle, high) if _chain(middle, recover, steps) < wanted else (low, middle)
    return (low + high) / 2


def write(
    mind: Mind, key: str, prefix: str, thinking: Thinking | None, max_tokens: int, rng: Random
) -> tuple[list[Piece], bool]:
    """A response to its end, or to at least `max_tokens` tokens, as pieces that begin with the prefix.

    Also whether its answer is (or would have been) right. The pieces may be longer than `max_tokens`; the caller cuts.
    """
    pieces: list[Piece] = [(SegmentKind.FORCED, prefix)] if prefix else []
    success = mind.success_on(key)
    done, right = state(key, prefix)
    given = read_answer(prefix.rpartition(CLOSE)[2])
    if given is not None:
        return [*pieces, (SegmentKind.SAMPLED, END)], given == right_answer(key)
    inside, length = mind.thought and mind.opened, len(prefix)
    if mind.thought:
        last = max(prefix.rfind(OPEN), prefix.rfind(CLOSE))
        inside = prefix[last] == OPEN if last >= 0 else inside
    closed = CLOSE in prefix
    if mind.thought and not (inside or closed):
        pieces.append((SegmentKind.SAMPLED, OPEN))
        inside, length = True, length + 1
    thought = len(prefix) - 1 - prefix.rfind(OPEN) if inside else 0
    # A prefix that was cut at a line's end continues with a space, so that stopping at line ends still advances.
    gap = " " if prefix and not closed and not prefix.endswith(("\n", OPEN)) else ""
    most = None if thinking is None or not inside else thinking.max_tokens
    wanted, forced = max(mind.steps, done), False
    while not closed and length < max_tokens:
        before = done, right
        if done < wanted:
            right = rng.random() < (success if right else mind.recover)
            done += 1
            value = step_value(key, done)
            body = f"{gap}step {done}: {value if right else _other(value, rng)} "
            target = round(rng.gauss(mind.step_tokens, mind.step_spread)) if mind.step_spread else mind.step_tokens
            piece, kind = body.ljust(target - 1, ".") + "\n", SegmentKind.SAMPLED
            gap = ""
        elif thinking is not None and inside and thought < thinking.min_tokens and thinking.extend:
            # A thought that is made to continue repeats its last step.
            piece, kind, wanted = raw(thinking.extend), SegmentKind.FORCED, wanted + 1
            gap = "" if piece.endswith("\n") else " "
        else:
            break
        if most is not None and thought + len(piece) > most:
            piece, forced = piece[: max(0, most - thought)], True
            if not _STEP.search(piece):
                done, right = before
        pieces.append((kind, piece))
        thought, length = thought + len(piece), length + len(piece)
        if forced:
            break
    if inside and not closed:
        pieces.append((SegmentKind.FORCED if forced or thought == most else SegmentKind.SAMPLED, CLOSE))
    # Steps that were not written are guessed, with a lower success rate.
    for _ in range(mind.steps - done):
        right = right and rng.random() < success * mind.guess
    answer = right_answer(key)
    if not right:
        answer = favourite_wrong(key) if rng.random() < mind.favourite else _other(answer, rng)
    pieces.append((SegmentKind.SAMPLED, f"answer {answer}{END}"))
    return pieces, answer == right_answer(key)


def logprob_of(mind: Mind, right: bool, rng: Random) -> float:
    """Mean log-probability of a response, whose correlation with being right is `mind.certainty` over all problems."""
    share = min(max(mind.accuracy, 1e-9), 1.0 - 1e-9)
    standard = (right - share) / math.sqrt(share * (1.0 - share))
    noise = math.sqrt(1.0 - mind.certainty**2) * rng.gauss(0.0, 1.0)
    return min(-1e-6, _MEAN_LOGPROB + _LOGPROB_SPREAD * (mind.certainty * standard + noise))
