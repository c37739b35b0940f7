"""One model behind an endpoint, shared by its calls and its probe: connections, token counts and findings."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ponder.engines.openai.findings import Findings
from ponder.engines.openai.gate import CLOSED, Gate
from ponder.engines.openai.options import EndpointOptions
from ponder.engines.openai.tokens import Counter
from ponder.errors import EngineClosed, MissingExtra, Unsupported, UserError
from ponder.types import Prompt, ThoughtFormat

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_log = logging.getLogger(__name__)


@dataclass
class Lane:
    """The client and gate of one event loop."""

    client: AsyncOpenAI
    gate: Gate


class Endpoint:
    """What the calls of one engine share. Raises `UserError` without a model, `MissingExtra` without the client."""

    def __init__(self, options: EndpointOptions, model: str, findings: Findings) -> None:
        if not model:
            raise UserError(f"{options.url}: name a model of the endpoint")
        try:
            import openai  # noqa: F401
        except ImportError:
            raise MissingExtra("an OpenAI-compatible endpoint", "openai") from None
        self.options = options
        self.model = model
        self.closed = False
        self.counter = Counter(options.tokenizer, 0, options.message_tokens)
        self.thought = None
        if options.thought_open:
            self.thought = ThoughtFormat(options.thought_open, options.thought_close, options.thought_opened)
        self.key = options.key
        self._lanes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Lane] = weakref.WeakKeyDictionary()
        self._said: set[str] = set()
        self.fastest = 0.0
        """Most chunks per second of one sample that were seen."""
        self.counts_pieces = True
        """No response had more pieces than the endpoint counted tokens, repeats aside."""
        self.take(findings)

    def take(self, findings: Findings) -> None:
        """Use these findings."""
        self.findings = findings
        self.counter.template_tokens = self.options.template_tokens or findings.template_tokens
        self.counter.markers.update(findings.markers)

    def lane(self) -> Lane:
        """Client and gate of the running loop. The client does not retry: `calls.py` does, within the reservation."""
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
        """Upper bound of what the endpoint will count for this prompt; its own count, if it was sent before.

        Raises `Unsupported` for ids.
        """
        return self.counter.prompt(self.no_ids(prompt))

    def no_ids(self, prompt: Prompt | tuple[int, ...]) -> Prompt:
        """The prompt. Raises `Unsupported` for ids."""
        if isinstance(prompt, tuple) and any(isinstance(i, int) for i in prompt):
            raise Unsupported(f"{self.model} is behind an endpoint and takes no token ids: give text or messages")
        return prompt  # type: ignore[return-value]

    async def close(self) -> None:
        """Fail all waiting calls, and close the connections."""
        self.closed = True
        here = asyncio.get_running_loop()
        for loop, lane in list(self._lanes.items()):
            if loop is here:
                await _close(lane)
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_close(lane), loop))
        self._lanes.clear()

    def failing(self, error: Exception) -> Exception:
        """The error that the caller sees: after `close`, that the engine was closed."""
        return EngineClosed(CLOSED) if self.closed else error

    def hide(self) -> None:
        """Note that the endpoint thinks without showing it."""
        if not self.findings.hidden:
            self.findings = dataclasses.replace(self.findings, hidden=True)
            self.say_once("it hides its thoughts, so a call that is cut or cancelled is booked at its worst case")


async def _close(lane: Lane) -> None:
    lane.gate.close()
    await lane.client.close()
