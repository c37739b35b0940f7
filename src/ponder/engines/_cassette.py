"""Cassettes: exact requests with what an engine answered, recorded once and replayed without the engine.

The first line says of which engine; each other one is a request and its completions:

    {"cassette": 1, "info": {...}, "capabilities": {...}, "weights_version"}
    {"request": {"prompt", "params", "n", "prefix"}, "prompt_tokens", "completions": [...]}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ponder.engines._recorded import RecordedEngine, lines, objects, parse_object
from ponder.errors import Unsupported, UserError
from ponder.protocols import Engine
from ponder.runs.files import append_line, mend_tail
from ponder.types import Capabilities, Completion, Delta, FinishReason, ModelInfo, Prompt, Request, to_json

FORMAT = 1


def is_cassette(path: Path) -> bool:
    """True if the first line of a file says so. Raises `UserError` for a file that is missing or no JSON Lines."""
    for number, line, _ in lines(path):
        return "cassette" in parse_object(line, f"{path}: line {number}")
    return False


class Recorder:
    """An engine around another one that writes down what it answers, each call as one whole line once it is there.

    What failed or was cancelled is not recorded. Of a request that comes twice the first answer counts. A cassette that
    exists is added to. Raises `UserError` if the file is of another model or no cassette.
    """

    def __init__(self, engine: Engine, path: str | Path) -> None:
        self._engine, self._path = engine, Path(path)
        self.info: ModelInfo = engine.info
        # Leases and weights are no calls whose answers could be recorded.
        self.capabilities = dataclasses.replace(engine.capabilities, leases=False, load_weights=False)
        mend_tail(self._path)
        head = {
            "cassette": FORMAT,
            "info": to_json(engine.info),
            "capabilities": to_json(self.capabilities),
            "weights_version": engine.weights_version,
        }
        if self._path.exists() and self._path.stat().st_size:
            old = _read(self._path)
            self._known = set(old.answers)
            if (old.info, old.weights_version) != (engine.info, engine.weights_version):
                raise UserError(
                    f"{self._path}: was recorded from {old.info.name} ({old.weights_version}), not "
                    f"{engine.info.name} ({engine.weights_version}); record to another file"
                )
        else:
            self._known = set()
            append_line(self._path, head)

    @property
    def weights_version(self) -> str:
        return self._engine.weights_version

    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        return self._engine.count_tokens(prompt)

    async def generate(self, request: Request) -> tuple[Completion, ...]:
        completions = await self._engine.generate(request)
        self._record(request, completions)
        return completions

    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        done: dict[int, Completion] = {}
        stream = self._engine.stream(request)
        try:
            async for delta in stream:
                if delta.completion is not None:
                    done[delta.sample] = delta.completion
                yield delta
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
        if len(done) == request.n:
            self._record(request, tuple(done[i] for i in sorted(done)))

    def _record(self, request: Request, completions: tuple[Completion, ...]) -> None:
        broken = any(c.error is not None or c.finish_reason is FinishReason.CANCELLED for c in completions)
        name = key(request)
        if broken or name in self._known or len(completions) != request.n:
            return
        append_line(
            self._path,
            {
                "request": _plain(request),
                "prompt_tokens": self._engine.count_tokens(request.prompt),
                "completions": [_answer(c) for c in completions],
            },
        )
        self._known.add(name)

    async def load_weights(self, source: Any, version: str) -> None:
        raise Unsupported("a cassette is of one version of the weights; record another one after loading new weights")

    async def close(self) -> None:
        await self._engine.close()


class CassetteEngine(RecordedEngine):
    """What a cassette holds, as the engine that it was recorded from."""

    def __init__(self, path: Path) -> None:
        tape = _read(path)
        super().__init__(path)
        self._tape = tape
        self.info, self.weights_version = tape.info, tape.weights_version
        self.capabilities = tape.capabilities

    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        """Raises `UserError` for a prompt that was not recorded."""
        count = self._tape.prompt_tokens.get(_digest(to_json(prompt)))
        if count is None:
            raise UserError(f"{self._path}: this prompt was not recorded, so its length is not known; record it first")
        return count

    def find(self, request: Request) -> tuple[Completion, ...]:
        """Raises `UserError` for a request that was not recorded."""
        found = self._tape.answers.get(key(request))
        if found is None:
            raise UserError(
                f"{self._path}: this request is not among the {len(self._tape.answers)} recorded ones "
                f"({_about(request)}); record it, or ask with the seed and options of the recording"
            )
        return found


@dataclass(frozen=True, slots=True)
class _Tape:
    info: ModelInfo
    capabilities: Capabilities
    weights_version: str
    answers: dict[str, tuple[Completion, ...]]
    prompt_tokens: dict[str, int]
    """By the digest of a prompt."""


def _read(path: Path) -> _Tape:
    """Raises `UserError` that names the line. A torn last line is passed over, as a call that was never made."""
    head: dict[str, Any] = {}
    answers: dict[str, tuple[Completion, ...]] = {}
    prompt_tokens: dict[str, int] = {}
    for _, where, value in objects(path, []):
        try:
            if not head:
                if value["cassette"] != FORMAT:
                    raise ValueError(f"its format is {value['cassette']}, this ponder reads {FORMAT}")
                head = {
                    "info": msgspec.convert(value["info"], ModelInfo),
                    "capabilities": msgspec.convert(value["capabilities"], Capabilities),
                    "weights_version": msgspec.convert(value["weights_version"], str),
                }
                continue
            found = msgspec.convert(value["completions"], tuple[Completion, ...])
            prompt_tokens[_digest(value["request"]["prompt"])] = msgspec.convert(value["prompt_tokens"], int)
            answers.setdefault(_digest(value["request"]), tuple(map(_free, found)))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{where} is not a line of a cassette: {reason}; record it again") from None
    if not head:
        raise UserError(f"{path}: is empty; a cassette begins with a line about its engine")
    return _Tape(answers=answers, prompt_tokens=prompt_tokens, **head)


def key(request: Request) -> str:
    """What a request is found by: all of it but its metadata."""
    return _digest(_plain(request))


def _plain(request: Request) -> dict[str, Any]:
    return {name: to_json(getattr(request, name)) for name in ("prompt", "params", "n", "prefix")}


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _answer(completion: Completion) -> Any:
    """A completion as plain values; ids of probability 0 are left out, JSON has no word for their logarithm."""
    value = to_json(completion)
    for segment in value["segments"]:
        if segment["top_logprobs"] is not None:
            segment["top_logprobs"] = [[p for p in top if math.isfinite(p[1])] for top in segment["top_logprobs"]]
    return value


def _free(completion: Completion) -> Completion:
    """A replayed call takes no time, no computing and no money; its tokens count."""
    return dataclasses.replace(
        completion, spend=dataclasses.replace(completion.spend, seconds=0.0, flops=0.0, dollars=0.0)
    )


def _about(request: Request) -> str:
    prompt = request.prompt if isinstance(request.prompt, str) else json.dumps(to_json(request.prompt))
    short = prompt if len(prompt) <= 40 else f"{prompt[:37]}..."
    return f"seed {request.params.seed}, n {request.n}, prompt {short!r}"
