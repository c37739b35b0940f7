"""What `ponder solve` says of a search: why it stopped, what it cost, why there is no answer and how to fix it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ponder import figures, numbers
from ponder.cli._budget import UNITS
from ponder.cli._common import rate
from ponder.show import visible

if TYPE_CHECKING:
    from ponder.cli._solve_config import SolveConfig
    from ponder.types import Outcome, Spend, Verdict


RATE = "response_tokens_per_second"


def limits(config: SolveConfig) -> dict[str, float]:
    """The flags that limit the search, with what they allow."""
    given = {f"--budget-{unit}": getattr(config, f"budget_{unit}") for unit in UNITS}
    return {flag: limit for flag, limit in given.items() if limit is not None}


def why(outcome: Outcome, thinks: bool, config: SolveConfig, *, cut: bool) -> str:
    """Why there is no answer, the deciding cause first, and how to fix it; `cut` if a budget truncated a response."""
    from ponder.types import FinishReason, StopReason

    lengths = [n.completion for n in outcome.trace.nodes if n.completion.finish_reason is FinishReason.LENGTH]
    tokens = max((c.spend.response_tokens for c in lengths), default=0)
    force = ", or force the end of the thought with --thought-tokens" if thinks else ""
    if outcome.stop is StopReason.BUDGET:
        more, nothing = " or ".join(limits(config)), "" if outcome.spend.tokens else "nothing was sent: "
        if lengths and not cut:
            said = f"the response was cut off at {tokens} tokens, and then {outcome.reason}"
            return f"{said}; give more with --max-tokens and {more}{force}"
        return f"{outcome.reason}; {nothing}give more with {more}"
    if outcome.stop is StopReason.FAILED and outcome.reason:
        return outcome.reason
    if lengths:
        return f"the response was cut off at {tokens} tokens; give more with --max-tokens{force}"
    if outcome.reason:
        return outcome.reason
    if outcome.response.answer is not None:
        return "the response is empty; try another --seed"
    return "the thought never ended; try another --seed or --thought-tokens"


def status(outcome: Outcome, verdict: Verdict | None, seconds: float, paid: Spend) -> list[str]:
    """Why the search stopped, how the vote went, the verdict, and what it cost."""
    parts = [outcome.stop.value + (f": {visible(outcome.reason, 500)}" if outcome.reason else "")]
    if outcome.vote_share is not None:
        parts.append(" ".join(figures.line("vote_share", outcome.vote_share)))
    count = len(outcome.trace.nodes)
    parts.append(f"{count} branch{'es' * (count != 1)}")
    lines = [" · ".join(parts)]
    if verdict is not None:
        lines.append(f"judge: {verdict.kind.value}, {visible(verdict.reason, 500)}")
    cost = f"{figures.spend(outcome.spend)}, {figures.text('seconds', seconds)}"
    if speed := rate(outcome.spend, seconds):
        cost += f", {figures.text(RATE, speed)} {figures.label(RATE)}"
    if paid.tokens:
        cost += f", {numbers.quantity(paid.tokens)} of the tokens to find out what the model can do"
    return [*lines, cost]


def as_json(
    question: str, config: SolveConfig, outcome: Outcome, verdict: Verdict | None, seconds: float, paid: Spend
) -> dict[str, Any]:
    """What `--json` prints; `opening` is the part of the spend that opening the engines has cost."""
    from ponder.types import to_json

    chosen = next((n for n in outcome.trace.nodes if n.id == outcome.chosen), None)
    return {
        "question": question,
        "model": config.model,
        "engine": config.engine,
        "seed": config.seed,
        "answer": outcome.response.answer,
        "thought": outcome.response.thought,
        "text": outcome.response.text,
        "vote_share": outcome.vote_share,
        "finish_reason": None if chosen is None else chosen.completion.finish_reason.value,
        "stop": outcome.stop.value,
        "reason": outcome.reason,
        "verdict": to_json(verdict),
        "check": None if chosen is None else to_json(chosen.check),
        "branches": len(outcome.trace.nodes),
        "spend": to_json(outcome.spend),
        "opening": to_json(paid),
        "seconds": seconds,
        RATE: rate(outcome.spend, seconds),
    }
