"""The probe: finding out what an endpoint can do with a few short calls, once per endpoint and model in a process.

An endpoint may refuse a field, take it, or take it and ignore it. So the effect counts: two samples came, the same seed
gave the same digits twice, a word that was cut in the middle was completed, a thought ended at its limit. The cost is
bounded by the budget under which the engine is opened, see `findings`. It is the engine's `opening`, in no completion's
spend; commands add it to their spend and report it separately.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import itertools
import threading
import time
from typing import Any

from ponder.engines.openai.endpoint import Endpoint
from ponder.engines.openai.faults import EndpointFailed
from ponder.engines.openai.findings import Findings
from ponder.engines.openai.options import EndpointOptions
from ponder.engines.openai.probe_calls import NoRoom, ProbeCalls
from ponder.engines.openai.received import Received, Sample
from ponder.errors import UserError
from ponder.types import Message, Request, SamplingParams, Spend, Thinking

THINKING = ("thinking_token_budget", "thinking_budget", "chat_template_kwargs.thinking_budget", "reasoning.max_tokens")
"""Fields that bound a thought: vLLM; DashScope and others; templates that know one; OpenRouter."""
SHARE = 4
"""The probe takes at most 1/SHARE of what is left of a budget."""
_DIGITS = "Say a random number of eight digits."
_WEEK = (Message("user", "Write the days of the week, beginning with Monday."),)
_CUT, _REST = "Monday, Tuesday, Wednes", "day"
_SHORT = 8
_LOST = {
    "n": "takes no n: samples are requested one by one, and the prompt is paid for each",
    "logprobs": "gives no log-probabilities: responses cannot be ranked by the model's own certainty",
    "seed": "ignores seeds: a run will not repeat",
    "prefix": "does not continue a given response: no search that branches, no forced end of thought by a second call",
    "thinking": "cannot bound a thought in tokens",
}
_known: dict[str, concurrent.futures.Future[Findings]] = {}
_lock = threading.Lock()


def declared(options: EndpointOptions) -> Findings:
    """What the options declare about the endpoint."""
    can = options.capabilities
    return Findings(
        n="n" in can,
        logprobs="logprobs" in can,
        seed="seed" in can,
        prefix="flags" if "prefix" in can else "",
        thinking=options.thinking_parameter if "thinking" in can else "",
        **_stated(options),
    )


def _stated(options: EndpointOptions) -> dict[str, Any]:
    """Fields of the findings that the options give, with the probe and without."""
    return {name: value for name in ("limit_field", "usage") if (value := getattr(options, name))}


async def findings(
    endpoint: Endpoint, tokens: int | None = None, seconds: float | None = None
) -> tuple[Findings, Spend]:
    """What the endpoint can do, and the cost of finding out: nothing for all callers after the first.

    `tokens` and `seconds` are what is left of the tightest budget. The probe takes a quarter of it at most, each call
    at its worst case before it is sent. A call that does not fit is skipped: its capability is taken as absent, and a
    warning gives the numbers and says how to fix it. So a small budget still buys an answer, and the probe does not use
    it up. A search that needs a capability taken as absent is refused by its strategy, so nothing changes silently.

    Warns of each capability that the endpoint lacks. Raises `UserError`, `EndpointFailed`.
    """
    key = f"{endpoint.options.url}\x1f{endpoint.model}\x1f{endpoint.options!r}"
    with _lock:
        future = _known.get(key)
        first = future is None
        if future is None:
            future = _known[key] = concurrent.futures.Future()
    if not first:
        found, spend = await asyncio.shield(asyncio.wrap_future(future)), Spend()
    else:
        probe, began = _Probe(endpoint, tokens, seconds), time.perf_counter()
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
        if found.unasked:
            # A caller with a larger budget may probe the rest.
            with _lock:
                _known.pop(key, None)
        future.set_result(found)
        spend = probe.calls.spend + Spend(seconds=time.perf_counter() - began)
    if found.unasked:
        endpoint.say_once(
            f"the budget is too small to find out whether it can do {', '.join(found.unasked)} ({found.why}), so it "
            "is taken as absent: give a larger budget, or say what it can do with the engine's options probe=false and "
            "capabilities"
        )
    for name, sentence in _LOST.items():
        if not getattr(found, name) and name not in found.unasked:
            endpoint.say_once(f"it {sentence}")
    return found, spend


def forget() -> None:
    """Forget all findings, as after an endpoint was replaced."""
    with _lock:
        _known.clear()


class _Probe:
    def __init__(self, endpoint: Endpoint, tokens: int | None, seconds: float | None) -> None:
        self.endpoint = endpoint
        self.calls = ProbeCalls(endpoint, None if tokens is None else tokens // SHARE)
        self.seconds = None if seconds is None else seconds / SHARE
        self.found = declared(endpoint.options)
        """What is certain so far."""
        self.unasked = list(_LOST)
        """Capabilities that are not known yet."""
        self.why = ""

    async def run(self) -> Findings:
        """Run what fits into the budget. Raises `UserError`, `EndpointFailed`."""
        timeout = asyncio.timeout(self.seconds)
        try:
            if self.seconds == 0:
                raise NoRoom("no seconds are left")
            async with timeout:
                await self._look()
        except NoRoom as error:
            self.why = str(error)
        except TimeoutError:
            if not timeout.expired():
                raise
            self.why = f"the probe's {self.seconds:.3g} seconds of the budget are used up"
        return dataclasses.replace(self.found, unasked=tuple(self.unasked), why=self.why if self.unasked else "")

    async def _look(self) -> None:
        found, first, tried = await self._simplest()
        self.found = dataclasses.replace(
            found,
            n=found.n and len(first.samples) > 1 and bool(first.samples[1].finish),
            logprobs=found.logprobs and any(s.logprobs for s in first.samples),
            seed=False,
            template_tokens=self._template(first),
            hidden=bool(first.reasoning_tokens) and not any(self._thinks(s) for s in first.samples),
        )
        # The bounds of later calls are closer with it.
        self.endpoint.counter.template_tokens = self.endpoint.options.template_tokens or self.found.template_tokens
        self._know(*(name for name in tried if name != "seed" or not found.seed))
        self.found = dataclasses.replace(self.found, context=await self._context())
        steps = {"seed": self._seed, "prefix": self._prefix, "thinking": self._thinking}
        for name in [name for name in steps if name in self.unasked and (name != "seed" or found.seed)]:
            try:
                self.found = await steps[name](first)
                self._know(name)
            except NoRoom as error:
                self.why = self.why or str(error)
        if self.found.prefix:
            with contextlib.suppress(NoRoom):
                self.found = dataclasses.replace(self.found, markers=await self._markers())

    def _know(self, *names: str) -> None:
        self.unasked = [name for name in self.unasked if name not in names]

    # Calls --------------------------------------------------------------------------------------------------------

    async def _digits(self, found: Findings) -> Received | str:
        params = SamplingParams(_SHORT, seed=1)
        return await self.calls.ask(found, Request(_DIGITS, params, n=2 if found.n else 1))

    async def _simplest(self) -> tuple[Findings, Received, set[str]]:
        """The fields that the endpoint takes (tried together, else singly), its answer, and which fields were tried."""
        stated = _stated(self.endpoint.options)
        everything = Findings(n=True, logprobs=True, seed=True, cuts=True, **{"usage": "running", **stated})
        first = await self._digits(everything)
        if isinstance(first, Received):
            return everything, first, {"n", "logprobs", "seed"}
        found, refusal = Findings(), first
        ways = itertools.product(("max_tokens", "max_completion_tokens"), ("final", "none"))
        # Fields that the options give do not vary.
        for found in dict.fromkeys(
            Findings(**{"limit_field": limit, "usage": usage, **stated}) for limit, usage in ways
        ):
            first = await self._digits(found)
            if isinstance(first, Received):
                break
            refusal = first
        if isinstance(first, str):
            raise UserError(f"{self.endpoint.options.url} refuses the simplest request: {refusal}")
        tried: set[str] = set()
        for name in ("n", "logprobs", "seed", "cuts", "usage"):
            if name == "usage" and found.usage in ("none", everything.usage):
                continue
            more = dataclasses.replace(found, **{name: getattr(everything, name)})
            try:
                answer = await self._digits(more)
            except NoRoom as error:
                self.why = self.why or str(error)
                continue
            tried.add(name)
            if isinstance(answer, Received):
                found, first = more, answer
        return found, first, tried

    async def _seed(self, first: Received) -> Findings:
        found = dataclasses.replace(self.found, seed=True)
        again = await self._digits(found)
        return dataclasses.replace(found, seed=not isinstance(again, str) and _same(first, again))

    async def _prefix(self, first: Received) -> Findings:
        params = SamplingParams(4, temperature=0.0)
        for way in ("flags", "plain"):
            found = dataclasses.replace(self.found, prefix=way)
            if way == "flags" and await self._knows_flags(found):
                return found
            answer = await self.calls.ask(found, Request(_WEEK, params, prefix=_CUT))
            if isinstance(answer, Received) and answer.samples[0].raw.startswith(_REST):
                return found
        return self.found

    async def _knows_flags(self, found: Findings) -> bool:
        """vLLM refuses both flags at once with a message; an endpoint that does not know them ignores them."""
        both = {"add_generation_prompt": True}
        answer = await self.calls.ask(found, Request(_WEEK, SamplingParams(1), prefix=_CUT), both)
        return isinstance(answer, str) and "both" in answer and "continue_final_message" in answer

    async def _markers(self) -> tuple[tuple[str, int], ...]:
        form = self.endpoint.thought
        if form is None or self.endpoint.counter.exact:
            return ()
        counts = {}
        for text in ("", form.open, form.close):
            request = Request(_WEEK, SamplingParams(1, temperature=0.0), prefix=_CUT + text)
            answer = await self.calls.ask(self.found, request)
            if isinstance(answer, str) or answer.prompt_tokens is None:
                return ()
            counts[text] = answer.prompt_tokens
        base = counts.pop("")
        # A template that strips thoughts from a conversation adds no tokens.
        return tuple((text, n - base) for text, n in counts.items() if n > base)

    async def _thinking(self, first: Received) -> Findings:
        given = self.endpoint.options.thinking_parameter
        form = self.endpoint.thought
        # Only a thought that is still open shows whether a bound ends it.
        thinks = form is not None and any(self._thinks(s) and form.close not in s.text for s in first.samples)
        for name in (given,) if given else THINKING if thinks else ():
            candidate = dataclasses.replace(self.found, thinking=name)
            params = SamplingParams(6 * _SHORT, seed=1, thinking=Thinking(_SHORT // 2))
            answer = await self.calls.ask(candidate, Request(_DIGITS, params))
            if isinstance(answer, Received) and form is not None:
                sample = answer.samples[0]
                thought, closed, _ = sample.text.partition(form.close)
                tokens = answer.reasoning_tokens or self.endpoint.counter.text(thought.removeprefix(form.open))
                if closed and (tokens < _SHORT or bool(given)):
                    return candidate
        return self.found

    def _thinks(self, sample: Sample) -> bool:
        form = self.endpoint.thought
        return sample.separate or (form is not None and form.open in sample.raw)

    async def _context(self) -> int:
        """Most tokens of prompt and response by the endpoint's model list; 0 if it does not say."""
        try:
            listing: Any = await self.endpoint.lane().client.get("/models", cast_to=object)
            entry = next(e for e in listing["data"] if e.get("id") == self.endpoint.model)
        except Exception:
            # Not every endpoint has a list, and nothing else depends on it.
            return 0
        for value in (entry.get("max_model_len"), entry.get("context_length"), entry.get("context_window")):
            if isinstance(value, int) and value > 0:
                return value
        return 0

    def _template(self, first: Received) -> int:
        if first.prompt_tokens is None:
            return Findings().template_tokens
        counter = self.endpoint.counter
        return max(0, first.prompt_tokens - (counter.text(_DIGITS) - 1 if counter.exact else 1))


def _same(a: Received, b: Received) -> bool:
    return [s.raw for s in a.samples if s.finish] == [s.raw for s in b.samples if s.finish]
