"""Recorded samples on disk: reading a pool, one problem with its samples a line; and what engines of them share.

    {"problem_id", "prompt"?, "gold"?, "difficulty"?, "thought"?, "samples": [{"text", "tokens", "finish_reason"?,
     "mean_logprob"?, "score"?, "correct"?}]}

`tokens` are those of the response. `thought` (how the model marks its thought, as `types.ThoughtFormat` has it) is
written by our own recorder and may be missing like all that is marked with `?`; fields of other names are passed over.
Checking is done here, so that whoever reads a pool (the replay engine, `ponder replay`) names the same line.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ponder import jsonl
from ponder.engines._deltas import total
from ponder.engines.base import BaseEngine
from ponder.errors import EngineClosed, Unsupported, UserError
from ponder.messages import read_prompt
from ponder.protocols import Delivery, Receipt, WeightsUpdate
from ponder.types import Completion, FinishReason, Prompt, Request, Spend, ThoughtFormat


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
    """What some scorer made of it; higher is better."""
    correct: bool | None = None
    """Somebody's judgement."""


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
    """Sentences about a torn last line that was passed over."""


def read_pool(path: str | Path) -> RecordedPool:
    """Read and check a pool (`.jsonl`, may be `.gz`).

    A torn last line is passed over with a note. Raises `UserError` with one sentence that names the file, the line and
    the field of whatever else is wrong.
    """
    path = Path(path)
    rows: list[RecordedRow] = []
    notes: list[str] = []
    seen: dict[str, int] = {}
    for number, where, value in jsonl.objects(path, torn=notes):
        row = _row(value, number, where)
        if row.id in seen:
            raise UserError(
                f"{where}: problem {row.id!r} is on line {seen[row.id]} already; give each problem one line"
            )
        seen[row.id] = number
        rows.append(row)
    return RecordedPool(path, tuple(rows), tuple(notes))


class RecordedEngine(BaseEngine):
    """What engines that answer from a file share."""

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
    name = value.get("problem_id")
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise UserError(f"{where}: 'problem_id' must be a name, and is {_shown(value, 'problem_id')}")
    samples = value.get("samples")
    if not isinstance(samples, list) or not samples:
        raise UserError(f"{where}: 'samples' must be a list of at least one sample, and is {_shown(value, 'samples')}")
    return RecordedRow(
        str(name),
        number,
        tuple(_sample(s, f"{where}, sample {i}") for i, s in enumerate(samples)),
        None if value.get("prompt") is None else read_prompt(value["prompt"], where),
        value.get("gold"),
        value.get("difficulty"),
        _thought(value.get("thought"), where),
    )


def _sample(value: Any, where: str) -> RecordedSample:
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a JSON object but {type(value).__name__}")
    text, tokens, finish, correct = (value.get(k) for k in ("text", "tokens", "finish_reason", "correct"))
    if not isinstance(text, str):
        raise UserError(f"{where}: 'text' must be text, and is {_shown(value, 'text')}")
    if isinstance(tokens, float) and tokens.is_integer():
        tokens = int(tokens)
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
        raise UserError(f"{where}: 'tokens' must be a whole number of 0 or more, and is {_shown(value, 'tokens')}")
    if correct is not None and not isinstance(correct, bool):
        raise UserError(f"{where}: 'correct' must be true or false, and is {_shown(value, 'correct')}")
    if finish is not None and not isinstance(finish, str):
        raise UserError(f"{where}: 'finish_reason' must be text, and is {_shown(value, 'finish_reason')}")
    score, mean_logprob = (_number(value, key, where) for key in ("score", "mean_logprob"))
    if mean_logprob is not None and mean_logprob > 0:
        raise UserError(f"{where}: 'mean_logprob' must be 0 or less, and is {mean_logprob}")
    return RecordedSample(text, tokens, _finish(finish), mean_logprob, score, correct)


def _finish(value: str | None) -> FinishReason | None:
    """A finish reason as endpoints spell it: whatever is no end of its own accord was cut off."""
    if value is None:
        return None
    return FinishReason.STOP if value.lower() in ("stop", "eos", "end_turn", "stop_sequence") else FinishReason.LENGTH


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


def _shown(value: dict[str, Any], key: str) -> str:
    if key not in value:
        return f"missing (fields: {', '.join(map(repr, value)) or 'none'})"
    text = json.dumps(value[key], ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
