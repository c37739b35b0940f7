"""ponder's side of `engine.py`: the torch engine on a model that never ends a response by itself."""

from __future__ import annotations

import dataclasses
import inspect
import time
from typing import Any

from agreement import agreement
from pipe import forget_peak, serve, timed

from ponder.engines.torch import TorchEngine
from ponder.models.base import LoadedModel
from ponder.models.load import load
from ponder.protocols import WeightsUpdate
from ponder.types import Completion, Request, SamplingParams


class Side:
    engine: TorchEngine
    trainer: LoadedModel
    """The float32 weights; also the engine's, unless it decodes in another type."""
    last: list[tuple[Completion, ...]]

    def open(self, model: str, options: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
        """Load a folder and start an engine with these options; says which other options the engine knows.

        `dtype` is that of the engine's own copy of the weights.
        """
        # Without end ids every response has exactly `max_tokens` tokens.
        self.trainer = dataclasses.replace(load(model, device=device), end_ids=())
        dtype = options.pop("dtype", None)
        own = self.trainer
        if dtype is not None:
            own = dataclasses.replace(load(model, device=device, dtype=dtype), end_ids=())
        known = set(inspect.signature(TorchEngine.__init__).parameters) - {"self", "model"}
        unknown = sorted(set(options) - known)
        if unknown:
            return {"unknown": unknown, "known": sorted(known)}
        self.engine = TorchEngine(own, **options)
        forget_peak()
        return {"unknown": [], "known": sorted(known), "path": self.engine.path}

    def generate(
        self, prompts: list[list[int]], max_tokens: int, seed: int, n: int = 1, together: bool = True
    ) -> dict[str, Any]:
        """Sample at temperature 1, all at once or one request after another; seconds of the whole."""
        params = [SamplingParams(max_tokens, 1.0, seed=seed + i) for i in range(len(prompts))]
        requests = [Request(tuple(ids), p, n=n) for ids, p in zip(prompts, params, strict=True)]
        began = time.perf_counter()
        if together:
            self.last = self.engine.generate_many(requests)
        else:
            self.last = [self.engine.generate_many([r])[0] for r in requests]
        seconds = time.perf_counter() - began
        samples = [c for group in self.last for c in group]
        return {
            **timed(seconds, [len(c.ids) for c in samples], len(prompts) * n, max_tokens),
            "prompt_tokens": sum(c.spend.prompt_tokens for c in samples),
        }

    def parity(self, most_tokens: int | None = None) -> dict[str, Any]:
        """How far the log-probabilities of the last samples are from the trainer's; of the first ones up to a cost."""
        groups, tokens = [], 0
        for group in self.last:
            tokens += len(group[0].prompt_ids) + sum(len(c.ids) for c in group)
            if groups and most_tokens is not None and tokens > most_tokens:
                break
            groups.append(group)
        return agreement(self.trainer, groups)

    def compositions(self, prompts: list[list[int]], max_tokens: int, seed: int, together: int) -> dict[str, Any]:
        """How far the same requests differ when run all at once and `together` at a time, from an empty cache."""
        params = [SamplingParams(max_tokens, 1.0, seed=seed + i) for i in range(len(prompts))]
        requests = [Request(tuple(ids), p) for ids, p in zip(prompts, params, strict=True)]

        def sample(size: int) -> list[Completion]:
            found = []
            for first in range(0, len(requests), size):
                self.engine.drop_caches_now()
                found += [c for (c,) in self.engine.generate_many(requests[first : first + size])]
            return found

        differing, same_tokens, worst = 0, 0, 0.0
        for a, b in zip(sample(len(requests)), sample(together), strict=True):
            same = next((i for i, (x, y) in enumerate(zip(a.ids, b.ids, strict=True)) if x != y), len(a.ids))
            differing += same < len(a.ids)
            same_tokens += same
            pairs = zip(_logprobs(a)[:same], _logprobs(b)[:same], strict=True)
            worst = max([worst, *(abs(x - y) for x, y in pairs)])
        return {"samples": len(requests), "differing": differing, "same_tokens": same_tokens, "worst": worst}

    def publish(self, version: int) -> dict[str, Any]:
        """Publish the same weights as new, as a trainer does after each update; seconds until the engine has them."""
        began = time.perf_counter()
        self.engine.load_weights_now(WeightsUpdate(self.trainer.module, version))
        return {"seconds": time.perf_counter() - began}


def _logprobs(completion: Completion) -> list[float]:
    return [x for segment in completion.segments for x in segment.logprobs or ()]


if __name__ == "__main__":
    side = Side()
    verbs = (side.open, side.generate, side.parity, side.compositions, side.publish)
    serve({verb.__name__: verb for verb in verbs})
