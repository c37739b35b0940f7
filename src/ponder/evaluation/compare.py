"""Two evaluations of the same problems, compared problem by problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ponder.errors import UserError
from ponder.evaluation.intervals import mcnemar, mean_of_problems, paired_difference
from ponder.runs.files import read_lines
from ponder.types import Estimate, VerdictKind


@dataclass(frozen=True, slots=True)
class Comparison:
    """B against A on the problems that both answered."""

    a: Estimate
    b: Estimate
    difference: Estimate
    """Accuracy of B − A, paired bootstrap over problems."""
    p: float | None
    """McNemar's exact p-value; None where a problem has several samples."""
    moves: dict[str, int]
    """First samples whose rightness changed, by verdicts, such as `wrong to correct`."""


def compare(a: str | Path, b: str | Path, seed: int = 0) -> Comparison:
    """Compare two run directories that `ponder eval --out` wrote.

    Raises `UserError` if one is no evaluation, or if the two did not answer the same problems.
    """
    first, second = _rows(Path(a)), _rows(Path(b))
    if first.keys() != second.keys():
        alone = sorted(first.keys() ^ second.keys())[0]
        raise UserError(
            f"{a} and {b} did not answer the same problems ({len(first)} and {len(second)}; {alone!r} is in one "
            "alone): evaluate both with the same environment, options and -n"
        )
    if not first:
        raise UserError(f"{a}: holds no judged response")
    prompts = [i for i in first if first[i]["prompt"] != second[i]["prompt"]]
    if prompts:
        raise UserError(f"{a} and {b} asked problem {prompts[0]!r} differently: evaluate both with the same options")
    ids = sorted(i for i in first if _judged(first[i]) and _judged(second[i]))
    right_a, right_b = ([_accuracy(rows[i]) for i in ids] for rows in (first, second))
    single = all(len(rows[i]["samples"]) == 1 for rows in (first, second) for i in ids)
    return Comparison(
        a=mean_of_problems(right_a, seed),
        b=mean_of_problems(right_b, seed),
        difference=paired_difference(right_b, right_a, seed),
        p=mcnemar(right_b, right_a) if single else None,
        moves=moves([_first(first[i]) for i in ids], [_first(second[i]) for i in ids]),
    )


def moves(before: Sequence[str], after: Sequence[str]) -> dict[str, int]:
    """How many problems went from which verdict to which, where rightness changed: a gain split by its origin."""
    pairs = zip(before, after, strict=True)
    return dict(sorted(Counter(f"{a} to {b}" for a, b in pairs if (a == "correct") != (b == "correct")).items()))


def _rows(run: Path) -> dict[str, dict[str, Any]]:
    path = run / "rollouts.jsonl"
    if not (run / "evaluation.json").is_file() or not path.is_file():
        raise UserError(f"{run}: not an evaluation; give run directories that `ponder eval --out` wrote")
    return {str(row["problem_id"]): row for row in read_lines(path).rows}


def _judged(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [s for s in row["samples"] if s["verdict"] != VerdictKind.JUDGE_ERROR.value]


def _first(row: dict[str, Any]) -> str:
    return str(_judged(row)[0]["verdict"])


def _accuracy(row: dict[str, Any]) -> float:
    judged = _judged(row)
    return sum(s["verdict"] == VerdictKind.CORRECT.value for s in judged) / len(judged)
