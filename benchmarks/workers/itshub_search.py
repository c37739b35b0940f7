"""The peer its_hub in `search_peers.py`: self-consistency and its adaptive form over an endpoint, as documented."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from its_hub.api import GenerationUsage
from its_hub.core.algorithms.self_consistency import SelfConsistency, create_regex_projection_function
from its_hub.core.lms.openai_lm import OpenAICompatibleLanguageModel
from pipe import serve


def solve(
    algorithm: str, prompts: list[str], samples: int, max_tokens: int, url: str, key: str, model: str, pattern: str
) -> dict[str, Any]:
    """One search a prompt, one after another; texts of the winners and the tokens that its usage reports."""
    if algorithm != "self_consistency":
        raise ValueError(f"unknown algorithm {algorithm!r}")

    async def run() -> tuple[list[str], list[int]]:
        lm = OpenAICompatibleLanguageModel(url, key, model, max_completion_tokens=max_tokens, temperature=1.0)
        search = SelfConsistency(create_regex_projection_function(pattern))
        texts, reported = [], []
        try:
            for prompt in prompts:
                found = await search.ainfer(lm, prompt, samples, return_response_only=False)
                usage = getattr(found, "usage", None) or GenerationUsage()
                texts.append(str(found.the_one.get("content") or ""))
                reported.append(usage.total_tokens)
        finally:
            await lm.close()
        return texts, reported

    began = time.perf_counter()
    texts, reported = asyncio.run(run())
    return {"texts": texts, "reported": reported, "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    serve({"solve": solve})
