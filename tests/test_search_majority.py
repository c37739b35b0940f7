"""Votes: who may vote, who wins, how ties are broken, and what the outcome says of it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mocks import MockEngine, MockEnvironment, doubler
from search_play import searched
from sure_engine import SureEngine

from ponder import registry
from ponder.errors import Unsupported, UserError
from ponder.protocols import Vote
from ponder.scorers.base import BaseScorer
from ponder.search import derive
from ponder.search.clusters import result, standings
from ponder.search.strategies.best_of_n import BestOfN
from ponder.search.strategies.direct import Direct
from ponder.search.strategies.majority import Majority
from ponder.search.strategies.weighted import Weighted
from ponder.types import Budget, Capabilities, Score, StopReason, Verdict, VerdictKind
from ponder.verifiers.answers import VerifierAnswers
from ponder.verifiers.numeric import Numeric

ENV = MockEnvironment()
PROBLEM = ENV.problem("test", 3)
NO_LOGPROBS = Capabilities(ids=True, n=True)


def run(strategy, engine, **options):
    return searched(strategy, PROBLEM, engine, **options)


def said(*answers, n=None, **options):
    """The outcome of a majority over these answers; None is a response that is cut off."""
    texts = ["." * 50 if a is None else f"</think>{a}" for a in answers]
    return run(Majority(n=len(texts), max_tokens=40, **options), MockEngine(texts))


# Majority ---------------------------------------------------------------------------------------------------------


def test_the_answer_that_most_samples_give_wins_with_its_share_of_the_votes():
    outcome = said("41", "42", "42", "7", "42")
    assert (outcome.response.answer, outcome.chosen, outcome.stop) == ("42", 1, StopReason.FINISHED)
    assert outcome.vote_share == pytest.approx(3 / 5)
    assert outcome.reason == "3 of 5 votes for 42"
    assert [n.vote for n in outcome.trace.nodes] == ["41", "42", "42", "7", "42"]


def test_a_response_without_an_answer_abstains():
    outcome = said(None, None, "41", None, "42", "42")
    assert (outcome.response.answer, outcome.vote_share) == ("42", pytest.approx(2 / 3))
    assert outcome.reason == "2 of 3 votes for 42; 3 of 6 responses abstained"
    assert [n.vote for n in outcome.trace.nodes] == [None, None, "41", None, "42", "42"]
    assert outcome.trace.nodes[0].note == "abstains: cut off before its answer"


def test_what_kept_a_vote_from_being_held_is_said_first():
    engine = MockEngine("." * 50)
    refused = run(Majority(n=3), engine, budget=Budget(tokens=5))
    assert (refused.stop, engine.calls) == (StopReason.BUDGET, 0)
    assert refused.reason.startswith("5 of the budget's 5 tokens are left, and a call needs at least ")
    assert "vote" not in refused.reason
    cut = run(Majority(n=3, max_tokens=40), engine, budget=Budget(tokens=30))
    first, *_, last = cut.reason.split("; ")
    assert first.endswith("of 40 tokens: the budget of 30 tokens had room for no more")
    assert last == "no response had an answer to vote with"
    broken = run(Majority(n=3), MockEngine(fail=lambda call, request: ConnectionError("gone")))
    assert broken.stop is StopReason.FAILED
    assert broken.reason.startswith("ConnectionError: gone (tests/mocks.py:")


def test_without_any_vote_there_is_no_answer():
    outcome = said(None, None)
    assert (outcome.response.answer, outcome.chosen, outcome.vote_share) == (None, None, None)
    unreadable = run(Majority(n=2), MockEngine("</think>dunno"), answers=VerifierAnswers(Numeric()))
    assert (unreadable.response.answer, unreadable.chosen, unreadable.vote_share) == (None, None, None)
    assert unreadable.reason == "no response had an answer to vote with"
    assert unreadable.trace.nodes[0].note == "abstains: the answer cannot be read"


@pytest.mark.parametrize("answers", [("1", "2"), ("2", "1"), ("3", "1", "2", "2", "1")])
def test_a_tie_goes_to_the_answer_that_came_up_first(answers):
    outcome = said(*answers)
    tied = [a for a in dict.fromkeys(answers) if answers.count(a) == max(map(answers.count, answers))]
    assert outcome.response.answer == tied[0]
    assert f"as many as for {tied[1]}: the earlier sample decides" in outcome.reason


def test_votes_are_over_answers_and_not_over_texts():
    texts = ["so</think>The answer is 0.5", "</think>2", "hm</think>1/2", "</think>The answer is 2.", "</think>50%"]
    outcome = run(Majority(n=5), MockEngine(texts), answers=VerifierAnswers(Numeric()))
    assert outcome.reason == "3 of 5 votes for 1/2"
    assert outcome.response.answer == "The answer is 0.5"


def test_majority_sees_the_samples_of_direct():
    for capabilities in (MockEngine().capabilities, Capabilities(seed=True)):
        texts = []
        for strategy in (Direct(n=6), Majority(n=6)):
            engine = MockEngine(doubler(0.5), capabilities=capabilities)
            texts.append([n.completion.text for n in run(strategy, engine, seed=4).trace.nodes])
            assert [r.params.seed for r in engine.requests] == [
                derive(4, PROBLEM.id, i) for i in range(len(engine.requests))
            ]
        assert texts[0] == texts[1]


@given(st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=9))
def test_the_winner_has_the_most_votes_and_came_up_first_among_equals(said):
    first = {a: said.index(a) for a in said if a is not None}
    votes = {i: None if a is None else Vote(first[a], str(a)) for i, a in enumerate(said)}
    ranked = standings(votes)
    assert sum(len(p.members) for p in ranked) == sum(a is not None for a in said)
    if ranked:
        counts = {str(a): said.count(a) for a in first}
        best = [a for a in counts if counts[a] == max(counts.values())]
        assert ranked[0].answer == best[0]
        assert result(ranked).endswith(f"for {best[0]}")


# Weighted ---------------------------------------------------------------------------------------------------------

SURE, UNSURE = "sure</think>1", "hmmm</think>2"


@pytest.mark.parametrize("by", ["logprob", "certainty", "tail", "lowest"])
def test_a_sure_response_outweighs_two_that_are_not(by):
    outcome = run(Weighted(n=3, by=by, window=4), SureEngine([UNSURE, SURE, UNSURE]))
    assert outcome.response.answer == "1"
    assert outcome.reason.startswith("1 has ")
    weights = [n.score for n in outcome.trace.nodes]
    assert weights[1] > weights[0] + weights[2]
    assert outcome.vote_share == pytest.approx(weights[1] / sum(weights))
    assert run(Majority(n=3), SureEngine([UNSURE, SURE, UNSURE])).response.answer == "2"


def test_deepconf_asks_for_the_most_likely_ids_of_the_model_itself():
    engine = SureEngine(SURE)
    run(Weighted(n=2, by="tail"), engine)
    assert (engine.requests[0].params.top_logprobs, engine.requests[0].params.logprobs_of) == (20, "raw")


def test_only_the_most_confident_share_votes():
    texts = [UNSURE] * 9 + [SURE]
    assert run(Weighted(n=10, by="logprob"), SureEngine(texts)).response.answer == "2"
    assert run(Weighted(n=10, by="logprob", keep=0.1), SureEngine(texts)).response.answer == "1"


class Scores(BaseScorer):
    def __init__(self, *scores):
        self.scores = scores

    async def score(self, problem, responses, engine):
        return [Score(s) for s in self.scores[: len(responses)]]


def test_scores_are_weights_and_negative_ones_are_made_so():
    engine = MockEngine(["</think>1", "</think>2", "</think>1"])
    high = run(Weighted(n=3, by="score"), engine, scorer=Scores(0.2, 0.9, 0.3))
    assert (high.response.answer, high.vote_share) == ("2", pytest.approx(0.9 / 1.4))
    logits = run(Weighted(n=3, by="score"), engine, scorer=Scores(-3.0, 1.0, -2.0))
    assert logits.response.answer == "2"
    assert logits.vote_share == pytest.approx(1 / (1 + math.exp(-4) + math.exp(-3)))
    assert logits.spend.verifier_calls == 3


def test_where_there_is_nothing_to_weigh_by_every_vote_counts_one():
    # It says that it gives log-probabilities, and does not give those of other ids.
    outcome = run(Weighted(n=3, by="tail"), MockEngine(["</think>2", "</think>1", "</think>2"]))
    assert (outcome.response.answer, outcome.vote_share) == ("2", pytest.approx(2 / 3))
    assert "no tail confidence to weigh by, so every vote counted 1" in outcome.reason
    with pytest.raises(Unsupported, match="needs log-probabilities, which the engine of mock does not give"):
        run(Weighted(by="tail"), MockEngine(capabilities=NO_LOGPROBS))
    with pytest.raises(Unsupported, match="needs a scorer"):
        run(Weighted(by="score"), MockEngine())


# Best of n, by the model's own certainty --------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["logprob", "certainty"])
def test_the_response_that_the_model_is_most_certain_of_wins(by):
    outcome = run(BestOfN(n=3, by=by), SureEngine([UNSURE, SURE, UNSURE]), checker=ENV.checker)
    assert outcome.chosen == 1
    assert outcome.trace.nodes[0].check is None, "the checker was not asked for"
    assert outcome.reason == ("chosen by self-certainty" if by == "certainty" else "chosen by mean log-probability")


def test_what_decides_must_be_there():
    for by, fix in (("checker", "by = auto"), ("scorer", "by = auto")):
        with pytest.raises(Unsupported, match=fix):
            run(BestOfN(by=by), MockEngine())
    with pytest.raises(Unsupported, match="log-probabilities"):
        run(BestOfN(by="certainty"), MockEngine(capabilities=NO_LOGPROBS))


def test_certainty_that_the_engine_does_not_give_falls_back_to_the_mean_log_probability():
    assert run(BestOfN(n=2, by="certainty"), MockEngine()).reason == "chosen by mean log-probability"


def test_best_of_n_by_a_scorer_does_not_ask_the_checker():
    engine = MockEngine(["</think>1", "</think>2"])
    accepts = {"checker": lambda p, r: Verdict(VerdictKind.CORRECT, 1.0, "yes"), "scorer": Scores(0.1, 0.2)}
    assert run(BestOfN(n=2, by="scorer"), engine, **accepts).chosen == 1
    assert run(BestOfN(n=2), engine, **accepts).chosen == 0


# Options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("majority", {"n": 0}, "n = 0"),
        ("majority", {"max_tokens": 9, "thought_tokens": 9}, "max_tokens and thought_tokens"),
        ("weighted", {"by": "scores"}, "by = 'scores': give one of score, .*did you mean 'score'"),
        ("weighted", {"keep": 0.0}, "keep = 0.0"),
        ("weighted", {"window": 0}, "window = 0"),
        ("best_of_n", {"by": "vote"}, "by = 'vote'"),
        ("cot", {"where": "start"}, "where = 'start'"),
        ("cot", {"instruction": " "}, "instruction is empty"),
        ("adaptive", {"rule": "bayes"}, "rule = 'bayes'"),
        ("adaptive", {"threshold": 1.0}, "threshold = 1.0"),
        ("adaptive", {"rule": "esc", "wave": 1}, "wave = 1"),
        ("refine", {"feedback": "judge"}, "feedback = 'judge'"),
        ("refine", {"revise": "again"}, "revise must contain {feedback}"),
        ("refine", {"approve": ""}, "approve is empty"),
        ("cascade", {"unsure": "always"}, "unsure = 'always'"),
        ("cascade", {"agreement": 1.5}, "agreement = 1.5"),
        ("cascade", {"logprob": 0.5}, "logprob = 0.5"),
        ("cascade", {"unsure": "agreement", "n": 1}, "agreement needs n of 2 or more"),
        ("cascade", {"slow": "majorty"}, "slow: unknown strategy 'majorty'; did you mean 'majority'"),
        ("cascade", {"slow_options": {"k": 3}}, "slow: majority: unknown key 'k'"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(name, options, message):
    with pytest.raises(UserError, match=message):
        registry.build("search.strategies", name, options)
