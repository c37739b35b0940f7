"""An OpenAI-compatible endpoint on localhost that counts the true tokens itself and misbehaves on request.

It listens on a thread with its own event loop. Its responses come from a `Backend`: `Scripted` uses a small language
with its own tokens, without a model; `benchmarks/workers/endpoint.py` puts a real model behind the same server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

_TOKEN = re.compile(r"</?think>|\w{1,4}|\s|[^\w\s]", re.DOTALL)
TEMPLATE, PER_MESSAGE = 3, 5
WEEK = "Monday, Tuesday, Wednesday, Thursday, Friday"


def tokens(text: str) -> list[str]:
    """The true tokens of a text in the scripted language."""
    return _TOKEN.findall(text)


@dataclass(frozen=True)
class Piece:
    """What is sampled at one step of one choice; `finish` ends the choice."""

    index: int
    text: str = ""
    tokens: int = 1
    thought: bool = False
    logprob: float | None = None
    finish: str | None = None


class Backend(Protocol):
    def prompt_tokens(self, body: Mapping[str, Any]) -> int: ...

    def sample(self, body: Mapping[str, Any], n: int, most: int) -> AsyncIterator[Piece]: ...


@dataclass
class Fault:
    """One misbehaviour: a status instead of a stream, or after so many pieces one of drop, hang, garbage, repeat."""

    kind: str
    after: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "made to fail"
    times: int = 1


@dataclass
class Call:
    """What the server knows of one call."""

    key: str
    body: dict[str, Any]
    prompt_tokens: int = 0
    sampled_tokens: int = 0
    thought_tokens: int = 0
    status: int = 200
    ended: bool = False
    """It was served to its end."""
    hung_up: bool = False
    """The client closed the connection before."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.sampled_tokens


@dataclass
class Behaviour:
    """What the endpoint can do and how it fails."""

    n: bool = True
    logprobs: bool = True
    seed: bool = True
    prefix: str = "flags"
    """`flags`, `plain`, or empty: it ignores the prefix."""
    usage: str = "final"
    """`running`, `final`, `none`."""
    reasoning: str = "reasoning_content"
    """The delta's field for thoughts; empty: they stay in the text between markers."""
    hidden: bool = False
    """It hides its thoughts, and counts their tokens."""
    thinking: str = ""
    """Field that bounds a thought."""
    refuses: tuple[str, ...] = ()
    """Fields of the body that it answers 400 to."""
    parts: bool = False
    """Contents are lists of parts, thoughts among them."""
    streams: bool = True
    """Whether it streams where it is asked to."""
    words: dict[str, str] = field(default_factory=dict)
    """What it says in place of `stop` and `length`."""
    context: int = 100_000
    delay: float = 0.0
    """Seconds a token."""
    faults: Callable[[int, dict[str, Any]], Fault | None] = lambda number, body: None


def solver(share: float, thought: int = 10) -> Callable[[list[dict[str, str]], random.Random], tuple[str, str]]:
    """Doubles numbers (`2 * 21 =`) right with a probability, after a thought of about so many words."""

    def say(messages: list[dict[str, str]], rng: random.Random) -> tuple[str, str]:
        question = messages[-1]["content"]
        if "days of the week" in question:
            return "", WEEK
        if "random number" in question:
            digits = [str(rng.randrange(10)) for _ in range(30)]
            return " ".join(digits), "".join(digits)
        number = int((re.findall(r"\d+", question) or ["0"])[-1])
        answer = 2 * number if rng.random() < share else 2 * number + rng.randint(1, 9)
        return " ".join(rng.choice(("so", "hm", "add", "carry")) for _ in range(rng.randint(0, 2 * thought))), str(
            answer
        )

    return say


@dataclass
class Scripted:
    """Samples what a function of messages and random numbers returns: (thought, answer)."""

    behaviour: Behaviour
    say: Callable[[list[dict[str, str]], random.Random], tuple[str, str]] = field(default_factory=lambda: solver(0.6))
    calls: int = 0

    def prompt_tokens(self, body: Mapping[str, Any]) -> int:
        messages = body["messages"]
        per_message = PER_MESSAGE * (len(messages) - self._continues(body))
        return TEMPLATE + per_message + sum(len(tokens(m["content"])) for m in messages)

    def _continues(self, body: Mapping[str, Any]) -> bool:
        if body["messages"][-1]["role"] != "assistant":
            return False
        return self.behaviour.prefix == "plain" or (
            self.behaviour.prefix == "flags" and bool(body.get("continue_final_message"))
        )

    async def sample(self, body: Mapping[str, Any], n: int, most: int) -> AsyncIterator[Piece]:
        self.calls += 1
        seed = body.get("seed") if self.behaviour.seed else None
        queues = [self._wanted(body, f"{seed} {i}" if seed is not None else f"{self.calls} {i} anew") for i in range(n)]
        sent = [0] * n
        left = set(range(n))
        while left:
            for i in sorted(left):
                thought, text = queues[i].pop(0) if queues[i] else (False, "")
                sent[i] += 1
                finish = "stop" if not text else "length" if sent[i] == most else None
                if finish:
                    left.discard(i)
                yield Piece(i, text, 1, thought, -0.1 - 0.001 * (sent[i] % 7), finish)
                if self.behaviour.delay:
                    await asyncio.sleep(self.behaviour.delay)

    def _wanted(self, body: Mapping[str, Any], seed: str) -> list[tuple[bool, str]]:
        """The response as (in the thought, token)."""
        messages, rng = list(body["messages"]), random.Random(seed)
        prefix = messages.pop()["content"] if self._continues(body) else ""
        messages = [m for m in messages if m["role"] == "user"]
        thought, answer = self.say(messages, rng)
        words = tokens(thought)
        limit = _get(body, self.behaviour.thinking)
        words = words if limit is None else words[:limit]
        if not words:
            whole = [(False, t) for t in tokens(answer)]
        else:
            whole = [(True, "<think>"), *((True, t) for t in words), (False, "</think>")]
            whole += [(False, t) for t in tokens(answer)]
        text = "".join(t for _, t in whole)
        if prefix and text.startswith(prefix):
            rest, done = text[len(prefix) :], "</think>" in prefix or not words
            return [(not done and "</think>" not in t, t) for t in tokens(rest)] if done else _split(rest)
        if prefix:
            return (
                [(False, t) for t in tokens(answer)] if "</think>" in prefix else _split(text.partition("<think>")[2])
            )
        stop = body.get("stop") or []
        for at in range(len(whole)):
            if whole[at][1] in stop:
                return whole[:at]
        return whole


def _split(text: str) -> list[tuple[bool, str]]:
    inner, close, answer = text.partition("</think>")
    after = [(False, t) for t in [close, *tokens(answer)] if t]
    return [*((True, t) for t in tokens(inner)), *after]


def _get(body: Mapping[str, Any], path: str) -> Any:
    value: Any = body
    for name in path.split(".") if path else ():
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if path else None


class Server:
    """The endpoint; a context manager. `url` is what a client is given, `calls` what came."""

    def __init__(self, behaviour: Behaviour | None = None, backend: Backend | None = None, port: int = 0) -> None:
        self.behaviour = behaviour or Behaviour()
        self.backend: Backend = backend or Scripted(self.behaviour)
        self.calls: list[Call] = []
        self.flying = 0
        self.peak = 0
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="endpoint", daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def tokens(self, key: str | None = None) -> int:
        """True tokens of all calls (of one key)."""
        return sum(c.tokens for c in self.calls if key is None or c.key == key)

    def wait_quiet(self) -> None:
        """Until no call is running."""

        async def quiet() -> None:
            while self.flying:
                await asyncio.sleep(0.001)

        asyncio.run_coroutine_threadsafe(quiet(), self._loop).result(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self._port)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopped.wait()
        server.close()
        me = asyncio.current_task()
        rest = [t for t in asyncio.all_tasks() if t is not me]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._request(reader, writer):
                pass
        writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        key = headers.get("authorization", "").removeprefix("Bearer ")
        path = first.split()[1]
        if path.endswith("/models"):
            await _reply(writer, 200, {"data": [{"id": "mock", "max_model_len": self.behaviour.context}]})
        elif path.endswith("/usage"):
            await _reply(writer, 200, {"tokens": self.tokens(key), "calls": sum(c.key == key for c in self.calls)})
        elif path.endswith("/chat/completions"):
            return await self._chat(key, json.loads(content), reader, writer)
        else:
            await _reply(writer, 404, _error(f"no {path} here"))
        return True

    async def _chat(
        self, key: str, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        call = Call(key, body)
        fault = self.behaviour.faults(len(self.calls), body)
        self.calls.append(call)
        refused = [f for f in self.behaviour.refuses if f in body or f in body.get("stream_options", {})]
        if refused:
            call.status = 400
            await _reply(writer, 400, _error(f"Unrecognized request argument supplied: {refused[0]}"))
            return True
        if fault is not None and fault.kind == "status":
            call.status = fault.status
            await _reply(writer, fault.status, _error(fault.message), fault.headers)
            return True
        if (
            self.behaviour.prefix == "flags"
            and body.get("continue_final_message")
            and body.get("add_generation_prompt")
        ):
            call.status = 400
            await _reply(writer, 400, _error("Cannot set both `continue_final_message` and `add_generation_prompt`."))
            return True
        call.prompt_tokens = self.backend.prompt_tokens(body)
        room = max(1, self.behaviour.context - call.prompt_tokens)
        most = body.get("max_tokens") or body.get("max_completion_tokens") or room
        if call.prompt_tokens + most > self.behaviour.context:
            call.status, asked, call.prompt_tokens = 400, call.prompt_tokens, 0
            said = f"This model's maximum context length is {self.behaviour.context} tokens, not {asked} + {most}."
            await _reply(writer, 400, _error(said))
            return True
        self.flying += 1
        self.peak = max(self.peak, self.flying)
        watch = asyncio.ensure_future(reader.read(1))
        try:
            if fault is not None and fault.kind == "hang" and fault.after == 0:
                await watch
                raise ConnectionResetError
            if not body.get("stream") or not self.behaviour.streams:
                return await self._whole(call, most, watch, writer)
            return await self._stream(call, fault, most, watch, writer)
        except ConnectionError:
            call.hung_up = not call.ended
            return False
        finally:
            self.flying -= 1
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _whole(self, call: Call, most: int, watch: asyncio.Future[bytes], writer: asyncio.StreamWriter) -> bool:
        """The answer of a call that does not stream."""
        n = call.body.get("n", 1) if self.behaviour.n else 1
        texts: list[Any] = [[] if self.behaviour.parts else "" for _ in range(n)]
        thoughts, ends = [""] * n, ["length"] * n
        pieces = self.backend.sample(call.body, n, most)
        async with contextlib.aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                if watch.done():
                    raise ConnectionResetError
                call.sampled_tokens += piece.tokens
                call.thought_tokens += piece.thought
                delta = self._choice(piece, call.body)["delta"]
                texts[piece.index] += delta.get("content") or type(texts[piece.index])()
                thoughts[piece.index] += delta.get(self.behaviour.reasoning or "none") or ""
                ends[piece.index] = self._choice(piece, call.body)["finish_reason"] or ends[piece.index]
        choices = []
        for i in range(n):
            message = {"role": "assistant", "content": texts[i]}
            if thoughts[i]:
                message[self.behaviour.reasoning] = thoughts[i]
            choices.append({"index": i, "message": message, "finish_reason": ends[i]})
        call.ended = True
        answer = {"id": "call", "object": "chat.completion", "created": 0, "model": call.body.get("model", "")}
        await _reply(writer, 200, answer | {"choices": choices, "usage": _usage(call)})
        return True

    async def _stream(
        self, call: Call, fault: Fault | None, most: int, watch: asyncio.Future[bytes], writer: asyncio.StreamWriter
    ) -> bool:
        body, behaviour = call.body, self.behaviour
        n = body.get("n", 1) if behaviour.n else 1
        options = body.get("stream_options") or {}
        running = behaviour.usage == "running" and options.get("continuous_usage_stats", False)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        counts = [0] * n
        pieces = self.backend.sample(body, n, most)
        number = 0
        async with contextlib.aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                if watch.done():
                    raise ConnectionResetError
                call.sampled_tokens += piece.tokens
                call.thought_tokens += piece.thought
                counts[piece.index] += piece.tokens
                chunk = {"id": "call", "object": "chat.completion.chunk", "choices": [self._choice(piece, body)]}
                if running:
                    chunk["usage"] = {"prompt_tokens": call.prompt_tokens, "completion_tokens": counts[piece.index]}
                await _send(writer, json.dumps(chunk))
                number += 1
                if fault is not None and number == fault.after:
                    await self._misbehave(fault, chunk, watch, writer)
        if behaviour.usage != "none" and options.get("include_usage"):
            await _send(writer, json.dumps({"id": "call", "choices": [], "usage": _usage(call)}))
        call.ended = True
        await _send(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _misbehave(
        self, fault: Fault, chunk: dict[str, Any], watch: asyncio.Future[bytes], writer: asyncio.StreamWriter
    ) -> None:
        if fault.kind == "drop":
            raise ConnectionAbortedError
        if fault.kind == "hang":
            await watch
            raise ConnectionResetError
        if fault.kind == "garbage":
            await _send(writer, '{"choices": [{"index": 0, "del')
        elif fault.kind == "repeat":
            for _ in range(fault.times):
                await _send(writer, json.dumps(chunk))
        elif fault.kind == "error":
            await _send(writer, json.dumps({"error": {"message": fault.message, "code": fault.status}}))
            raise ConnectionAbortedError

    def _choice(self, piece: Piece, body: Mapping[str, Any]) -> dict[str, Any]:
        behaviour = self.behaviour
        delta: dict[str, Any] = {}
        marker = piece.text in ("<think>", "</think>")
        if (behaviour.hidden and piece.thought) or (marker and (behaviour.reasoning or behaviour.hidden)):
            delta["content"] = ""
        elif piece.thought and behaviour.reasoning:
            delta[behaviour.reasoning] = piece.text
        else:
            delta["content"] = piece.text
        if behaviour.parts:
            thought = delta.pop(behaviour.reasoning, None)
            text = [{"type": "text", "text": t} for t in (thought or delta["content"],) if t]
            delta["content"] = [{"type": "thinking", "thinking": text}] if thought else text
        finish = behaviour.words.get(piece.finish or "", piece.finish)
        choice: dict[str, Any] = {"index": piece.index, "delta": delta, "finish_reason": finish}
        if body.get("logprobs") and behaviour.logprobs and piece.text:
            choice["logprobs"] = {"content": [{"token": piece.text, "logprob": piece.logprob}]}
        return choice


def _usage(call: Call) -> dict[str, Any]:
    return {
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": call.sampled_tokens,
        "total_tokens": call.tokens,
        "prompt_tokens_details": {"cached_tokens": call.prompt_tokens // 2},
        "completion_tokens_details": {"reasoning_tokens": call.thought_tokens},
    }


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "told", "code": None}}


async def _reply(
    writer: asyncio.StreamWriter, status: int, body: Any, headers: Mapping[str, str] | None = None
) -> None:
    content = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Told", "Content-Type: application/json", f"Content-Length: {len(content)}"]
    lines += [f"{k}: {v}" for k, v in (headers or {}).items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
    await writer.drain()


async def _send(writer: asyncio.StreamWriter, data: str) -> None:
    payload = f"data: {data}\n\n".encode()
    writer.write(f"{len(payload):x}\r\n".encode() + payload + b"\r\n")
    await writer.drain()
