"""Every figure that ponder reports: its key in JSON, its label, what it counts, and how it is written.

Console, reports, viewer, JSON and `docs/figures.md` (which is `page()`) take names and formats from here, so that one
name means one thing. What older versions called otherwise is read through `current`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ponder.numbers import chance, clock, money, percent, points, power, quantity, with_interval


def calls(count: int) -> str:
    """`3 checker or scorer calls`."""
    said = label("verifier_calls")
    return f"{quantity(count)} {said.removesuffix('s') if count == 1 else said}"


def spend(found: Any) -> str:
    """A `types.Spend` in a line: `120 prompt (96 cached) + 64 response tokens, 3 checker or scorer calls, $0.0021`."""
    cached = f" ({quantity(found.cached_tokens)} cached)" if found.cached_tokens else ""
    prompt = quantity(found.prompt_tokens + found.cached_tokens)
    parts = [f"{prompt} prompt{cached} + {quantity(found.response_tokens)} response tokens"]
    if found.verifier_calls:
        parts.append(calls(found.verifier_calls))
    if found.flops:
        parts.append(f"{text('flops', found.flops)} {label('flops')}")
    if found.dollars:
        parts.append(money(found.dollars))
    return ", ".join(parts)


# The figures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figure:
    """What a number is. `meaning` is one sentence, of which the unit is a part where it is not a share."""

    key: str
    """In JSON."""
    label: str
    """On the console, in reports and in the viewer."""
    unit: str
    meaning: str
    write: Callable[[Any], str] = quantity

    def text(self, value: Any) -> str:
        """A number, or an estimate with its interval; a dash for none."""
        if value is None:
            return "–"
        return with_interval(value, self.write) if hasattr(value, "low") else self.write(value)


GROUPS: Mapping[str, tuple[Figure, ...]] = {
    "Right and wrong": (
        Figure(
            "accuracy",
            "accuracy",
            "share",
            "Share of the judged responses that are correct; with several samples of a problem the mean over problems.",
            percent,
        ),
        Figure(
            "no_answer",
            "no answer",
            "share",
            "Share of the judged responses that hold no answer: cut off, thought not closed, or nothing to be read.",
            percent,
        ),
        Figure(
            "coverage",
            "coverage",
            "share",
            "Share of problems with a correct one among k samples (pass@k, by the judge): what no search can exceed, "
            "and not an accuracy.",
            percent,
        ),
        Figure(
            "difference",
            "difference",
            "points",
            "Accuracy of B less that of A on the same problems, paired by problem.",
            points,
        ),
        Figure(
            "p",
            "McNemar's exact test",
            "probability",
            "Of a difference this large if A and B were equally often right.",
            chance,
        ),
        Figure(
            "starved",
            "starved",
            "searches",
            "Searches that the budget of the whole evaluation stopped or refused, and not their own.",
        ),
    ),
    "Choosing": (
        Figure(
            "vote_share",
            "share of the votes",
            "share",
            "Share of the votes (of their weight, where they have weights) that the chosen answer got; abstentions are "
            "no votes. None where fewer than two responses voted.",
            percent,
        ),
        Figure(
            "score", "score", "as the scorer gives it", "What a response was ranked or weighted by; higher is better."
        ),
        Figure(
            "mean_logprob",
            "mean log-probability",
            "nats",
            "Mean log-probability of the sampled tokens of a response, over all calls that it took.",
        ),
        Figure(
            "reward",
            "reward",
            "as the environment gives it",
            "Of a verdict: above 0 if it is correct, and what training learns from. None for infrastructure errors.",
        ),
    ),
    "Tokens": (
        Figure(
            "mean_tokens_per_search",
            "tokens per search",
            "tokens",
            "Prompt (cached or not) and response tokens of a search, every branch counted, dropped ones too: what a "
            "budget counts. Mean over problems.",
        ),
        Figure(
            "mean_response_tokens_per_search",
            "response tokens per search",
            "tokens",
            "The same without prompts: sampled and forced tokens of every branch of a search. Mean over problems.",
        ),
        Figure(
            "tokens_per_correct",
            "tokens per correct answer",
            "tokens",
            "Prompt and response tokens of the whole evaluation, wrong searches and opening included, divided by its "
            "correct responses.",
        ),
        Figure(
            "tokens",
            "response tokens",
            "tokens",
            "Of a branch: sampled and forced tokens of the whole response up to there, over all calls that it took.",
        ),
        Figure("prompt_tokens", "prompt tokens", "tokens", "Prompt tokens that were computed: without cached ones."),
        Figure(
            "cached_tokens",
            "cached prompt tokens",
            "tokens",
            "Prompt tokens that came from a cache or were shared with a sibling; a budget counts them.",
        ),
        Figure("sampled_tokens", "sampled tokens", "tokens", "Response tokens that were drawn from the model."),
        Figure(
            "forced_tokens", "forced tokens", "tokens", "Response tokens that were put in, such as an end of thought."
        ),
        Figure("trained_tokens", "trained tokens", "tokens", "Tokens that were trained on."),
        Figure("budget_tokens", "thought budget", "tokens", "Most tokens of a thought, at a point of a curve."),
    ),
    "Time": (
        Figure(
            "run_seconds",
            "run time",
            "seconds",
            "Wall-clock time of a run or of a phase of it, in all processes so far, opening the engines included.",
            clock,
        ),
        Figure(
            "run_seconds_per_correct",
            "run time per correct answer",
            "seconds",
            "`run_seconds` divided by the correct responses. Searches run side by side (`at_once`), so it may be far "
            "less than one search takes.",
            clock,
        ),
        Figure(
            "mean_seconds_per_search",
            "time of a search",
            "seconds",
            "Wall-clock time of one search, from when its first call was worked on, while others ran beside it. "
            "Mean over problems.",
            clock,
        ),
        Figure("at_once", "searches at once", "searches", "Most searches that were in flight at the same time."),
        Figure(
            "seconds",
            "time",
            "seconds",
            "Wall-clock time of this search, from its first call on; of `ponder solve` with opening the engines.",
            clock,
        ),
        Figure("at", "ended at", "seconds", "When this search ended, since the evaluation began.", clock),
        Figure(
            "spend.seconds",
            "time of calls",
            "seconds",
            "Of a spend: wall-clock times of its calls, added up; calls that ran side by side count one by one.",
            clock,
        ),
        Figure(
            "device_seconds",
            "machine time",
            "seconds",
            "Time of the machine, divided among the calls that it worked on together: it adds up to what passed.",
            clock,
        ),
        Figure(
            "response_tokens_per_second",
            "response tokens/s",
            "tokens per second",
            "Response tokens divided by `run_seconds` (of a single search by its `seconds`).",
        ),
    ),
    "Cost": (
        Figure(
            "dollars",
            "dollars",
            "dollars",
            "At the prices of the model or of the machine; 0 where no price is known.",
            money,
        ),
        Figure(
            "dollars_per_correct",
            "dollars per correct answer",
            "dollars",
            "Dollars of the whole evaluation divided by its correct responses; none where no price is known.",
            money,
        ),
        Figure(
            "spend",
            "spent",
            "tokens, calls, dollars",
            "Everything of what it stands beside: prompts, every branch, checker and scorer.",
            spend,
        ),
        Figure("flops", "FLOPs", "operations", "Floating-point operations of the model, by formula.", power),
        Figure(
            "verifier_calls",
            "checker or scorer calls",
            "calls",
            "Calls of the checker or of a scorer by a search; the judge's are not counted, since no search sees them.",
        ),
    ),
    "Counts": (
        Figure("n", "n", "problems", "Problems that a number and its interval are of."),
        Figure("problems", "problems", "problems", "Problems of an evaluation."),
        Figure(
            "samples",
            "samples",
            "searches",
            "Searches of each problem; on a curve the responses that one is chosen from.",
        ),
        Figure(
            "branches",
            "branches",
            "branches",
            "Responses and parts of responses that a search made, one for each call.",
        ),
        Figure("budget", "budget", "samples", "Of a strategy in `ponder replay`: most samples of a problem."),
        Figure(
            "mean_samples_per_search",
            "samples per search",
            "samples",
            "Of a strategy in `ponder replay`: samples of a problem that it drew. Mean over problems.",
        ),
        Figure(
            "chosen_of",
            "chosen of",
            "numbers",
            "How many numbers on the same problems this one is the highest of; its interval allows for that.",
        ),
        Figure("peak_memory_bytes", "peak memory", "bytes", "Most memory that the process held."),
    ),
}
FIGURES: Mapping[str, Figure] = {figure.key: figure for group in GROUPS.values() for figure in group}


def label(key: str) -> str:
    """The label of a figure."""
    return FIGURES[key].label


def labels() -> dict[str, tuple[str, str]]:
    """Label and meaning of each figure by its key, for the viewer."""
    return {key: (figure.label, figure.meaning) for key, figure in FIGURES.items()}


def text(key: str, value: Any) -> str:
    """The figure as it is written: `42.5 % [27.0, 59.1]`."""
    return FIGURES[key].text(value)


def line(key: str, value: Any) -> tuple[str, str]:
    """Label and text of a figure."""
    return label(key), text(key, value)


# Names of older versions ----------------------------------------------------------------------------------------------

RENAMED: Mapping[str, Mapping[str, str]] = {
    "evaluation": {
        "mean_tokens": "mean_response_tokens_per_search",
        "seconds": "run_seconds",
        "seconds_per_correct": "run_seconds_per_correct",
    },
    "curves": {"mean_tokens": "mean_response_tokens_per_search", "seconds": "run_seconds"},
    "cost": {"seconds": "run_seconds"},
    "facts": {"mean tokens": label("mean_response_tokens_per_search")},
}
"""Old and new key, by what holds them."""


def current(values: Any, kind: str) -> Any:
    """JSON of a run of an older version with today's keys, inside too."""
    if isinstance(values, list):
        return [current(v, kind) for v in values]
    if not isinstance(values, dict):
        return values
    names = RENAMED[kind]
    return {names.get(key, key): current(value, kind) for key, value in values.items()}


def vote_share(search: Mapping[str, Any]) -> float | None:
    """Of a line of `rollouts.jsonl`. It was `confidence`, which was a checker's reward where nothing voted."""
    found = search.get("vote_share")
    if found is None and any(s.get("vote") for s in search.get("samples") or () if isinstance(s, Mapping)):
        found = search.get("confidence")
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


# docs/figures.md ------------------------------------------------------------------------------------------------------

HEAD = """# Figures

What each number of ponder counts, under one name on the console, in reports, in the viewer and in JSON. The keys are \
those of `--json` and of the files of a run; the table is `ponder.figures`.

An accuracy and its like are shares in JSON (0 to 1) and written in percent. An estimate in JSON is `{"value", "low", \
"high", "n", "method", "chosen_of"}`: a 95 % interval over problems, `null` where they are too few to carry one; then \
`method` says why. A mean over problems takes the mean over the samples of each first.
"""
TAIL = """
Judge and checker are in the [glossary](ARCHITECTURE.md#glossary). "Chosen by the checker" is said of what the checker \
accepted, and of nothing else.

Names of older versions are read as today's. `mean_tokens` counted response tokens alone and is now \
`mean_response_tokens_per_search`; `seconds` and `seconds_per_correct` of an evaluation are `run_seconds` and \
`run_seconds_per_correct`. `confidence` is `vote_share` where there was a vote; elsewhere it was the checker's reward, \
which is in the `check` of the chosen sample.
"""


def page() -> str:
    """`docs/figures.md`."""
    parts = [HEAD]
    for name, group in GROUPS.items():
        rows = [f"| `{f.key}` | {f.label} | {f.unit} | {f.meaning} |" for f in group]
        parts.append(
            "\n".join([f"## {name}", "| key | label | unit | what it counts |", "|---|---|---|---|", *rows, ""])
        )
    return "\n".join(parts) + TAIL


if __name__ == "__main__":
    print(page(), end="")
