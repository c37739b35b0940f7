import dataclasses
import re
from pathlib import Path

import pytest
from mocks import MockEngine, MockEnvironment, doubler
from search_play import Rule, judged, searched

from ponder import registry
from ponder.errors import UserError
from ponder.search import derive
from ponder.search.record import to_row
from ponder.search.strategies.best_of_n import BestOfN
from ponder.search.strategies.budget_forcing import BudgetForcing
from ponder.search.strategies.direct import Direct
from ponder.search.trace import samples, with_verdicts
from ponder.types import Budget, Capabilities, SegmentKind, StopReason, Verdict, VerdictKind

ENV = MockEnvironment()
PROBLEM = ENV.problem("test", 3)
RIGHT = "206"
ONE_BY_ONE = Capabilities(ids=True, logprobs=True, seed=True)
TWO_CALLS = Capabilities(ids=True, prefix=True)


def run(strategy, engine, **options):
    return searched(strategy, PROBLEM, engine, **options)


# Found by name ----------------------------------------------------------------------------------------------------


def test_strategies_are_found_by_name_and_built_from_options():
    assert {"direct", "best_of_n", "budget_forcing"} <= set(registry.names("search.strategies"))
    assert registry.build("search.strategies", "best-of-n", {"n": 4}) == BestOfN(n=4)
    assert registry.build("search.strategies", "budget_forcing:64", {}) == BudgetForcing(64)
    with pytest.raises(UserError, match="unknown strategy 'dirct'; did you mean 'direct'"):
        registry.build("search.strategies", "dirct")
    with pytest.raises(UserError, match=r"max_token.*did you mean 'max_tokens'"):
        registry.build("search.strategies", "direct", {"max_token": 3})


@pytest.mark.parametrize("name", registry.names("search.strategies"))
def test_a_strategy_is_a_frozen_dataclass_whose_first_line_gives_its_cost(name):
    cls, _ = registry.find("search.strategies", name)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    info = next(i for i in registry.listing("search.strategies") if i.name == name)
    assert "cost" in info.summary


@pytest.mark.parametrize(
    ("name", "options", "field"),
    [
        ("direct", {"n": 0}, "n = 0"),
        ("direct", {"temperature": -1.0}, "temperature = -1"),
        ("direct", {"top_p": 0.0}, "top_p = 0"),
        ("direct", {"max_tokens": 0}, "max_tokens = 0"),
        ("best_of_n", {"max_tokens": 9, "thought_tokens": 9}, "max_tokens and thought_tokens"),
        ("budget_forcing", {"thought_tokens": -1}, "thought_tokens = -1"),
        ("budget_forcing", {"thought_tokens": 9, "answer_tokens": 0}, "answer_tokens = 0"),
        ("budget_forcing", {"thought_tokens": 9, "min_thought_tokens": 10}, "min_thought_tokens = 10"),
        ("budget_forcing", {"thought_tokens": 9, "min_thought_tokens": 5}, "needs extend"),
        ("budget_forcing", {}, "thought_tokens"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(name, options, field):
    with pytest.raises(UserError, match=field):
        registry.build("search.strategies", name, options)


# Direct -----------------------------------------------------------------------------------------------------------


def test_direct_sends_one_request_with_its_options_and_takes_the_first_sample():
    engine = MockEngine(["a</think>1", "b</think>2"])
    outcome = run(Direct(n=2, temperature=0.5, max_tokens=30, top_p=0.9, top_k=5, min_p=0.1, stop=("\n",)), engine)
    (sent,) = engine.requests
    params = sent.params
    assert (sent.n, params.max_tokens, params.temperature, params.top_p, params.top_k) == (2, 30, 0.5, 0.9, 5)
    assert (params.min_p, params.stop, params.seed) == (0.1, ("\n",), derive(0, PROBLEM.id, 0))
    assert (outcome.response.answer, outcome.chosen, outcome.stop) == ("1", 0, StopReason.FINISHED)
    assert [n.response.answer for n in outcome.trace.nodes] == ["1", "2"]


def test_direct_abstains_if_its_first_response_is_truncated():
    outcome = run(Direct(n=2, max_tokens=8), MockEngine(["." * 20 + "</think>1", "</think>2"]))
    assert (outcome.response.answer, outcome.chosen) == (None, None)
    assert outcome.response.text == "." * 8


def test_samples_that_the_budget_put_off_are_drawn_when_there_is_room():
    engine = MockEngine(["</think>1", "</think>2", "</think>3"])
    outcome = run(Direct(n=3, max_tokens=40), engine, budget=Budget(tokens=110))
    # Worst case 2 × 49 at first; two took 12 each, so that the third fits too.
    assert [r.n for r in engine.requests] == [2, 1]
    assert [n.id for n in outcome.trace.nodes] == [0, 1, 2]
    assert outcome.stop is StopReason.FINISHED
    assert engine.requests[1].params.seed == derive(0, PROBLEM.id, 2)


# Best of n --------------------------------------------------------------------------------------------------------


def test_the_checker_decides_and_the_first_accepted_wins():
    outcome = run(
        BestOfN(n=4),
        MockEngine(["</think>1", f"</think>{RIGHT}", "</think>2", f"x</think>{RIGHT}"]),
        checker=ENV.checker,
    )
    assert (outcome.chosen, outcome.vote_share, outcome.stop) == (1, None, StopReason.ACCEPTED)
    assert outcome.reason == "chosen by the checker"
    assert [n.check.kind for n in outcome.trace.nodes] == ["wrong", "correct", "wrong", "correct"]


def test_if_the_checker_rejects_all_the_first_answer_is_given_and_said_not_to_be_accepted():
    outcome = run(BestOfN(n=3, max_tokens=9), MockEngine(["." * 20, "</think>1", "</think>2"]), checker=ENV.checker)
    assert (outcome.chosen, outcome.vote_share, outcome.stop) == (1, None, StopReason.FINISHED)
    assert outcome.reason == "the checker accepted none of 2 answers"


def test_without_a_checker_the_highest_score_wins_and_the_first_of_equals():
    texts = ["</think>1", "</think>222", "</think>333", "</think>4"]
    outcome = run(BestOfN(n=4), MockEngine(texts), scorer=Rule(len))
    assert (outcome.chosen, outcome.reason) == (1, "chosen by score")
    assert [n.score for n in outcome.trace.nodes] == [len(t) for t in texts]
    assert outcome.spend.verifier_calls == 4


def test_without_either_the_highest_mean_log_probability_wins():
    # The mock's log-probability of a character falls with the last digit of its code: "2" is 50, "1" is 49.
    outcome = run(BestOfN(n=3), MockEngine(["</think>1111", "</think>2222", "</think>1112"]))
    assert (outcome.chosen, outcome.reason) == (1, "chosen by mean log-probability")
    blind = run(BestOfN(n=2), MockEngine("</think>5", capabilities=TWO_CALLS))
    assert blind.chosen == 0


@pytest.mark.parametrize("options", [{}, {"checker": lambda p, r: Verdict(VerdictKind.CORRECT, 1.0, "always")}])
def test_a_response_without_an_answer_never_wins(options):
    outcome = run(BestOfN(n=3, max_tokens=6), MockEngine(["." * 20, "." * 20, "</think>1"]), **options)
    assert outcome.chosen == 2
    none = run(BestOfN(n=3, max_tokens=6), MockEngine("." * 20), **options)
    assert (none.chosen, none.response.answer, none.vote_share) == (None, None, None)


def test_best_of_n_bounds_thoughts_too():
    engine = MockEngine(doubler(0.5, thought=40))
    outcome = run(BestOfN(n=8, thought_tokens=10, answer_tokens=6), engine, checker=ENV.checker)
    assert all(n.response.answer for n in outcome.trace.nodes)
    assert all(len(n.completion.ids) <= 16 for n in outcome.trace.nodes)


# Budget forcing ---------------------------------------------------------------------------------------------------


def test_a_long_thought_is_forced_to_end_and_answered():
    outcome = run(BudgetForcing(10, answer_tokens=5), MockEngine("." * 50 + "</think>42"))
    assert outcome.response.text == "." * 10 + "</think>42"
    assert outcome.response.answer == "42"
    assert [s.kind for s in outcome.trace.nodes[0].completion.segments] == [
        SegmentKind.SAMPLED,
        SegmentKind.FORCED,
        SegmentKind.SAMPLED,
    ]


def test_a_short_thought_is_left_alone_and_one_that_is_too_short_is_extended():
    engine = MockEngine("...</think>42")
    assert run(BudgetForcing(10), engine).response.text == "...</think>42"
    longer = run(BudgetForcing(10, min_thought_tokens=6, extend="Wait"), engine)
    assert longer.response.text == "...Wait</think>42"


@pytest.mark.parametrize("strategy", [BudgetForcing(10, n=3), BudgetForcing(0), BudgetForcing(60)])
@pytest.mark.parametrize("text", ["." * 50 + "</think>42", "...</think>42"])
def test_two_calls_give_what_one_call_gives(strategy, text):
    one = run(strategy, MockEngine(text))
    engine = MockEngine(text, capabilities=TWO_CALLS)
    two = run(strategy, engine)
    assert two.response == one.response
    assert [n.completion.text for n in samples(two.trace)] == [n.completion.text for n in samples(one.trace)]
    assert two.spend.tokens == engine.used.tokens
    assert engine.calls == (1 if strategy.thought_tokens == 0 else 2) * strategy.n


def test_two_calls_extend_a_thought_too():
    def text(request, rng):
        return (request.prefix or "...") + ("42" if request.prefix.endswith("</think>") else "</think>42")

    engine = MockEngine(text, capabilities=TWO_CALLS)
    outcome = run(BudgetForcing(20, min_thought_tokens=9, extend="Wait"), engine)
    assert outcome.response.text == "...WaitWait</think>42"
    assert [n.parent for n in outcome.trace.nodes] == [None, 0, 1, 2]
    (leaf,) = samples(outcome.trace)
    assert [n.id for n in outcome.trace.path(leaf.id)] == [0, 1, 2, 3]


def test_two_calls_keep_room_for_the_answer_in_a_tight_budget():
    engine = MockEngine("." * 200 + "</think>42", capabilities=TWO_CALLS)
    for tokens in range(40, 120, 7):
        outcome = run(BudgetForcing(150, answer_tokens=6), engine, budget=Budget(tokens=tokens))
        assert outcome.response.answer == "42"
        assert outcome.spend.tokens <= tokens


def test_a_model_that_did_not_think_is_not_forced_to():
    thought = dataclasses.replace(MockEngine().thought, opened_by_template=False)
    outcome = run(BudgetForcing(30), MockEngine("42", thought=thought, capabilities=TWO_CALLS))
    assert (outcome.response.answer, outcome.response.thought) == ("42", None)


# Traces -----------------------------------------------------------------------------------------------------------


def test_samples_come_in_the_order_that_they_began_in_whatever_calls_they_took():
    def text(request, rng):
        first = request.params.seed == derive(0, PROBLEM.id, 0)
        return ("." * 5 if first and not request.prefix else "") + f"</think>{'1' if first else '2'}"

    engine = MockEngine(text, capabilities=TWO_CALLS, fail=lambda k, r: ConnectionError() if k == 1 else None)
    outcome = run(BudgetForcing(9, n=3), engine)
    assert [n.id for n in samples(outcome.trace)] == [3, 5]
    assert [len(outcome.trace.path(n.id)) for n in samples(outcome.trace)] == [2, 2]


def test_verdicts_of_the_judge_are_attached_to_samples_and_written_with_reasons():
    outcome = run(Direct(n=3, max_tokens=8), MockEngine(["</think>1", f"</think>{RIGHT}", "." * 20]))
    trace = judged(outcome.trace, PROBLEM, ENV.judge)
    assert [n.verdict.kind for n in trace.nodes] == ["wrong", "correct", "no_answer"]
    assert with_verdicts(outcome.trace, {}) == outcome.trace
    outcome = dataclasses.replace(outcome, trace=trace)
    row = to_row(PROBLEM, outcome, extra={1: {"advantage": 0.5}}, logprobs=True)
    assert row["problem"] == PROBLEM.id
    assert [s["verdict"]["reason"] for s in row["samples"]] == ["1 is not it", "right", "no answer"]
    assert row["samples"][1]["advantage"] == 0.5
    assert "advantage" not in row["samples"][0]
    assert row["samples"][2]["finish"] == "length"
    assert row["spend"] == {k: v for k, v in dataclasses.asdict(outcome.spend).items() if v}
    (segment,) = row["samples"][0]["segments"]
    assert len(segment["logprobs"]) == len(segment["ids"]) == row["samples"][0]["spend"]["sampled_tokens"]
    assert "segments" not in to_row(PROBLEM, outcome)["samples"][0]


def test_a_sample_of_several_calls_is_written_with_the_tokens_and_log_probabilities_of_all():
    outcome = run(BudgetForcing(4, n=1), MockEngine("." * 9, capabilities=TWO_CALLS))
    first, last = outcome.trace.nodes
    rows = to_row(PROBLEM, outcome)["samples"]
    assert [r["tokens"] for r in rows] == [
        first.completion.spend.response_tokens,
        first.completion.spend.response_tokens + last.completion.spend.response_tokens,
    ]
    drawn = [x for n in (first, last) for s in n.completion.segments for x in s.logprobs or ()]
    assert rows[1]["mean_logprob"] == pytest.approx(sum(drawn) / len(drawn))
    assert rows[0]["mean_logprob"] != rows[1]["mean_logprob"]
    bare = dataclasses.replace(first, completion=dataclasses.replace(first.completion, segments=()))
    alone = dataclasses.replace(outcome, trace=dataclasses.replace(outcome.trace, nodes=(bare,)))
    assert to_row(PROBLEM, alone)["samples"][0]["mean_logprob"] is None


# The page ---------------------------------------------------------------------------------------------------------


def test_the_page_of_strategies_names_each_option_in_its_section():
    page = (Path(__file__).parents[1] / "docs" / "strategies.md").read_text(encoding="utf-8")
    general, *sections = re.split(r"^## (?=[a-z-]+$)", page, flags=re.MULTILINE)
    described = {section.split("\n", 1)[0]: section for section in sections}
    named = {name.replace("_", "-") for name in registry.names("search.strategies")}
    assert {"majority", "weighted", "adaptive", "cascade", "refine", "cot"} <= set(described) <= named
    for name, section in described.items():
        cls, _ = registry.find("search.strategies", name)
        for option in dataclasses.fields(cls):
            assert f"`{option.name}`" in section or f"`{option.name}`" in general, f"{name}: {option.name}"
