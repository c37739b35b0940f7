"""The peer optillm in `search_peers.py`: its self-consistency and best-of-n over an endpoint, by its own functions."""

from __future__ import annotations

import time
from typing import Any

from openai import OpenAI
from optillm.bon import best_of_n_sampling
from optillm.self_consistency import AdvancedSelfConsistency
from pipe import serve


def solve(
    algorithm: str, prompts: list[str], samples: int, max_tokens: int, url: str, key: str, model: str, pattern: str
) -> dict[str, Any]:
    """One search a prompt, one after another; texts of the winners and the completion tokens that it reports.

    `pattern` is not used: optillm votes over whole texts. Its system message is empty.
    """
    system = ""
    client = OpenAI(base_url=url, api_key=key, max_retries=0)
    config = {"max_tokens": max_tokens}
    texts, reported = [], []
    began = time.perf_counter()
    for prompt in prompts:
        if algorithm == "self_consistency":
            search = AdvancedSelfConsistency(client, model, num_samples=samples, request_config=config)
            clusters = search.evaluate(system, prompt)["aggregated_result"]["clusters"]
            text, tokens = clusters[0]["answer"] if clusters else "", search.self_consistency_completion_tokens
        elif algorithm == "best_of_n":
            text, tokens = best_of_n_sampling(system, prompt, client, model, n=samples, request_config=config)
        else:
            raise ValueError(f"unknown algorithm {algorithm!r}")
        texts.append(str(text))
        reported.append(int(tokens))
    return {"texts": texts, "reported": reported, "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    serve({"solve": solve})
