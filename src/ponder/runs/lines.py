"""The lines of `rollouts.jsonl` as they are read: a value that no search can have is one sentence, wherever it stands.

Whoever reads a line counts, divides and sorts by its values. `search.record` says what a line holds; what is not named
here is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ponder import jsonl
from ponder.config import sentence
from ponder.errors import UserError

Count = Annotated[int, msgspec.Meta(ge=0, le=10**15)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e300)]
Number = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]


class _Spend(msgspec.Struct):
    prompt_tokens: Count = 0
    cached_tokens: Count = 0
    sampled_tokens: Count = 0
    forced_tokens: Count = 0
    trained_tokens: Count = 0
    verifier_calls: Count = 0
    flops: Amount = 0.0
    seconds: Amount = 0.0
    device_seconds: Amount = 0.0
    dollars: Amount = 0.0


class _Verdict(msgspec.Struct):
    kind: str = ""
    reward: Number | None = None
    reason: str = ""


class _Sample(msgspec.Struct):
    id: int | str | None = None
    parent: int | str | None = None
    tokens: Count | None = None
    mean_logprob: Number | None = None
    score: Number | None = None
    verdict: _Verdict | None = None
    check: _Verdict | None = None
    spend: _Spend | None = None
    weights_version: int | None = None
    reward: Number | None = None


class _Line(msgspec.Struct):
    problem: str | None = None
    chosen: int | str | None = None
    index: Count | None = None
    sample: Count | None = None
    step: Count | None = None
    vote_share: Number | None = None
    seconds: Amount | None = None
    at: Amount | None = None
    spend: _Spend | None = None
    verdict: _Verdict | None = None
    samples: list[_Sample] | None = None


def check(row: dict[str, Any], where: str) -> None:
    """Raises `UserError` for a line with a value that no search can have."""
    try:
        msgspec.convert(row, _Line)
    except msgspec.ValidationError as error:
        raise UserError(f"{where} is no search that ponder wrote: {sentence(str(error))}") from None


def searches(path: Path, torn: list[str] | None = None) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number, place and object of each line of `rollouts.jsonl`, as `jsonl.objects` gives them; none without a file."""
    for number, where, row in jsonl.objects(path, torn=torn, some=False):
        check(row, where)
        yield number, where, row
