"""Figures of searches, evaluations, comparisons, pools and curves."""

from __future__ import annotations

from collections.abc import Mapping

from ponder.figures.figure import Figure
from ponder.numbers import chance, clock, money, percent, points, power

SEARCHES: Mapping[str, tuple[Figure, ...]] = {
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
            "Of a branch: sampled and forced tokens of the whole response up to there, over all calls that it took; in "
            "metrics of pretraining and SFT all ids so far.",
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
            "Wall-clock time of this search, from its first call on; of `ponder solve` with opening the engines; in "
            "metrics of the step.",
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
