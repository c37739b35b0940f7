"""The peer vLLM (its CPU build) in `engine.py`, in process, eager."""

from __future__ import annotations

import os
import time
from typing import Any

# In this process: all cores compute, and it is blocked on the pipe while the other side runs. With processes of its own
# vLLM keeps one core for a scheduler that polls.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_DO_NOT_TRACK", "1")

from pipe import forget_peak, serve, timed


class Side:
    llm: Any

    def open(self, model: str, dtype: str, sequences: int) -> dict[str, Any]:
        from vllm import LLM

        self.llm = LLM(
            model,
            dtype=dtype,
            enforce_eager=True,
            max_num_seqs=sequences,
            max_model_len=2048,
            disable_log_stats=True,
        )
        forget_peak()
        return {}

    def generate(
        self, prompts: list[list[int]], max_tokens: int, seed: int, n: int = 1, together: bool = True
    ) -> dict[str, Any]:
        from vllm import SamplingParams

        params = SamplingParams(
            n=n, temperature=1.0, top_p=1.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False, seed=None
        )
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        batches = [inputs] if together else [[i] for i in inputs]
        began = time.perf_counter()
        outputs = [o for batch in batches for o in self.llm.generate(batch, params, use_tqdm=False)]
        seconds = time.perf_counter() - began
        lengths = [len(c.token_ids) for o in outputs for c in o.outputs]
        return timed(seconds, lengths, len(prompts) * n, max_tokens)


if __name__ == "__main__":
    side = Side()
    serve({"open": side.open, "generate": side.generate})
