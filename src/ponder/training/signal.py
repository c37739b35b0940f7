"""Whether there is something to learn: groups whose rewards differ. Where hardly any do, the likely cause.

A group whose samples all earn the same has no advantage, so it moves no weight. A run of such groups looks like one
that works: the reward is steady and nothing fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ponder.numbers import percent
from ponder.types import VerdictKind

RECENT = 5
"""Steps that are looked at while training is under way."""
FEW = 0.1
"""A smaller share of groups with a signal is hardly training."""
MOST = 0.5
"""What is said of the responses holds for more than this share of them."""


@dataclass(frozen=True, slots=True)
class Signal:
    """What the metrics of some steps say."""

    steps: int
    groups: int
    """That were drawn, those that were replaced too."""
    with_signal: int
    samples: int
    verdicts: Mapping[str, int]
    truncated: float
    """Samples that were cut off before they ended."""

    @property
    def share(self) -> float:
        return self.with_signal / self.groups if self.groups else 0.0


def signal(rows: Sequence[Mapping[str, Any]]) -> Signal:
    """The signal of steps, from their lines of `metrics.jsonl`."""
    verdicts: Counter[str] = Counter()
    for row in rows:
        verdicts.update(row["verdicts"])
    return Signal(
        len(rows),
        sum(r["groups"] + r["groups_replaced"] for r in rows),
        sum(r["groups"] - r["groups_without_signal"] for r in rows),
        verdicts.total(),
        verdicts,
        sum(r["truncated"] * sum(r["verdicts"].values()) for r in rows),
    )


def warning(found: Signal) -> str:
    """A sentence where too few groups have a signal, with the likely cause; else an empty text."""
    if not found.groups or found.share >= FEW:
        return ""
    number = "no group" if not found.with_signal else f"only {found.with_signal:,} of {found.groups:,} groups"
    steps = "the one step" if found.steps == 1 else f"{found.steps:,} steps"
    return f"{number} of {steps} had rewards that differ, so there is little to learn: {cause(found)}"


def cause(found: Signal) -> str:
    """Why the samples of a problem earn the same, and what to do."""

    def share(kind: VerdictKind) -> float:
        return found.verdicts.get(kind.value, 0) / max(1, found.samples)

    broken, right = share(VerdictKind.JUDGE_ERROR), share(VerdictKind.CORRECT)
    cut = found.truncated / max(1, found.samples)
    if broken > FEW:
        return f"{percent(broken)} of the responses could not be judged; rollouts.jsonl says why"
    if right > 1 - FEW:
        return f"{percent(right)} of the responses are right; take harder problems"
    if cut > MOST:
        return f"{percent(cut)} of the responses are cut off before they end; give the strategy more tokens"
    if (silent := share(VerdictKind.NO_ANSWER)) > MOST:
        return (
            f"in {percent(silent)} of the responses no answer is found; ask for the form that the verifier reads, or "
            "teach it first (train sft)"
        )
    if right < FEW:
        return f"{percent(right)} of the responses are right; take easier problems, larger groups or a stronger model"
    return "the samples of a problem hardly differ; raise the temperature of the strategy"


def rewards(of_steps: Sequence[float]) -> dict[str, str]:
    """Mean reward at both ends of a run, over so few steps that none is in both."""
    count = min(RECENT, len(of_steps) // 2)
    if not count:
        return {"Reward of the one step": f"{of_steps[0]:.3f}"}
    first, last = (sum(part) / count for part in (of_steps[:count], of_steps[-count:]))
    what = f"Mean reward, first and last {count} steps" if count > 1 else "Reward, first and last step"
    return {what: f"{first:.3f} and {last:.3f}"}
