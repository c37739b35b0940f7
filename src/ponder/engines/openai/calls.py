"""One call: attempts within its reservation, what each has cost, and what was received.

A stream that is cut may have tokens that were sampled and never arrived. They are booked as `in_flight_tokens` plus
what the endpoint's fastest stream gives in `in_flight_seconds`. Where the endpoint thinks without showing it, or the
reader was behind for longer than that, the worst case is booked. This estimate, and the count of a continued response
without a tokenizer (`tokens.py`), are the two bounds that rest on how the endpoint behaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import AsyncGenerator

from ponder.engines._deltas import total
from ponder.engines.openai import faults
from ponder.engines.openai.endpoint import Endpoint
from ponder.engines.openai.faults import EndpointFailed, Fault
from ponder.engines.openai.lag import Lag
from ponder.engines.openai.parts import Malformed
from ponder.engines.openai.received import Received, Sample
from ponder.engines.openai.stream import chunks
from ponder.engines.openai.tokens import apportion
from ponder.engines.openai.wire import body
from ponder.errors import EngineClosed, UserError
from ponder.protocols import Receipt
from ponder.types import Completion, Delta, FinishReason, Request, Spend, offered_tools

LEAST = 0.5
"""Share of the requested length: a retry with a lower limit than this would often be truncated."""
MOMENT = 0.05
"""Seconds that a reader may be behind the endpoint without counting as slow."""


class Call:
    """A request in flight. `run` gives its deltas; each sample's last one has its completion.

    The caller has reserved n × (prompt + max_tokens) for it. All attempts together stay within that: each failed one is
    booked at the most it may have cost, and the next asks for that much less. Where too little is left for another, the
    failure says how many attempts remain (`errors.Retryable`), and `budget/calling.py` reserves again as far as the
    budget allows.
    """

    def __init__(self, endpoint: Endpoint, request: Request, receipt: Receipt) -> None:
        self.endpoint = endpoint
        self.request = request
        self.receipt = receipt
        self.counter = endpoint.counter
        prompt = endpoint.count_tokens(request.prompt)
        assert not isinstance(request.prefix, tuple)
        self.begun = self.counter.response(request.prefix)
        self.prompt_bound = prompt + self.begun
        self.room = request.n * (prompt + request.params.max_tokens)
        self.longest = request.params.max_tokens - self.begun
        if self.longest < 1:
            raise UserError(
                f"the prefix may have {self.begun} tokens and max_tokens is {request.params.max_tokens}: nothing is "
                "left to sample; give more, or the engine's option tokenizer for a closer count"
            )
        self.wasted = Spend()
        """What failed attempts have cost."""
        self.shown = [""] * request.n
        self.entered: float | None = None
        self.began = self.sent = time.perf_counter()
        self.lag = Lag()

    async def run(self) -> AsyncGenerator[Delta, None]:
        """Deltas of the samples. Raises `UserError` if the endpoint refuses, `EndpointFailed` after the last retry."""
        options, attempt = self.endpoint.options, 0
        noise = random.Random(self.request.params.seed)
        while True:
            limit = self.longest if attempt == 0 else self._still()
            received = Received(
                self.request.n,
                self.endpoint.thought,
                self.request.prefix,  # type: ignore[arg-type]
                may_call=bool(offered_tools(self.request.prompt)),
            )
            try:
                async with contextlib.aclosing(self._attempt(received, limit)) as deltas:
                    async for delta in deltas:
                        yield delta
                completions = self._completions(received, limit)
                break
            except (asyncio.CancelledError, GeneratorExit, EngineClosed):
                self._settle_cut(received, limit)
                raise
            except Exception as error:
                if self.endpoint.closed:
                    self._settle_cut(received, limit)
                    raise EngineClosed(*self.endpoint.failing(error).args) from None
                fault = faults.read(error, options.api_key_env, self.endpoint.key)
                # A bug in this program, such as an unforeseen type in a chunk, is raised as it is.
                if not fault.retry and not fault.refusal and not fault.sentence.startswith("status"):
                    self._settle_cut(received, limit)
                    raise
                entered, self.entered = self.entered, self.entered if fault.worked else None
                failed = self._failure(fault, attempt, received, limit, entered)
            if failed is not None:
                raise failed
            wait = fault.wait if fault.wait is not None else options.backoff * 2**attempt * (0.5 + noise.random() / 2)
            attempt += 1
            await self._pause(wait)
        self.receipt.settle(total(completions), tuple(completions))
        for i, completion in enumerate(completions):
            yield Delta(i, self._unshown(i, completion.text), (), completion)

    def _failure(
        self, fault: Fault, attempt: int, received: Received, limit: int, entered: float | None
    ) -> Exception | None:
        """Book a failed attempt, and settle the call if it was the last. Returns what to raise, None for a retry."""
        options = self.endpoint.options
        completions = self._cut(received, limit, fault.sentence)
        self.wasted = sum((c.spend for c in completions), self.wasted if not completions else Spend())
        self.entered = None
        if fault.busy and entered is not None:
            wait = fault.wait if fault.wait is not None else options.backoff
            self.endpoint.lane().gate.slow_down(entered, min(wait, options.max_wait))
        if fault.refusal:
            self.receipt.settle(self.wasted)
            return faults.refuse(options.url, fault)
        more, wait = 0, fault.wait if fault.wait is not None else options.backoff
        if fault.retry and attempt < options.retries and (fault.wait or 0.0) <= options.max_wait:
            if self._still() >= LEAST * self.longest:
                return None
            more = options.retries - attempt
            why = f"; what was reserved ({self.room} tokens) has no room for a retry"
        elif fault.retry and (fault.wait or 0.0) > options.max_wait:
            why = f"; it asks to wait {fault.wait:g} s, and max_wait is {options.max_wait:g} s"
        else:
            why = f", {attempt + 1} times in a row" if attempt else ""
        self.receipt.settle(self.wasted, completions)
        return EndpointFailed(f"{options.url} failed: {fault.sentence}{why}", more, wait)

    def _still(self) -> int:
        """Tokens of each response that the next attempt may ask for."""
        left = self.room - self.wasted.tokens - self.prompt_bound
        return min(self.longest, left // self.request.n)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.receipt.settle(self.wasted)
            raise

    async def _attempt(self, received: Received, limit: int) -> AsyncGenerator[Delta, None]:
        endpoint, options = self.endpoint, self.endpoint.options
        lane = endpoint.lane()
        fields = body(self.request, endpoint.model, endpoint.findings, limit, options.body, options.reasoning_effort)
        entered = await lane.gate.enter()
        self.receipt.begin()
        well = False
        try:
            if endpoint.closed:
                raise EngineClosed(*endpoint.failing(RuntimeError()).args)
            self.entered, self.sent, self.lag = entered, time.perf_counter(), Lag()
            async with chunks(lane.client, fields) as stream:
                async for chunk in stream:
                    for i in received.feed(chunk):
                        new = self._show(i, received.samples[i].text)
                        if new:
                            self.lag.turn(held=True)
                            yield Delta(i, new)
                            self.lag.turn(held=False)
            received.check()
            self._check_repeats(received)
            well = True
            endpoint.fastest = max(endpoint.fastest, self._pace(received))
        finally:
            lane.gate.leave(well=well)

    def _check_repeats(self, received: Received) -> None:
        """Raise `Malformed` if chunks came twice: more tokens than the endpoint counted, and equal chunks explain it.

        An endpoint that sends pieces smaller than tokens, or does not count all of them, does so without equal chunks
        too; then nothing follows from its count.
        """
        over = received.over
        if over > received.alike:
            self.endpoint.counts_pieces = False
        if over and self.endpoint.counts_pieces:
            raise Malformed(f"the stream repeats itself: {over} more pieces than tokens")

    # Text ---------------------------------------------------------------------------------------------------------

    def _show(self, i: int, text: str) -> str:
        """What a piece adds to the text shown so far; nothing where this attempt repeats the last one or differs."""
        shown = self.shown[i]
        if not text.startswith(shown):
            return ""
        self.shown[i] = text
        return text[len(shown) :]

    def _unshown(self, i: int, whole: str) -> str:
        prefix = self.request.prefix
        assert isinstance(prefix, str)
        return self._show(i, whole[len(prefix) :])

    # What it cost -------------------------------------------------------------------------------------------------

    def _completions(self, received: Received, limit: int) -> list[Completion]:
        """The samples of a finished stream; each could have `limit` tokens."""
        endpoint, request, counter = self.endpoint, self.request, self.counter
        samples, total = received.samples, received.completion_tokens
        if total is None or received.prompt_tokens is None:
            endpoint.say_once(
                "it returns no usage, so tokens are "
                + ("counted with the tokenizer" if counter.exact else "booked at an upper bound, their bytes")
            )
        if total is None:
            bounds = tokens = [min(limit, self._seen(s)) for s in samples]
        elif all(s.running is not None for s in samples) and sum(s.running or 0 for s in samples) == total:
            tokens = bounds = [s.running or 0 for s in samples]
        else:
            least = [max(s.least, s.running or 0) for s in samples]
            tokens = apportion(total, least)
            bounds = [max(1, total - sum(least) + t) for t in least]
        if received.reasoning_tokens and not any(s.separate or self._marked(s) for s in samples):
            endpoint.hide()
        prompt, cached = received.prompt_tokens, received.cached_tokens
        if prompt is None:
            prompt = self.prompt_bound
        elif not request.prefix:
            short = counter.learn_prompt(request.prompt, prompt)  # type: ignore[arg-type]
            if short:
                endpoint.say_once(
                    f"it counted {short} prompt tokens more than were reserved: give template_tokens or tokenizer"
                )
        completions = []
        for i, (sample, count, bound) in enumerate(zip(samples, tokens, bounds, strict=True)):
            spend = Spend(sampled_tokens=count, seconds=time.perf_counter() - self.began)
            if i == 0:
                spend += Spend(prompt_tokens=prompt - cached, cached_tokens=cached) + self.wasted
            text = f"{request.prefix}{sample.text}"
            counter.learn_response(text, self.begun + bound)
            completions.append(self._completion(sample, sample.finish_reason, spend, sample.error))
        return completions

    def _cut(self, received: Received, limit: int, error: str | None) -> tuple[Completion, ...]:
        """The samples of a stream that was cut, at their worst-case cost; () if nothing was sent."""
        if self.entered is None:
            return ()
        completions = []
        prompt = received.prompt_tokens if received.prompt_tokens is not None else self.prompt_bound
        total = received.completion_tokens if received.usage is not None else None
        for i, sample in enumerate(received.samples):
            if self.endpoint.findings.hidden:
                count = limit
            elif sample.finish and sample.running is not None:
                count = sample.running
            else:
                seen = sample.running if sample.running is not None else self._seen(sample)
                count = min(limit, seen + (0 if sample.finish else self._under_way(received, limit)))
            if total is not None and self.request.n == 1 and sample.finish:
                count = total
            spend = Spend(sampled_tokens=count, seconds=time.perf_counter() - self.began if i == 0 else 0.0)
            if i == 0:
                cached = received.cached_tokens
                spend += Spend(prompt_tokens=prompt - cached, cached_tokens=cached) + self.wasted
            completions.append(self._completion(sample, FinishReason.CANCELLED, spend, error))
        return tuple(completions)

    def _pace(self, received: Received) -> float:
        """Chunks per second of the fastest sample since the call was sent."""
        return max(s.pieces for s in received.samples) / max(1e-6, time.perf_counter() - self.sent)

    def _under_way(self, received: Received, limit: int) -> int:
        """Tokens of one sample that may have been sampled and not read when a stream is cut.

        With a slow reader it may be all that are left.
        """
        options, behind = self.endpoint.options, self.lag.seconds
        pace = max(self.endpoint.fastest, self._pace(received))
        if behind > max(MOMENT, options.in_flight_seconds):
            return limit
        return options.in_flight_tokens + math.ceil(pace * (options.in_flight_seconds + behind))

    def _settle_cut(self, received: Received, limit: int) -> None:
        """Settle the receipt of a call that is cut: its cost and samples so far."""
        completions = self._cut(received, limit, None)
        self.receipt.settle(total(completions) if completions else self.wasted, completions)

    def _seen(self, sample: Sample) -> int:
        """Bound for the tokens received: those with a log-probability, else of the text; plus the end token."""
        if not len(sample.logprobs) >= sample.pieces > 0:
            tokens = max(sample.pieces, self.counter.text(sample.text))
        else:
            tokens = len(sample.logprobs)
            form = self.endpoint.thought
            if sample.separate and form is not None:
                # The endpoint strips the thought markers, so these tokens have no log-probability.
                tokens += self.counter.text(form.open) + self.counter.text(form.close)
        calls = sum(self.counter.call(r["name"], r["arguments"]) for r in sample.calls.values())
        return tokens + calls + bool(sample.finish)

    def _marked(self, sample: Sample) -> bool:
        form = self.endpoint.thought
        return form is not None and (form.open in sample.raw or form.close in sample.raw)

    def _completion(self, sample: Sample, finish: FinishReason, spend: Spend, error: str | None) -> Completion:
        logprobs = tuple(sample.logprobs) or None
        text = f"{self.request.prefix}{sample.text}"
        return Completion(
            text,
            finish,
            spend,
            error=error,
            logprobs=logprobs,
            params=self.request.params,
            tool_calls=sample.tool_calls,
        )
