"""An OpenAI-compatible endpoint that counts the true tokens of each API key: peers and ponder are compared on it.

    python benchmarks/workers/endpoint.py [--port 8000] [--model MODEL] [--share 0.6] [--thought 10] [--delay 0]

It prints its address as one JSON object, serves until its standard input is closed, and answers GET /v1/usage with
`{"tokens", "calls"}` of the API key: every prompt token received and every token sampled, including those of unused
samples and of dropped connections. Without `--model` it doubles numbers (`2 * 21 =`), right with probability `--share`;
with it a model runs in the torch engine. The server is the one of the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from openai_server import Backend, Behaviour, Piece, Scripted, Server, solver

if TYPE_CHECKING:
    from ponder.engines.torch import TorchEngine


@dataclass
class Model:
    """A model in the torch engine as a backend of the server. Its thoughts stay in the text, between its markers."""

    engine: TorchEngine
    calls: int = 0

    def _prompt(self, body: Mapping[str, Any]) -> Any:
        from ponder.messages import read_prompt

        if self.engine.info.chat:
            return read_prompt(body["messages"], "the request")
        # A model without a chat template reads no roles; an empty system message is none.
        return "\n".join(m["content"] for m in body["messages"] if m["content"])

    def prompt_tokens(self, body: Mapping[str, Any]) -> int:
        return self.engine.count_tokens(self._prompt(body))

    async def sample(self, body: Mapping[str, Any], n: int, most: int) -> AsyncIterator[Piece]:
        from ponder.types import Request, SamplingParams

        self.calls += 1
        stop = body.get("stop") or ()
        params = SamplingParams(
            most,
            float(body.get("temperature", 1.0)),
            float(body.get("top_p", 1.0)),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            # A request without a seed gets another sample each time.
            seed=int(body.get("seed") or self.calls << 32),
        )
        stream: Any = self.engine.stream(Request(self._prompt(body), params, n))
        async with contextlib.aclosing(stream):
            async for delta in stream:
                done = delta.completion
                finish = None if done is None else done.finish_reason.value
                yield Piece(delta.sample, delta.text, len(delta.ids), finish=finish)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0 is any that is free")
    parser.add_argument("--model", help="as for ponder --model")
    parser.add_argument("--share", type=float, default=0.6, help="how often the scripted solver is right")
    parser.add_argument("--thought", type=int, default=10, help="words of its thoughts, on average")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds a token of the scripted solver")
    args = parser.parse_args()
    if args.model is None:
        behaviour = Behaviour(delay=args.delay)
        backend: Backend = Scripted(behaviour, solver(args.share, args.thought))
        serve(Server(behaviour, backend, args.port))
        return
    from ponder.engines.torch import TorchEngine
    from ponder.models.load import load

    engine = TorchEngine(load(args.model))
    behaviour = Behaviour(logprobs=False, prefix="", reasoning="", context=engine.info.context)
    try:
        serve(Server(behaviour, Model(engine), args.port))
    finally:
        engine.close_now()


def serve(server: Server) -> None:
    """Until standard input is closed."""
    with server:
        print(json.dumps({"url": server.url}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
