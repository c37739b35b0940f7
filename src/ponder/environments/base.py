"""What environments share: judging that never raises, stable seeds, splits that never overlap.

`SingleTurn` does all of `protocols.Environment` but the problems and the verdict. `Procedural` adds problems that are
computed from (seed, split, index): an environment of this kind says how to draw one and how to write it down.

Whether a problem is for training or for testing is decided by a hash of what it asks (its *key*), never by the seed.
So the splits are disjoint by construction, and stay so between runs with different seeds.
"""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from ponder import outside
from ponder.environments.turns import OneStep
from ponder.errors import UserError
from ponder.protocols import Answers, Checker, Episode, Feedback, Scorer
from ponder.types import Gold, Problem, Prompt, Response, Split, Verdict, VerdictKind
from ponder.verifiers.base import answer_text, clip, too_long, verdict

TEST_ONE_IN = 10
"""One key in so many belongs to the test split."""
_PATIENCE = 4_000
"""Draws without a new test problem after which the test split counts as exhausted."""


def stable_int(*parts: object) -> int:
    """A 64-bit number from the parts, the same in every process and on every machine (`hash` is neither)."""
    text = "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def split_of(key: str, test_one_in: int = TEST_ONE_IN) -> Split:
    """The split that a problem with this canonical content belongs to."""
    return "test" if stable_int("split", key) % test_one_in == 0 else "train"


def guarded(hook: Callable[[Problem, str], Verdict], problem: Problem, response: Response, who: str = "") -> Verdict:
    """Call a hook with the answer's text; what is no answer does not reach it.

    No exception of the hook passes: it is a `judge_error`, which `who` names (`judging.judge_now` catches the rest). A
    prompt that is echoed is no answer; one that is repeated before the answer is stripped.
    """
    answer = response.answer
    if response.tool_calls:
        return verdict(VerdictKind.NO_ANSWER, "the response calls a tool: it is not an answer")
    if answer is None:
        return verdict(VerdictKind.NO_ANSWER, "the response was truncated or its thought never closed")
    long = too_long(answer)
    if long is not None:
        return long
    answer = answer_text(problem, answer)
    if not answer:
        return verdict(VerdictKind.NO_ANSWER, "the answer is empty")
    whose = f"the judge{who and f' of {who}'}"
    try:
        given = hook(problem, answer)
    except Exception as error:
        return judge_error(f"{whose} failed: {outside.sentence(error)}")
    if not isinstance(given, Verdict):
        return judge_error(f"{whose} gave a {type(given).__name__}, not a Verdict{outside.defined(hook)}")
    return given


def judge_error(reason: str) -> Verdict:
    """The verdict of a judge that failed. Its reason may be long: it ends with the line that failed."""
    return Verdict(VerdictKind.JUDGE_ERROR, None, clip(reason, 800))


class SingleTurn:
    """Base of environments with one question and one answer.

    A subclass gives `name`, `problem`, `gold`, `verdict` and, if its problems end, `size`. What a search may ask
    besides the model (`checker`, `scorer`, `answers`) is None unless a subclass gives it; all of it is `feedback`.
    """

    name: str = ""
    turns: bool = False
    """A subclass whose episodes continue after a response says True and gives `episode`."""
    turn_rewards: bool = True
    """A subclass whose turns earn nothing by themselves says False: its tools do not run once more for the reward."""
    slow_judge: bool = False
    """Judging may take so long that it is done on a thread."""
    greedy: bool = False
    """The field measures one response per problem at temperature 0: evaluations do so by default."""

    def size(self, split: Split) -> int | None:
        """Number of problems of a split; None if it is unlimited."""
        return None

    @outside.required()
    def problem(self, split: Split, index: int) -> Problem:
        """The problem at an index. Raises `IndexError` if there is none."""
        raise NotImplementedError

    @outside.required()
    def gold(self, problem: Problem) -> Gold:
        """What only the judge may see. Raises `UserError` for a problem of another environment."""
        raise NotImplementedError

    @outside.required(unless="judge")
    def verdict(self, problem: Problem, answer: str) -> Verdict:
        """Judge an answer, stripped and not empty. What it raises becomes a `judge_error`."""
        raise NotImplementedError

    def judge(self, problem: Problem, response: Response) -> Verdict:
        """Decide with the gold. Never raises."""
        return guarded(self.verdict, problem, response, outside.whose(self, "environment"))

    @property
    def checker(self) -> Checker | None:
        """None: most problems cannot be checked without their gold."""
        return None

    @property
    def scorer(self) -> Scorer | None:
        """Scores responses, partial or whole, without gold; None: nothing is known of an unfinished response."""
        return None

    @property
    def answers(self) -> Answers | None:
        """Reads and compares answers without gold, for votes; None: as they are written."""
        return None

    @property
    def slow(self) -> bool:
        """Checker and answers may take so long that they are run on a thread."""
        return False

    @property
    def feedback(self) -> Feedback:
        """What a search of its problems may ask."""
        episode = self.episode if self.turns else None
        return Feedback(self.checker, self.scorer, self.answers, self.slow, episode)

    def gold_response(self, problem: Problem) -> str:
        """An answer text that the judge gives reward 1."""
        return str(self.gold(problem).answer)

    def recognise(self, question: str) -> Problem | None:
        """A question that somebody asked, as a problem of this environment, if it is one that can be judged by itself.

        Its id is `recognising.QUESTION`. None for any other question.
        """
        return None

    def episode(self, problem: Problem) -> Episode:
        """Open a conversation: here it ends with the first response."""
        return OneStep()

    def address(self, problem: Problem) -> tuple[Split, int]:
        """Split and index of a problem, from its id `NAME-SPLIT-INDEX`."""
        name, _, rest = problem.id.rpartition("-")
        name, _, split = name.rpartition("-")
        if name == self.name and split in ("train", "test") and rest.isascii() and rest.isdigit():
            return ("test" if split == "test" else "train"), int(rest)
        raise UserError(f"problem {problem.id!r} is not one of environment {self.name!r}")


def check_address(split: str, index: int) -> None:
    """Raises `UserError` for an unknown split and `IndexError` for a negative index."""
    if split not in ("train", "test"):
        raise UserError(f"unknown split {split!r}; known: test, train")
    if index < 0:
        raise IndexError(f"problem index {index} is negative")


@dataclass(frozen=True, slots=True)
class Item:
    """A problem with its gold, as a generator makes it."""

    prompt: Prompt
    gold: Gold
    public: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


class _State:
    """What a procedural environment caches; all of it can be computed again."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.items: dict[tuple[str, int], Item] = {}
        self.test_draws = array("q")
        self.test_keys: set[int] = set()
        self.next_draw = 0
        self.tables: dict[str, list[Any]] | None = None


class Procedural(SingleTurn):
    """Base of environments that compute their problems from (seed, split, index).

    Training problems are drawn with replacement (a problem may come back after a while); test problems are all
    different, so an evaluation never counts one twice. Where `enumerate_all` lists every problem there is, both
    splits are finite, shuffled by the seed, and without repeats.

    A subclass is a dataclass with a field `seed`, and gives `draw` and `item`.
    """

    seed: int
    test_one_in = TEST_ONE_IN
    """One key in so many belongs to the test split."""

    @outside.required()
    def draw(self, rng: Random) -> tuple[str, Any]:
        """Draw one problem: its key (what it asks, in a canonical form) and what `item` needs."""
        raise NotImplementedError

    @outside.required()
    def item(self, drawn: Any, split: Split, index: int) -> Item:
        """Write a drawn problem down."""
        raise NotImplementedError

    def enumerate_all(self) -> list[tuple[str, Any]] | None:
        """Every problem there is as (key, drawn), if they are few; None if they are not."""
        return None

    def size(self, split: Split) -> int | None:
        tables = self._tables()
        return len(tables[split]) if tables else None

    def problem(self, split: Split, index: int) -> Problem:
        item = self._at(split, index)
        return Problem(f"{self.name}-{split}-{index}", item.prompt, item.public, item.metadata)

    def gold(self, problem: Problem) -> Gold:
        return self._at(*self.address(problem)).gold

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_memory"}

    @property
    def _state(self) -> _State:
        # In __dict__, so that frozen dataclasses may have it and equality and hashing do not see it.
        return self.__dict__.get("_memory") or self.__dict__.setdefault("_memory", _State())

    def _at(self, split: Split, index: int) -> Item:
        items = self._state.items
        item = items.get((split, index))
        if item is None:
            check_address(split, index)
            if len(items) >= 4096:
                items.clear()
            item = items[split, index] = self.item(self._drawn(split, index), split, index)
        return item

    def _drawn(self, split: Split, index: int) -> Any:
        tables = self._tables()
        if tables:
            if index >= len(tables[split]):
                raise IndexError(f"{self.name} has {len(tables[split])} {split} problems, there is no index {index}")
            return tables[split][index]
        if split == "train":
            return self._draw_for(split, index)[1]
        with self._state.lock:
            self._find_tests(index + 1)
            number = self._state.test_draws[index]
        return self._draw_for(split, number)[1]

    def _draw_for(self, split: Split, number: int) -> tuple[str, Any]:
        rng = Random(stable_int(self.name, self.seed, split, number))
        for _ in range(100_000):
            key, drawn = self.draw(rng)
            if split_of(key, self.test_one_in) == split:
                return key, drawn
        raise UserError(f"{self.name}: these options leave no problem for the {split} split; widen their ranges")

    def _find_tests(self, count: int) -> None:
        state = self._state
        since = 0
        while len(state.test_draws) < count:
            key, _ = self._draw_for("test", state.next_draw)
            mark = stable_int(key)
            if mark in state.test_keys:
                since += 1
                if since > _PATIENCE:
                    found = len(state.test_draws)
                    raise IndexError(f"{self.name} has {found} test problems with these options, {count} were asked")
            else:
                since = 0
                state.test_keys.add(mark)
                state.test_draws.append(state.next_draw)
            state.next_draw += 1

    def _tables(self) -> dict[str, list[Any]] | None:
        state = self._state
        if state.tables is None:
            with state.lock:
                every = self.enumerate_all()
                tables: dict[str, list[Any]] = {} if every is None else {"train": [], "test": []}
                for key, drawn in every or ():
                    tables[split_of(key, self.test_one_in)].append(drawn)
                for split, rows in tables.items():
                    Random(stable_int(self.name, self.seed, split)).shuffle(rows)
                    if not rows:
                        raise UserError(f"{self.name}: these options leave no problem for the {split} split")
                state.tables = tables
        return state.tables or None
