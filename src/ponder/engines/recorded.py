"""Recorded samples on disk: reading a pool, one problem with its samples a line; and the base of engines over them.

Three kinds of file are read:

- what `ponder eval --record` writes, in the format of `search.record`;
- the `rollouts.jsonl` of an evaluation, in the same format: of each search the whole responses (those that no other
  continues), the searches of one problem together in the order of `sample`, of a search that was run again the last
  line;
- pools from elsewhere: `{"problem_id", "prompt"?, "gold"?, "difficulty"?, "thought"?, "samples": [{"text", "tokens",
  "finish_reason"?, "mean_logprob"?, "score"?, "correct"?}]}`. Fields marked with `?` may be missing.

Other fields are ignored. Checks are done here, so that every reader of a pool (the replay engine, `ponder replay`)
names the same line.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ponder import jsonl
from ponder.engines._deltas import total
from ponder.engines._ending import Ending, finish_word, meaning
from ponder.engines.base import BaseEngine
from ponder.errors import EngineClosed, Unsupported, UserError
from ponder.messages import read_prompt
from ponder.protocols import Delivery, Receipt, WeightsUpdate
from ponder.runs.lines import check
from ponder.types import Completion, FinishReason, Prompt, Request, Spend, ThoughtFormat, VerdictKind


@dataclass(frozen=True, slots=True)
class RecordedSample:
    """One response of a pool; what was not recorded is None."""

    text: str
    tokens: int
    """Response tokens."""
    finish: FinishReason | None = None
    mean_logprob: float | None = None
    """Mean log-probability of its tokens, in nats."""
    score: float | None = None
    """The score that some scorer gave; higher is better."""
    correct: bool | None = None
    """The recorded verdict."""


@dataclass(frozen=True, slots=True)
class RecordedRow:
    """One problem of a pool."""

    id: str
    line: int
    samples: tuple[RecordedSample, ...]
    prompt: Prompt | None = None
    gold: Any = None
    """As it is in the file; None if there is none."""
    difficulty: Any = None
    thought: ThoughtFormat | None = None


@dataclass(frozen=True, slots=True)
class RecordedPool:
    """What a pool file holds."""

    path: Path
    rows: tuple[RecordedRow, ...]
    notes: tuple[str, ...] = ()
    """Sentences about what was skipped: a torn last line, problems without a whole response."""


def read_pool(path: str | Path) -> RecordedPool:
    """Read and check a pool (`.jsonl`, may be `.gz`).

    A torn last line is skipped with a note, and so is a problem without a whole response. Raises `UserError`
    with one sentence that names the file, the line and the field of whatever else is wrong.
    """
    path = Path(path)
    notes: list[str] = []
    found: dict[str, dict[int | None, RecordedRow]] = {}
    """By problem, and by number of the search where there is one."""
    for number, where, value in jsonl.objects(path, torn=notes):
        try:
            row = _row(value, number, where)
        except OverflowError:
            check(value, where)
            raise
        search = None if "problem_id" in value else _whole_number(value, "sample", where)
        parts = found.setdefault(row.id, {})
        if parts:
            first = next(iter(parts.values()))
            if search is None or None in parts:
                raise UserError(f"{where}: problem {row.id!r} is on line {first.line} already; give each one line")
            if row.prompt != first.prompt:
                raise UserError(f"{where}: problem {row.id!r} has another prompt than on line {first.line}")
        check(value, where)
        parts[search] = row
    rows = [_together(parts) for parts in found.values()]
    kept = tuple(row for row in rows if row.samples)
    if not kept:
        raise UserError(f"{path}: no problem has a whole response")
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept)} of {len(rows)} problems have no whole response and are left out")
    return RecordedPool(path, kept, tuple(notes))


def _together(searches: dict[int | None, RecordedRow]) -> RecordedRow:
    """The samples of all searches of a problem, in the order of their numbers."""
    first = next(iter(searches.values()))
    ordered = [searches[number] for number in sorted(searches, key=lambda n: n or 0)]
    return dataclasses.replace(first, samples=tuple(s for row in ordered for s in row.samples))


class RecordedEngine(BaseEngine):
    """Base of engines that answer from a file."""

    def __init__(self, path: Path) -> None:
        self._path, self._closed = path, False

    async def generate(self, request: Request, receipt: Receipt | None = None) -> tuple[Completion, ...]:
        """Raises `EngineClosed`, and `UserError` for what is not recorded."""
        receipt = receipt or Receipt()
        if self._closed:
            receipt.settle(Spend())
            raise EngineClosed(f"{self._path}: its engine is closed; open it again")
        completions = self.find(request)
        receipt.settle(total(completions), completions)
        return completions

    def find(self, request: Request) -> tuple[Completion, ...]:
        """The recorded answer."""
        raise NotImplementedError

    async def load_weights(self, update: WeightsUpdate) -> Delivery:
        raise Unsupported(f"{self._path} holds recorded answers and takes no weights")

    async def close(self) -> None:
        self._closed = True


def _row(value: dict[str, Any], number: int, where: str) -> RecordedRow:
    own_format = "problem_id" not in value
    if own_format and "step" in value:
        raise UserError(
            f"{where}: rollouts of a training ('step'), whose samples are of other weights at each step: give the "
            "rollouts.jsonl of an evaluation, or what `ponder eval --record` wrote"
        )
    field = "problem" if own_format else "problem_id"
    name = value.get(field)
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise UserError(f"{where}: {field!r} must be a name, and is {_shown(value, field)}")
    samples = value.get("samples")
    # A search that failed at once has no samples.
    if not isinstance(samples, list) or not (samples or isinstance(value.get("stop"), str)):
        raise UserError(f"{where}: 'samples' must be a list of at least one sample, and is {_shown(value, 'samples')}")
    for i, sample in enumerate(samples):
        if not isinstance(sample, dict):
            raise UserError(f"{where}, sample {i} is not a JSON object but {type(sample).__name__}")
    places = [p for p in _leaves(samples, where) if _whole(samples[p])] if own_format else range(len(samples))
    metadata = value.get("metadata")
    return RecordedRow(
        str(name),
        number,
        tuple(_sample(samples[p], f"{where}, sample {p}") for p in places),
        None if value.get("prompt") is None else read_prompt(value["prompt"], where),
        value.get("gold"),
        value.get("difficulty", metadata.get("difficulty") if isinstance(metadata, dict) else None),
        _thought(value.get("thought"), where),
    )


def _leaves(samples: Sequence[dict[str, Any]], where: str) -> Sequence[int]:
    """Indices of the samples that no other continues, in the order of those that they began as."""
    ids, parents = (
        [_whole_number(s, field, f"{where}, sample {i}") for i, s in enumerate(samples)] for field in ("id", "parent")
    )
    if all(parent is None for parent in parents):
        return range(len(samples))
    above = dict(zip(ids, parents, strict=True))

    def path(at: int | None) -> list[int]:
        found: list[int] = []
        while at is not None and at not in found:
            found.append(at)
            at = above.get(at)
        return found[::-1]

    return sorted((p for p, i in enumerate(ids) if i not in parents), key=lambda p: path(ids[p]))


def _whole(sample: Mapping[str, Any]) -> bool:
    """False for a response that failed or was cancelled."""
    return sample.get("error") is None and sample.get("finish") != FinishReason.CANCELLED.value


def _sample(value: dict[str, Any], where: str) -> RecordedSample:
    text = value.get("text")
    if not isinstance(text, str):
        raise UserError(f"{where}: 'text' must be text, and is {_shown(value, 'text')}")
    tokens = _whole_number(value, "tokens", where)
    if tokens is None or tokens < 0:
        raise UserError(f"{where}: 'tokens' must be a whole number of 0 or more, and is {_shown(value, 'tokens')}")
    field = "finish" if "finish" in value else "finish_reason"
    finish = value.get(field)
    if finish is not None and not isinstance(finish, str):
        raise UserError(f"{where}: {field!r} must be text, and is {_shown(value, field)}")
    score, mean_logprob = (_number(value, key, where) for key in ("score", "mean_logprob"))
    if mean_logprob is not None and mean_logprob > 0:
        raise UserError(f"{where}: 'mean_logprob' must be 0 or less, and is {mean_logprob}")
    return RecordedSample(text, tokens, _finish(finish), mean_logprob, score, _correct(value, where))


def _correct(value: dict[str, Any], where: str) -> bool | None:
    """The recorded verdict: its kind, or true or false."""
    verdict, correct = value.get("verdict"), value.get("correct")
    if isinstance(verdict, dict):
        kind = verdict.get("kind")
        return None if kind in (None, VerdictKind.JUDGE_ERROR.value) else kind == VerdictKind.CORRECT.value
    if correct is not None and not isinstance(correct, bool):
        raise UserError(f"{where}: 'correct' must be true or false, and is {_shown(value, 'correct')}")
    return correct


def _whole_number(value: Mapping[str, Any], field: str, where: str) -> int | None:
    """A number of something, None where it is missing; `3.0` counts."""
    number = value.get(field)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
        raise UserError(f"{where}: {field!r} must be a whole number of 0 or more, and is {_shown(value, field)}")
    return number


def _finish(value: str | None) -> FinishReason | None:
    """A finish reason as endpoints spell it: everything but a natural stop counts as truncated."""
    word = finish_word(value)
    if not word:
        return None
    return FinishReason.STOP if meaning(word) is Ending.STOPPED else FinishReason.LENGTH


def _number(value: dict[str, Any], key: str, where: str) -> float | None:
    number = value.get(key)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise UserError(f"{where}: {key!r} must be a number, and is {_shown(value, key)}")
    return float(number)


def _thought(value: Any, where: str) -> ThoughtFormat | None:
    if value is None:
        return None
    if isinstance(value, dict) and isinstance(value.get("open"), str) and isinstance(value.get("close"), str):
        return ThoughtFormat(value["open"], value["close"], value.get("opened_by_template") is True)
    raise UserError(f"{where}: 'thought' must be an object with the texts open and close")


def _shown(value: Mapping[str, Any], key: str) -> str:
    if key not in value:
        return f"missing (fields: {', '.join(map(repr, value)) or 'none'})"
    text = json.dumps(value[key], ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
