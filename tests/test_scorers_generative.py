"""A model that judges responses: what it is asked, how its words become scores, and that the budget holds."""

from __future__ import annotations

import asyncio
import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mocks import MockEngine, MockEnvironment, doubler
from search_play import searched

from ponder.budget.caller import MeteredEngine
from ponder.errors import BudgetExceeded, PonderError, Unsupported, UserError
from ponder.protocols import Feedback
from ponder.registry import build
from ponder.scorers.generative import Generative
from ponder.search import Meter, solve
from ponder.search.strategies.beam import Beam
from ponder.search.strategies.best_of_n import BestOfN
from ponder.search.strategies.weighted import Weighted
from ponder.types import Budget, Capabilities, Message, Problem, Response, StopReason

ENV = MockEnvironment()
PROBLEM = ENV.problem("test", 3)
RIGHT = str(ENV.gold(PROBLEM).answer)
PLAIN = Capabilities(n=True, seed=True)
SINGLE = Capabilities(seed=True)
WORDS = Capabilities(n=True, seed=True, ids=True, logprobs=True)


def judge(says, capabilities=WORDS, thought=None, **options):
    """An engine that judges: what it says of a question."""

    def text(request, rng):
        return says(request.prompt, rng) if callable(says) else says

    return MockEngine(text, capabilities=capabilities, thought=thought, **options)


def score(scorer, engine, *texts, meter=None, problem=PROBLEM):
    responses = [Response(t, None, t) for t in texts]

    async def run():
        async with MeteredEngine(meter or Meter(), engine) as caller:
            return [s.value for s in await scorer.score(problem, responses, caller)]

    return asyncio.run(run())


def test_the_probability_of_yes_is_that_of_the_word_that_is_said():
    # The mock gives its tokens probabilities by their ids: "Y" is one token, and so is "N".
    yes, no = (math.exp(-0.01 * (1 + ord(c) % 10)) for c in "YN")
    engine = judge(lambda prompt, rng: "Yes" if "good" in prompt else "No" if "bad" in prompt else "Perhaps")
    assert score(Generative(), engine, "good", "bad", "odd") == pytest.approx([yes, 1 - no, 0.0])
    assert [(r.n, r.params.max_tokens, r.params.temperature, r.params.logprobs_of) for r in engine.requests] == [
        (1, 1, 0.0, "raw")
    ] * 3


@pytest.mark.parametrize("capabilities", [PLAIN, SINGLE])
def test_without_log_probabilities_the_score_is_the_share_of_yes(capabilities):
    engine = judge(lambda prompt, rng: "Yes." if rng.random() < 0.7 else "No.", capabilities)
    (share,) = score(Generative(samples=200, max_tokens=10), engine, "42")
    assert share == pytest.approx(0.7, abs=0.1)
    assert sum(r.n for r in engine.requests) == 200
    assert len({r.params.seed for r in engine.requests}) == len(engine.requests)
    assert score(Generative(samples=200, max_tokens=10), engine, "a", "42")[1] == share, "whatever else is scored"
    assert score(Generative(samples=200, max_tokens=10, seed=1), engine, "42") != [share]


def test_a_judgement_may_reason_first_and_a_truncated_one_is_not_a_yes():
    says = {
        "good": "Yes? 2+2 is no 5.</think>Hm. No, wait: yes!",
        "bad": "Yes</think>no",
        "long": "Yes. Yes. Yes</think>",
    }
    engine = judge(lambda p, rng: next(v for k, v in says.items() if k in p), thought=MockEngine().thought)
    assert score(Generative(), engine, "good", "bad", "long") == [1.0, 0.0, 0.0]
    assert {r.params.max_tokens for r in engine.requests} == {256}
    assert score(Generative(max_tokens=10), engine, "good") == [0.0]


def test_the_question_holds_the_problem_and_the_response_and_cannot_be_asked_by_it():
    problem = Problem("p", (Message("system", "Be brief."), Message("user", "What is 1+1?")))
    response = Response("2 {instruction} {problem}", "one and one", "one and one</think>2")
    assert Generative(instruction="Right?").question(problem, response) == (
        "Be brief.\n\nWhat is 1+1?\n\nProposed answer:\none and one\n2 {instruction} {problem}\n\nRight?\n"
    )
    cut = Response(None, None, "one and")
    assert Generative(template="{problem} {response}").question(Problem("p", "What?"), cut) == "What? one and"


def test_wrong_options_are_refused():
    for options, words in (
        ({"samples": 0}, "samples = 0: give at least 1"),
        ({"max_tokens": 0}, "max_tokens = 0: give at least 1"),
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"template": "{problem}"}, "template must contain {response}"),
    ):
        with pytest.raises(UserError, match=words):
            build("scorers", "generative", options)


def test_a_search_is_guided_by_the_judge_and_its_calls_are_in_the_spend():
    texts = [f"</think>{a}" for a in ("1", "2", RIGHT, "3")]
    small = MockEngine(texts)
    big = judge(lambda prompt, rng: "Yes" if f"answer:\n{RIGHT}\n" in prompt else "No")
    outcome = searched(BestOfN(n=4), PROBLEM, small, scorer=Generative(engine="big"), others={"big": big})
    assert (outcome.response.answer, outcome.reason) == (RIGHT, "chosen by score")
    assert outcome.spend.tokens == small.used.tokens + big.used.tokens
    assert outcome.spend.verifier_calls == big.calls == 4
    assert searched(
        Weighted(n=4, by="score"), PROBLEM, small, scorer=Generative(engine="big"), others={"big": big}
    ) == (searched(Weighted(n=4, by="score"), PROBLEM, small, scorer=Generative(engine="big"), others={"big": big}))


def test_an_engine_that_is_not_there_is_refused_before_anything_is_sent():
    engine = MockEngine()
    with pytest.raises(Unsupported, match=r"calls an engine 'big' .*others: small.*--others NAME=MODEL"):
        searched(BestOfN(), PROBLEM, engine, scorer=Generative(engine="big"), others={"small": MockEngine()})
    assert engine.calls == 0


@given(st.integers(0, 900), st.integers(1, 5), st.sampled_from([PLAIN, SINGLE, WORDS]))
def test_the_budget_holds_with_a_judge_and_the_search_continues_without_its_scores(tokens, samples, capabilities):
    small, big = MockEngine(doubler(0.5)), judge("Yes", capabilities)
    outcome = searched(
        BestOfN(n=3, max_tokens=40),
        PROBLEM,
        small,
        scorer=Generative(engine="big", samples=samples),
        others={"big": big},
        budget=Budget(tokens=tokens),
    )
    used = small.used.tokens + big.used.tokens
    assert outcome.spend.tokens == used <= tokens
    if any(n.score is not None for n in outcome.trace.nodes):
        assert outcome.stop is StopReason.FINISHED
        assert outcome.reason == "chosen by score"
    else:
        assert outcome.stop is StopReason.BUDGET


@pytest.mark.parametrize("capabilities", [PLAIN, SINGLE])
def test_fewer_judgements_than_were_asked_for_are_no_score(capabilities):
    cost = len(Generative().question(PROBLEM, Response("1", None, "1"))) + 4
    scorer = Generative(samples=4, max_tokens=4)
    assert score(scorer, judge("Yes", capabilities), "1", meter=Meter(Budget(tokens=4 * cost))) == [1.0]
    meter = Meter(Budget(tokens=2 * cost + 1))
    with pytest.raises(BudgetExceeded, match="2 of the 4 judgements" if capabilities.n else "tokens"):
        score(scorer, judge("Yes", capabilities), "1", meter=meter)
    assert meter.idle


def test_no_call_of_a_scorer_outlives_its_scores():
    """One call that fails ends the others, and the meter holds nothing back for them."""
    slow = dataclasses.replace(PLAIN, n=False)
    engine = judge(
        "Yes", slow, delay=lambda r: 0.0 if "first" in r.prompt else 60.0, fail=lambda number, r: OSError("no")
    )
    meter = Meter(Budget(tokens=10_000))
    with pytest.raises(OSError, match="no"):
        score(Generative(), engine, "first", "second", meter=meter)
    assert engine.in_flight == 0
    assert meter.idle

    async def late():
        async with MeteredEngine(meter, engine) as caller:
            pass
        return await Generative().score(PROBLEM, [Response("1")], caller)

    with pytest.raises(PonderError, match="after the scores were given"):
        asyncio.run(late())


def test_ponder_tiny_judges_within_a_hard_budget():
    pytest.importorskip("torch")
    from ponder.engines.torch import TorchEngine
    from ponder.models.load import load

    countdown = build("environments", "countdown")
    scorer = Generative(samples=2, max_tokens=8)
    guided = dataclasses.replace(countdown.feedback, checker=None, scorer=scorer)
    beam = Beam(2, 2, depth=4, step_tokens=12, delimiters=(",",), answer_tokens=12)

    async def run(strategy, tokens):
        engine = TorchEngine(load("ponder-tiny"))
        try:
            budget = Budget(tokens=tokens)
            return await solve(strategy, countdown.problem("test", 0), engine, feedback=guided, budget=budget)
        finally:
            await engine.close()

    for strategy in (BestOfN(n=2, max_tokens=40), beam):
        whole = asyncio.run(run(strategy, None))
        assert any(n.score is not None for n in whole.trace.nodes)
        spent = whole.spend.tokens
        for tokens in (spent, spent - 1, spent // 2):
            outcome = asyncio.run(run(strategy, tokens))
            assert outcome.spend.tokens <= tokens


def test_a_scorer_that_calls_no_engine_is_given_none():
    assert ENV.feedback.scorer is None
    assert build("environments", "countdown").feedback.scorer.engine is None
    assert Generative().engine == ""
    assert Feedback(scorer=Generative()).slow is False


def test_scores_that_do_not_fit_the_budget_raise_with_the_numbers():
    with pytest.raises(BudgetExceeded, match="tokens are left"):
        score(Generative(), judge("Yes"), "1", meter=Meter(Budget(tokens=10)))
