"""What `import ponder` gives: names that come lazily, sync and async, in a running event loop too."""

import asyncio
import inspect
import subprocess
import sys

import pytest
from mocks import MockEngine, MockEnvironment, doubler

import ponder
from ponder.errors import UserError
from ponder.types import StopReason


def test_every_name_is_there_and_explains_itself():
    assert 15 <= len([n for n in ponder.__all__ if not n.endswith("_async")]) <= 22
    for name in ponder.__all__:
        assert inspect.getdoc(getattr(ponder, name)), name
    assert set(ponder.__all__) <= set(dir(ponder))
    with pytest.raises(AttributeError, match=r"no attribute 'slove'; it has .*solve"):
        ponder.slove  # noqa: B018


def test_names_come_when_they_are_used():
    code = "import sys, ponder; print('ponder.api' in sys.modules); ponder.solve; print('ponder.api' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_what_waits_has_an_asynchronous_twin():
    for name in ("solve", "evaluate", "generate", "open_engine", "train_rl"):
        twin = getattr(ponder, f"{name}_async")
        assert inspect.iscoroutinefunction(twin)
        assert not inspect.iscoroutinefunction(getattr(ponder, name))
    assert inspect.signature(ponder.solve).parameters.keys() == inspect.signature(ponder.solve_async).parameters.keys()
    both = (inspect.signature(f).parameters.keys() for f in (ponder.evaluate, ponder.evaluate_async))
    assert len({tuple(keys) for keys in both}) == 1


def test_a_question_is_answered_with_a_strategy_by_name_and_its_options():
    engine = MockEngine("</think>42")
    outcome = ponder.solve("What is 6 * 7?", engine, strategy="majority", n=5)
    assert outcome.response.answer == "42"
    assert len(outcome.trace.nodes) == 5
    with pytest.raises(UserError, match=r"unknown key 'm'"):
        ponder.solve("?", engine, strategy="majority", m=5)
    with pytest.raises(UserError, match=r"unknown strategy 'majorty'; did you mean 'majority'"):
        ponder.solve("?", engine, strategy="majorty")
    with pytest.raises(UserError, match=r"n: an option of a part by name"):
        ponder.solve("?", engine, strategy=ponder.strategy("majority", n=3), n=4)


def test_votes_know_which_answers_are_the_same_without_being_told():
    # 7 + 5 is written in two orders: the environment of the problem says that both are one answer.
    environment = ponder.environment("countdown", min_numbers=2, max_numbers=2)
    problem = environment.problem("test", 0)
    a, b = problem.public["numbers"]
    gold = environment.gold_response(problem)
    op = next(c for c in gold if c in "+*-")
    texts = [f"</think>{a}{op}{b}", f"</think>{b}{op}{a}", "</think>1+1"]
    if op == "-":
        texts = [f"</think>{gold}", f"</think>({gold})", "</think>1+1"]
    outcome = ponder.solve(problem, MockEngine(texts), environment=environment, strategy="majority", n=3)
    assert outcome.confidence == pytest.approx(2 / 3)


def test_a_budget_is_never_exceeded():
    outcome = ponder.solve(
        "?" * 20, MockEngine("</think>" + "4" * 40), strategy="majority", n=8, budget=ponder.Budget(100)
    )
    assert outcome.spend.tokens <= 100
    assert outcome.stop is StopReason.BUDGET


def test_it_works_where_an_event_loop_is_running():
    async def notebook():
        engine = MockEngine("</think>42")
        return ponder.solve("?", engine).response.answer, (await ponder.solve_async("?", engine)).response.answer

    assert asyncio.run(notebook()) == ("42", "42")


def test_evaluations_are_compared_problem_by_problem():
    environment = MockEnvironment()
    good, bad = (ponder.evaluate(environment, MockEngine(doubler(share)), n=20) for share in (1.0, 0.0))
    assert good.accuracy.value == 1.0
    found = ponder.compare(bad, good)
    assert found.difference.value == 1.0
    assert found.moves == {"wrong to correct": 20}
    with pytest.raises(UserError, match="did not answer the same problems"):
        ponder.compare(good, ponder.evaluate(environment, MockEngine(), n=5))


def test_prompts_of_a_list_are_sampled_together():
    engine = MockEngine("</think>42")
    found = ponder.generate(engine, ["a", "b"], n=3, max_tokens=50)
    assert [len(group) for group in found] == [3, 3]
    assert ponder.generate(engine, "a", max_tokens=50)[0].text.endswith("42")
    with pytest.raises(UserError, match="give sampling parameters once"):
        ponder.generate(engine, "a", max_tokens=50, params=ponder.SamplingParams(5))


def test_a_run_is_read():
    with pytest.raises(UserError, match="no such run directory"):
        ponder.read_run("there-is-none")
