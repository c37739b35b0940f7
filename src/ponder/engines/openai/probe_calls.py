"""The probe's calls: before each one is sent, its worst case is checked against what the probe may spend."""

from __future__ import annotations

import asyncio
from typing import Any

from ponder.engines.openai import faults
from ponder.engines.openai.endpoint import Endpoint
from ponder.engines.openai.faults import EndpointFailed
from ponder.engines.openai.findings import Findings
from ponder.engines.openai.parts import Malformed
from ponder.engines.openai.received import Received
from ponder.engines.openai.stream import chunks
from ponder.engines.openai.wire import body
from ponder.types import Request, Spend


class NoRoom(Exception):
    """A call of the probe may cost more than the probe has left; it was not sent."""


class ProbeCalls:
    """Calls the endpoint, and books the cost of each call: the worst case for one that failed midway."""

    def __init__(self, endpoint: Endpoint, tokens: int | None = None) -> None:
        """`tokens` is the most that all calls together may cost, prompt and response; None is no limit."""
        self.endpoint = endpoint
        self.tokens = tokens
        self.spend = Spend()

    def worst(self, request: Request) -> Spend:
        """The worst case of a call; an endpoint may count the prompt once per sample."""
        prompt = self.endpoint.count_tokens(request.prompt) + self.endpoint.counter.text(str(request.prefix))
        return Spend(prompt_tokens=request.n * prompt, sampled_tokens=request.n * request.params.max_tokens)

    async def ask(self, found: Findings, request: Request, more: dict[str, Any] | None = None) -> Received | str:
        """The answer, or the endpoint's message if it refuses.

        Raises `NoRoom`, and errors that no other request would avoid.
        """
        endpoint, options = self.endpoint, self.endpoint.options
        lane = endpoint.lane()
        assert isinstance(request.prefix, str)
        fields = body(
            request,
            endpoint.model,
            found,
            request.params.max_tokens,
            {**options.body, **(more or {})},
            options.reasoning_effort,
        )
        for attempt in range(options.retries + 1):
            worst = self.worst(request)
            if self.tokens is not None and self.spend.tokens + worst.tokens > self.tokens:
                raise NoRoom(
                    f"a call may take {worst.tokens} tokens, and {self.tokens - self.spend.tokens} of the "
                    f"{self.tokens} that the budget allows the probe are left"
                )
            received = Received(request.n, endpoint.thought, request.prefix)
            entered = await lane.gate.enter()
            try:
                async with chunks(lane.client, fields) as stream:
                    async for chunk in stream:
                        received.feed(chunk)
                if not received.samples[0].finish:
                    raise Malformed("the stream ended before the response did")
                if received.over > received.alike:
                    endpoint.counts_pieces = False
                self.spend += self._cost(request, received)
                return received
            except asyncio.CancelledError:
                self.spend += worst
                raise
            except Exception as error:
                fault = faults.read(error, options.api_key_env, endpoint.key)
                if fault.worked:
                    self.spend += worst
                if fault.refusal and getattr(error, "status_code", 400) in (401, 403, 404):
                    raise faults.refuse(options.url, fault) from None
                if fault.refusal:
                    return fault.sentence
                wait = fault.wait if fault.wait is not None else options.backoff * 2**attempt
                if not fault.retry or attempt == options.retries or wait > options.max_wait:
                    raise EndpointFailed(f"{options.url} failed: {fault.sentence}") from None
                if fault.busy:
                    lane.gate.slow_down(entered, wait)
            finally:
                lane.gate.leave()
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _cost(self, request: Request, received: Received) -> Spend:
        """The endpoint's count for a finished call, bounds where it gave none."""
        counter, total, prompt = self.endpoint.counter, received.completion_tokens, received.prompt_tokens
        worst = self.worst(request)
        if prompt is None:
            prompt = worst.prompt_tokens
        if total is None:
            seen = sum(counter.text(s.raw) + bool(s.finish) for s in received.samples)
            total = min(seen, worst.sampled_tokens)
        cached = received.cached_tokens
        return Spend(prompt_tokens=prompt - cached, cached_tokens=cached, sampled_tokens=total)
