"""The peer transformers in `engine.py`: `generate` with its defaults, drawing from the whole distribution."""

from __future__ import annotations

import time
from typing import Any

import torch
from pipe import forget_peak, serve, timed
from transformers import AutoModelForCausalLM


class Side:
    model: Any

    def open(self, model: str, dtype: str, device: str = "cpu") -> dict[str, Any]:
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval().to(device)
        # Without an end token every response has exactly `max_tokens` tokens, and no step looks for one.
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0
        forget_peak()
        return {"attention": self.model.config._attn_implementation}

    def generate(
        self, prompts: list[list[int]], max_tokens: int, seed: int, n: int = 1, together: bool = True
    ) -> dict[str, Any]:
        """Sample at temperature 1; prompts of one call are equally long, so nothing is padded."""
        torch.manual_seed(seed)
        batches = [prompts] if together else [[p] for p in prompts]
        began = time.perf_counter()
        lengths = []
        for batch in batches:
            ids = torch.tensor(batch, device=self.model.device)
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=n,
            )
            out = out.cpu()  # on a GPU the work has ended only now
            lengths += [out.shape[1] - ids.shape[1]] * out.shape[0]
        seconds = time.perf_counter() - began
        return timed(seconds, lengths, len(prompts) * n, max_tokens)


if __name__ == "__main__":
    side = Side()
    serve({"open": side.open, "generate": side.generate})
