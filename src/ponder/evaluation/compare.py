"""Two evaluations of the same problems, compared problem by problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ponder import figures, numbers, show
from ponder.errors import UserError
from ponder.evaluation.intervals import differences, mcnemar, mean_of_problems, mean_unbounded, paired_difference
from ponder.evaluation.results import Evaluation
from ponder.evaluation.rollouts import lines
from ponder.runs.kinds import kind_of
from ponder.types import Estimate, Spend, VerdictKind, to_json


@dataclass(frozen=True, slots=True)
class Comparison:
    """B against A on the problems that both answered."""

    a: Estimate
    b: Estimate
    difference: Estimate
    """Accuracy of B − A, paired by problem."""
    p: float | None
    """McNemar's exact p-value; None where a problem has several samples."""
    moves: dict[str, int]
    """First samples whose rightness changed, by verdicts, such as `wrong to correct`."""
    mean_tokens_per_search_a: Estimate
    """Prompt and response, every branch counted; mean over problems."""
    mean_tokens_per_search_b: Estimate
    mean_tokens_per_search_difference: Estimate
    """B − A, paired by problem."""

    @property
    def conclusion(self) -> str:
        """What the difference shows: its interval decides, not its value."""
        if self.difference.low > 0:
            return "B is better than A"
        if self.difference.high < 0:
            return "B is worse than A"
        count = self.difference.n
        return f"{count:,} problem{'s' * (count != 1)} do{'es' * (count == 1)} not tell A and B apart"

    def to_json(self) -> dict[str, Any]:
        return {"conclusion": self.conclusion, **to_json(self)}

    def __repr__(self) -> str:
        p = "" if self.p is None else f", {figures.text('p', self.p)}"
        return f"Comparison({self.conclusion}: {numbers.difference(self.difference)}{p})"

    def _repr_html_(self) -> str:
        return show.table(self.facts())

    def facts(self) -> list[tuple[str, str]]:
        """Label and text of each figure, for people."""
        tokens = figures.label("mean_tokens_per_search")
        found = [
            ("compared", self.conclusion),
            *((f"{figures.label('accuracy')}, {who}", _accuracy(e)) for who, e in (("A", self.a), ("B", self.b))),
            ("B - A, paired", numbers.difference(self.difference)),
        ]
        if self.p is not None:
            found.append(figures.line("p", self.p))
        found += [
            (f"{tokens}, {who}", figures.text("mean_tokens_per_search", estimate))
            for who, estimate in (
                ("A", self.mean_tokens_per_search_a),
                ("B", self.mean_tokens_per_search_b),
                ("B - A", self.mean_tokens_per_search_difference),
            )
        ]
        return found + [(move, f"{count:,}") for move, count in self.moves.items()]


def _accuracy(estimate: Estimate) -> str:
    return f"{figures.text('accuracy', estimate)}, n = {estimate.n:,}"


@dataclass(slots=True)
class _Problem:
    """What is kept of one problem: its verdicts and tokens by sample."""

    prompt: int
    """A fingerprint."""
    kinds: dict[int, str] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)

    @property
    def judged(self) -> list[int]:
        """Samples that could be judged."""
        return [s for s, kind in sorted(self.kinds.items()) if kind != VerdictKind.JUDGE_ERROR.value]

    @property
    def first(self) -> str:
        return self.kinds[self.judged[0]]

    @property
    def accuracy(self) -> float:
        return sum(self.kinds[s] == VerdictKind.CORRECT.value for s in self.judged) / len(self.judged)

    @property
    def mean_tokens(self) -> float:
        return sum(self.tokens[s] for s in self.judged) / len(self.judged)


def compare(a: Evaluation | str | Path, b: Evaluation | str | Path) -> Comparison:
    """Compare two evaluations, or the run directories that `ponder eval --out` wrote of them.

    Raises `UserError` if one is no evaluation, or if the two did not answer the same problems.
    """
    first, second = (_of(side) if isinstance(side, Evaluation) else _problems(Path(side)) for side in (a, b))
    a, b = ("the evaluation" if isinstance(side, Evaluation) else side for side in (a, b))
    if first.keys() != second.keys():
        alone = sorted(first.keys() ^ second.keys())[0]
        raise UserError(
            f"{a} and {b} did not answer the same problems ({len(first)} and {len(second)}; {alone!r} is in one "
            "alone): evaluate both with the same environment, options and -n"
        )
    prompts = [i for i in first if first[i].prompt != second[i].prompt]
    if prompts:
        raise UserError(f"{a} and {b} asked problem {prompts[0]!r} differently: evaluate both with the same options")
    ids = sorted(i for i in first if first[i].judged and second[i].judged)
    if not ids:
        raise UserError(f"{a} and {b}: there is no problem whose responses could be judged in both")
    right_a, right_b = ([rows[i].accuracy for i in ids] for rows in (first, second))
    tokens_a, tokens_b = ([rows[i].mean_tokens for i in ids] for rows in (first, second))
    single = all(len(rows[i].kinds) == 1 for rows in (first, second) for i in ids)
    return Comparison(
        a=mean_of_problems(right_a),
        b=mean_of_problems(right_b),
        difference=paired_difference(right_b, right_a),
        p=mcnemar(right_b, right_a) if single else None,
        moves=moves([first[i].first for i in ids], [second[i].first for i in ids]),
        mean_tokens_per_search_a=mean_unbounded(tokens_a),
        mean_tokens_per_search_b=mean_unbounded(tokens_b),
        mean_tokens_per_search_difference=mean_unbounded(differences(tokens_b, tokens_a)),
    )


def moves(before: Sequence[str], after: Sequence[str]) -> dict[str, int]:
    """How many problems went from which verdict to which, where rightness changed: a gain split by its origin."""
    pairs = zip(before, after, strict=True)
    return dict(sorted(Counter(f"{a} to {b}" for a, b in pairs if (a == "correct") != (b == "correct")).items()))


def _of(evaluation: Evaluation) -> dict[str, _Problem]:
    return {
        row.id: _Problem(
            hash(str(to_json(row.prompt))), dict(enumerate(k.value for k in row.kinds)), dict(enumerate(row.spent))
        )
        for row in evaluation.rows
    }


def _problems(run: Path) -> dict[str, _Problem]:
    path = run / "rollouts.jsonl"
    kind = kind_of(run) if run.is_dir() and (run / "manifest.json").is_file() else None
    if kind is not None and kind != "eval":
        raise UserError(f"{run}: is a run of ponder {kind}; two evaluations are compared (ponder eval --out RUN)")
    if path.is_file() and (run / "config.toml").is_file() and not (run / "evaluation.json").is_file():
        raise UserError(f"{run}: not an evaluation, or one that is not done: ponder eval --resume --out {run}")
    if not (run / "evaluation.json").is_file() or not path.is_file():
        raise UserError(f"{run}: not an evaluation; give run directories that `ponder eval --out` wrote")
    found: dict[str, _Problem] = {}
    for _, where, line in lines(path):
        try:
            _take(found, line)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{where} is not a search that this version of ponder wrote ({error!r}); evaluate again"
            ) from None
    if not found:
        raise UserError(f"{run}: holds no judged response")
    return found


def _take(found: dict[str, _Problem], line: dict[str, Any]) -> None:
    """Note a search; a search that was run again replaces its first result."""
    prompt = hash(str(line["prompt"]))
    problem = found.setdefault(str(line["problem"]), _Problem(prompt))
    sample = int(line["sample"])
    problem.kinds[sample] = str(line["verdict"]["kind"])
    problem.tokens[sample] = Spend(**line["spend"]).tokens
