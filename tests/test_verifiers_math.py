"""Mathematical equivalence in processes that can be killed."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ponder.errors import PonderError, UserError
from ponder.types import VerdictKind
from ponder.verifiers.math import Math
from ponder.verifiers.processes import Pool, shared

pytest.importorskip("math_verify")

HANG = "\\boxed{9^{9^{9^{9}}}}"


@pytest.fixture(scope="module")
def pool():
    pool = Pool(workers=2)
    yield pool
    pool.close()


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("\\frac{1}{2}", "The answer is $0.5$."),
        ("x^2+2x+1", "\\boxed{(x+1)^2}"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "so \\[\\boxed{(3, \\pi/2)}\\]"),
        ("\\sqrt{2}", "$\\frac{2}{\\sqrt{2}}$"),
        ("5", "So the height of the cylinder is:\n\\[\\boxed{5}\\] cm"),
        ("5", "Therefore, the height of the cylinder is \\(\\boxed{5}\\) cm."),
        ("y=2x+1", "\\boxed{2x+1}"),
        ("$\\pi$", "pi"),
        ("1,2,3,4,5,6", "\\boxed{6,5,4,3,2,1}"),
        ("\\text{Monday}", "\\boxed{Monday}"),
        ("50\\%", "\\boxed{0.5}"),
    ],
)
def test_equivalent_answers_are_correct(gold, answer):
    assert Math()(gold, answer).correct


@pytest.mark.parametrize(
    ("gold", "answer", "kind"),
    [
        ("x^2", "\\boxed{x^3}", VerdictKind.WRONG),
        ("x^2", "\\boxed{x^2}\nThe answer is $x^3$.", VerdictKind.WRONG),
        ("x^2", "\\boxed{x^2}\n\\[x^3\\]", VerdictKind.WRONG),
        ("x^2", "I do not know.", VerdictKind.NO_ANSWER),
        ("5", "\x00\ud800()", VerdictKind.NO_ANSWER),
        ("999", " ".join(map(str, range(1000))), VerdictKind.NO_ANSWER),
        ("9", "9**9**9", VerdictKind.NO_ANSWER),
        ("9", "\\boxed{9**9*2}", VerdictKind.WRONG),
        ("7", "7" * (1 << 20), VerdictKind.OUTPUT_LIMIT),
    ],
)
def test_other_answers_earn_nothing(gold, answer, kind):
    verdict = Math()(gold, answer)
    assert (verdict.kind, verdict.reward) == (kind, 0.0)


def test_equal_texts_and_numbers_need_no_process(monkeypatch):
    monkeypatch.setattr("ponder.verifiers.math.shared", lambda memory: pytest.fail("a process was asked"))
    assert Math()("5", "The answer is 5.").correct
    assert Math()("1/2", "0.5").correct
    assert Math()("1,234", "\\boxed{1234}").correct
    assert Math()("\\dfrac{a}{b}", "\\boxed{\\frac{a}{b}}").correct
    assert Math()("5", "6").kind is VerdictKind.WRONG


def test_an_interval_equals_its_inequality_whichever_is_the_gold():
    assert Math()("1<x<2", "\\boxed{(1,2)}").correct
    assert Math()("(1,2)", "\\boxed{1<x<2}").correct
    assert not Math()("[1,2)", "\\boxed{1<x<2}").correct


def test_a_hanging_comparison_is_killed_and_the_next_ones_work():
    began = time.monotonic()
    verdict = Math(seconds=1)("5", HANG)
    assert (verdict.kind, verdict.reward) == (VerdictKind.TIMEOUT, 0.0)
    assert time.monotonic() - began < 40  # generous: the machine may be busy
    assert Math(seconds=30)("x+1", "\\boxed{1+x}").correct


def test_a_gold_that_cannot_be_judged_is_a_judge_error():
    verdict = Math(seconds=1)("9^{9^{9^{9}}}", "\\boxed{x+1}")
    assert (verdict.kind, verdict.reward) == (VerdictKind.JUDGE_ERROR, None)
    with pytest.raises(UserError, match="empty"):
        Math()(" ", "5")


def test_many_threads_share_the_pool_and_none_gets_another_ones_verdict():
    pairs = [(f"x+{n}", f"\\boxed{{{n + n % 2}+x}}", n % 2 == 0) for n in range(64)]
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda p: Math(seconds=30)(p[0], p[1]), pairs))
    assert [v.correct for v in verdicts] == [right for _, _, right in pairs]


def test_it_works_inside_an_event_loop_and_beside_it():
    async def main():
        beside = await asyncio.gather(*(asyncio.to_thread(Math(seconds=30), "x+1", "\\boxed{1+x}") for _ in range(4)))
        return [Math(seconds=30)("x+2", "\\boxed{2+x}"), *beside]

    assert all(v.correct for v in asyncio.run(main()))


def test_a_base_exception_in_a_worker_is_an_error_and_not_an_escape(pool):
    result = pool.call("sys:exit", [3], 10)
    assert (result.kind, result.reason) == ("error", "SystemExit: 3")
    assert pool.call("operator:add", [1, 2], 10).value == 3


def test_a_worker_that_dies_is_an_error_of_the_call_and_is_replaced(pool):
    assert pool.call("os:_exit", [7], 10).kind == "error"
    assert pool.call("operator:add", [1, 2], 10).value == 3


def test_memory_is_limited(pool):
    result = pool.call("operator:mul", ["x", 1 << 31], 30)
    assert result.kind == "memory"
    assert pool.call("operator:add", [1, 2], 10).value == 3


def test_a_sleeping_call_is_killed_by_the_wall_clock(pool):
    began = time.monotonic()
    assert pool.call("time:sleep", [600], 0.2).kind == "timeout"
    assert time.monotonic() - began < 30


def test_waiting_for_a_worker_is_not_counted_as_work():
    pool = Pool(workers=1)
    try:
        with ThreadPoolExecutor(6) as threads:
            results = list(threads.map(lambda _: pool.call("time:sleep", [0.3], 0.2), range(6)))
        assert [r.kind for r in results] == ["ok"] * 6
    finally:
        pool.close()


def test_a_function_that_is_not_there_is_an_infrastructure_error(pool):
    with pytest.raises(PonderError, match="cannot be loaded"):
        pool.call("operator:nothing", [], 10)
    assert pool.call("operator:add", [1, 2], 10).value == 3


def test_text_of_every_kind_is_transferred(pool):
    text = "\x00\ud800é\U0001f600\n" * 1000
    assert pool.call("operator:add", [text, ""], 10).value == text


def test_a_result_that_is_not_json_is_an_error(pool):
    assert pool.call("builtins:set", [[1]], 10).kind == "error"


def test_closing_ends_workers_and_calls_and_can_be_repeated():
    pool = Pool(workers=1)
    failures = []

    def wait():
        try:
            pool.call("time:sleep", [600], 100)
        except PonderError as error:
            failures.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    while not pool._all or next(iter(pool._all)).process.poll() is not None:
        time.sleep(0.01)
    time.sleep(1.0)
    pool.close()
    pool.close()
    thread.join(30)
    assert not thread.is_alive()
    assert len(failures) == 1
    assert pool.call("operator:add", [1, 2], 10).value == 3
    pool.close()


def test_workers_are_gone_after_the_process_that_used_them():
    code = (
        "import json; from ponder.verifiers.processes import shared; p = shared();"
        "p.call('operator:add', [1, 2], 10); print(json.dumps([w.process.pid for w in p._all]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    (pid,) = json.loads(done.stdout)
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its parent")


def test_pools_are_shared_by_memory_limit():
    assert shared(1 << 30) is shared(1 << 30)
