"""Replay: recorded samples in place of a model. Free, instant, and the same each time.

A request is answered with recorded samples of its problem (`ponder eval --record`, format in `engines.recorded`), found
by `metadata["problem"]` or by its prompt. The search's seed decides which recorded sample is sample `i` of a search,
without replacement; `metadata["sample"]` says where in the search a request begins.

Tokens are counted as they were recorded. Time is left out: a replayed call takes none.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from ponder.engines.recorded import RecordedEngine, RecordedPool, RecordedRow, RecordedSample, read_pool
from ponder.errors import Unsupported, UserError
from ponder.protocols import Engine
from ponder.types import (
    Capabilities,
    Completion,
    FinishReason,
    ModelInfo,
    Prompt,
    Request,
    Segment,
    SegmentKind,
    Spend,
    offered_tools,
)

UNBOUNDED = 1 << 40
"""The context of a pool, in tokens: recorded samples have no limit."""
Order = Literal["drawn", "recorded"]


@dataclass(frozen=True)
class Replay:
    """Answer from a recorded pool instead of a model; deterministic and free."""

    order: Order = "drawn"
    """Order of a pool's samples: drawn from the search's seed, or as they were recorded."""
    seed: int = 0
    """Draws the order for requests that do not say which search they belong to."""

    def open(self, model: str) -> Engine:
        """`model` is the path of the pool. Raises `UserError` for a file that is missing, no pool or broken."""
        return PoolEngine(read_pool(model), self.order, self.seed)


class PoolEngine(RecordedEngine):
    """The samples of a pool as an engine. Prompts cost nothing: a pool does not record their length."""

    def __init__(self, pool: RecordedPool, order: Order = "drawn", seed: int = 0) -> None:
        if order not in ("drawn", "recorded"):
            raise UserError(f"order = {order!r}: give drawn or recorded")
        super().__init__(pool.path)
        self._order, self._seed = order, seed
        self._by_id = {row.id: row for row in pool.rows}
        prompts = Counter(row.prompt for row in pool.rows)
        self._by_prompt: dict[Prompt, RecordedRow] = {
            row.prompt: row for row in pool.rows if row.prompt is not None and prompts[row.prompt] == 1
        }
        thoughts = {row.thought for row in pool.rows if row.thought is not None}
        if len(thoughts) > 1:
            raise UserError(f"{pool.path}: its rows mark thoughts in {len(thoughts)} ways; replay them one by one")
        logprobs = all(s.mean_logprob is not None for row in pool.rows for s in row.samples)
        self.info = ModelInfo(pool.path.stem, UNBOUNDED, thought=next(iter(thoughts), None))
        self.capabilities = Capabilities(logprobs=logprobs, seed=True, n=True, exact=True)

    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        return 0

    def find(self, request: Request) -> tuple[Completion, ...]:
        """Raises `UserError` for a problem or a sample that the pool lacks, `Unsupported` for a prefix or tools."""
        params = request.params
        if request.prefix or params.thinking is not None:
            raise Unsupported(
                f"{self._path}: a recorded pool cannot continue a response or bound a thought; "
                "use a strategy that samples whole responses"
            )
        if offered_tools(request.prompt):
            raise Unsupported(f"{self._path}: a recorded pool calls no tools; use an engine with a model")
        row = self._row(request)
        first = request.metadata.get("sample", 0)
        first = first if isinstance(first, int) else 0
        if first + request.n > len(row.samples):
            raise UserError(
                f"{self._path}: problem {row.id!r} has {len(row.samples)} recorded samples, and sample "
                f"{first + request.n} is asked for; use n of at most {len(row.samples)}"
            )
        places = self._places(row, request)[first : first + request.n]
        return tuple(_completion(row.samples[i], params.max_tokens) for i in places)

    def _row(self, request: Request) -> RecordedRow:
        name = request.metadata.get("problem")
        row = self._by_id.get(name) if isinstance(name, str) else None
        readable = isinstance(request.prompt, str) or not all(isinstance(i, int) for i in request.prompt)
        if row is None and readable:
            row = self._by_prompt.get(request.prompt)  # type: ignore[arg-type]
        if row is not None and readable and row.prompt is not None and request.prompt != row.prompt:
            raise Unsupported(
                f"{self._path}: problem {row.id!r} was recorded with another prompt than this request has; "
                "leave out strategies that write their own prompts"
            )
        if row is None:
            what = f"problem {name!r} is" if isinstance(name, str) else "this prompt (or several problems have it) is"
            raise UserError(f"{self._path}: {what} not among its {len(self._by_id)} recorded problems")
        return row

    def _places(self, row: RecordedRow, request: Request) -> list[int]:
        """The order of drawing: one for all requests of a search."""
        places = list(range(len(row.samples)))
        if self._order == "drawn":
            whole = self._seed if "sample" in request.metadata else request.params.seed
            # A string gives the same seed on every machine; `hash` does not.
            random.Random(f"{request.metadata.get('seed', whole)}\x1f{row.id}").shuffle(places)
        return places


def _completion(sample: RecordedSample, max_tokens: int) -> Completion:
    tokens, text, finish = sample.tokens, sample.text, sample.finish or FinishReason.STOP
    if tokens > max_tokens:
        # Token boundaries in the text are not recorded: the same share of its characters is kept.
        text, tokens, finish = text[: len(text) * max_tokens // tokens], max_tokens, FinishReason.LENGTH
    segments: tuple[Segment, ...] = ()
    if sample.mean_logprob is not None and tokens:
        # Ids are not recorded (-1), and of the log-probabilities only the mean.
        segments = (Segment(SegmentKind.SAMPLED, (-1,) * tokens, (sample.mean_logprob,) * tokens),)
    return Completion(text, finish, Spend(sampled_tokens=tokens), segments)
