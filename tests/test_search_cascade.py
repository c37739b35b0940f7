"""The cascade: when the slow search is run, on which engine, and which answer is kept."""

import dataclasses

import pytest
from mocks import MockEngine, MockEnvironment, doubler
from search_play import searched
from sure_engine import SureEngine

from ponder.errors import Unsupported
from ponder.search.strategies.cascade import Cascade
from ponder.search.trace import samples
from ponder.types import Budget, Capabilities, StopReason

ENV = MockEnvironment()
PROBLEM = ENV.problem("test", 3)
RIGHT = "206"
BLIND = Capabilities(ids=True, seed=True)


def run(strategy, fast, slow=None, **options):
    others = {} if slow is None else {"big": slow}
    return searched(strategy, PROBLEM, fast, others=others, **options)


def big(text="</think>9"):
    engine = MockEngine(text)
    engine.info = dataclasses.replace(engine.info, name="big")
    return engine


def test_a_sure_answer_does_not_call_the_slow_search():
    slow = big()
    outcome = run(Cascade(n=4, engine="big"), MockEngine(["</think>1"] * 3 + ["</think>2"]), slow)
    assert (outcome.response.answer, outcome.stop, slow.calls) == ("1", StopReason.ACCEPTED, 0)
    assert outcome.reason == "3 of 4 votes for 1, 75.0 % of 4 fast samples: sure, so majority was not run"


@pytest.mark.parametrize(
    "texts",
    [
        ["</think>1", "</think>1", "</think>2", "</think>3"],
        ["</think>1", "." * 50, "." * 50, "." * 50],
        ["." * 50] * 4,
    ],
    ids=["they differ", "one answer of four", "no answer"],
)
def test_doubt_calls_the_slow_search_on_the_big_engine(texts):
    fast, slow = MockEngine(texts), big()
    outcome = run(Cascade(n=4, max_tokens=20, engine="big", slow_options={"n": 3}), fast, slow)
    assert (outcome.response.answer, outcome.stop) == ("9", StopReason.FINISHED)
    assert (fast.calls, slow.calls, slow.requests[0].n) == (1, 1, 3)
    assert outcome.reason.endswith("unsure; majority: 3 of 3 votes for 9")
    chosen = next(n for n in outcome.trace.nodes if n.id == outcome.chosen)
    assert chosen.completion.text == "</think>9"
    assert len(samples(outcome.trace)) == 7
    assert outcome.spend.tokens == fast.used.tokens + slow.used.tokens


def test_the_checker_decides_where_there_is_one():
    texts = ["</think>1", "</think>1", "</think>1", f"</think>{RIGHT}"]
    outcome = run(Cascade(engine="big"), MockEngine(texts), slow := big(), checker=ENV.checker)
    assert (outcome.response.answer, outcome.vote_share, slow.calls) == (RIGHT, None, 0)
    assert outcome.reason == f"the checker accepts {RIGHT}: sure, so majority was not run"
    outcome = run(Cascade(engine="big"), MockEngine("</think>1"), slow := big(), checker=ENV.checker)
    assert slow.calls == 1
    assert outcome.reason.startswith("the checker rejects 1: unsure; ")


def test_one_sample_is_judged_by_its_log_probability():
    strategy = Cascade(n=1, unsure="logprob", engine="big")
    assert run(strategy, SureEngine("sure</think>1"), slow := big()).response.answer == "1"
    assert slow.calls == 0
    outcome = run(strategy, SureEngine("hmmm</think>1"), slow := big())
    assert (outcome.response.answer, slow.calls) == ("9", 1)
    assert outcome.reason.startswith("mean log-probability -0.916, below -0.2: unsure")


def test_a_checker_that_fails_leaves_agreement():
    def fails(problem, response):
        raise ConnectionError("gone")

    outcome = run(Cascade(), MockEngine("</think>1"), checker=fails)
    assert outcome.reason.startswith("the checker failed; 4 of 4 votes for 1, 100.0 % of 4 fast samples: sure")
    assert "ConnectionError: gone" in outcome.reason


def test_the_same_engine_thinks_longer_with_other_seeds():
    engine = MockEngine(doubler(0.5, thought=30))
    strategy = Cascade(n=2, agreement=1.0, thought_tokens=4, slow="budget_forcing", slow_options={"thought_tokens": 50})
    outcomes = [run(strategy, engine, seed=seed) for seed in range(8)]
    slow = [r for r in engine.requests if r.params.thinking.max_tokens == 50]
    assert 0 < len(slow) < 8
    assert len({r.params.seed for r in engine.requests}) == len(engine.requests)
    assert {o.stop for o in outcomes} == {StopReason.ACCEPTED, StopReason.FINISHED}


def test_a_slow_search_that_gets_nowhere_leaves_the_fast_answer():
    strategy = Cascade(n=2, unsure="agreement", engine="big", slow_options={"max_tokens": 9})
    outcome = run(strategy, MockEngine(["</think>1", "</think>2"]), big("." * 99))
    assert (outcome.response.answer, outcome.chosen) == ("1", 0)
    assert outcome.reason.endswith("unsure, but majority found no answer, so the fast one is kept")
    tight = run(Cascade(n=2, max_tokens=12), MockEngine(["</think>1", "</think>2"]), budget=Budget(tokens=44))
    assert (tight.response.answer, tight.stop) == ("1", StopReason.BUDGET)
    assert "of the budget's 44 tokens are left" in tight.reason


def test_the_traces_of_both_searches_are_one():
    two_calls = Capabilities(ids=True, prefix=True)
    engine = MockEngine(lambda r, rng: "." * 30 + f"</think>{rng.randrange(100)}", capabilities=two_calls)
    strategy = Cascade(n=2, thought_tokens=5, slow="majority", slow_options={"n": 2, "thought_tokens": 9})
    outcome = run(strategy, engine)
    leaves = samples(outcome.trace)
    assert len(leaves) == 4
    assert [len(outcome.trace.path(leaf.id)) for leaf in leaves] == [2, 2, 2, 2]
    assert len({n.id for n in outcome.trace.nodes}) == len(outcome.trace.nodes) == 8


def test_what_it_needs_must_be_there():
    with pytest.raises(Unsupported, match=r"no further engine of this name \(there are: 'big'"):
        run(Cascade(engine="huge"), MockEngine(), big())
    with pytest.raises(Unsupported, match="no measure of confidence"):
        run(Cascade(n=1), MockEngine(capabilities=BLIND))
    with pytest.raises(Unsupported, match="unsure = checker is not available here"):
        run(Cascade(unsure="checker"), MockEngine())
    with pytest.raises(Unsupported, match="needs a scorer"):
        run(Cascade(slow="weighted", slow_options={"by": "score"}), MockEngine())
