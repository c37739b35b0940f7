"""Groups of judged samples for tests of training, made without an engine, and their tokens as padded rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.training.advantages.base import Advantage
from ponder.training.advantages.mean_only import MeanOnly
from ponder.training.batch import TokenBatch, token_batch
from ponder.training.credit import Credit
from ponder.training.rollouts import Group, judged_group
from ponder.types import (
    Completion,
    FinishReason,
    Node,
    Outcome,
    Problem,
    Response,
    SamplingParams,
    Segment,
    SegmentKind,
    Spend,
    StopReason,
    Trace,
    Verdict,
    VerdictKind,
)

PARAMS = SamplingParams(64)
STOP = FinishReason.STOP


def completion(
    prompt: Sequence[int],
    segments: Sequence[Segment],
    finish: FinishReason = STOP,
    params: SamplingParams | None = PARAMS,
) -> Completion:
    return Completion("", finish, Spend(), tuple(segments), tuple(prompt), params=params)


def verdict(reward: float | None) -> Verdict:
    if reward is None:
        return Verdict(VerdictKind.JUDGE_ERROR, None, "the judge broke")
    return Verdict(VerdictKind.CORRECT if reward > 0 else VerdictKind.WRONG, min(1.0, max(0.0, reward)), "")


def group_of(nodes: Sequence[Node], rewards: dict[int, float | None], name: str = "p") -> Group:
    """The group of a tree; a reward may be outside [0, 1]."""
    outcome = Outcome(Response(None), None, Trace(name, tuple(nodes)), Spend(), StopReason.FINISHED)
    verdicts = {i: verdict(r) for i, r in rewards.items()}
    return judged_group(Problem(name, "x"), outcome, verdicts, rewards)


def flat_group(completions: Sequence[Completion], rewards: Sequence[float | None], name: str = "p") -> Group:
    nodes = [Node(i, None, c, Response("x")) for i, c in enumerate(completions)]
    return group_of(nodes, dict(enumerate(rewards)), name)


def sampled(ids: Sequence[int], logprobs: Sequence[float] | None = None) -> Segment:
    logprobs = [-0.5] * len(ids) if logprobs is None else logprobs
    return Segment(SegmentKind.SAMPLED, tuple(ids), tuple(logprobs))


def forced(ids: Sequence[int]) -> Segment:
    return Segment(SegmentKind.FORCED, tuple(ids))


def random_groups(rows: int = 12, group: int = 4, seed: int = 0) -> list[Group]:
    """Samples of 9 to 23 ids: a prompt of 2 or 3, forced ids up to a third, then sampled ones but for one in the
    middle."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(9, 24, (rows,), generator=g).tolist()
    ids = torch.randint(20, 400, (rows, max(lengths)), generator=g).tolist()
    logprobs = (-torch.rand(rows, max(lengths), generator=g)).tolist()
    rewards = torch.randint(0, 2, (rows,), generator=g).float().tolist()
    groups = []
    for number, first in enumerate(range(0, rows, group)):
        prompt = ids[first][: 2 + number % 2]
        completions = []
        for i in range(first, min(rows, first + group)):
            n, p = lengths[i], len(prompt)
            parts = [
                forced(ids[i][p : n // 3]),
                sampled(ids[i][n // 3 : n // 2], logprobs[i][n // 3 : n // 2]),
                forced(ids[i][n // 2 : n // 2 + 1]),
                sampled(ids[i][n // 2 + 1 : n], logprobs[i][n // 2 + 1 : n]),
            ]
            completions.append(completion(prompt, [x for x in parts if x.ids]))
        groups.append(flat_group(completions, rewards[first : first + group], f"p{number}"))
    return groups


def random_batch(
    rows: int = 12, group: int = 4, seed: int = 0, *, advantage: Advantage | None = None, everything: bool = False
) -> TokenBatch:
    """The tokens of `random_groups`; with `everything` all that was sampled is trained on, with an advantage of 1."""
    groups = random_groups(rows, group, seed)
    if everything:
        return token_batch(groups, [[Credit.of_sample(s, 1.0) for s in g.samples] for g in groups])
    return token_batch(groups, (advantage or MeanOnly())(groups))


def replaced(batch: TokenBatch, **changes: Tensor) -> TokenBatch:
    return dataclasses.replace(batch, **changes)


@dataclass(frozen=True)
class Dense:
    """A batch as right-padded rows: what the packed tokens are compared with."""

    ids_BT: Tensor
    mask_BT: Tensor
    logprobs_BT: Tensor
    credit_BT: Tensor


def dense(batch: TokenBatch) -> Dense:
    at, row, column = batch.places(torch.arange(len(batch)))
    shape = len(batch), int(batch.lengths_B.max())

    def padded(values: Tensor) -> Tensor:
        return torch.zeros(shape, dtype=values.dtype).index_put((row, column), values[at])

    return Dense(*(padded(v) for v in (batch.ids_N, batch.mask_N, batch.logprobs_N, batch.credit_N)))
