"""Any OpenAI-compatible endpoint: hosted, vLLM, SGLang, llama-server, Ollama, another ponder.

Chat completions, always streamed: a call that is cancelled closes its connection, and its receipt says what it had cost
by then. There are no ids: log-probabilities are in `Completion.logprobs`. Importing this is quick; the `openai` client
is imported when an endpoint is opened.

    options.py      the options and their checks
    engine.py       the `Engine`; refuses what the endpoint cannot do
    endpoint.py     what calls and probe share: connections, token counts, findings
    probe.py        a few short calls that find out by their effect what the endpoint can do
    probe_calls.py  the probe's calls, each within what the probe may spend
    findings.py     what is known of an endpoint, declared or probed, and how it is saved
    calls.py        one call: retries within its reservation, what each attempt has cost
    wire.py         a request as a body
    stream.py       the chunks of a call, whether the endpoint streams them or answers as a whole
    received.py     chunks as samples, thoughts between markers; what is a repeated chunk
    parts.py        texts of a chunk: a text or a list of parts, thoughts beside it or in it
    tokens.py       upper bounds of token counts, exact where the endpoint has counted before
    lag.py          how far a slow reader may be behind the endpoint
    faults.py       an error: who caused it, whether to retry, whether anything was sampled
    gate.py         the limit on calls in flight

The words by which servers say why a response ended are in `engines/_ending.py`.
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
    stated upper bound is used: UTF-8 bytes, or the tokens of `tokenizer`.
    """

    def open(self, model: str) -> OpenAIEngine:
        """An engine for a model of the endpoint. It probes first, once in a process, unless `probe` is false.

        From asynchronous code use `open_async`. Raises `MissingExtra` without the client, `UserError` where the
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
        """`open` under a budget that has these tokens and seconds left; see `probe.findings`.

        `known` is from an earlier engine for this endpoint and model (`OpenAIEngine.known`): then nothing is probed.
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
