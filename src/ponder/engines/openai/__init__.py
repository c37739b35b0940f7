"""Any OpenAI-compatible endpoint: hosted, vLLM, SGLang, llama-server, Ollama, another ponder.

Importing this is quick; the `openai` client is imported when an endpoint is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ponder.engines.openai.options import EndpointOptions
from ponder.types import Spend

if TYPE_CHECKING:
    from ponder.engines.openai.engine import OpenAIEngine

__all__ = ["OpenAI"]


@dataclass(frozen=True)
class OpenAI(EndpointOptions):
    """An OpenAI-compatible endpoint: chat completions, always streamed, so that a cancelled call closes its connection.

    Token counts are the endpoint's own `usage`. Before a call is sent, and where a stream was cut or no usage came, a
    stated upper bound takes its place: UTF-8 bytes, or the tokens of `tokenizer`.
    """

    def open(self, model: str) -> OpenAIEngine:
        """An engine for a model of the endpoint; probes it first, once in a process, unless `probe` is false.

        From asynchronous code use `open_async`. Raises `MissingExtra` without the client, `UserError` for what the
        endpoint refuses, `EndpointFailed` if it does not answer.
        """
        return self.open_within(model)

    def open_within(
        self,
        model: str,
        tokens: int | None = None,
        seconds: float | None = None,
        known: Mapping[str, Any] | None = None,
    ) -> OpenAIEngine:
        """`open` under a budget of which so many tokens and seconds are left; see `probe.findings`.

        `known` is that of an earlier engine for this endpoint and model (`OpenAIEngine.known`): it is taken as it is.
        """
        from ponder import sync

        return sync.run(self.open_async(model, tokens, seconds, known))

    async def open_async(
        self,
        model: str,
        tokens: int | None = None,
        seconds: float | None = None,
        known: Mapping[str, Any] | None = None,
    ) -> OpenAIEngine:
        """`open_within` for asynchronous code."""
        from ponder.engines.openai.engine import OpenAIEngine
        from ponder.engines.openai.findings import recalled
        from ponder.engines.openai.probe import declared, findings

        engine = OpenAIEngine(self, model, declared(self))
        if self.probe:
            before = recalled(self.url, known)
            engine.take(*((before, Spend()) if before else await findings(engine.endpoint, tokens, seconds)))
        return engine
