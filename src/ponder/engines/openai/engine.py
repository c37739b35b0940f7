"""The engine of one model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from ponder.engines._deltas import collected
from ponder.engines.base import BaseEngine
from ponder.engines.openai.calls import Call
from ponder.engines.openai.endpoint import Endpoint
from ponder.engines.openai.findings import Findings, written
from ponder.engines.openai.gate import CLOSED
from ponder.engines.openai.options import EndpointOptions
from ponder.errors import EngineClosed, TooLong, Unsupported, UserError
from ponder.protocols import Delivery, Receipt, WeightsUpdate
from ponder.types import Completion, Delta, ModelInfo, Prompt, Request, Spend

UNKNOWN_CONTEXT = 1 << 20
"""Tokens, where the context is not known: the endpoint then refuses what is too long."""


class OpenAIEngine(BaseEngine):
    """Samples from a model behind an endpoint; see `protocols.Engine`. `OpenAI.open` makes one.

    `opening` is the cost of the probe: it is in no completion's spend. Log-probabilities are as the endpoint gives
    them (mostly the model's own, before temperature) and without ids, in `Completion.logprobs`.
    """

    queues = True

    def __init__(self, options: EndpointOptions, model: str, findings: Findings) -> None:
        self.endpoint = Endpoint(options, model, findings)
        self.opening = Spend()
        self.take(findings, Spend())

    def take(self, findings: Findings, spend: Spend) -> None:
        """Use these findings, and count their cost."""
        endpoint = self.endpoint
        endpoint.take(findings)
        self.capabilities = findings.capabilities
        self.opening += spend
        context = endpoint.options.context or findings.context or UNKNOWN_CONTEXT
        self.info = ModelInfo(endpoint.model, context, thought=endpoint.thought, chat=True)

    @property
    def findings(self) -> Findings:
        """What is known of the endpoint so far."""
        return self.endpoint.findings

    @property
    def known(self) -> dict[str, Any]:
        """What the probe found, as plain values, so that another process need not probe (`OpenAI.open_within`)."""
        options = self.endpoint.options
        return written(options.url, self.findings) if options.probe else {}

    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        """Upper bound of what the endpoint will count for this prompt; its own count, if it was sent before.

        Raises `Unsupported` for ids.
        """
        return self.endpoint.count_tokens(prompt)

    async def generate(self, request: Request, receipt: Receipt | None = None) -> tuple[Completion, ...]:
        return await collected(self.stream(request, receipt), request.n)

    async def stream(self, request: Request, receipt: Receipt | None = None) -> AsyncGenerator[Delta, None]:
        """Like `generate`, piece by piece: a chunk is read when the previous piece was taken (back-pressure).

        Where an attempt failed and the retry gives another text, the pieces end there; the completion has the whole
        text.
        """
        receipt = receipt or Receipt()
        if self.endpoint.closed:
            receipt.settle(Spend())
            raise EngineClosed(CLOSED)
        self._check(request)
        async with contextlib.aclosing(Call(self.endpoint, request, receipt).run()) as deltas:
            async for delta in deltas:
                yield delta

    def _check(self, request: Request) -> None:
        """Check that the endpoint can do what is asked. Raises `Unsupported`, `UserError`."""
        p, can, endpoint = request.params, self.capabilities, self.endpoint
        tokens = endpoint.count_tokens(request.prompt)
        if request.n < 1 or p.max_tokens < 1:
            raise UserError(f"n is {request.n} and max_tokens is {p.max_tokens}: ask for at least one sample and token")
        thinking = p.thinking
        for wanted, what in (
            (request.n > 1 and not can.n, "several samples in one call (n)"),
            (isinstance(request.prefix, tuple) and bool(request.prefix), "a response that begins with token ids"),
            (bool(request.prefix) and not can.prefix, "a response with a given beginning (prefix)"),
            (thinking is not None and thinking.max_tokens is not None and not can.thinking, "a bounded thought"),
            (thinking is not None and thinking.min_tokens > 0, "a thought of a minimum length (min_tokens)"),
            (bool(p.stop_ids), "stop_ids"),
            (p.top_logprobs > 0, "log-probabilities of other tokens (top_logprobs), which come by id"),
        ):
            if wanted:
                raise Unsupported(f"{endpoint.model} at {endpoint.options.url} cannot do {what}; the torch engine can")
        if tokens + p.max_tokens > self.info.context and endpoint.counter.exact:
            raise TooLong(
                f"the prompt has {tokens} tokens and max_tokens is {p.max_tokens}: that is more than the context of "
                f"{self.info.context} tokens of {endpoint.model}; shorten the prompt or lower max_tokens"
            )

    async def load_weights(self, update: WeightsUpdate) -> Delivery:
        """Raises `Unsupported`: the weights are the endpoint's."""
        raise Unsupported(
            f"{self.info.name} is behind an endpoint, which keeps its own weights: train with the torch engine"
        )

    async def close(self) -> None:
        await self.endpoint.close()
