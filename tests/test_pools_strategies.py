"""Strategies over a pool: held against what drawing in every order gives, and against the real strategies."""

import itertools
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_play import judged, row, sample, write

from ponder.errors import PonderError, Unsupported, UserError
from ponder.evaluation.pools import adaptive as pools_adaptive
from ponder.evaluation.pools.adaptive import Adaptive
from ponder.evaluation.pools.analysis import build, defaults, ladder, replay
from ponder.evaluation.pools.formulas import BestOfK, Direct, Majority, Weighted
from ponder.evaluation.pools.judges import VerifierJudge
from ponder.evaluation.pools.judging import JudgedPool, judge_pool
from ponder.evaluation.pools.live import Live
from ponder.evaluation.pools.record import read_pool
from ponder.protocols import Ask, Generate
from ponder.search import stopping as stopping_rules
from ponder.search.asking import Asking
from ponder.search.strategies.best_of_n import BestOfN
from ponder.search.strategies.budget_forcing import BudgetForcing
from ponder.types import Outcome, Request, Response, SamplingParams
from ponder.verifiers.numeric import Numeric


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pools")


def pool_of(folder, samples) -> JudgedPool:
    return judged(folder / "p.jsonl", row("a", samples))


def rows_of(pool: JudgedPool):
    return [p.row for p in pool.problems]


def answers():
    """Samples with ties, truncations, missing scores and log-probabilities; 1 is right."""
    of = st.tuples(
        st.sampled_from([1, 2, 3, None]), st.sampled_from([None, 0.0, 0.25, 0.5]), st.sampled_from([None, -1.0, -0.25])
    )
    drawn = st.lists(of, min_size=1, max_size=5)
    return drawn.map(
        lambda rows: [
            sample(a, tokens=10 + i, **{k: v for k, v in (("score", s), ("mean_logprob", m)) if v is not None})
            for i, (a, s, m) in enumerate(rows)
        ]
    )


def answer(s):
    return None if s.get("finish_reason") == "length" else s["text"].split()[-1].rstrip(".")


def everywhere(samples, k, decide):
    """Mean of a decision over every order of drawing k samples."""
    gains = [decide([samples[i] for i in order]) for order in itertools.permutations(range(len(samples)), k)]
    return sum(gains) / len(gains)


def vote(drawn, weight=lambda s: 1.0):
    """The heaviest answer; of equals the one that was drawn first."""
    voters = [s for s in drawn if answer(s) is not None]
    if not any(weight(s) > 0 for s in voters):
        weight = lambda s: 1.0  # noqa: E731
    sums: dict[str, float] = {}
    for s in voters:
        sums[answer(s)] = sums.get(answer(s), 0.0) + weight(s)
    if not sums:
        return 0.0
    most = max(sums.values())
    return float(next(a for a, w in sums.items() if w >= most - 1e-9) == "1")


def best(drawn, key):
    answered = [s for s in drawn if answer(s) is not None]
    if not answered:
        return 0.0
    return float(answer(max(answered, key=lambda s: s.get(key, -math.inf))) == "1")


def check(folder, strategy, samples, decide):
    pool = pool_of(folder, samples)
    counts = range(1, len(samples) + 1)
    [reached] = strategy.reach(pool.problems, tuple(counts))
    for k in counts:
        assert reached.accuracy_K[k - 1] == pytest.approx(everywhere(samples, k, decide), abs=1e-9), k
    assert reached.decision == decide(samples)
    assert not reached.variance_K.any()
    return reached


@settings(max_examples=20)
@given(answers())
def test_majority_is_the_vote_in_every_order(folder, samples):
    reached = check(folder, Majority(), samples, vote)
    mean = np.mean([s["tokens"] for s in samples])
    assert list(reached.tokens_K) == pytest.approx([k * mean for k in range(1, len(samples) + 1)])


@settings(max_examples=20)
@given(answers())
def test_best_of_k_is_the_highest_in_every_order(folder, samples):
    for by, key in (("score", "score"), ("logprob", "mean_logprob")):
        if any(key in s for s in samples):
            check(folder, BestOfK(by), samples, lambda drawn, key=key: best(drawn, key))


@settings(max_examples=20)
@given(answers())
def test_weighted_votes_are_those_in_every_order(folder, samples):
    if any("score" in s for s in samples):
        check(folder, Weighted("score"), samples, lambda drawn: vote(drawn, lambda s: s.get("score", 0.0)))
    if any("mean_logprob" in s for s in samples):
        weight = lambda s: math.exp(s["mean_logprob"]) if "mean_logprob" in s else 0.0  # noqa: E731
        check(folder, Weighted("logprob"), samples, lambda drawn: vote(drawn, weight))


def stopping(drawn, stop):
    """Votes after each sample until a rule says so: the answer, samples, tokens."""
    for i in range(1, len(drawn) + 1):
        if stop(drawn[:i]) or i == len(drawn):
            return vote(drawn[:i]), i, sum(s["tokens"] for s in drawn[:i])
    raise AssertionError


def beta(seen):
    votes = sorted(Counter(a for s in seen if (a := answer(s)) is not None).values(), reverse=True)
    if not votes:
        return False
    a, b = votes[0] + 1, [*votes, 0][1] + 1
    trials = a + b - 1
    return sum(math.comb(trials, i) for i in range(a)) / 2**trials >= 0.8


def against_all(seen):
    votes = sorted(Counter(a for s in seen if (a := answer(s)) is not None).values(), reverse=True)
    return bool(votes) and stopping_rules.dirichlet(votes) >= 0.7


def window(seen):
    block = [answer(s) for s in seen[-2:]]
    return len(seen) % 2 == 0 and block[0] is not None and block[0] == block[1]


@settings(max_examples=15)
@given(answers())
def test_adaptive_is_the_vote_that_stops_in_every_order(folder, samples):
    pool, n = pool_of(folder, samples), len(samples)
    rules = ((Adaptive("beta", 0.8), beta), (Adaptive("dirichlet", 0.7), against_all), (Adaptive("esc", 2), window))
    for strategy, stop in rules:
        [reached] = strategy.reach(pool.problems, tuple(range(1, n + 1)))
        for k in range(1, n + 1):
            got = [stopping([samples[i] for i in o], stop) for o in itertools.permutations(range(n), k)]
            mine = [getattr(reached, f"{name}_K")[k - 1] for name in ("accuracy", "samples", "tokens")]
            assert mine == pytest.approx(list(np.mean(got, axis=0))), k
        assert reached.decision == stopping(samples, stop)[0]


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=30, max_size=30), min_size=1, max_size=4),
    st.sampled_from([0.6, 0.8, 0.9, 0.95, 0.99]),
)
def test_bounds_decide_as_the_integral_does(orders, limit):
    """Every order of drawing stops at the first sample at which the integral says so."""
    votes = (np.array(orders)[:, :, None] == np.arange(6)).cumsum(axis=1, dtype=np.int32)
    over = Adaptive("dirichlet", limit)._decided(votes)
    for mine, seen in zip(over, votes, strict=True):
        theirs = [stopping_rules.dirichlet(sorted((int(v) for v in s if v), reverse=True)) >= limit for s in seen]
        assert mine.any() == any(theirs)
        assert mine.argmax() == np.argmax(theirs)


def test_many_orders_are_computed_in_parts_with_the_same_result(folder, monkeypatch):
    pool = pool_of(folder, [sample([1, 1, 2, 3, None][i % 5], tokens=i) for i in range(20)])
    for rule in (Adaptive("beta"), Adaptive("dirichlet"), Adaptive("esc", 3)):
        [whole] = rule.reach(pool.problems, (1, 4, 20))
        with monkeypatch.context() as patched:
            patched.setattr(pools_adaptive, "_CELLS", 500)
            [parts] = rule.reach(pool.problems, (1, 4, 20))
        assert list(whole.accuracy_K) == list(parts.accuracy_K)
        assert list(whole.samples_K) == list(parts.samples_K)


def test_adaptive_never_differs_from_majority_when_it_cannot_stop(folder):
    samples = [sample(a) for a in (1, 2, 1, 3, 2, 1)]
    pool, counts = pool_of(folder, samples), (1, 2, 3)
    exact = Majority().reach(pool.problems, counts)[0]
    drawn = Adaptive("beta", 0.95, orders=720).reach(pool.problems, counts)[0]
    assert list(drawn.accuracy_K) == pytest.approx(list(exact.accuracy_K))
    assert list(drawn.samples_K) == [1, 2, 3]


def test_random_orders_have_a_standard_error(folder):
    samples = [sample([1, 1, 2, 3, None][i % 5], tokens=i, score=0.1 + i % 7) for i in range(20)]
    pool = pool_of(folder, samples)
    exact = Majority().reach(pool.problems, (9,))[0].accuracy_K[0]
    same = [sample(answer(s), score=0.5) for s in samples]
    [drawn] = Weighted("score", seed=1, orders=400).reach(pool_of(folder, same).problems, (9,))
    error = math.sqrt(drawn.variance_K[0])
    assert 0 < error < 0.03
    assert abs(drawn.accuracy_K[0] - exact) < 4 * error
    again = Weighted("score", seed=1, orders=400).reach(pool_of(folder, same).problems, (9,))[0]
    assert again.accuracy_K[0] == drawn.accuracy_K[0]
    assert Weighted("score", seed=2, orders=400).reach(pool_of(folder, same).problems, (9,))[0].accuracy_K[0] != exact


def test_scores_below_zero_are_made_weights_by_exp(folder):
    low = [sample(1, score=-0.1), sample(2, score=-1.0), sample(2, score=-1.0)]
    [reached] = Weighted("score").reach(pool_of(folder, low).problems, (3,))
    assert reached.accuracy_K[0] == (2 * math.exp(-0.9) < 1.0)
    high = [sample(1, score=-0.1), sample(2, score=-0.3), sample(2, score=-0.3)]
    assert Weighted("score").reach(pool_of(folder, high).problems, (3,))[0].accuracy_K[0] == 0.0


# Real strategies ------------------------------------------------------------------------------------------------------


def test_a_real_strategy_on_the_pool_is_its_formula(folder):
    rows = [
        row(f"p{i}", [sample((i * j + j) % 3, tokens=j + 1, score=((i + 3 * j) % 5) / 5) for j in range(4)], gold=i % 3)
        for i in range(12)
    ]
    pool = judged(folder / "p.jsonl", *rows)
    counts = (1, 2, 4)
    live = Live(BestOfN(), "live:best_of_n", orders=30).reach(pool.problems, counts)
    exact = BestOfK("score").reach(pool.problems, counts)
    for name in ("accuracy_K", "tokens_K", "samples_K"):
        mine, formula = (np.mean([getattr(r, name) for r in reached], axis=0) for reached in (live, exact))
        assert mine == pytest.approx(formula, rel=0.12)
    assert [r.decision for r in live] == [r.decision for r in exact]
    assert [r.accuracy_K[2] for r in live] == pytest.approx([r.accuracy_K[2] for r in exact], abs=0.35)


def test_a_strategy_that_needs_a_model_says_so(folder):
    pool = pool_of(folder, [1, 2])
    with pytest.raises(Unsupported, match="no thought markers"):
        Live(BudgetForcing(thought_tokens=5), "live:budget_forcing").reach(pool.problems, (1, 2))


def test_a_search_that_asks_beyond_the_pool_fails_and_is_not_counted_as_wrong(folder):
    class Greedy:
        """Asks for a second sample that there is not."""

        def start(self, problem, context):
            class Search(Asking):
                def told(self, ask_id, given):
                    if ask_id == 0:
                        self.push(Ask(1, Generate(Request(problem.prompt, SamplingParams(99), n=9))))

                def outcome(self, spend, stop):
                    return Outcome(Response(None), None, self.tree.trace(), spend, stop)

            search = Search(problem, context)
            search.push(Ask(0, Generate(Request(problem.prompt, SamplingParams(99)))))
            return search

    with pytest.raises(PonderError, match=r"live:greedy on problem 'a': .* has 2 recorded samples"):
        Live(Greedy(), "live:greedy").reach(pool_of(folder, [1, 2]).problems, (1, 2))


def test_a_strategy_that_draws_more_than_its_budget_is_refused(folder):
    @dataclass(frozen=True)
    class Three:
        """Three samples, whatever the budget is."""

        def start(self, problem, context):
            return BestOfN(n=3).start(problem, context)

    pool = pool_of(folder, [1, 1, 2])
    live = Live(Three(), "live:three")
    assert live.counts((1, 2, 3)) == (3,)
    assert live.reach(pool.problems, (3,))[0].samples_K[0] == 3.0
    with pytest.raises(UserError, match="live:three drew 3 samples of problem 'a' at a budget of 2"):
        live.reach(pool.problems, (2,))


# Comparing ------------------------------------------------------------------------------------------------------------


def test_names_say_what_is_computed_and_what_is_run(folder):
    rows = rows_of(pool_of(folder, [sample(1, score=1.0), sample(2, score=0.5)]))
    assert build("best-of-n", rows) == BestOfK("score")
    assert build("weighted:logprob", rows) == Weighted("logprob")
    assert build("adaptive:esc:3", rows, seed=2) == Adaptive("esc", 3, 2)
    assert build("direct", rows) == Direct()
    assert build("live:best_of_n:3", rows) == Live(BestOfN(n=3), "live:best_of_n:3")
    assert build("budget_forcing:7", rows) == Live(BudgetForcing(thought_tokens=7), "budget_forcing:7")
    assert defaults(rows) == ("direct", "majority", "best_of_n:score", "weighted:score", "adaptive")
    assert build("live:best_of_n:top_k=5+min_p=0.1", rows).strategy == BestOfN(top_k=5, min_p=0.1)
    plain = pool_of(folder, [1, 2])
    bare = rows_of(plain)
    assert defaults(bare) == ("direct", "majority", "adaptive")
    for spec, said in (
        ("majorty", "did you mean 'majority'"),
        ("best_of_n", "no sample of the pool has one"),
        ("best_of_n:size", "score or logprob"),
        ("adaptive:gamma", "beta, dirichlet or esc"),
        ("adaptive:beta:2", "above 0.5 and below 1"),
        ("adaptive:esc:1.5", "whole number of samples"),
        ("adaptive:beta:x", "not a number"),
        ("direct:3", "nothing after the colon"),
        ("live:", "unknown strategy"),
        ("live:best_of_n:top_p=7", "top_p = 7"),
        ("live:best_of_n:topk=7", "did you mean 'top_k'"),
        ("live:best_of_n:top_k=7+x", "'x' is not KEY=VALUE"),
    ):
        with pytest.raises(UserError, match=said):
            build(spec, bare)
    with pytest.raises(UserError, match=r"has a 'score'"):
        BestOfK("score").reach(plain.problems, (1,))


def test_every_point_is_of_the_same_problems(folder):
    pool = judged(folder / "p.jsonl", row("a", [1] * 6), row("b", [1, 2, 2, 1, 3]))
    assert ladder(rows_of(pool)) == (1, 2, 4, 5)
    assert ladder(rows_of(pool), [3, 2]) == (2, 3)
    with pytest.raises(UserError, match=r"--budgets 6: give 1 to 5, the samples that problem 'b' has"):
        ladder(rows_of(pool), [6])


def test_strategies_that_draw_all_are_compared_with_the_vote_over_as_many(folder):
    drawn = ([1, 1, 2, 3], [2, 3, 1, 1])
    rows = [row(f"p{i}", [sample(a, score=float(j)) for j, a in enumerate(drawn[i % 2])]) for i in range(10)]
    pool = judged(folder / "p.jsonl", *rows)
    result = replay(pool, {"majority": Majority(), "best": BestOfK("score")})
    assert set(result.equal_spend) == {"best"}
    first, *more = result.equal_spend["best"]
    assert first is None
    for found, best, vote in zip(more, result.strategies["best"][1:], result.strategies["majority"][1:], strict=True):
        assert found.samples == pytest.approx(best.budget)
        assert found.difference.value == pytest.approx(best.accuracy - vote.accuracy)
        assert found.difference.low <= found.difference.value <= found.difference.high


def test_a_comparison_holds_points_pairs_and_coverage(folder):
    rows = [row(f"p{i}", [1, 1, 2] if i % 2 else [2, 3, 1]) for i in range(10)]
    pool = judged(folder / "p.jsonl", *rows)
    result = replay(pool, {"direct": Direct(), "majority": Majority()})
    values = result.to_json()
    assert list(values) == ["n", "coverage", "strategies", "paired", "disagreements", "highest", "highest_gain"]
    assert values["n"] == 10
    assert [c["k"] for c in values["coverage"]] == [1, 2, 3]
    assert values["coverage"][2]["value"] == 1.0
    assert [p["budget"] for p in values["strategies"]["majority"]] == [1, 2, 3]
    assert set(values["strategies"]["direct"][0]) == {
        "budget", "mean_samples_per_search", "mean_response_tokens_per_search", "accuracy", "low", "high"
    }  # fmt: skip
    [pair] = values["paired"]
    # Direct 1/2 on average; majority is sure of five and has a tie of three on the others.
    assert pair["difference"] == pytest.approx(0.5 - (1 + 1 / 3) / 2)
    assert pair["low"] <= pair["difference"] <= pair["high"]
    # In recorded order both decide alike: the first sample, and a tie to the first.
    assert pair["p"] == 1.0


def test_problems_with_samples_that_could_not_be_judged_miss_only_the_budgets_that_they_cannot_fill(folder):
    class Breaks(Numeric):
        def __call__(self, gold, answer):
            if "7" in answer:
                raise RuntimeError("broken")
            return super().__call__(gold, answer)

    path = write(folder / "p.jsonl", row("a", [1, 1, 7, 1]), row("b", [2, 2, 2, 2]), row("c", [7, 7, 7, 7]))
    pool = judge_pool(read_pool(path), VerifierJudge(Breaks(), "breaks"))
    result = replay(pool, {"majority": Majority(), "adaptive": Adaptive(), "direct": Direct()})
    assert result.n == 2
    points = {p.budget: p.accuracy for p in result.strategies["majority"]}
    assert points == {1: 0.5, 2: 0.5, 4: 0.0}
    assert [c.value for c in result.coverage] == [0.5, 0.5, 0.0]
