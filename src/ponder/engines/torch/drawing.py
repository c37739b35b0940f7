"""The next id of each row, from the hidden state of its last one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from ponder.engines.random_streams import uniforms
from ponder.engines.torch.exact import Exact
from ponder.engines.torch.forward import Native, Recompute
from ponder.engines.torch.rows import Rows
from ponder.engines.torch.sampler import Rules, sample
from ponder.types import SamplingParams

_NEUTRAL = SamplingParams(1)
_Best = list[tuple[Sequence[int], Sequence[float]]]


class Drawing:
    """The head and the sampling rules of the rows."""

    def __init__(self, rows: Rows, forward: Native | Recompute, device: torch.device) -> None:
        self._rows, self._forward, self._device = rows, forward, device
        self._rules: list[Rules] = []

    def changed(self) -> None:
        """Update after rows joined or left."""
        params = [row.job.params for row in self._rows]
        # In the exact mode a tile at a time, its padding too, so that nothing depends on the number of rows.
        exact = isinstance(self._forward, Exact)
        size = self._forward.tile if isinstance(self._forward, Exact) else max(1, len(params))
        padded = params + [_NEUTRAL] * (-len(params) % size)
        parts = (padded[i : i + size] for i in range(0, len(padded), size))
        self._rules = [Rules.of(part, self._device, alike=exact) for part in parts]

    def draw(self, hidden: torch.Tensor) -> tuple[np.ndarray, np.ndarray, _Best | None]:
        """Ids, log-probabilities and, if some row wants them, the most likely ids with theirs."""
        rows, n = self._rows, len(self._rows)
        keys, at = np.zeros(len(hidden), dtype=np.uint64), np.zeros(len(hidden), dtype=np.int64)
        keys[:n], at[:n] = rows.keys[:n], rows.at[:n] + 1 - rows.start[:n]
        chance = torch.as_tensor(uniforms(keys, at), device=hidden.device)
        size = len(hidden) // len(self._rules)
        parts, start, logits = [], 0, hidden[:0]
        cuts = iter(self._forward.cuts(len(hidden)) if isinstance(self._forward, Exact) else (size,))
        for i, rules in enumerate(self._rules):
            if not len(logits):
                logits = self._forward.logits(hidden[start : start + next(cuts)])
                start += len(logits)
            parts.append(sample(logits[:size], rules, chance[i * size : (i + 1) * size]))
            logits = logits[size:]
        ids = torch.cat([p.ids_B for p in parts])[:n].cpu().numpy()
        logprobs = torch.cat([p.logprobs_B for p in parts])[:n].cpu().numpy()
        if not any(r.best for r in self._rules):
            return ids, logprobs, None
        best: _Best = []
        for p in parts:
            if p.best_ids_BK is None or p.best_logprobs_BK is None:
                best += [((), ())] * size
            else:
                best += zip(p.best_ids_BK.tolist(), p.best_logprobs_BK.tolist(), strict=True)
        return ids, logprobs, best

    def note(self, best: _Best, free: np.ndarray) -> None:
        """Keep the most likely ids of the rows that ask for them; none where a token was forced."""
        for slot, row in enumerate(self._rows):
            if row.best is not None:
                pairs = zip(*best[slot], strict=True) if free[slot] else ()
                wanted = itertools.islice(pairs, row.job.params.top_logprobs)
                row.best.append(tuple((i, x) for i, x in wanted if x > -np.inf))
