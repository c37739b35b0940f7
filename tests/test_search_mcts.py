"""Monte Carlo tree search over steps: PUCT, moves, virtual loss, votes."""

import dataclasses
import math

import pytest
from mocks import MockEngine, decode
from search_play import answer_to, context, play
from tree_play import DIGITS, MCTS, Scorer, digits, high, run

from ponder.protocols import Generate, Score
from ponder.search.puct import Puct
from ponder.search.step import Step
from ponder.search.strategies.mcts import Mcts
from ponder.types import Request, SamplingParams

CHILDREN = {"": "ab", "a": "cd", "b": "ef", "ac": "g", "ad": "h", "be": "i", "bf": "j"}
VALUES = {"a": 0.6, "b": 0.5, "ac": 0.2, "ad": 0.1, "be": 0.9, "bf": 0.4, "bei": 1.0}


def letters(text):
    return text.replace(",", "")


def test_puct_goes_down_as_computed_by_hand():
    """Uniform priors, exploration 1, one simulation at a time; Q is scaled by the lowest and highest value seen so far.

    1. The root: a (0.6), b (0.5), one visit each. Scaled by [0.5, 0.6]: a 1, b 0, and 1/2 · sqrt(2) / 2 = 0.354 each.
    2. a: ac (0.2), ad (0.1). a has 2 visits, Q = (0.6 + 0.2) / 2 = 0.4. Scaled by [0.1, 0.6]:
       a = 0.6 + 1/2 · sqrt(3) / 3 = 0.889, b = 0.8 + 1/2 · sqrt(3) / 2 = 1.233.
    3. b: be (0.9), bf (0.4). b has 2 visits, Q = (0.5 + 0.9) / 2 = 0.7. Scaled by [0.1, 0.9]:
       a = 0.375 + 1/2 · 2 / 3 = 0.708, b = 0.75 + 0.333 = 1.083; below, be = 1 + 0.354, bf = 0.375 + 0.354.
    4. be: bei (1.0). be has 2 visits, b 3 with Q = (0.5 + 0.9 + 1) / 3 = 0.8.
    The path of most visits is b (3 to 2), be (2 to 1), bei: it is closed.
    """
    order = []

    def answer(ask):
        work = ask.work
        if isinstance(work, Score):
            return tuple(VALUES[letters(r.text)] for r in work.responses)
        if not isinstance(work, Generate):
            return answer_to(ask, DIGITS, engine)
        at = letters(decode(work.request.prefix or ()))
        order.append(at)
        below = CHILDREN.get(at, "")
        spoken = MockEngine([",".join([*at, c, "z"]) for c in below] or "z")
        return tuple(spoken.complete(work.request, i) for i in range(min(len(below), work.request.n)))

    engine = MockEngine("")
    strategy = Mcts(
        4, 2, 0, 1, exploration=1.0, prior="uniform", widening=0.0, step_tokens=2, delimiters=(",",), depth=9
    )
    search = strategy.start(DIGITS, context(engine, scorer=True))
    outcome, _, _ = play(search, answer)
    assert order == ["", "a", "b", "be", "bei"]
    visits = {letters(s.completion.text): search.puct.visits[s.id] for s in search.steps.values()}
    assert {k: v.count for k, v in visits.items() if v.count} == {
        "a": 2,
        "ac": 1,
        "ad": 1,
        "b": 3,
        "be": 2,
        "bf": 1,
        "bei": 1,
    }
    assert visits["b"].total == pytest.approx(0.5 + 0.9 + 1.0)
    assert (search.puct.visits[None].count, search.puct.visits[None].total) == (4, pytest.approx(0.6 + 0.2 + 0.9 + 1.0))
    assert "3 visits, mean value 0.8, expanded 1 times" in {n.note for n in outcome.trace.nodes}


def test_the_search_moves_to_the_step_of_most_visits_and_goes_down_from_there():
    """With moves the tree is deep, without it is wide: the score does not rise with depth."""

    def deepest(per_move):
        strategy = Mcts(6, 2, per_move, 1, step_tokens=2, delimiters=(",",), depth=9, answer_tokens=4, prior="uniform")
        outcome = run(strategy, MockEngine(digits), scorer=Scorer(lambda text: 0.5))
        return max(len(outcome.trace.path(n.id)) for n in outcome.trace.nodes)

    assert deepest(1) == 7  # six moves, and the end
    assert deepest(0) < 5
    assert deepest(3) in range(3, 7)


def test_virtual_loss_sends_simulations_of_one_wave_to_different_steps():
    engine = MockEngine(digits)
    search = dataclasses.replace(MCTS, parallel=3, simulations=40).start(DIGITS, context(engine, scorer=True))
    waves = []
    while not search.done:
        asks = search.ask()
        prefixes = [ask.work.request.prefix for ask in asks if isinstance(ask.work, Generate)]
        assert len(prefixes) == len(set(prefixes))
        waves.append(len(prefixes))
        for ask in asks:
            search.tell(ask.id, answer_to(ask, DIGITS, engine, None, high))
    assert max(waves) == 3
    assert all(not v.running for v in search.puct.visits.values())


def test_a_tree_that_is_used_up_ends_the_search_without_widening():
    engine = MockEngine("1,2,3,</think>6")
    narrow = dataclasses.replace(MCTS, simulations=50, per_move=0, widening=0.0)
    run(narrow, engine, scorer=Scorer())
    # Three steps and the end, once each; nothing is asked twice.
    assert engine.calls == 4
    wide = MockEngine("1,2,3,</think>6")
    run(dataclasses.replace(narrow, widening=0.5), wide, scorer=Scorer())
    assert wide.calls > engine.calls


def test_answers_vote_with_their_values():
    """Two steps lead to 5, one to 9; the scorer thinks more of 9."""
    engine = MockEngine(["</think>5", "</think>5 ", "</think>9"])
    strategy = dataclasses.replace(MCTS, simulations=1, step_tokens=16)

    def rule(nine):
        return Scorer(lambda text: nine if "9" in text else 1.0 if "5 " in text else 0.5)

    often, dear = run(strategy, engine, scorer=rule(0.6)), run(strategy, engine, scorer=rule(9.0))
    assert often.response.answer.strip() == "5"
    assert dear.response.answer == "9"
    assert often.vote_share == pytest.approx(1.0 / 1.2)
    assert {n.vote for n in often.trace.nodes} == {"5", "9"}


# Values -------------------------------------------------------------------------------------------------------------


def searched(strategy, engine, rule=None):
    """The search after its end; all asks answered in order, `Score` by the rule or with what it raises."""
    search = strategy.start(DIGITS, context(engine, scorer=rule is not None))

    def answer(ask):
        try:
            return answer_to(ask, DIGITS, engine, None, rule)
        except ArithmeticError as error:
            return error

    outcome, _, _ = play(search, answer)
    return search, outcome


def test_a_response_without_an_answer_is_worth_nothing_on_the_scale_of_the_scores():
    """Its log-probability, which is below 0, is no score."""
    search, _ = searched(MCTS, MockEngine(["1,2,3,</think>6", "7", "8,1,</think>9"]), high)
    dead = [s for s in search.steps.values() if s.ended and not search.answered(s)]
    assert dead
    assert (search.puct.low, search.puct.high) == (0.0, pytest.approx(8 / 9))
    assert all(search.puct.visits[s.id].mean == 0.0 for s in dead)
    # Without a scorer it is worth no more than the least likely step, however likely it is itself.
    search, _ = searched(dataclasses.replace(MCTS, simulations=1), MockEngine(["1,2</think>3", "2", "3,4</think>5"]))
    (dead,) = [s for s in search.roots if s.completion.text == "2"]
    assert search.puct.visits[dead.id].mean == search.puct.low < search.value(dead)


def test_when_the_scorer_fails_scores_and_log_probabilities_are_not_averaged():
    """Values are then as if there had been no scorer from the start."""
    calls = []

    def rule(text):
        calls.append(text)
        if len(calls) > 20:
            raise ArithmeticError
        return high(text)

    strategy = dataclasses.replace(MCTS, simulations=20, depth=5, per_move=0)
    search, _ = searched(strategy, MockEngine(digits), rule)
    assert not search.scored
    assert search.puct.low < search.puct.high <= 0.0
    assert all(v.total <= 0.0 for v in search.puct.visits.values())
    # Every step was visited once by itself, and once by each simulation that went through it.
    assert search.puct.visits[None].count == 20
    first = min(search.steps)
    assert search.puct.visits[first].count == 1 + sum(
        leaf is not None and leaf_is_below(leaf, first) for leaves, _ in search._waves for leaf in leaves
    )


def leaf_is_below(leaf, step_id):
    while leaf is not None and leaf.id != step_id:
        leaf = leaf.parent
    return leaf is not None


def test_an_answer_votes_as_often_as_its_thought_was_sampled():
    """The thought ends within the step, so equal ones have one answer: 2 × 0.6 for 5 against 1.0 for 9."""
    engine = MockEngine(["</think>5,0", "</think>5,0", "</think>9,0", "</think>2,0"])
    rule = {"5": 0.6, "9": 1.0, "2": 0.0}
    strategy = dataclasses.replace(MCTS, simulations=1, expand=4)
    _, outcome = searched(strategy, engine, lambda text: rule[text.removeprefix("</think>")[0]])
    assert outcome.response.answer == "5,0"
    assert outcome.vote_share == pytest.approx(1.2 / 2.2)


def first_steps(*logprobs):
    none = MockEngine("").complete(Request("", SamplingParams(1)), 0)
    return [Step(i, None, none, 1, n, False, (total, n)) for i, (total, n) in enumerate(logprobs)]


def test_priors_are_a_softmax_of_mean_log_probabilities_however_unlikely_the_steps():
    """Before any visit but one of each, PUCT is Q + prior × sqrt(visits) / 2."""
    for shift in (0.0, -9999.0):
        roots = first_steps((2 * (-1.0 + shift), 2), (-2.0 + shift, 1), (0.0 + shift, 1))
        puct = Puct(roots, lambda step: True, 3, 1.0, "logprob", 0.0)
        puct.back_up([None], dict.fromkeys(roots, 1.0))
        weights = [math.exp(-1), math.exp(-2), 1.0]
        expected = [0.5 + w / sum(weights) * math.sqrt(3) / 2 for w in weights]
        assert [puct.puct(s) for s in roots] == pytest.approx(expected)
