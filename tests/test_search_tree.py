"""Step-wise tree search: what must hold of `beam` and `mcts` whatever the model, and what they do on Countdown."""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mocks import ALL, MockEngine, decode
from search_play import answer_to, context, play

from ponder.environments.countdown import Partial
from ponder.errors import Unsupported, UserError
from ponder.protocols import Generate, Hold, Release, Score
from ponder.registry import build
from ponder.search import solve
from ponder.search.journal import Journal
from ponder.search.strategies.beam import Beam
from ponder.search.strategies.mcts import Mcts
from ponder.search.trace import path
from ponder.types import (
    Budget,
    Capabilities,
    FinishReason,
    Problem,
    Response,
    Spend,
    StopReason,
    Verdict,
    VerdictKind,
)

DIGITS = Problem("digits", "Write digits.")
BEAM = Beam(width=2, expand=3, depth=4, step_tokens=4, delimiters=(",",), answer_tokens=4)
MCTS = Mcts(simulations=8, expand=3, parallel=2, depth=4, step_tokens=4, delimiters=(",",), answer_tokens=4)
BOTH = pytest.mark.parametrize("strategy", [BEAM, MCTS], ids=["beam", "mcts"])
PLAIN = dataclasses.replace(ALL, thinking=False)
TEXT = Capabilities(n=True, prefix=True, seed=True)


def digits(request, rng):
    """Five steps of one digit each, whatever was there before, and their sum; some are dropped or end early."""
    begun = request.prefix if isinstance(request.prefix, str) else ""
    if "</think>" in begun:
        return f"{begun.partition('</think>')[0]}</think>{total(begun)}"
    text = begun
    while text.count(",") < 5:
        text += f"{rng.randint(0, 9)},"
    return f"{text}</think>{total(text)}"


def total(text):
    return sum(map(int, re.findall(r"\d", text.partition("</think>")[0])))


def high(text):
    """The more, the better: the mean digit so far."""
    found = re.findall(r"\d", text.partition("</think>")[0])
    return sum(map(int, found)) / (9 * len(found)) if found else 0.0


def above(least):
    def check(problem, response):
        if response.answer is None:
            return Verdict(VerdictKind.NO_ANSWER, 0.0, "no answer")
        fine = int(response.answer) >= least
        return Verdict(VerdictKind.CORRECT if fine else VerdictKind.WRONG, float(fine), "", response.answer)

    return check


class Scorer:
    """Scores texts; counts."""

    def __init__(self, rule=high):
        self.rule, self.seen = rule, []

    async def score(self, problem, responses):
        self.seen += [r.text for r in responses]
        return tuple(self.rule(r.text) for r in responses)


@dataclasses.dataclass
class Leasing(MockEngine):
    """Keeps count of what is held."""

    held: dict = dataclasses.field(default_factory=dict)
    most: int = 0
    leases: int = 0

    def __post_init__(self):
        super().__post_init__()
        self.capabilities = dataclasses.replace(self.capabilities, leases=True)

    @contextlib.asynccontextmanager
    async def hold(self, ids):
        self.leases += 1
        self.held[tuple(ids)] = self.held.get(tuple(ids), 0) + 1
        self.most = max(self.most, sum(self.held.values()))
        try:
            yield
        finally:
            self.held[tuple(ids)] -= 1


def run(strategy, engine, problem=DIGITS, **options):
    return asyncio.run(solve(strategy, problem, engine, **options))


def shape(outcome):
    """What must be the same, whoever was quickest."""
    nodes = [(n.id, n.parent, n.completion.text, n.score, n.check, n.note, n.vote) for n in outcome.trace.nodes]
    return outcome.chosen, outcome.response, outcome.confidence, outcome.reason, nodes


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
    # When a lease ends is the engine's own affair; an accepted answer comes before.
    calls = [{i for i, a in x.items() if not isinstance(a.work, Hold | Release)} for x in (asked, again)]
    assert calls[0] == calls[1]


@BOTH
def test_a_saved_search_goes_on_to_the_same_result(strategy):
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
def test_every_lease_is_let_go_and_few_are_held_at_a_time(strategy):
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
        async def score(self, problem, responses):
            calls.append(len(responses))
            if failing == "score" and len(calls) > 1:
                raise RuntimeError("no more")
            return await super().score(problem, responses)

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
        async def score(self, problem, responses):
            return (1.0,)

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
            texts = [n.completion.text for n in path(outcome.trace, node)]
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
    assert (outcome.stop, outcome.response.answer, outcome.confidence) == (StopReason.ACCEPTED, "7", 1.0)
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


# Beam ---------------------------------------------------------------------------------------------------------------


def test_the_beam_keeps_the_best_of_each_level():
    outcome = run(BEAM, MockEngine(digits), scorer=Scorer())
    nodes = [n for n in outcome.trace.nodes if n.score is not None and n.response.answer is None]
    for level in range(1, BEAM.depth + 1):
        here = [n for n in nodes if len(path(outcome.trace, n)) == level]
        kept = [n for n in here if n.note != "pruned"]
        assert 0 < len(kept) <= BEAM.width
        assert min(n.score for n in kept) >= max((n.score for n in here if n.note == "pruned"), default=0.0)
        parents = {n.parent for n in here}
        assert len(parents) <= BEAM.width


def test_a_wider_beam_finds_more():
    def mean(width):
        strategy = dataclasses.replace(BEAM, width=width, expand=4, depth=6)
        found = [run(strategy, MockEngine(digits), scorer=Scorer(), seed=s).response.answer for s in range(6)]
        return sum(map(int, found)) / 6

    assert mean(4) > mean(1) > 25.0  # a sample has 22.5 on average


# PUCT ---------------------------------------------------------------------------------------------------------------


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
        return max(len(path(outcome.trace, n)) for n in outcome.trace.nodes)

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
    assert often.confidence == pytest.approx(1.0 / 1.2)
    assert {n.vote for n in often.trace.nodes} == {"5", "9"}


# Countdown ------------------------------------------------------------------------------------------------------------


def test_the_countdown_score_reads_a_chain():
    environment = build("environments", "countdown")
    assert isinstance(environment.partial, Partial)
    problem = Problem("p", "", {"numbers": [3, 5, 7, 2], "target": 24, "operations": "+-*"})

    def score(thought, answer=None, lookahead=3):
        text = thought if answer is None else f"{thought}</think>{answer}"
        response = Response(answer, thought, text)
        (value,) = asyncio.run(Partial(lookahead).score(problem, [response]))
        return value

    fresh = score("")
    assert fresh == pytest.approx(1 / 5)
    # 5-2=3, 7*3=21, 21+3=24
    path_ = [score(t) for t in ("5-2=3,", "5-2=3,7*3=21,", "5-2=3,7*3=21,21+3=24")]
    assert path_ == pytest.approx([2 / 5, 3 / 5, 1.0])
    assert score("5-2=4,") == 0.0 == score("5-2=3,5+7=12,") == score("5/2=2,") == score("5-2=3=4,")
    lost = score("3-2=1,7-5=2,")
    assert 0.0 < lost < fresh
    assert score("3-2=1,7-5=2;") == fresh == score("9+9=18;")
    # A step that is cut is not held against the chain, one that cannot get right is.
    assert score("5-2=3,7*3=2") == score("5-2=3,") == score("5-2=3,7*") == score("5-2=3,7*3=")
    assert score("5-2=3,7*3=3") == 0.0
    assert (score("5-2=3!", "(5-2)*7+3"), score("5-2=3!", "5+7")) == (1.0, 0.0)
    # Without looking ahead only what is nearest counts: after 7*3 it is 21 of 24.
    assert score("7*3=21,", lookahead=0) > score("7+3=10,", lookahead=0)
    assert score("7*3=21,", lookahead=1) < fresh


@given(st.integers(0, 5000))
@settings(max_examples=30, deadline=None)
def test_the_made_solution_scores_higher_at_every_step(index):
    environment = build("environments", "countdown")
    problem = environment.problem("train", index)
    steps = environment.gold(problem).metadata["steps"]
    chains = [",".join(f"{a}{o}{b}={c}" for a, o, b, c in steps[:k]) + "," for k in range(1, len(steps) + 1)]
    scores = asyncio.run(environment.partial.score(problem, [Response(None, c, c) for c in ["", *chains]]))
    assert list(scores) == sorted(set(scores))
    assert scores[-1] == 1.0


def test_the_spend_of_a_tree_is_the_sum_of_its_nodes():
    for strategy in (BEAM, MCTS):
        outcome = run(strategy, MockEngine(digits), scorer=Scorer())
        calls = sum((n.completion.spend for n in outcome.trace.nodes), Spend())
        assert calls.tokens == outcome.spend.tokens
