"""The engine of one model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import weakref
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ponder.engines._deltas import collected
from ponder.engines.base import BaseEngine
from ponder.engines.openai.calls import Call
from ponder.engines.openai.findings import Findings, written
from ponder.engines.openai.gate import CLOSED, Gate
from ponder.engines.openai.tokens import Counter
from ponder.errors import EngineClosed, MissingExtra, Unsupported, UserError
from ponder.protocols import Delivery, Receipt, WeightsUpdate
from ponder.types import Completion, Delta, ModelInfo, Prompt, Request, Spend, ThoughtFormat

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from ponder.engines.openai import OpenAI

UNKNOWN_CONTEXT = 1 << 20
"""Tokens, where nobody says: the endpoint then refuses what is too long."""
_log = logging.getLogger(__name__)


@dataclass
class Lane:
    """What belongs to one event loop."""

    client: AsyncOpenAI
    gate: Gate


class OpenAIEngine(BaseEngine):
    """Samples from a model behind an endpoint; see `protocols.Engine`. `OpenAI.open` makes one.

    `opening` is what the probe has cost: it is in no completion's spend. Log-probabilities are as the endpoint gives
    them (of most: the model's own, before temperature) and without ids, in `Completion.logprobs`.
    """

    def __init__(self, options: OpenAI, model: str, findings: Findings) -> None:
        if not model:
            raise UserError(f"{options.url}: name a model of the endpoint")
        try:
            import openai  # noqa: F401
        except ImportError:
            raise MissingExtra("an OpenAI-compatible endpoint", "openai") from None
        self.options = options
        self.model = model
        self.opening = Spend()
        self.closed = False
        self.counter = Counter(options.tokenizer, 0, options.message_tokens)
        self.thought = None
        if options.thought_open:
            self.thought = ThoughtFormat(options.thought_open, options.thought_close, options.thought_opened)
        self.key = options.key
        self._lanes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Lane] = weakref.WeakKeyDictionary()
        self._said: set[str] = set()
        self.fastest = 0.0
        """Chunks of one sample per second, the most that was seen."""
        self.take(findings, Spend())

    def take(self, findings: Findings, spend: Spend) -> None:
        """Go by these findings, which cost so much."""
        self.findings = findings
        self.capabilities = findings.capabilities
        self.counter.template_tokens = self.options.template_tokens or findings.template_tokens
        self.counter.markers.update(findings.markers)
        self.opening += spend
        context = self.options.context or findings.context or UNKNOWN_CONTEXT
        self.info = ModelInfo(self.model, context, thought=self.thought, chat=True)

    @property
    def known(self) -> dict[str, Any]:
        """What the probe found, as plain values: with it another process need not ask again (`OpenAI.open_within`)."""
        return written(self.options.url, self.findings) if self.options.probe else {}

    def lane(self) -> Lane:
        """Client and gate of the running loop. The client retries nothing: retries are within what was reserved."""
        from openai import AsyncOpenAI

        loop = asyncio.get_running_loop()
        lane = self._lanes.get(loop)
        if lane is None:
            o = self.options
            client = AsyncOpenAI(
                api_key=self.key,
                base_url=o.url,
                organization=o.organization or None,
                project=o.project or None,
                timeout=o.timeout,
                max_retries=0,
            )
            lane = self._lanes[loop] = Lane(client, Gate(o.concurrency))
        return lane

    def say_once(self, sentence: str) -> None:
        """Warn, the first time."""
        if sentence not in self._said:
            self._said.add(sentence)
            _log.warning("%s at %s: %s", self.model, self.options.url, sentence)

    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        """At least what the endpoint will count for this prompt; what it counted, if it was sent before.

        Raises `Unsupported` for ids.
        """
        return self.counter.prompt(self._no_ids(prompt))

    def _no_ids(self, prompt: Prompt | tuple[int, ...]) -> Prompt:
        if isinstance(prompt, tuple) and any(isinstance(i, int) for i in prompt):
            raise Unsupported(f"{self.model} is behind an endpoint and takes no token ids: give text or messages")
        return prompt  # type: ignore[return-value]

    async def generate(self, request: Request, receipt: Receipt | None = None) -> tuple[Completion, ...]:
        return await collected(self.stream(request, receipt), request.n)

    async def stream(self, request: Request, receipt: Receipt | None = None) -> AsyncGenerator[Delta, None]:
        """Like `generate`, piece by piece: a chunk is read when the piece before it was taken.

        Where an attempt broke off and the next one says something else, the pieces end there; the completion has the
        whole text.
        """
        receipt = receipt or Receipt()
        if self.closed:
            receipt.settle(Spend())
            raise EngineClosed(CLOSED)
        self._check(request)
        async with contextlib.aclosing(Call(self, request, receipt).run()) as deltas:
            async for delta in deltas:
                yield delta

    def _check(self, request: Request) -> None:
        """Refuse what the endpoint cannot do. Raises `Unsupported`, `UserError`."""
        p, can = request.params, self.capabilities
        prompt = self._no_ids(request.prompt)
        if request.n < 1 or p.max_tokens < 1:
            raise UserError(f"n is {request.n} and max_tokens is {p.max_tokens}: ask for at least one sample and token")
        thinking = p.thinking
        for wanted, what in (
            (request.n > 1 and not can.n, "several samples in one call (n)"),
            (isinstance(request.prefix, tuple) and bool(request.prefix), "a response that begins with token ids"),
            (bool(request.prefix) and not can.prefix, "a response that was begun for it (prefix)"),
            (thinking is not None and thinking.max_tokens is not None and not can.thinking, "a bounded thought"),
            (thinking is not None and thinking.min_tokens > 0, "a thought of a least length (min_tokens)"),
            (bool(p.stop_ids), "stop_ids"),
            (p.top_logprobs > 0, "log-probabilities of other tokens (top_logprobs), which come by id"),
        ):
            if wanted:
                raise Unsupported(f"{self.model} at {self.options.url} cannot do {what}; the torch engine can")
        tokens = self.count_tokens(prompt)
        if tokens + p.max_tokens > self.info.context and self.counter.exact:
            raise UserError(
                f"the prompt has {tokens} tokens and max_tokens is {p.max_tokens}: that is more than the context of "
                f"{self.info.context} tokens of {self.model}; shorten the prompt or lower max_tokens"
            )

    async def load_weights(self, update: WeightsUpdate) -> Delivery:
        """Raises `Unsupported`: the weights are the endpoint's."""
        raise Unsupported(
            f"{self.model} is behind an endpoint, which keeps its own weights: train with the torch engine"
        )

    async def close(self) -> None:
        self.closed = True
        here = asyncio.get_running_loop()
        for loop, lane in list(self._lanes.items()):
            if loop is here:
                await _close(lane)
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_close(lane), loop))
        self._lanes.clear()

    def failing(self, error: Exception) -> Exception:
        """What the caller sees of an error: after `close`, that the engine was closed."""
        return EngineClosed(CLOSED) if self.closed else error

    def hide(self) -> None:
        """The endpoint thinks where nobody sees it."""
        if not self.findings.hidden:
            self.findings = dataclasses.replace(self.findings, hidden=True)
            self.say_once("it thinks unseen, so a call that is cut or cancelled is booked at its worst case")


async def _close(lane: Lane) -> None:
    lane.gate.close()
    await lane.client.close()
