"""The core data types of ponder: frozen dataclasses, with no behaviour beyond arithmetic on them.

Shape suffixes used in the whole code base: `_P` problems, `_G` samples per problem (group), `_B` batch,
`_T` tokens, `_D` model width, `_V` vocabulary, as in `tokens_BT`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from numbers import Real
from typing import Any, Literal

from ponder import show

Role = Literal["system", "user", "assistant", "tool"]
Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call."""

    name: str
    description: str = ""
    parameters: str = '{"type": "object", "properties": {}}'
    """JSON schema of the arguments, as JSON text (so that a prompt that offers it can be a key)."""

    def __post_init__(self) -> None:
        if json_object(self.parameters) is None:
            raise ValueError(f"tool {self.name!r}: parameters are not a JSON object: {self.parameters!r}")

    def schema(self) -> dict[str, Any]:
        """The parameters as values."""
        return json_object(self.parameters) or {}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model asks for."""

    id: str
    """Which call a tool's message answers."""
    name: str
    arguments: str = "{}"
    """JSON text as the model wrote it; it may be invalid."""

    def values(self) -> dict[str, Any] | None:
        """The arguments as values; None if they are not a JSON object."""
        return json_object(self.arguments)


_DEEPEST = 64
"""Deepest nesting that is accepted in JSON from outside."""


def json_object(text: str) -> dict[str, Any] | None:
    """Parse a text as a JSON object; None if it is not one, or is nested too deeply."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    level: list[Any] = [found]
    for _ in range(_DEEPEST):
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level = [v for values in inner for v in values]
        if not level:
            return found
    return None


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat. Most have a role and content alone."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Of an assistant's message: the calls that it asks for."""
    tool_call_id: str = ""
    """Of a tool's message: the call that it answers."""
    name: str = ""
    """Of a tool's message: the tool."""
    tools: tuple[Tool, ...] = ()
    """Tools that the model may call from here on; usually on the first message."""
    ids: tuple[int, ...] = ()
    """Of an assistant's message: the content as the model sampled it, the end id included. A template takes these as
    they are, so that a continued conversation is not tokenised again."""


Prompt = str | tuple[Message, ...]
"""What a problem asks: plain text (continued as it is) or chat messages (through the model's template)."""


def as_messages(prompt: Prompt) -> tuple[Message, ...]:
    """A plain text is one message of the user."""
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def offered_tools(prompt: Prompt | tuple[int, ...]) -> tuple[Tool, ...]:
    """The tools of a prompt's messages, each name once; none for text and for ids."""
    messages = () if isinstance(prompt, str) else (m for m in prompt if isinstance(m, Message))
    return tuple({tool.name: tool for m in messages for tool in m.tools}.values())


@dataclass(frozen=True, slots=True)
class Problem:
    """One question as the solver sees it. Never holds the gold answer."""

    id: str
    prompt: Prompt
    public: Mapping[str, Any] = field(default_factory=dict)
    """Data that a checker may use: the numbers of a Countdown, visible tests."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """For reports only: family, difficulty, source row."""


@dataclass(frozen=True, slots=True)
class Gold:
    """What only the judge sees."""

    answer: Any
    metadata: Mapping[str, Any] = field(default_factory=dict)


class VerdictKind(StrEnum):
    """How a response was judged. All but `judge_error` are caused by the response."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    """Nothing to judge: truncated, an unclosed thought, no extractable answer."""
    TIMEOUT = "timeout"
    """The response could not be judged in time, although the gold could."""
    MEMORY = "memory"
    OUTPUT_LIMIT = "output_limit"
    ERROR = "error"
    JUDGE_ERROR = "judge_error"
    """An infrastructure error: the reward is None, masked from training and counted."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge or checker says of one response.

    Evaluations count by kind, training learns from the reward, so the two may not contradict each other: what is
    `correct` earns more than 0, and anything else less than 1. Between them a reward may be shaped: partial credit for
    a wrong answer (0.3), a penalty (-0.5), more than 1 for a right one (1.5). Raises `ValueError` for a contradiction,
    for a reward that is not a finite number, and for fields of another type.
    """

    kind: VerdictKind
    reward: float | None
    """Any finite number; None exactly when `kind` is `judge_error`."""
    reason: str
    """One line that a person can read."""
    answer: str | None = None
    """The answer as it was extracted, for votes and reports; None where there is none."""

    def __post_init__(self) -> None:
        kind, reward = VerdictKind(self.kind), self.reward
        if not isinstance(self.reason, str):
            raise ValueError(f"the reason of a verdict is a {type(self.reason).__name__}, not text")
        if not isinstance(self.answer, str | None):
            raise ValueError(f"the answer of a verdict is a {type(self.answer).__name__}, not text or None")
        if (reward is None) != (kind is VerdictKind.JUDGE_ERROR):
            raise ValueError(f"reward {reward!r} does not match verdict {kind.value!r}")
        if reward is not None:
            reward = finite(reward, "reward")
            if kind is VerdictKind.CORRECT and reward <= 0.0:
                raise ValueError(f"the verdict is correct and its reward is {reward:g}: it must be above 0")
            if kind is not VerdictKind.CORRECT and reward >= 1.0:
                raise ValueError(f"the verdict is {kind.value} and its reward is {reward:g}: it must be below 1")
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "reward", reward)

    @property
    def correct(self) -> bool:
        return self.kind is VerdictKind.CORRECT


def finite(number: Any, what: str) -> float:
    """A number that a user's code gave, as a float. Raises `ValueError` for NaN, infinity and what is no number."""
    if isinstance(number, bool) or not isinstance(number, Real):
        raise ValueError(f"the {what} is {show.short(repr(number))}, a {type(number).__name__}: give a finite number")
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"the {what} is {value}: give a finite number")
    return value


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    """An end-of-sequence token or a stop string was sampled."""
    LENGTH = "length"
    """`max_tokens` or the context ran out: the response is truncated."""
    CANCELLED = "cancelled"
    """The caller cancelled the call or the engine was closed; what was sampled so far is in the completion."""


@dataclass(frozen=True, slots=True)
class Spend:
    """What something cost. Adds up; counted the same way everywhere."""

    prompt_tokens: int = 0
    """Prompt tokens that were computed (without cached ones)."""
    cached_tokens: int = 0
    """Prompt tokens that came from a cache or were shared with a sibling."""
    sampled_tokens: int = 0
    forced_tokens: int = 0
    """Forced tokens, inserted into a response within a call (budget forcing): computed, not sampled."""
    trained_tokens: int = 0
    verifier_calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    dollars: float = 0.0
    device_seconds: float = 0.0
    """Seconds of machine time; those of concurrent requests add up to the wall-clock time that passed."""

    def __add__(self, other: Spend) -> Spend:
        if not isinstance(other, Spend):
            return NotImplemented
        return Spend(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.sampled_tokens + other.sampled_tokens,
            self.forced_tokens + other.forced_tokens,
            self.trained_tokens + other.trained_tokens,
            self.verifier_calls + other.verifier_calls,
            self.seconds + other.seconds,
            self.flops + other.flops,
            self.dollars + other.dollars,
            self.device_seconds + other.device_seconds,
        )

    @property
    def response_tokens(self) -> int:
        """Tokens of responses, sampled or forced: the x axis of a test-time curve."""
        return self.sampled_tokens + self.forced_tokens

    @property
    def tokens(self) -> int:
        """Tokens that a budget counts: prompt (cached or not) and response."""
        return self.prompt_tokens + self.cached_tokens + self.response_tokens


class SegmentKind(StrEnum):
    GIVEN = "given"
    """The prompt, and anything else that precedes the response."""
    SAMPLED = "sampled"
    """Drawn from the model: the only kind that is trained on."""
    FORCED = "forced"
    """Inserted into the response, such as a forced end of thought."""
    TOOL = "tool"
    """Output of a tool or of the environment."""


LogprobsOf = Literal["sampled", "raw"]
"""The distribution of a log-probability: the one that was sampled from (after temperature, top-k, top-p and min-p), or
the model's own, before any of these."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of token ids of one kind."""

    kind: SegmentKind
    ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    """Of the distribution that `logprobs_of` names, one per id; only for `sampled`."""
    weights_version: int = 0
    logprobs_of: LogprobsOf = "sampled"
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None
    """For each id the most likely ids there with their log-probabilities, best first; None if not asked for."""

    def __post_init__(self) -> None:
        if self.logprobs is not None and len(self.logprobs) != len(self.ids):
            raise ValueError(f"{len(self.logprobs)} log-probabilities for {len(self.ids)} ids")

    def __repr__(self) -> str:
        return f"Segment({self.kind.value}, {len(self.ids)} ids, version {self.weights_version!r})"

    def after(self, count: int) -> Segment:
        """The same without its first `count` ids."""
        logprobs = None if self.logprobs is None else self.logprobs[count:]
        top = None if self.top_logprobs is None else self.top_logprobs[count:]
        return dataclasses.replace(self, ids=self.ids[count:], logprobs=logprobs, top_logprobs=top)


@dataclass(frozen=True, slots=True)
class Transcript:
    """One response in its context, as segments of ids; append-only. The loss mask follows from it."""

    segments: tuple[Segment, ...] = ()

    def __repr__(self) -> str:
        return f"Transcript({len(self.segments)} segments, {len(self.ids)} ids, {sum(self.loss_mask)} sampled)"

    def extend(self, *segments: Segment) -> Transcript:
        """Return a longer transcript; empty segments are dropped."""
        return Transcript(self.segments + tuple(s for s in segments if s.ids))

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(i for s in self.segments for i in s.ids)

    @property
    def loss_mask(self) -> tuple[bool, ...]:
        """True for each id that was sampled."""
        return tuple(s.kind is SegmentKind.SAMPLED for s in self.segments for _ in s.ids)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """The sampler's log-probability of each id; 0.0 where the id was not sampled."""
        return tuple(x for s in self.segments for x in (s.logprobs or (0.0,) * len(s.ids)))


@dataclass(frozen=True, slots=True)
class Thinking:
    """How long the thought of a response may be, in tokens (budget forcing, s1, arXiv:2501.19393).

    After `max_tokens` tokens of thought the engine forces the end of thought (it appends the model's marker) and
    samples the answer with what `SamplingParams.max_tokens` leaves. Up to `min_tokens` an end of thought that
    was sampled is replaced by `extend` (the "Wait" of s1).
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    extend: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. Log-probabilities are of the distribution that was sampled from unless `logprobs_of` says raw."""

    max_tokens: int
    """Most tokens of the response, forced ones included."""
    temperature: float = 1.0
    """0 is greedy (ties to the smallest id)."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    """Stop strings; the text ends before one, the ids include it."""
    seed: int = 0
    """Sample `i` of a request draws from the stream `(seed, i)`, whatever the batch composition."""
    thinking: Thinking | None = None
    stop_ids: tuple[int, ...] = ()
    """Ids that end the response besides the model's own end-of-sequence ids."""
    logprobs_of: LogprobsOf = "sampled"
    top_logprobs: int = 0
    """How many of the most likely ids to report at each token, with their log-probabilities."""

    @property
    def truncates(self) -> bool:
        """True if the distribution is cut (top-p, top-k, min-p): not to be trained on."""
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """One call of an engine: a prompt and `n` samples of it."""

    prompt: Prompt | tuple[int, ...]
    """Token ids, plain text, or messages."""
    params: SamplingParams
    n: int = 1
    prefix: str | tuple[int, ...] = ""
    """Text or ids that the response begins with; part of its text and `max_tokens`, spent like prompt tokens."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Completion:
    """What one engine call returned for one of its samples."""

    text: str
    """The response, special tokens kept where they mark thoughts, the end-of-sequence token left out."""
    finish_reason: FinishReason
    spend: Spend
    segments: tuple[Segment, ...] = ()
    """The response as ids (sampled and forced), with the end-of-sequence token; empty where the engine knows no ids."""
    prompt_ids: tuple[int, ...] = ()
    weights_version: int = 0
    error: str | None = None
    stopped_by: str | None = None
    """The stop string that ended it; None if none did, or if the engine cannot tell (those with ids can)."""
    logprobs: tuple[float, ...] | None = None
    """Of the sampled tokens, from an engine that knows no ids; with ids they are in `segments`."""
    params: SamplingParams | None = None
    """How it was sampled; None where the engine does not say, as of a recorded pool."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that an endpoint returns separately; those in the text are found by `ToolFormat`."""

    def __repr__(self) -> str:
        error = f", error {self.error!r}" if self.error else ""
        tokens = f"{self.spend.response_tokens} tokens"
        return f"Completion({show.short(self.text)!r}, {self.finish_reason.value}, {tokens}{error})"

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(i for s in self.segments for i in s.ids)

    @property
    def transcript(self) -> Transcript:
        """Prompt and response as one transcript."""
        return Transcript().extend(Segment(SegmentKind.GIVEN, self.prompt_ids), *self.segments)


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed response. The last one of a sample carries its `completion`."""

    sample: int
    text: str
    ids: tuple[int, ...] = ()
    completion: Completion | None = None


@dataclass(frozen=True, slots=True)
class ThoughtFormat:
    """How a model marks its thought; a property of the model, never a constant of the code."""

    open: str
    close: str
    opened_by_template: bool = False
    """The chat template already wrote `open`: the response begins inside the thought."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model writes a tool call: a JSON object with `name` and `arguments` between two markers (Hermes, Qwen)."""

    open: str = "<tool_call>"
    close: str = "</tool_call>"


@dataclass(frozen=True, slots=True)
class Response:
    """A response as judges and checkers read it: the thought split off, truncation resolved."""

    answer: str | None
    """The text after the thought; None if the response was truncated or its thought never closed."""
    thought: str | None = None
    text: str = ""
    """The whole response."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that it asks for; then `answer` is the text around them."""

    @property
    def answered(self) -> bool:
        """Whether there is an answer to judge or to vote with: a response that still calls a tool is none."""
        return self.answer is not None and not self.tool_calls


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a search or a report needs to know of the model behind an engine."""

    name: str
    context: int
    """Most tokens of prompt and response together."""
    parameters: int = 0
    """Number of weights; 0 if unknown."""
    flops_per_token: float = 0.0
    """FLOPs of the forward pass of one token, without attention (2 × non-embedding parameters + head); 0 if unknown."""
    thought: ThoughtFormat | None = None
    chat: bool = False
    """True if messages go through a chat template."""
    tools: ToolFormat | None = None
    """How it writes tool calls; None if it was not trained to, or the endpoint returns them separately."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do; a search asks before it relies on it."""

    ids: bool = False
    """Takes and returns token ids."""
    logprobs: bool = False
    seed: bool = False
    n: bool = False
    """Several samples of one prompt in one call, the prompt computed once."""
    prefix: bool = False
    """Can continue a response from a given prefix."""
    thinking: bool = False
    """Forces the end of thought within the call (`Thinking`)."""
    leases: bool = False
    """`hold(ids)` keeps a prefix in the KV cache."""
    load_weights: bool = False
    exact: bool = False
    """Batch-invariant: a request gives the same bits whatever the batch composition and whatever ran before."""


@dataclass(frozen=True, slots=True)
class Score:
    """The score that a scorer gives to one response."""

    value: float
    """Higher is better."""
    spend: Spend = Spend()
    """What it cost beyond the scorer's metered calls, which are booked already."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The hard limit of a search; None is no limit in that unit."""

    tokens: int | None = None
    """Prompt and response tokens, every branch counted."""
    seconds: float | None = None
    dollars: float | None = None


class StopReason(StrEnum):
    """Why a search stopped."""

    FINISHED = "finished"
    """The strategy ran to its end."""
    ACCEPTED = "accepted"
    """A checker or a stopping rule accepted an answer early."""
    BUDGET = "budget"
    """The budget ran out; the outcome is the best so far."""
    FAILED = "failed"
    """An engine or checker failed; the outcome is the best so far."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a trace: the response up to there, and what was found out about it.

    The completion's text and ids begin at the response's first token; its spend is that of this node's own call.
    """

    id: int
    parent: int | None
    completion: Completion
    response: Response
    score: float | None = None
    check: Verdict | None = None
    """A checker's verdict (no gold)."""
    verdict: Verdict | None = None
    """The judge's, added after the search for training and reports."""
    vote: str | None = None
    """What it voted for, where there was a vote."""
    note: str = ""
    """What became of it in the search, such as why it was pruned."""

    def __repr__(self) -> str:
        return f"Node({self.id}, parent {self.parent}, {show.short(self.completion.text)!r})"


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything that was generated for one problem."""

    problem_id: str
    nodes: tuple[Node, ...] = ()

    def __repr__(self) -> str:
        return f"Trace({self.problem_id!r}, {len(self.nodes)} nodes)"

    def path(self, leaf: int) -> tuple[Node, ...]:
        """The nodes from the root to a node. Raises `KeyError` for an id that is not there."""
        by_id = {n.id: n for n in self.nodes}
        nodes = [by_id[leaf]]
        while (parent := nodes[-1].parent) is not None:
            nodes.append(by_id[parent])
        return tuple(reversed(nodes))

    def transcripts(self, leaf: int) -> tuple[Transcript, ...]:
        """All ids on the path to a node, in order; several transcripts where a later call does not continue them.

        A call that continues a response brings its prefix back as forced ids: here they are what they were when they
        were sampled, with their log-probabilities. What a further turn's prompt adds (the end of the message, a tool's
        result, the next beginning) is of the kind `tool`. Nothing is tokenised again: where a chat template rewrote the
        history, or a text prefix came back as other ids, a new transcript begins. Raises `ValueError` for a call
        without ids.
        """
        done: list[Transcript] = []
        now = Transcript()
        for node in self.path(leaf):
            call = node.completion
            if not call.prompt_ids:
                raise ValueError(f"node {node.id} of problem {self.problem_id!r} has no token ids: its engine has none")
            known = now.ids
            if known and not call.segments:
                # The call ended before it had a token: nothing was added.
                continue
            if not known or (call.prompt_ids + call.ids)[: len(known)] != known:
                done += [now] if known else []
                now = call.transcript
            elif len(known) <= len(call.prompt_ids):
                now = now.extend(Segment(SegmentKind.TOOL, call.prompt_ids[len(known) :]), *call.segments)
            else:
                begun = len(known) - len(call.prompt_ids)
                for segment in call.segments:
                    now = now.extend(segment.after(begun))
                    begun = max(0, begun - len(segment.ids))
        return (*done, now)

    def transcript(self, leaf: int) -> Transcript:
        """The one transcript of a path. Raises `ValueError` where there are several, see `transcripts`."""
        found = self.transcripts(leaf)
        if len(found) > 1:
            raise ValueError(
                f"the path to node {leaf} of problem {self.problem_id!r} is {len(found)} transcripts: a call did not "
                "continue the ids before it"
            )
        return found[0]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search returns."""

    response: Response
    """The chosen response; its answer is None where the search abstains."""
    vote_share: float | None
    """Share of the votes (of their weight) for the chosen answer; None where fewer than two responses voted."""
    trace: Trace
    spend: Spend
    stop: StopReason
    chosen: int | None = None
    """Id of the chosen node; None if the search abstains."""
    reason: str = ""
    outer: bool = False
    """An enclosing budget refused, truncated or ended one of its calls."""
    seconds: float = field(default=0.0, compare=False)
    """Wall-clock time since its first call was worked on, in all processes so far."""

    def __repr__(self) -> str:
        answer = None if self.response.answer is None else show.short(self.response.answer)
        parts = [f"answer={answer!r}", self.stop.value]
        parts += [] if self.vote_share is None else [f"vote_share={self.vote_share:.2f}"]
        nodes = len(self.trace.nodes)
        parts += [f"{nodes} branch{'es' * (nodes != 1)}", f"{self.spend.tokens:,} tokens"]
        return f"Outcome({', '.join(parts)})"

    def _repr_html_(self) -> str:
        return show.outcome(self)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval and its sample size."""

    value: float
    low: float
    """NaN, and `high` too, where the data cannot carry an interval; `method` says why. In JSON that is null."""
    high: float
    n: int
    method: str = ""
    chosen_of: int = 1
    """It was chosen as the best of so many on the same data: the value is optimistic, and the interval is widened so
    that it covers whichever was chosen (Bonferroni)."""

    def __repr__(self) -> str:
        return f"Estimate({show.estimate(self)})"


def to_json(value: Any) -> Any:
    """Turn dataclasses, enums and containers into plain JSON values, field by field."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Message):
        rest = ((f.name, to_json(getattr(value, f.name))) for f in dataclasses.fields(value)[2:])
        return {"role": value.role, "content": value.content, **{k: v for k, v in rest if v}}
    if isinstance(value, Estimate):
        low, high = (None if math.isnan(x) else x for x in (value.low, value.high))
        return {"value": value.value, "low": low, "high": high} | {
            name: getattr(value, name) for name in ("n", "method", "chosen_of")
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, Sequence):
        return [to_json(v) for v in value]
    return str(value)
