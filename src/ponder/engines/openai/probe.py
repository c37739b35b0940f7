"""Finding out what an endpoint can do, by a few calls of a few tokens; once for an endpoint and model in a process.

An endpoint may refuse a field, take it, or take it and ignore it. So what counts is the effect: two samples came, the
same seed gave the same digits twice, a word that was cut in the middle was finished, a thought ended where it was told.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import threading
from typing import TYPE_CHECKING, Any

from ponder.engines.openai import faults
from ponder.engines.openai.faults import EndpointFailed
from ponder.engines.openai.findings import Findings
from ponder.engines.openai.wire import Malformed, Received, Sample, body
from ponder.errors import UserError
from ponder.types import Message, Request, SamplingParams, Spend, Thinking

if TYPE_CHECKING:
    from ponder.engines.openai import OpenAI
    from ponder.engines.openai.engine import OpenAIEngine

THINKING = ("thinking_token_budget", "thinking_budget", "chat_template_kwargs.thinking_budget", "reasoning.max_tokens")
"""Fields that bound a thought: vLLM; DashScope and others; templates that know one; OpenRouter."""
_DIGITS = "Say a random number of eight digits."
_WEEK = (Message("user", "Write the days of the week, beginning with Monday."),)
_CUT, _REST = "Monday, Tuesday, Wednes", "day"
_SHORT = 8
_LOST = {
    "n": "takes no n: samples are asked for one by one, and the prompt is paid for each",
    "logprobs": "gives no log-probabilities: nothing can be chosen by the model's own certainty",
    "seed": "keeps to no seed: a run will not repeat",
    "prefix": "does not continue a response that was begun: no search that branches, no forced end of a thought by a "
    "second call",
    "thinking": "bounds no thought in tokens",
}
_known: dict[str, concurrent.futures.Future[Findings]] = {}
_lock = threading.Lock()


def declared(options: OpenAI) -> Findings:
    """What the options say of the endpoint."""
    can = options.capabilities
    return Findings(
        n="n" in can,
        logprobs="logprobs" in can,
        seed="seed" in can,
        prefix="flags" if "prefix" in can else "",
        thinking=options.thinking_parameter if "thinking" in can else "",
    )


async def findings(engine: OpenAIEngine) -> tuple[Findings, Spend]:
    """What the endpoint can do, and what it has cost to find out: nothing for all who ask after the first.

    Warns of each capability that it lacks. Raises `UserError`, `EndpointFailed`.
    """
    key = f"{engine.options.url}\x1f{engine.model}\x1f{engine.options!r}"
    with _lock:
        future = _known.get(key)
        first = future is None
        if future is None:
            future = _known[key] = concurrent.futures.Future()
    if not first:
        found, spend = await asyncio.shield(asyncio.wrap_future(future)), Spend()
    else:
        probe = _Probe(engine)
        try:
            found = await probe.run()
        except BaseException as error:
            with _lock:
                _known.pop(key, None)
            failure = error if isinstance(error, Exception) else EndpointFailed("the probe was interrupted")
            future.set_exception(failure)
            with contextlib.suppress(Exception):
                future.exception()
            raise
        future.set_result(found)
        spend = probe.spend
    for name, sentence in _LOST.items():
        if not getattr(found, name):
            engine.say_once(f"it {sentence}")
    return found, spend


def forget() -> None:
    """Probe anew from here on, as after an endpoint was replaced."""
    with _lock:
        _known.clear()


class _Probe:
    def __init__(self, engine: OpenAIEngine) -> None:
        self.engine = engine
        self.spend = Spend()

    async def run(self) -> Findings:
        everything = Findings(n=True, logprobs=True, seed=True, usage="running", cuts=True)
        found, first = everything, await self._digits(everything)
        if isinstance(first, str):
            found, first = await self._one_by_one(everything, first)
        found = dataclasses.replace(
            found,
            n=found.n and len(first.samples) > 1 and bool(first.samples[1].finish),
            logprobs=found.logprobs and any(s.logprobs for s in first.samples),
            template_tokens=self._template(first),
            context=await self._context(),
            hidden=bool(first.reasoning_tokens) and not any(self._thinks(s) for s in first.samples),
        )
        if found.seed:
            again = await self._digits(found)
            found = dataclasses.replace(found, seed=not isinstance(again, str) and _same(first, again))
        found = await self._prefix(found)
        return await self._thinking(found, first)

    # Calls --------------------------------------------------------------------------------------------------------

    async def _digits(self, found: Findings) -> Received | str:
        params = SamplingParams(_SHORT, seed=1)
        return await self._ask(found, Request(_DIGITS, params, n=2 if found.n else 1))

    async def _one_by_one(self, everything: Findings, refusal: str) -> tuple[Findings, Received]:
        """Which fields it refuses."""
        found = Findings()
        first: Received | str = refusal
        for limit in ("max_tokens", "max_completion_tokens"):
            for usage in ("final", "none"):
                found = Findings(limit_field=limit, usage=usage)
                first = await self._digits(found)
                if isinstance(first, Received):
                    break
            if isinstance(first, Received):
                break
        if isinstance(first, str):
            raise UserError(f"{self.engine.options.url} refuses the simplest request: {first}")
        for name in ("n", "logprobs", "seed", "cuts", "usage"):
            if name == "usage" and found.usage == "none":
                continue
            more = dataclasses.replace(found, **{name: getattr(everything, name)})
            answer = await self._digits(more)
            if isinstance(answer, Received):
                found, first = more, answer
        return found, first

    async def _prefix(self, found: Findings) -> Findings:
        params = SamplingParams(4, temperature=0.0)
        for way in ("flags", "plain"):
            found = dataclasses.replace(found, prefix=way)
            if way == "flags" and await self._knows_flags(found):
                break
            answer = await self._ask(found, Request(_WEEK, params, prefix=_CUT))
            if isinstance(answer, Received) and answer.samples[0].raw.startswith(_REST):
                break
        else:
            return dataclasses.replace(found, prefix="")
        return dataclasses.replace(found, markers=await self._markers(found))

    async def _knows_flags(self, found: Findings) -> bool:
        """vLLM refuses both flags at once, and says so; whoever does not know them has nothing to say."""
        both = {"add_generation_prompt": True}
        answer = await self._ask(found, Request(_WEEK, SamplingParams(1), prefix=_CUT), both)
        return isinstance(answer, str) and "both" in answer and "continue_final_message" in answer

    async def _markers(self, found: Findings) -> tuple[tuple[str, int], ...]:
        form = self.engine.thought
        if form is None or self.engine.counter.exact:
            return ()
        counts = {}
        for text in ("", form.open, form.close):
            answer = await self._ask(found, Request(_WEEK, SamplingParams(1, temperature=0.0), prefix=_CUT + text))
            if isinstance(answer, str) or answer.prompt_tokens is None:
                return ()
            counts[text] = answer.prompt_tokens
        base = counts.pop("")
        # A template that takes thoughts out of a conversation makes it no longer.
        return tuple((text, n - base) for text, n in counts.items() if n > base)

    async def _thinking(self, found: Findings, first: Received) -> Findings:
        given = self.engine.options.thinking_parameter
        form = self.engine.thought
        # Only a thought that is still open shows whether a bound ends it.
        thinks = form is not None and any(self._thinks(s) and form.close not in s.text for s in first.samples)
        for name in (given,) if given else THINKING if thinks else ():
            candidate = dataclasses.replace(found, thinking=name)
            params = SamplingParams(6 * _SHORT, seed=1, thinking=Thinking(_SHORT // 2))
            answer = await self._ask(candidate, Request(_DIGITS, params))
            if isinstance(answer, Received) and form is not None:
                sample = answer.samples[0]
                thought, closed, _ = sample.text.partition(form.close)
                tokens = answer.reasoning_tokens or self.engine.counter.text(thought.removeprefix(form.open))
                if closed and (tokens < _SHORT or bool(given)):
                    return candidate
        return found

    def _thinks(self, sample: Sample) -> bool:
        form = self.engine.thought
        return sample.apart or (form is not None and form.open in sample.raw)

    async def _context(self) -> int:
        """Most tokens of prompt and response by the endpoint's list of models; 0 if it does not say."""
        try:
            listing: Any = await self.engine.lane().client.get("/models", cast_to=object)
            entry = next(e for e in listing["data"] if e.get("id") == self.engine.model)
        except Exception:
            # Not every endpoint has a list, and none of what follows depends on it.
            return 0
        for value in (entry.get("max_model_len"), entry.get("context_length"), entry.get("context_window")):
            if isinstance(value, int) and value > 0:
                return value
        return 0

    def _template(self, first: Received) -> int:
        if first.prompt_tokens is None:
            return Findings().template_tokens
        counter = self.engine.counter
        return max(0, first.prompt_tokens - (counter.text(_DIGITS) - 1 if counter.exact else 1))

    async def _ask(self, found: Findings, request: Request, more: dict[str, Any] | None = None) -> Received | str:
        """What comes, or what the endpoint says where it refuses. Raises what no other request would mend."""
        from openai import AsyncStream

        engine, options = self.engine, self.engine.options
        lane = engine.lane()
        fields = body(
            request,
            engine.model,
            found,
            request.params.max_tokens,
            {**options.body, **(more or {})},
            options.reasoning_effort,
        )
        for attempt in range(options.retries + 1):
            received = Received(request.n, engine.thought, request.prefix)
            entered = await lane.gate.enter()
            try:
                stream: Any = await lane.client.post(
                    "/chat/completions", cast_to=object, body=fields, stream=True, stream_cls=AsyncStream[object]
                )
                try:
                    async for chunk in stream:
                        received.feed(chunk)
                finally:
                    await stream.close()
                if not received.samples[0].finish:
                    raise Malformed("the stream ended before the response did")
                self._book(request, received)
                return received
            except Exception as error:
                fault = faults.read(error, options.api_key_env, engine.key)
                if fault.worked:
                    self._book(request, received)
                if fault.refusal and getattr(error, "status_code", 400) in (401, 403, 404):
                    raise faults.refuse(options.url, fault) from None
                if fault.refusal:
                    return fault.sentence
                wait = fault.wait if fault.wait is not None else options.backoff * 2**attempt
                if not fault.retry or attempt == options.retries or wait > options.max_wait:
                    raise EndpointFailed(f"{options.url} failed: {fault.sentence}", self.spend) from None
                if fault.busy:
                    lane.gate.slow_down(entered, wait)
            finally:
                lane.gate.leave()
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _book(self, request: Request, received: Received) -> None:
        counter, total = self.engine.counter, received.completion_tokens
        prompt = received.prompt_tokens
        if prompt is None:
            prompt = counter.prompt(request.prompt) + counter.text(str(request.prefix))
        if total is None:
            total = sum(counter.text(s.raw) + bool(s.finish) for s in received.samples)
        cached = received.cached_tokens
        self.spend += Spend(prompt_tokens=prompt - cached, cached_tokens=cached, sampled_tokens=total)


def _same(a: Received, b: Received) -> bool:
    return [s.raw for s in a.samples if s.finish] == [s.raw for s in b.samples if s.finish]
