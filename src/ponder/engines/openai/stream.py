"""The chunks of a call, whether the endpoint streams them or answers as a whole."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from ponder.engines.openai.parts import Malformed


@contextlib.asynccontextmanager
async def chunks(client: Any, fields: Mapping[str, Any]) -> AsyncGenerator[AsyncIterator[Any], None]:
    """Send a call. Gives its chunks; its connection is closed at the end, however that comes.

    An endpoint that does not stream gives one, with `message` in place of `delta` in its choices.
    """
    from openai import AsyncStream

    # Raw chunks: the client's typed ones drop fields that are not OpenAI's.
    stream = await client.post(
        "/chat/completions", cast_to=object, body=fields, stream=True, stream_cls=AsyncStream[object]
    )
    try:
        kind = stream.response.headers.get("content-type", "")
        yield _whole(stream.response) if kind.startswith("application/json") else aiter(stream)
    finally:
        await stream.close()


async def _whole(response: Any) -> AsyncIterator[Any]:
    data = (await response.aread()).decode("utf-8", "replace").strip()
    if not data.startswith("{"):
        # A stream under the wrong name.
        for line in data.splitlines():
            rest = line.removeprefix("data:").strip()
            if rest != line.strip() and rest != "[DONE]":
                yield json.loads(rest)
        return
    answer = json.loads(data)
    if answer.get("error") and not answer.get("choices"):
        raise Malformed(f"it answered with an error: {json.dumps(answer['error'], ensure_ascii=False)[:300]}")
    yield answer
