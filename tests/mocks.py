"""A model, an environment and faults for tests: no torch, deterministic, and everything that happens is counted.

`MockEngine` has a character tokenizer: every character is one token, `<think>` and `</think>` are one token each, and
so is the end-of-sequence token (id 0). Its output is scripted: a text, a list of texts (sample `i` gets number `i`), or
a function of the request and the sample's own random generator.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ponder.engines._deltas import collected, total
from ponder.engines.base import BaseEngine
from ponder.environments.turns import OneStep
from ponder.errors import EngineClosed, TooLong
from ponder.protocols import Answers, Delivery, Episode, Feedback, Receipt, WeightsUpdate
from ponder.types import (
    Capabilities,
    Completion,
    Delta,
    FinishReason,
    Gold,
    ModelInfo,
    Problem,
    Prompt,
    Request,
    Response,
    Segment,
    SegmentKind,
    Spend,
    Split,
    ThoughtFormat,
    Verdict,
    VerdictKind,
)

THOUGHT = ThoughtFormat("<think>", "</think>", opened_by_template=True)
END, OPEN, CLOSE = 0, 1, 2
ALL = Capabilities(ids=True, logprobs=True, seed=True, n=True, prefix=True, thinking=True, exact=True)
_SPECIAL = {"<think>": OPEN, "</think>": CLOSE}
_TOKEN = re.compile(r"<think>|</think>|.", re.DOTALL)

Texts = str | Sequence[str] | Callable[[Request, random.Random], str]


def encode(text: str) -> list[int]:
    return [_SPECIAL.get(t) or ord(t) for t in _TOKEN.findall(text)]


def decode(ids: Sequence[int]) -> str:
    return "".join({OPEN: "<think>", CLOSE: "</think>", END: ""}.get(i) or chr(i) for i in ids if i != END)


@dataclass
class MockEngine(BaseEngine):
    """An engine with scripted output that counts its calls."""

    texts: Texts = "</think>42"
    """The scripted output: the whole response, without the end-of-sequence token."""
    capabilities: Capabilities = ALL
    thought: ThoughtFormat | None = THOUGHT
    context: int = 100_000
    chat: bool = False
    delay: Callable[[Request], float] | float = 0.0
    """Seconds that a call takes; a stream spreads them over its tokens."""
    fail: Callable[[int, Request], BaseException | None] | None = None
    """Given the call's number (from 0): what to raise after the delay, or None."""
    tells_spend: bool = True
    """Settle the receipt of a cancelled or failed call."""
    info: ModelInfo = field(init=False)
    weights_version: int = 0
    calls: int = 0
    requests: list[Request] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0
    """Most samples in flight at once."""
    cancelled: int = 0
    sent: int = 0
    """Pieces of streams that were asked for."""
    used: Spend = field(default_factory=Spend)
    """What was really used, cancelled and failed calls included."""
    closed: bool = False

    def __post_init__(self) -> None:
        self.info = ModelInfo(
            "mock", self.context, parameters=1000, flops_per_token=2000.0, thought=self.thought, chat=self.chat
        )

    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        return len(self._prompt_ids(prompt))

    def _prompt_ids(self, prompt: Prompt | tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(encode(prompt))
        if all(isinstance(i, int) for i in prompt):
            return prompt  # type: ignore[return-value]
        return tuple(encode("".join(f"[{m.role}]{m.content}" for m in prompt)))  # type: ignore[union-attr]

    # One sample ---------------------------------------------------------------------------------------------------

    def _wanted(self, request: Request, sample: int) -> str:
        if callable(self.texts):
            text = self.texts(request, random.Random(f"{request.params.seed} {sample}"))
        else:
            text = self.texts if isinstance(self.texts, str) else self.texts[sample % len(self.texts)]
        if not request.prefix:
            return text
        if text.startswith(request.prefix):
            return text[len(request.prefix) :]
        return text.rpartition("</think>")[2]

    def complete(self, request: Request, sample: int) -> Completion:
        """What the engine answers for one sample."""
        params = request.params
        prefix = request.prefix if isinstance(request.prefix, str) else decode(request.prefix)
        request = dataclasses.replace(request, prefix=prefix)
        ids = [(i, SegmentKind.FORCED) for i in encode(prefix)]
        wanted = [*encode(self._wanted(request, sample)), END]
        inside = self.thought is not None and self.thought.opened_by_template and CLOSE not in encode(prefix)
        thought = 0
        finish, text_end, stop = FinishReason.LENGTH, None, None
        while len(ids) < params.max_tokens:
            thinking = params.thinking
            if thinking is not None and inside and thinking.max_tokens is not None and thought >= thinking.max_tokens:
                ids.append((CLOSE, SegmentKind.FORCED))
                inside = False
                # A model whose thought is forced to end answers what it would have answered.
                wanted = wanted[wanted.index(CLOSE) + 1 :] if CLOSE in wanted else [END]
                continue
            token = wanted.pop(0) if wanted else END
            early = thinking is not None and inside and token == CLOSE and thought < thinking.min_tokens
            if early and thinking is not None:
                forced = encode(thinking.extend)
                ids += [(i, SegmentKind.FORCED) for i in forced]
                thought += len(forced)
                wanted.insert(0, token)
                continue
            ids.append((token, SegmentKind.SAMPLED))
            if token == END:
                finish = FinishReason.STOP
                break
            thought += inside
            inside = (inside and token != CLOSE) or token == OPEN
            text = decode([i for i, _ in ids])
            stop = next((s for s in params.stop if text.endswith(s)), None)
            if stop is not None:
                finish, text_end = FinishReason.STOP, len(text) - len(stop)
                break
        prompt_ids = self._prompt_ids(request.prompt)
        sampled = sum(kind is SegmentKind.SAMPLED for _, kind in ids)
        begun = len(encode(prefix))
        spend = Spend(
            prompt_tokens=0 if sample else len(prompt_ids) + begun,
            cached_tokens=len(prompt_ids) + begun if sample else 0,
            sampled_tokens=sampled,
            forced_tokens=len(ids) - sampled - begun,
            flops=2000.0 * (len(ids) + (0 if sample else len(prompt_ids))),
        )
        return Completion(
            decode([i for i, _ in ids])[:text_end],
            finish,
            spend,
            tuple(self._segments(ids)),
            prompt_ids,
            self.weights_version,
            stopped_by=stop,
            params=params,
        )

    def _segments(self, ids: Sequence[tuple[int, SegmentKind]]) -> list[Segment]:
        segments: list[Segment] = []
        start = 0
        for end in range(1, len(ids) + 1):
            if end == len(ids) or ids[end][1] is not ids[start][1]:
                run, kind = tuple(i for i, _ in ids[start:end]), ids[start][1]
                logprobs = tuple(-0.01 * (1 + i % 10) for i in run) if kind is SegmentKind.SAMPLED else None
                segments.append(Segment(kind, run, logprobs, self.weights_version))
                start = end
        return segments

    # Calls --------------------------------------------------------------------------------------------------------

    async def generate(self, request: Request, receipt: Receipt | None = None) -> tuple[Completion, ...]:
        return await collected(self._run(request, receipt or Receipt(), pieces=False), request.n)

    def stream(self, request: Request, receipt: Receipt | None = None) -> AsyncGenerator[Delta, None]:
        return self._run(request, receipt or Receipt(), pieces=True)

    async def _run(self, request: Request, receipt: Receipt, *, pieces: bool) -> AsyncGenerator[Delta, None]:
        if self.closed:
            receipt.settle(Spend())
            raise EngineClosed("the mock engine is closed")
        number, prompt = self.calls, self.count_tokens(request.prompt)
        if prompt + request.params.max_tokens > self.context:
            raise TooLong(
                f"a prompt of {prompt} tokens and max_tokens {request.params.max_tokens} do not fit the context of "
                f"{self.context}"
            )
        self.calls += 1
        self.requests.append(request)
        self.in_flight += request.n
        self.peak = max(self.peak, self.in_flight)
        completions = tuple(self.complete(request, i) for i in range(request.n))
        seconds = self.delay(request) if callable(self.delay) else self.delay
        longest, sent = max(len(c.ids) for c in completions), 0
        try:
            if not pieces:
                await asyncio.sleep(seconds)
            for t in range(longest) if pieces else ():
                await asyncio.sleep(seconds / longest)
                for sample, completion in enumerate(completions):
                    if t < len(completion.ids):
                        sent, self.sent = sent + 1, self.sent + 1
                        yield _piece(sample, completion, t)
            error = self.fail(number, request) if self.fail is not None else None
            if error is not None:
                raise error
        except BaseException as error:
            self.cancelled += isinstance(error, asyncio.CancelledError | GeneratorExit)
            # Half of what it would have sampled, or what was sent.
            sampled = sent if pieces else sum(len(c.ids) // 2 for c in completions)
            used = Spend(prompt_tokens=prompt * request.n, sampled_tokens=sampled)
            self.used += used
            if self.tells_spend:
                receipt.settle(used)
            raise
        finally:
            self.in_flight -= request.n
        receipt.settle(total(completions), completions)
        self.used += total(completions)
        for sample, completion in enumerate(completions):
            yield Delta(sample, "", (), completion)

    async def load_weights(self, update: WeightsUpdate) -> Delivery:
        self.weights_version = update.version
        return Delivery(update.version, "")

    async def close(self) -> None:
        self.closed = True


def _piece(sample: int, completion: Completion, at: int) -> Delta:
    """What the id at a place adds."""
    shown = len(decode(completion.ids[:at])), len(decode(completion.ids[: at + 1]))
    return Delta(sample, completion.text[shown[0] : shown[1]], completion.ids[at : at + 1])


@dataclass
class MockEnvironment:
    """Doubling: problem `i` asks for `2 · i`; the checker is exact if there is one."""

    name: str = "doubling"
    count: int = 100
    checked: bool = True
    slow_judge: bool = False
    turns: bool = False
    turn_rewards: bool = True
    broken: Callable[[int], bool] = lambda i: False
    """Problems that the judge fails on, by index."""
    judged: int = 0

    def size(self, split: Split) -> int | None:
        return self.count

    def problem(self, split: Split, index: int) -> Problem:
        if not 0 <= index < self.count:
            raise IndexError(index)
        number = index + (0 if split == "train" else self.count)
        return Problem(f"{split}-{index}", f"2 * {number} =", {"number": number}, {"index": index})

    def problems(self, split: Split, count: int) -> list[Problem]:
        return [self.problem(split, i) for i in range(count)]

    def gold(self, problem: Problem) -> Gold:
        return Gold(2 * problem.public["number"])

    def _decide(self, problem: Problem, response: Response) -> Verdict:
        if response.answer is None:
            return Verdict(VerdictKind.NO_ANSWER, 0.0, "no answer")
        answer = response.answer.strip()
        if answer == str(2 * problem.public["number"]):
            return Verdict(VerdictKind.CORRECT, 1.0, "right", answer)
        return Verdict(VerdictKind.WRONG, 0.0, f"{answer} is not it", answer)

    def judge(self, problem: Problem, response: Response) -> Verdict:
        self.judged += 1
        if self.broken(problem.metadata["index"]):
            return Verdict(VerdictKind.JUDGE_ERROR, None, "the judge broke")
        return self._decide(problem, response)

    answers: ClassVar[Answers | None] = None

    @property
    def checker(self) -> Callable[[Problem, Response], Verdict] | None:
        return self._decide if self.checked else None

    @property
    def feedback(self) -> Feedback:
        return Feedback(self.checker, answers=self.answers)

    def gold_response(self, problem: Problem) -> str:
        return str(2 * problem.public["number"])

    def episode(self, problem: Problem) -> Episode:
        return OneStep()


def showing(take):
    """A reader (`on_delta`) that gives each piece to a function."""

    async def read(delta):
        take(delta)

    return read


def doubler(share: float, thought: int = 20) -> Callable[[Request, random.Random], str]:
    """Texts of a model that doubles correctly with a probability, after about `thought` characters of thought."""

    def text(request: Request, rng: random.Random) -> str:
        asked = request.prompt if isinstance(request.prompt, str) else request.prompt[-1].content  # type: ignore[union-attr]
        number = int(re.findall(r"\d+", asked)[-1])
        answer = 2 * number if rng.random() < share else 2 * number + 1
        return "." * rng.randint(0, 2 * thought) + f"</think>{answer}"

    return text


def sample(engine, request, receipt=None):
    """Completions of one call; the engine is closed afterwards."""

    async def go():
        try:
            return await engine.generate(request, receipt)
        finally:
            await engine.close()

    return asyncio.run(go())
