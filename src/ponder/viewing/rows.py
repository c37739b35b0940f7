"""A line of `rollouts.jsonl` as the viewer lists it: what is filtered and sorted by, and what is searched.

Only the fields named here are decoded, since a line may hold megabytes of ids and log-probabilities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec

from ponder import figures
from ponder.errors import UserError
from ponder.reading import loads

FIELDS = (
    *("problem", "sample", "step", "index", "kinds", "stop", "tokens", "seconds"),
    *("answer", "prompt", "branches", "reward", "cut"),
)
"""Of a row, in its order: `kinds` are verdicts (of an evaluation the one of the chosen response, of a training those of
the whole group), `tokens` all that was spent, prompts included, `cut` whether the chosen response was truncated."""
LEFT_OUT = ("segments", "prompt_ids")
"""Fields of a sample that are for programs."""
SNIPPET = 160
"""Characters of a prompt in the list; an answer has half as many."""


class _Spend(msgspec.Struct):
    prompt_tokens: int = 0
    cached_tokens: int = 0
    sampled_tokens: int = 0
    forced_tokens: int = 0


class _Verdict(msgspec.Struct):
    kind: str = ""
    reason: str | None = None
    answer: Any = None


class _Sample(msgspec.Struct):
    id: Any = None
    text: str | None = None
    answer: Any = None
    finish: str | None = None
    verdict: _Verdict | None = None
    reward: float | None = None


class _Line(msgspec.Struct):
    problem: str | int
    samples: list[_Sample]
    prompt: Any = ""
    index: int | None = None
    sample: int | None = None
    step: int | float | None = None
    chosen: Any = None
    stop: str | None = None
    spend: _Spend = msgspec.field(default_factory=_Spend)
    verdict: _Verdict | None = None
    seconds: float | None = None
    text: str | None = None


_DECODER = msgspec.json.Decoder(_Line)


@dataclass(frozen=True, slots=True)
class Row:
    """One search in the list."""

    cells: tuple[Any, ...]
    """In the order of `FIELDS`."""
    text: str
    """What a full-text search looks in, in lower case: problem, prompt, every response, answers and reasons."""


def row(data: bytes) -> Row:
    """The row of a line. Raises `UserError` (a reason without the place) if the line is no search."""
    try:
        line = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        line = _lenient(data)
    chosen = next((s for s in line.samples if s.id == line.chosen and s.id is not None), None)
    said = line.verdict or (None if chosen is None else chosen.verdict)
    judged = [said] if line.step is None else [s.verdict for s in line.samples]
    rewards = [s.reward for s in line.samples if s.reward is not None and math.isfinite(s.reward)]
    answer = said.answer if said is not None and said.answer is not None else None if chosen is None else chosen.answer
    prompt = " ".join(_question(line.prompt).split())
    cells = (
        str(line.problem),
        line.sample or 0,
        _finite(line.step),
        line.index,
        [v.kind for v in judged if v is not None],
        line.stop or "",
        sum((line.spend.prompt_tokens, line.spend.cached_tokens, line.spend.sampled_tokens, line.spend.forced_tokens)),
        _finite(line.seconds),
        "" if answer is None else _short(" ".join(str(answer).split()), SNIPPET // 2),
        _short(prompt, SNIPPET),
        len(line.samples),
        sum(rewards) / len(rewards) if rewards else None,
        chosen is not None and chosen.finish == "length",
    )
    return Row(cells, _searched(line))


def _lenient(data: bytes) -> _Line:
    """The same for what the strict reader refuses, such as lone surrogates and NaN."""
    try:
        return msgspec.convert(loads(data), _Line)
    except ValueError as error:
        raise UserError(f"is not a search that this version of ponder reads ({error})") from None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _short(text: str, most: int) -> str:
    """Its beginning and its end, where it is too long: prompts with examples differ only at the end."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def _messages(prompt: Any) -> list[str]:
    if isinstance(prompt, list):
        return [str(m.get("content", "")) for m in prompt if isinstance(m, dict)]
    return [str(prompt)]


def _question(prompt: Any) -> str:
    return (_messages(prompt) or [""])[-1]


def _searched(line: _Line) -> str:
    parts = [str(line.problem), *_messages(line.prompt), line.text or ""]
    for sample in line.samples:
        parts += [sample.text or "", "" if sample.answer is None else str(sample.answer)]
        parts.append((sample.verdict and sample.verdict.reason) or "")
    if line.verdict is not None:
        parts.append(line.verdict.reason or "")
    return "\n".join(parts).lower()


def full(data: bytes) -> dict[str, Any]:
    """The whole of a line but for what is for programs. Raises `ValueError` for what is not JSON."""
    line: dict[str, Any] = loads(data)
    line["vote_share"] = figures.vote_share(line)
    for sample in line["samples"]:
        for name in LEFT_OUT:
            sample.pop(name, None)
    return line
