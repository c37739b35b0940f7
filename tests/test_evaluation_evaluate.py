import asyncio
import dataclasses
import gc
import json
import math
import threading
import time
import weakref
from dataclasses import dataclass

import pytest
from mocks import MockEngine, MockEnvironment, doubler

from ponder.errors import PonderError, Unsupported, UserError
from ponder.evaluation.evaluate import Plan, evaluate
from ponder.evaluation.intervals import clopper_pearson
from ponder.evaluation.results import Earlier
from ponder.evaluation.testtime import ladder, parallel, parallel_points
from ponder.protocols import Ask, Group
from ponder.search import Meter
from ponder.search.sampling import Sampling
from ponder.search.strategies.adaptive import Adaptive
from ponder.search.strategies.best_of_n import BestOfN
from ponder.search.strategies.budget_forcing import BudgetForcing
from ponder.search.strategies.direct import Direct
from ponder.search.strategies.majority import Majority
from ponder.types import Budget, Capabilities, SamplingParams, Spend, Verdict, VerdictKind


def run(strategy=None, engine=None, environment=None, count=60, **options):
    environment = environment or MockEnvironment()
    engine = engine or MockEngine(doubler(0.5))
    plan = Plan(**{f.name: options.pop(f.name) for f in dataclasses.fields(Plan) if f.name in options})
    problems = environment.problems("test", count)
    return asyncio.run(evaluate(strategy or Direct(), environment, engine, problems, plan, **options))


def test_an_evaluation_counts_verdicts_tokens_and_cost():
    engine = MockEngine(doubler(0.5, thought=10))
    result = run(Direct(max_tokens=20), engine)
    kinds = result.kinds
    assert set(kinds) == {"correct", "wrong", "no_answer"}
    assert sum(kinds.values()) == 60
    assert result.accuracy == clopper_pearson(kinds["correct"], 60)
    assert result.no_answer == kinds["no_answer"] / 60
    assert result.spend.tokens == engine.used.tokens
    assert result.mean_response_tokens_per_search.value == pytest.approx(engine.used.response_tokens / 60)
    assert result.tokens_per_correct == engine.used.tokens / kinds["correct"]
    row = result.rows[7]
    assert (row.id, len(row.texts)) == ("test-7", 1)
    assert sum(r.tokens[0] for r in result.rows) == engine.used.response_tokens
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["accuracy"]["n"] == 60


def test_the_result_does_not_depend_on_which_search_finishes_first_or_on_concurrency():
    def strip(result):
        return result.accuracy, result.rows, result.spend.tokens

    results = [
        strip(run(engine=MockEngine(doubler(0.5), delay=delay), concurrency=concurrency, seed=5))
        for delay, concurrency in ((0.0, 1), (lambda r: (r.params.seed % 7) * 1e-3, 64), (0.0, 7))
    ]
    assert results[0] == results[1] == results[2]
    assert strip(run(seed=6)) != results[0]


def test_concurrency_is_what_was_asked_for():
    engine = MockEngine(doubler(0.5), delay=0.002)
    run(engine=engine, concurrency=8)
    assert engine.peak == 8
    with pytest.raises(UserError, match="concurrency = 0"):
        run(concurrency=0)


class Sending(MockEngine):
    """Writes down when the requests of a problem came."""

    def __init__(self, events, **options):
        super().__init__(doubler(0.5), **options)
        self.events = events

    async def generate(self, request, receipt=None):
        self.events.append(("sent", request.metadata["problem"]))
        return await super().generate(request, receipt)


@pytest.mark.parametrize("strategy", [Direct(), Majority(n=3), Adaptive(n=4, wave=2)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("concurrency", [1, 3])
def test_the_next_search_is_sent_before_one_that_has_ended_is_judged(strategy, concurrency):
    class Judging(MockEnvironment):
        def judge(self, problem, response):
            events.append(("judged", problem.id))
            return super().judge(problem, response)

    events = []
    run(strategy, Sending(events, delay=1e-4), Judging(), count=12, concurrency=concurrency)
    order = list(dict.fromkeys(events))
    for i in range(12 - concurrency):
        assert order.index(("sent", f"test-{i + concurrency}")) < max(
            order.index(("judged", f"test-{j}")) for j in range(i + 1)
        )


def test_no_more_searches_wait_for_their_judge_than_are_in_flight():
    class Slow(MockEnvironment):
        def judge(self, problem, response):
            time.sleep(0.002)
            events.append(("judged", problem.id))
            return super().judge(problem, response)

    events, unjudged, most = [], set(), 0
    run(engine=Sending(events), environment=Slow(slow_judge=True), count=30, concurrency=3)
    for what, name in events:
        (unjudged.add if what == "sent" else unjudged.discard)(name)
        most = max(most, len(unjudged))
    assert 3 < most <= 6


def test_several_samples_are_averaged_per_problem_and_all_differ():
    result = run(samples=8, seed=2)
    assert result.accuracy.n == 60
    assert result.accuracy.method == "Gaffke"
    assert all(len(r.kinds) == 8 for r in result.rows)
    assert {len(set(r.texts)) for r in result.rows} - {1}
    # The first sample is the one that a single-sample evaluation draws.
    assert [r.texts[0] for r in result.rows] == [r.texts[0] for r in run(seed=2).rows]


def test_failures_of_the_judge_are_left_out_and_counted():
    environment = MockEnvironment(broken=lambda i: i in (3, 4))
    result = run(environment=environment)
    assert result.kinds["judge_error"] == 2
    assert result.accuracy.n == 58
    assert result.rows[3].correct is None
    assert math.isnan(result.correct_P[3])
    assert result.accuracy.value == result.kinds["correct"] / 58
    said = dict(result.facts())["failures"]
    assert said.startswith("2 of 60 responses could not be generated or judged; the first: ")
    assert "the judge broke" in said
    assert "failures" not in dict(run().facts())


def test_too_many_infrastructure_errors_stop_an_evaluation():
    with pytest.raises(PonderError, match=r"6 of 60 .*the judge broke"):
        run(environment=MockEnvironment(broken=lambda i: i < 6))
    assert run(environment=MockEnvironment(broken=lambda i: i < 5)).kinds["judge_error"] == 5
    engine = MockEngine(fail=lambda number, request: ConnectionError("gone"))
    with pytest.raises(PonderError, match="ConnectionError: gone"):
        run(engine=engine)
    assert engine.in_flight == 0


def test_an_engine_that_fails_sometimes_is_counted_and_not_judged():
    engine = MockEngine(doubler(1.0), fail=lambda number, request: ConnectionError("x") if number == 5 else None)
    result = run(engine=engine)
    assert result.kinds == {"correct": 59, "judge_error": 1}
    assert sum("ConnectionError" in r.reasons[0] for r in result.rows) == 1


def test_bad_input_is_one_sentence():
    with pytest.raises(UserError, match="do not fit the context of 30"):
        run(engine=MockEngine(context=30))
    with pytest.raises(Unsupported, match="neither bound"):
        run(BudgetForcing(5), MockEngine(capabilities=Capabilities()))
    with pytest.raises(UserError, match="no problems"):
        run(count=0)
    with pytest.raises(UserError, match="samples = 0"):
        run(samples=0)


def test_each_search_has_its_budget_and_all_have_one_together():
    result = run(BestOfN(n=8, max_tokens=60), budget=Budget(tokens=200))
    assert all(t <= 200 for r in result.rows for t in r.tokens)
    meter = Meter(Budget(tokens=2000))
    result = run(BestOfN(n=8, max_tokens=60), parent=meter, concurrency=4)
    assert meter.spend.tokens == result.spend.tokens <= 2000
    assert result.kinds["no_answer"] > 30
    assert result.stops["budget"] > 30
    assert any("of the budget's 2000 tokens are left" in r.reasons[0] for r in result.rows)
    with pytest.raises(PonderError, match=r"nothing was sent, as the budget is too small: 5 of the budget's 5 tokens"):
        run(budget=Budget(tokens=5))


def test_the_search_may_use_the_checker_and_never_the_judge():
    environment = MockEnvironment()
    assert run(BestOfN(n=6), environment=environment).accuracy.value > 0.9
    assert environment.judged == 60
    blind = run(BestOfN(n=6), environment=MockEnvironment(checked=False))
    assert blind.accuracy.value < 0.75


def test_a_slow_judge_does_not_block_the_event_loop():
    class Slow(MockEnvironment):
        def judge(self, problem, response):
            threads.add(threading.current_thread())
            time.sleep(0.01)
            return super().judge(problem, response)

    threads = set()
    run(environment=Slow(slow_judge=True), count=20)
    assert threading.main_thread() not in threads
    assert len(threads) > 1


def test_progress_is_reported_to_the_end():
    seen = []
    result = run(on_progress=seen.append, samples=2, label="x")
    assert [p.done for p in seen] == list(range(1, 121))
    assert (seen[-1].total, seen[-1].correct, seen[-1].label) == (120, result.kinds["correct"], "x")
    assert seen[-1].response_tokens == result.spend.response_tokens


def test_progress_counts_no_more_failures_than_there_are_results():
    seen = []
    engine = MockEngine(doubler(0.5), fail=lambda number, r: ConnectionError("gone") if number % 2 else None)
    with pytest.raises(PonderError, match="could not be generated"):
        run(engine=engine, on_progress=seen.append)
    assert all(0 <= p.correct <= p.done - p.masked for p in seen)


def test_each_search_is_handed_over_with_its_tree_judged_and_then_freed():
    """Memory: what a search generated is the caller's; the result keeps a few texts."""
    seen, alive = [], []

    class Watched(str):
        """A text whose end can be watched."""

    def take(searched):
        seen.append((searched.index, searched.sample))
        trace = searched.outcome.trace
        chosen = next(n for n in trace.nodes if n.id == searched.outcome.chosen)
        assert chosen.verdict == searched.judged.verdict
        assert all(n.verdict is not None for n in trace.nodes), "judging is quick here: every sample has its verdict"
        text = Watched(trace.nodes[0].completion.text)
        object.__setattr__(trace.nodes[0].completion, "text", text)
        alive.append(weakref.ref(text))

    result = run(BestOfN(n=3), on_search=take, samples=2, count=30, keep_texts=4)
    assert sorted(seen) == [(i, s) for i in range(30) for s in range(2)]
    gc.collect()
    assert not any(ref() for ref in alive)
    assert [all(r.texts) for r in result.rows] == [True] * 4 + [False] * 26
    assert result.accuracy == run(BestOfN(n=3), samples=2, count=30).accuracy


def test_a_slow_judge_is_asked_for_the_chosen_response_alone():
    environment = MockEnvironment(slow_judge=True)
    verdicts = []
    run(
        BestOfN(n=4),
        environment=environment,
        count=10,
        on_search=lambda s: verdicts.append([n.verdict is not None for n in s.outcome.trace.nodes]),
    )
    assert environment.judged == 10
    assert all(sum(v) == 1 for v in verdicts)


def test_results_of_an_earlier_run_are_not_run_again_and_count_alike():
    whole: dict = {}
    result = run(count=20, on_search=lambda s: whole.setdefault((s.index, s.sample), s.judged))
    engine = MockEngine(doubler(0.5))
    kept = {place: judged for place, judged in whole.items() if place[0] % 3}
    lost = Spend(sampled_tokens=7)
    again = run(engine=engine, count=20, earlier=Earlier(kept, lost, 100.0))
    assert len(engine.requests) == 7
    assert (again.rows, again.accuracy, again.spend) == (result.rows, result.accuracy, result.spend)
    assert again.lost == lost
    assert again.run_seconds > 100.0


def test_votes_use_the_environments_answers():
    """Two texts that say the same are one cluster: what the environment's `answers` say, not their spelling."""

    class Answers:
        def extract(self, problem, response):
            return response.answer

        def same(self, a, b):
            asked.append((a, b))
            return float(a) == float(b)

    @dataclass(frozen=True)
    class Voting:
        def start(self, problem, context):
            search = Sampling(problem, context, SamplingParams(50), 3)
            search.all_sampled = lambda: search.push(Ask(-1, Group(tuple(search.leaves[i].response for i in range(3)))))
            return search

    asked: list = []
    environment = MockEnvironment()
    environment.answers = Answers()
    run(Voting(), MockEngine(["</think>8", "</think>8.0", "</think>9"]), environment, count=1)
    assert ("8", "8.0") in asked


def test_interrupting_an_evaluation_ends_what_is_in_flight():
    async def interrupted():
        engine, environment = MockEngine(delay=60), MockEnvironment()
        task = asyncio.create_task(
            evaluate(Direct(), environment, engine, environment.problems("test", 50), Plan(concurrency=10))
        )
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (engine.cancelled, engine.in_flight) == (10, 0)

    asyncio.run(interrupted())


# Test-time curves -------------------------------------------------------------------------------------------------


def thinker(request, rng):
    """Right only if it may think 30 tokens or more."""
    number = int(request.prompt.split()[2])
    allowed = request.params.thinking.max_tokens
    return "." * 60 + f"</think>{2 * number + (allowed < 30)}"


def test_a_ladder_gives_one_point_per_budget_on_the_same_problems():
    environment = MockEnvironment()
    problems = environment.problems("test", 20)
    rungs = asyncio.run(
        ladder(BudgetForcing(1, answer_tokens=8), environment, MockEngine(thinker), problems, [10, 30, 50])
    )
    assert [p.budget_tokens for p in rungs.points] == [10, 30, 50]
    assert [p.accuracy for p in rungs.points] == [0.0, 1.0, 1.0]
    assert all(p.n == 20 and p.no_answer == 0.0 and p.low <= p.accuracy <= p.high for p in rungs.points)
    assert [round(p.mean_response_tokens_per_search) for p in rungs.points] == [15, 35, 55]
    assert [r.id for r in rungs.evaluations[0].rows] == [r.id for r in rungs.evaluations[2].rows]


def test_a_ladder_needs_rungs_that_rise_and_a_strategy_that_bounds_thoughts():
    environment = MockEnvironment()
    problems = environment.problems("test", 2)
    with pytest.raises(UserError, match="must rise"):
        asyncio.run(ladder(BudgetForcing(1), environment, MockEngine(), problems, [10, 10]))
    with pytest.raises(UserError, match="Direct has no option thought_tokens"):
        asyncio.run(ladder(Direct(), environment, MockEngine(), problems, [10]))


def pooled(environment=None, engine=None, n=16, count=40, **options):
    environment = environment or MockEnvironment()
    problems = environment.problems("test", count)
    return asyncio.run(parallel(Direct(), environment, engine or MockEngine(doubler(0.2)), problems, n=n, **options))


def test_one_pool_gives_every_point_of_the_parallel_curve():
    curve = pooled()
    assert [p.samples for p in curve.points] == [1, 2, 4, 8, 16]
    first, last = curve.points[0], curve.points[-1]
    assert first.accuracy == first.coverage == pytest.approx(curve.pool.correct_PG.mean())
    assert last.coverage == curve.pool.correct_PG.any(axis=1).mean()
    for point in curve.points:
        # This checker is exact, so that the best of k is all that coverage promises.
        assert point.accuracy == pytest.approx(point.coverage)
        assert point.low <= point.accuracy <= point.high
        assert point.mean_response_tokens_per_search == pytest.approx(point.samples * curve.pool.tokens_PG.mean())
    assert curve.pool.spend.response_tokens == curve.pool.tokens_PG.sum()
    assert curve.pool.kinds["correct"] == curve.pool.correct_PG.sum()
    assert [p.samples for p in parallel_points(curve.pool, [3, 5])] == [3, 5]
    with pytest.raises(UserError, match="16 samples"):
        parallel_points(curve.pool, [17])


def test_a_lenient_checker_gives_less_than_coverage():
    class Lenient(MockEnvironment):
        @property
        def checker(self):
            return lambda problem, response: Verdict(VerdictKind.CORRECT, 1.0, "fine by me")

    curve = pooled(Lenient())
    assert curve.points[-1].accuracy == pytest.approx(curve.points[0].accuracy)
    assert curve.points[-1].coverage > curve.points[0].coverage + 0.3


def test_without_a_checker_there_is_coverage_only():
    curve = pooled(MockEnvironment(checked=False))
    assert curve.pool.rank_PG is None
    assert all(p.accuracy is None and p.low is None and p.coverage > 0 for p in curve.points)


def test_samples_that_could_not_be_judged_are_left_out_of_a_pool():
    curve = pooled(MockEnvironment(broken=lambda i: i == 3))
    assert curve.points[0].n == 39
    with pytest.raises(PonderError, match="the judge failed on"):
        pooled(MockEnvironment(broken=lambda i: i < 10))


def test_a_pool_of_truncated_responses_is_all_abstention():
    environment = MockEnvironment()
    problems = environment.problems("test", 5)
    engine = MockEngine("." * 50)
    curve = asyncio.run(parallel(Direct(max_tokens=10), environment, engine, problems, n=4))
    assert [p.accuracy for p in curve.points] == [0.0, 0.0, 0.0]
    assert curve.pool.kinds == {"no_answer": 20}
