"""Step-wise tree search: what must hold of `beam` and `mcts` whatever the model."""

import dataclasses
import itertools
import json
import math
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mocks import ALL, MockEngine
from search_play import answer_to, context, play
from tree_play import BEAM, BOTH, DIGITS, MCTS, TEXT, Leasing, Scorer, above, digits, high, run, shape, total

from ponder.errors import Unsupported, UserError
from ponder.protocols import Hold, Release
from ponder.registry import build, listing
from ponder.search.journal import Journal
from ponder.search.strategies.beam import Beam
from ponder.search.strategies.mcts import Mcts
from ponder.types import (
    Budget,
    FinishReason,
    Response,
    Score,
    Spend,
    StopReason,
    Verdict,
    VerdictKind,
)

PLAIN = dataclasses.replace(ALL, thinking=False)


@BOTH
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), checked=st.booleans(), scored=st.booleans(), n=st.booleans(), leases=st.booleans())
def test_the_result_does_not_depend_on_the_order_of_answers(strategy, seed, checked, scored, n, leases):
    engine = MockEngine(digits, capabilities=dataclasses.replace(ALL, n=n, leases=leases))
    check = above(34)

    def played(rng):
        search = strategy.start(DIGITS, context(engine, checked, scored))
        return play(search, lambda ask: answer_to(ask, DIGITS, engine, check, high), rng)

    (first, asked, _), (second, again, _) = played(None), played(random.Random(seed))
    assert shape(first) == shape(second)
    # When a lease ends depends on the engine; an accepted answer comes before.
    calls = [{i for i, a in x.items() if not isinstance(a.work, Hold | Release)} for x in (asked, again)]
    assert calls[0] == calls[1]


@BOTH
def test_a_saved_search_resumes_to_the_same_result(strategy):
    def solved(journal):
        engine = Leasing(digits)
        outcome = run(strategy, engine, checker=above(60), scorer=Scorer(), journal=journal)
        return outcome, engine.calls

    whole = Journal()
    outcome, calls = solved(whole)
    text = whole.to_json()
    for kept in (0, 3, len(text["answers"]) - 1, len(text["answers"])):
        part = Journal.from_json(json.loads(json.dumps({**text, "answers": text["answers"][:kept]})))
        again, more = solved(part)
        assert shape(again) == shape(outcome)
        assert more <= calls
    assert more == 0


@BOTH
@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(0, 900), ids=st.booleans(), checked=st.booleans())
def test_a_budget_holds_and_whatever_has_room_for_an_answer_gives_one(strategy, tokens, ids, checked):
    engine = MockEngine(digits, capabilities=ALL if ids else TEXT)
    checker = above(100) if checked else None
    outcome = run(strategy, engine, budget=Budget(tokens=tokens), scorer=Scorer(), checker=checker)
    assert engine.used.tokens == outcome.spend.tokens <= tokens
    room = tokens >= engine.count_tokens(DIGITS.prompt) + strategy.answer_tokens
    assert (outcome.response.answer is not None) == room
    assert outcome.spend.tokens > 0 or not room


@BOTH
def test_every_lease_is_ended_and_few_are_held_at_a_time(strategy):
    engine = Leasing(digits)
    outcome = run(strategy, engine, scorer=Scorer())
    assert engine.leases > 2
    assert not any(engine.held.values())
    assert engine.most <= 2 * getattr(strategy, "width", getattr(strategy, "parallel", 0))
    search = strategy.start(DIGITS, context(engine, scorer=True))
    _, asked, _ = play(search, lambda ask: answer_to(ask, DIGITS, engine, None, high))
    holds = {i for i, ask in asked.items() if isinstance(ask.work, Hold)}
    assert holds == {ask.work.ask for ask in asked.values() if isinstance(ask.work, Release)}
    assert outcome.response.answer is not None


@BOTH
@pytest.mark.parametrize("failing", ["hold", "score", "check"])
def test_a_part_that_fails_does_not_end_the_search(strategy, failing):
    class Broken(Leasing):
        def hold(self, ids):
            if failing == "hold":
                raise UserError("no memory")
            return super().hold(ids)

    calls = []

    class Weary(Scorer):
        async def score(self, problem, responses, engine):
            calls.append(len(responses))
            if failing == "score" and len(calls) > 1:
                raise RuntimeError("no more")
            return await super().score(problem, responses, engine)

    def check(problem, response):
        if failing == "check":
            raise RuntimeError("no idea")
        return above(100)(problem, response)

    outcome = run(strategy, Broken(digits, capabilities=PLAIN), checker=check, scorer=Weary())
    assert outcome.response.answer == str(total(outcome.response.text))
    assert "failed" in outcome.reason
    if failing == "score":
        assert len(calls) == 2, "a scorer that failed is not asked again"


@BOTH
def test_scores_that_are_not_one_for_each_response_are_no_scores(strategy):
    class Short(Scorer):
        async def score(self, problem, responses, engine):
            return (Score(1.0),)

    outcome = run(strategy, MockEngine(digits), scorer=Short())
    assert outcome.response.answer is not None
    assert all(n.score is None for n in outcome.trace.nodes)


@BOTH
def test_an_engine_that_fails_leaves_the_best_so_far(strategy):
    engine = MockEngine(digits, fail=lambda number, request: ConnectionError("gone") if number == 3 else None)
    outcome = run(strategy, engine, scorer=Scorer())
    assert (outcome.stop, "gone" in outcome.reason) == (StopReason.FAILED, True)
    assert outcome.response.answer is not None
    dead = MockEngine(digits, fail=lambda number, request: ConnectionError("gone"))
    outcome = run(strategy, dead, scorer=Scorer())
    assert (outcome.stop, outcome.chosen, outcome.trace.nodes) == (StopReason.FAILED, None, ())


@BOTH
@pytest.mark.parametrize("thinking", [True, False])
def test_engines_that_continue_text_search_the_same_tree_as_those_with_ids(strategy, thinking):
    """One digit and a comma are one step for both: text is cut back to the comma."""
    spoken = [MockEngine(digits, capabilities=dataclasses.replace(c, thinking=thinking)) for c in (ALL, TEXT)]
    trees = []
    for engine in spoken:
        outcome = run(strategy, engine, scorer=Scorer())
        steps = [n for n in outcome.trace.nodes if n.completion.finish_reason is FinishReason.LENGTH]
        assert steps
        assert all(re.fullmatch(r"(\d,)+(</think>.*)?", n.completion.text) for n in steps)
        assert all(n.response.answer is None for n in steps)
        for node in outcome.trace.nodes:
            texts = [n.completion.text for n in outcome.trace.path(node.id)]
            assert all(b.startswith(a) for a, b in itertools.pairwise(texts))
        # The mock answers for the thought that it would have had where it is closed within a call.
        assert thinking or outcome.response.answer == str(total(outcome.response.text))
        trees.append({n.completion.text[:2] for n in outcome.trace.nodes})
    assert trees[0] & trees[1]
    assert all(isinstance(r.prefix, str) and not r.params.stop for r in spoken[1].requests)


@BOTH
def test_an_engine_that_cannot_continue_or_tells_nothing_is_refused(strategy):
    with pytest.raises(Unsupported, match="cannot continue"):
        run(strategy, MockEngine(digits, capabilities=dataclasses.replace(ALL, prefix=False)), scorer=Scorer())
    with pytest.raises(Unsupported, match="no scorer"):
        run(strategy, MockEngine(digits, capabilities=TEXT))


@BOTH
def test_without_a_scorer_the_log_probabilities_guide(strategy):
    outcome = run(strategy, MockEngine(digits))
    assert outcome.response.answer is not None
    assert all(n.score is None for n in outcome.trace.nodes)


@BOTH
def test_an_accepted_answer_ends_the_search(strategy):
    engine = MockEngine("7,</think>7")
    outcome = run(strategy, engine, checker=above(7), scorer=Scorer())
    assert (outcome.stop, outcome.response.answer, outcome.vote_share) == (StopReason.ACCEPTED, "7", None)
    # One call for "7,", one for "</think>7": nothing after it.
    assert engine.calls == 2


@BOTH
def test_equal_siblings_are_one_step(strategy):
    engine, scorer = MockEngine("1,2,3,</think>6"), Scorer()
    outcome = run(dataclasses.replace(strategy, depth=3), engine, scorer=scorer)
    assert outcome.response.answer == "6"
    assert len(scorer.seen) == len(set(scorer.seen))
    notes = [n.note for n in outcome.trace.nodes if n.completion.text == "1,"]
    assert len(notes) >= strategy.expand
    assert all(n == "the same as node 0" for n in notes[1:])


@BOTH
def test_an_answer_is_never_cut_into_steps(strategy):
    """The answer holds the delimiter, and is longer than a step."""
    outcome = run(
        dataclasses.replace(strategy, answer_tokens=12),
        MockEngine("1,</think>1,2,3,4,5"),
        checker=above_any,
        scorer=Scorer(),
    )
    assert outcome.response.answer == "1,2,3,4,5"


def above_any(problem, response: Response):
    return Verdict(VerdictKind.CORRECT, 1.0, "")


@BOTH
def test_a_model_without_thoughts_is_searched_too(strategy):
    engine = MockEngine("1,2,3", thought=None)
    outcome = run(strategy, engine, scorer=Scorer(len))
    assert outcome.response.answer == "1,2,3"
    assert outcome.chosen is not None


@BOTH
def test_bad_options_are_named(strategy):
    for name in ("step_tokens", "depth", "answer_tokens", "expand"):
        with pytest.raises(UserError, match=name):
            dataclasses.replace(strategy, **{name: 0})
    with pytest.raises(UserError, match="delimiters"):
        dataclasses.replace(strategy, delimiters=("",))
    with pytest.raises(UserError, match="temperature"):
        dataclasses.replace(strategy, temperature=-1.0)


def test_the_spend_of_a_tree_is_the_sum_of_its_nodes():
    for strategy in (BEAM, MCTS):
        outcome = run(strategy, MockEngine(digits), scorer=Scorer())
        calls = sum((n.completion.spend for n in outcome.trace.nodes), Spend())
        assert calls.tokens == outcome.spend.tokens


@BOTH
def test_a_score_that_is_no_number_never_wins(strategy):
    """Scores may be below any log-probability, which does not replace a missing one."""
    engine = MockEngine(["9,</think>9", "1,</think>1"])
    outcome = run(strategy, engine, scorer=Scorer(lambda text: math.nan if text[0] == "9" else -50.0))
    assert outcome.response.answer == "1"


@BOTH
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), ids=st.booleans(), step=st.integers(2, 5), answer=st.integers(2, 20))
def test_the_response_tokens_are_at_most_what_the_listing_says(strategy, seed, ids, step, answer):
    """Even where nearly every step ends its thought, and every answer is as long as it may be."""

    def hasty(request, rng):
        return ",".join(str(rng.randint(0, 99)) for _ in range(rng.randint(1, 2))) + "</think>" + "7," * 30

    strategy = dataclasses.replace(strategy, step_tokens=step, answer_tokens=answer)
    outcome = run(strategy, MockEngine(hasty, capabilities=ALL if ids else TEXT), scorer=Scorer(), seed=seed)
    steps = strategy.depth * strategy.width if isinstance(strategy, Beam) else strategy.simulations
    assert 0 < outcome.spend.response_tokens <= steps * strategy.expand * (step + answer)


def test_the_listing_names_source_and_cost_and_what_follows_the_colon_sets_the_strategys_own_option():
    for part in listing("search.strategies"):
        if part.name in ("beam", "mcts"):
            assert re.search(
                r"arXiv:\d{4}\.\d{5}\); cost ≤ .*expand × \(step_tokens \+ answer_tokens\)\.$", part.summary
            )
    assert build("search.strategies", "beam:3", {"depth": 2, "delimiters": [","]}) == Beam(
        3, depth=2, delimiters=(",",)
    )
    assert build("search.strategies", "mcts:9") == Mcts(9)
