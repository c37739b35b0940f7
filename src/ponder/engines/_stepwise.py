"""An engine over one function, from ids to the logits of the next: what `llamacpp` is beside its library.

One thread computes, one sample after another; a call that is cancelled ends between two tokens. For throughput use the
torch engine, which decodes many rows at once.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ponder.engines._text import TextStream, Vocabulary
from ponder.errors import EngineClosed, Unsupported, UserError
from ponder.models.base import LoadedModel
from ponder.types import (
    Capabilities,
    Completion,
    Delta,
    FinishReason,
    Prompt,
    Request,
    SamplingParams,
    Segment,
    SegmentKind,
    Spend,
)


class NextLogits(Protocol):
    """Logits of shape V after some ids, and how many of the ids had to be computed; stops when told to."""

    def __call__(self, ids: Sequence[int], stop: Callable[[], bool]) -> tuple[np.ndarray, int] | None: ...


@dataclass
class _Row:
    """One sample as it grows."""

    ids: list[int] = field(default_factory=list)
    runs: list[tuple[SegmentKind, list[int], list[float]]] = field(default_factory=list)
    begun: int = 0
    sampled: int = 0
    computed: int | None = None
    """Ids of prompt and prefix that had to be computed."""

    def add(self, kind: SegmentKind, ids: Sequence[int], logprob: float | None = None) -> None:
        if not self.runs or self.runs[-1][0] is not kind:
            self.runs.append((kind, [], []))
        self.runs[-1][1].extend(ids)
        if logprob is not None:
            self.runs[-1][2].append(logprob)
            self.sampled += 1
        self.ids.extend(ids)


class StepwiseEngine:
    """Samples from a model of which only tokenizer and next logits are known; see `protocols.Engine`.

    Log-probabilities are of the distribution that was sampled from, or the model's own with `logprobs_of="raw"`.
    """

    weights_version = ""
    capabilities = Capabilities(ids=True, logprobs=True, seed=True, n=True, prefix=True, thinking=True)

    def __init__(self, model: LoadedModel, logits: NextLogits, free: Callable[[], None] = lambda: None) -> None:
        """`model` has no module; `free` gives back what the function holds, on its thread."""
        self.model = model
        self.info = model.info
        self._logits, self._free = logits, free
        self._vocabulary = Vocabulary(model.tokenizer, model.tokenizer.vocab_size)
        thought = model.info.thought
        self._close = tuple(model.tokenizer.encode(thought.close, special=True)) if thought is not None else ()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ponder-stepwise")
        self._closed = threading.Event()

    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        return len(self.model.prompt_ids(prompt))

    async def generate(self, request: Request) -> tuple[Completion, ...]:
        completions = {}
        deltas = self._stream(request)
        try:
            async for delta in deltas:
                if delta.completion is not None:
                    completions[delta.sample] = delta.completion
        finally:
            await deltas.aclose()
        return tuple(completions[i] for i in range(request.n))

    def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        return self._stream(request)

    async def _stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        if self._closed.is_set():
            raise EngineClosed("the engine was closed")
        prompt, prefix = self._prepare(request)
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Delta | None]()
        gone = threading.Event()
        done: dict[int, Completion] = {}

        def tell(delta: Delta | None) -> None:
            if delta is not None and delta.completion is not None:
                done[delta.sample] = delta.completion
            loop.call_soon_threadsafe(events.put_nowait, delta)

        work = loop.run_in_executor(self._worker, self._work, request, prompt, prefix, gone, tell)
        work.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (delta := await events.get()) is not None:
                yield delta
            await work
        except BaseException as error:
            gone.set()
            await asyncio.gather(work, return_exceptions=True)
            error.completions = tuple(done[i] for i in sorted(done))  # type: ignore[attr-defined]
            error.spend = sum((c.spend for c in done.values()), Spend())  # type: ignore[attr-defined]
            raise

    def _prepare(self, request: Request) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Prompt and prefix as ids. Raises `UserError`, `Unsupported`."""
        p = request.params
        prompt = tuple(self.model.prompt_ids(request.prompt))
        encode = self.model.tokenizer.encode
        prefix = tuple(encode(request.prefix, special=True)) if isinstance(request.prefix, str) else request.prefix
        if not prompt:
            raise UserError("the prompt is empty: give at least one token")
        if request.n < 1 or len(prefix) >= p.max_tokens:
            raise UserError(
                f"n is {request.n}, max_tokens is {p.max_tokens} and the prefix has {len(prefix)} tokens: "
                "nothing is left to sample"
            )
        if not (p.temperature >= 0 and math.isfinite(p.temperature)):
            raise UserError(f"temperature is {p.temperature}: it must be 0 (greedy) or a positive number")
        if not 0 < p.top_p <= 1 or p.top_k < 0 or not 0 <= p.min_p <= 1:
            raise UserError(f"top_p {p.top_p}, top_k {p.top_k}, min_p {p.min_p}: give (0, 1], 0 or more, [0, 1]")
        if len(prompt) + p.max_tokens > self.info.context:
            raise UserError(
                f"the prompt has {len(prompt)} tokens and max_tokens is {p.max_tokens}, together more than the context "
                f"of {self.info.context} tokens of {self.info.name}; shorten the prompt or lower max_tokens"
            )
        if p.top_logprobs:
            raise Unsupported(f"the engine of {self.info.name} reports no top_logprobs; the torch engine does")
        if p.thinking is not None:
            if self.info.thought is None:
                raise Unsupported(f"{self.info.name} does not mark its thoughts: leave `thinking` out")
            if p.thinking.min_tokens and len(self._close) != 1:
                raise Unsupported("thinking.min_tokens needs an end-of-thought marker of one token")
        return prompt, prefix

    # On the thread ------------------------------------------------------------------------------------------------

    def _work(
        self,
        request: Request,
        prompt: tuple[int, ...],
        prefix: tuple[int, ...],
        gone: threading.Event,
        tell: Callable[[Delta | None], None],
    ) -> None:
        def stop() -> bool:
            return gone.is_set() or self._closed.is_set()

        for i in range(request.n):
            began, row = time.perf_counter(), _Row(begun=len(prefix))
            stream = TextStream(self._vocabulary, request.params.stop)
            if prefix:
                row.add(SegmentKind.FORCED, prefix)
            shown = 0
            finish = FinishReason.CANCELLED
            for finish in self._grow(request.params, prompt, row, i, stop):
                if finish is FinishReason.STOP or stop():
                    break
                piece = stream.push(row.ids[len(stream.ids) :])
                if piece:
                    tell(Delta(i, piece, tuple(row.ids[shown:])))
                    shown = len(row.ids)
            completion = self._completion(request, prompt, row, finish, time.perf_counter() - began)
            tell(Delta(i, stream.finish(completion.text), tuple(row.ids[shown:]), completion))
            if stop():
                break
        if self._closed.is_set():
            raise EngineClosed("the engine was closed")

    def _grow(self, p: SamplingParams, prompt: tuple[int, ...], row: _Row, index: int, stop: Callable[[], bool]) -> Any:
        """Sample token by token; yields after each what the response would end as if it ended there."""
        model, thinking, form = self.model, p.thinking, self.info.thought
        ends, rng = {*model.end_ids, *p.stop_ids}, np.random.default_rng([p.seed & (2**63 - 1), index])
        # The number for a position is the same whether the response was begun or not.
        rng.bit_generator.advance(row.begun)  # type: ignore[attr-defined]
        text = model.tokenizer.decode(row.ids)
        inside = form is not None and (
            form.open in text.rpartition(form.close)[2] or (form.opened_by_template and form.close not in text)
        )
        thought = len(row.ids) if inside else 0
        while len(row.ids) < p.max_tokens:
            if inside and thinking is not None and thinking.max_tokens is not None and thought >= thinking.max_tokens:
                row.add(SegmentKind.FORCED, self._close[: p.max_tokens - len(row.ids)])
                inside = False
                yield FinishReason.LENGTH
                continue
            step = self._logits((*prompt, *row.ids), stop)
            if step is None or stop():
                yield FinishReason.CANCELLED
                return
            logits, computed = step
            if row.computed is None:
                row.computed = computed
            token, logprob = draw(logits, p, float(rng.random()))
            if inside and thinking is not None and (token,) == self._close and thought < thinking.min_tokens:
                forced = model.tokenizer.encode(thinking.extend)[: p.max_tokens - len(row.ids)]
                row.add(SegmentKind.FORCED, forced)
                thought += len(forced)
                yield FinishReason.LENGTH
                continue
            row.add(SegmentKind.SAMPLED, (token,), logprob)
            if token in ends or (p.stop and self._vocabulary.stop_at(row.ids, p.stop) is not None):
                yield FinishReason.STOP
                return
            if form is not None:
                near = model.tokenizer.decode(row.ids[-16:])
                inside = not near.endswith(form.close) and (inside or near.endswith(form.open))
                thought += inside
            yield FinishReason.LENGTH

    def _completion(
        self, request: Request, prompt: tuple[int, ...], row: _Row, finish: FinishReason, seconds: float
    ) -> Completion:
        p, model = request.params, self.model
        ids = row.ids
        text = model.tokenizer.decode(ids[:-1] if ids and ids[-1] in {*model.end_ids, *p.stop_ids} else ids)
        if p.stop and finish is FinishReason.STOP and (at := self._vocabulary.stop_at(ids, p.stop)) is not None:
            text = text[:at]
        given = len(prompt) + row.begun
        computed = min(given, row.computed or 0) if row.ids[row.begun :] else 0
        forced = len(ids) - row.sampled - row.begun
        spend = Spend(
            prompt_tokens=computed,
            cached_tokens=given - computed if row.computed is not None else 0,
            sampled_tokens=row.sampled,
            forced_tokens=forced,
            seconds=seconds,
            flops=self.info.flops_per_token * (computed + row.sampled + forced),
        )
        segments = tuple(
            Segment(kind, tuple(run), tuple(values) if kind is SegmentKind.SAMPLED else None, "", p.logprobs_of)
            for kind, run, values in row.runs
        )
        return Completion(text, finish, spend, segments, prompt)

    # Life ---------------------------------------------------------------------------------------------------------

    async def load_weights(self, source: Any, version: str) -> None:
        """Raises `Unsupported`: the weights are the file's."""
        raise Unsupported(f"{self.info.name} is read from a file that is not trained: train with the torch engine")

    async def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            await asyncio.wrap_future(self._worker.submit(self._free))
            self._worker.shutdown(wait=False)


def draw(logits: np.ndarray, p: SamplingParams, u: float) -> tuple[int, float]:
    """One id by the inverse of the cumulated probability at `u` in [0, 1), and its log-probability.

    Temperature first, then top-k, top-p and min-p on what the temperature made; ties go to the smallest id.
    """
    raw = _log_softmax(logits.astype(np.float64))
    if p.temperature == 0:
        token = int(np.argmax(raw))
        return token, float(raw[token]) if p.logprobs_of == "raw" else 0.0
    logprobs = _log_softmax(raw / p.temperature)
    keep = np.ones(len(logprobs), dtype=bool)
    order = np.argsort(-logprobs, kind="stable")
    if p.top_k:
        keep[order[p.top_k :]] = False
    if p.top_p < 1:
        mass = np.cumsum(np.exp(logprobs[order]))
        keep[order[1:][mass[:-1] >= p.top_p]] = False
    if p.min_p:
        keep &= logprobs >= logprobs[order[0]] + math.log(p.min_p)
    logprobs = _log_softmax(np.where(keep, logprobs, -np.inf))
    cumulated = np.cumsum(np.exp(logprobs))
    token = int(np.searchsorted(cumulated, u * cumulated[-1], side="right"))
    return token, float(raw[token]) if p.logprobs_of == "raw" else float(logprobs[token])


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max()
    return x - math.log(float(np.exp(x).sum()))
