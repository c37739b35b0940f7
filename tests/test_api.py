"""What `import ponder` gives: names that come lazily, sync and async, in a running event loop too."""

import asyncio
import dataclasses
import inspect
import subprocess
import sys

import pytest
from mocks import MockEngine, MockEnvironment, doubler

import ponder
from ponder import registry
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
    twins = {name for name in ponder.__all__ if name.endswith("_async")}
    assert {name for name in ponder.__all__ if inspect.iscoroutinefunction(getattr(ponder, name))} == twins
    assert twins == {
        f"{name}_async" for name in ("solve", "evaluate", "generate", "open_engine", "publish", "train_rl")
    }
    for name in twins:
        call, twin = getattr(ponder, name.removesuffix("_async")), getattr(ponder, name)
        assert call.__name__ == name.removesuffix("_async")
        assert tuple(inspect.signature(call).parameters) == tuple(inspect.signature(twin).parameters)


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
    assert outcome.vote_share == pytest.approx(2 / 3)


def test_a_problem_comes_with_its_environment_or_with_none_on_purpose():
    environment = MockEnvironment()
    problem = environment.problem("test", 0)
    with pytest.raises(UserError, match="give its environment too"):
        ponder.solve(problem, MockEngine())
    assert ponder.solve(problem, MockEngine(), environment=ponder.Feedback()).response.answer == "42"


def test_bad_input_is_one_sentence():
    engine = MockEngine()
    with pytest.raises(UserError, match=r"unknown key 'max_tokenz'; did you mean 'max_tokens'"):
        ponder.generate(engine, "a", max_tokenz=3)
    with pytest.raises(UserError, match=r"unknown key 'stepz'; did you mean 'steps'"):
        ponder.train_rl(stepz=3)
    with pytest.raises(UserError, match="give several as a list"):
        ponder.generate(engine, ("a", "b"))
    small = ponder.environment("arithmetic", digits=1, max_operands=2, max_result=9)
    found = ponder.evaluate(small, MockEngine("</think>1"), problems=100_000)
    assert found.problems < 100_000, "all there are"


def test_a_reader_may_be_asynchronous_and_its_error_is_its_own():
    seen = []

    async def hear(delta):
        await asyncio.sleep(0)
        seen.append(delta.text)

    assert "42" in ponder.solve("?", MockEngine(), on_delta=hear).response.answer
    assert "".join(seen).endswith("42")
    ponder.solve("?", MockEngine(), on_delta=lambda delta: seen.append(delta.text))
    assert "".join(seen).count("42") == 2


def test_a_prompt_that_fails_ends_the_others():
    engine = MockEngine(fail=lambda number, _: UserError("too long") if number == 0 else None, delay=0.05)
    with pytest.raises(UserError, match="too long"):
        ponder.generate(engine, ["a", "b", "c"], max_tokens=50)
    assert engine.in_flight == 0


def test_an_engine_that_a_call_opened_is_closed_whatever_happens(monkeypatch):
    opened = []

    class Opening:
        def open(self, model):
            engine = MockEngine("</think>42")
            engine.info = dataclasses.replace(engine.info, name=model)
            opened.append(engine)
            return engine

    build = registry.build
    monkeypatch.setattr(registry, "build", lambda room, *rest: Opening() if room == "engines" else build(room, *rest))
    assert ponder.solve("?", "some-model").response.answer == "42"
    with pytest.raises(UserError, match="give sampling parameters once"):
        ponder.generate("some-model", "a", max_tokens=1, params=ponder.SamplingParams(5))
    with pytest.raises(UserError):
        ponder.solve("?" * 200_000, "some-model")
    assert len(opened) == 2
    assert all(engine.closed for engine in opened)


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
    good, bad = (ponder.evaluate(environment, MockEngine(doubler(share)), problems=20) for share in (1.0, 0.0))
    assert good.accuracy.value == 1.0
    found = ponder.compare(bad, good)
    assert found.difference.value == 1.0
    assert found.moves == {"wrong to correct": 20}
    with pytest.raises(UserError, match="did not answer the same problems"):
        ponder.compare(good, ponder.evaluate(environment, MockEngine(), problems=5))


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
