"""Users' environments that misbehave: whose fault it is, and that nothing hangs, ends silently or reaches stdout."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from outside_parts import NO_VERDICT, RAISED, Moody, Slow

from ponder import outside, signals, sync
from ponder.cli.main import main
from ponder.environments.judging import judge
from ponder.environments.loading import first_problems, problem_at
from ponder.environments.selfcheck import self_check
from ponder.errors import PartFailed, UserError
from ponder.evaluation.evaluate import Plan, evaluate
from ponder.registry import build
from ponder.search.runner import solve
from ponder.search.strategies.direct import Direct
from ponder.show import visible
from ponder.types import Problem, Response, Verdict, VerdictKind

PARTS = Path(__file__).parent / "outside_parts.py"
PONDER = [sys.executable, "-c", "import sys; from ponder.cli.main import main; sys.exit(main(sys.argv[1:]))"]
EVAL = ["eval", "--engine", "simulated", "--model", "simulated", "-n", "6", "--max-tokens", "4000"]


def verdict_of(environment: Moody) -> Verdict:
    return sync.run(judge(environment, Problem("moody-test-0", "?"), Response("1")))


@pytest.mark.parametrize("cls", [Moody, Slow])
@pytest.mark.parametrize("mood", [*RAISED, *NO_VERDICT])
def test_a_judge_that_misbehaves_is_a_judge_error_with_the_environments_name(mood, cls) -> None:
    found = verdict_of(cls(mood=mood))
    assert (found.kind, found.reward) == (VerdictKind.JUDGE_ERROR, None)
    assert found.reason.startswith("the judge of the environment moody ")
    assert "tests/outside_parts.py:" in found.reason


@pytest.mark.parametrize(
    ("kind", "reward"),
    [
        *(("correct", r) for r in ("float('nan')", "float('inf')", "10**400", "'1'", "True", "None", "0.0", "-0.5")),
        *(("wrong", r) for r in ("1.0", "1.5", "-float('inf')", "None")),
        ("judge_error", "0.0"),
    ],
)
def test_a_reward_that_is_no_number_or_contradicts_the_verdict_is_a_judge_error(kind, reward) -> None:
    found = verdict_of(Moody(kind=kind, reward=reward))
    assert found.kind is VerdictKind.JUDGE_ERROR
    assert "environment moody" in found.reason
    assert "reward" in found.reason


@pytest.mark.parametrize(
    ("kind", "reward"),
    [("correct", 1.5), ("correct", 0.01), ("correct", 1e300), ("wrong", -0.5), ("wrong", 0.9), ("no_answer", -1)],
)
def test_shaped_rewards_are_kept_as_they_are(kind, reward) -> None:
    found = verdict_of(Moody(kind=kind, reward=repr(reward)))
    assert (found.kind.value, found.reward) == (kind, reward)


def test_a_verdict_takes_the_name_of_its_kind_and_numbers_of_numpy() -> None:
    found = Verdict("wrong", np.float32(0.25), "half of a half")  # type: ignore[arg-type]
    assert found.kind is VerdictKind.WRONG
    assert type(found.reward) is float
    for fields in (("bad", 0.0, ""), ("wrong", 0.0, None), ("wrong", 0.0, "", 4)):
        with pytest.raises(ValueError, match=r"bad|reason|answer"):
            Verdict(*fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["exit", "generator", "error", "cancel"])
def test_a_problem_that_cannot_be_made_names_environment_and_line(what) -> None:
    with pytest.raises(PartFailed, match=r"environment moody: problem\('test', 0\) failed: .*outside_parts.py:\d+\)"):
        first_problems(Moody(mood=f"problem-{what}"), "test", 3)


def test_what_is_no_problem_is_refused_where_it_comes_in() -> None:
    class Odd(Moody):
        def problem(self, split, index):
            return ["a", Problem("", "?"), Problem("a", []), Problem("b", ("?",))][index]  # type: ignore[arg-type]

    for index, said in enumerate(("a str, not a Problem", "the id ''", "a list", "a tuple")):
        with pytest.raises(PartFailed, match=f"environment moody: .*{said}"):
            problem_at(Odd(), "test", index)


def test_two_problems_of_one_id_are_refused() -> None:
    with pytest.raises(UserError, match="test problems 0 and 1 have the same id 'moody-test-0'"):
        first_problems(Moody(mood="same"), "test", 5)
    engine = build("engines", "simulated").open("simulated")
    with pytest.raises(UserError, match="problems 0 and 2 have the same id 'a'"):
        sync.run(evaluate(Direct(), Moody(), engine, [Problem(i, "?") for i in ("a", "b", "a")], Plan()))
    failures = self_check(Moody(mood="same"), "test", range(2))
    assert "indices 0 and 1 gave the same id" in [f.message for f in failures]


def test_the_event_loop_lives_on_after_a_task_that_exits() -> None:
    async def quits() -> None:
        raise SystemExit(0)

    async def outer() -> None:
        await sync.gather_all([quits()])

    with pytest.raises(PartFailed, match=r"SystemExit: 0 \(tests/test_outside.py:"):
        sync.run(outer())
    assert sync.run(asyncio.sleep(0, "on")) == "on"


def test_a_strategy_that_exits_names_itself() -> None:
    class Quitter(Direct):
        def start(self, problem, context):
            raise SystemExit(0)

    engine = build("engines", "simulated").open("simulated")
    with pytest.raises(PartFailed, match=r"the strategy Quitter failed: SystemExit: 0 \(tests/test_outside.py:"):
        sync.run(solve(Quitter(), Problem("a", "?"), engine))


def test_a_cancellation_of_the_task_is_not_taken_for_a_fault() -> None:
    async def cancelled() -> None:
        async def work() -> None:
            await outside.wait("the part", asyncio.sleep(30))

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


def test_a_class_that_is_no_environment_is_refused_by_what_it_lacks(tmp_path) -> None:
    file = tmp_path / "half.py"
    file.write_text("class Half:\n    name = 'half'\n")
    with pytest.raises(UserError, match=r"Half has no turns, .*judge.*; derive it from ponder.environments.base"):
        build("environments", f"{file}:Half")


def ponder(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
    import os

    env = {**os.environ, **more}
    return subprocess.run([*PONDER, *args], capture_output=True, text=True, timeout=60, check=False, env=env)


@pytest.mark.parametrize("how", ["exit", "interrupt"])
def test_a_module_that_exits_on_import_is_bad_input(how, monkeypatch, capsys) -> None:
    monkeypatch.setenv("AT_IMPORT", how)
    assert main([*EVAL, "--environment", f"{PARTS}:Moody"]) == 2
    assert "cannot be imported: " in capsys.readouterr().err


def test_json_stands_alone_on_stdout_whatever_users_code_prints() -> None:
    done = ponder(*EVAL, "--environment", f"{PARTS}:Moody", "--json")
    assert json.loads(done.stdout)["accuracy"]["value"] == 1.0
    assert {"printed at import", "a problem", "from below", "a judgement"} <= set(done.stderr.splitlines())


@pytest.mark.parametrize("mood", ["error", "problem-error"])
def test_control_characters_of_an_error_do_not_reach_the_terminal(mood, capsys) -> None:
    assert main([*EVAL, "--environment", f"{PARTS}:Moody", "--environment-options", f"mood={mood}"]) == 1
    said = capsys.readouterr()
    assert "\x1b" not in said.err + said.out
    assert "␛[31mred" in said.err
    assert "this is a bug" not in said.err


def test_marks_that_a_terminal_acts_on_are_made_visible() -> None:
    assert visible("a\x1b[2J\x9b\u202e\u2028\r") == "a␛[2J\\x9b\\u202e\\u2028␍"


@pytest.mark.parametrize(
    ("mood", "cls", "sent"),
    [
        ("sleep", "Slow", ["SIGTERM"]),
        ("loop", "Moody", ["SIGINT", "SIGINT"]),
        ("match", "Slow", ["SIGINT", "SIGINT"]),
        ("sleep", "Moody", ["SIGHUP", "SIGTERM"]),
    ],
)
def test_the_first_signal_stops_softly_and_the_second_at_once(mood, cls, sent, tmp_path) -> None:
    out = tmp_path / "run"
    args = [*EVAL, "--environment", f"{PARTS}:{cls}", "--environment-options", f"mood={mood}", "--out", str(out)]
    with subprocess.Popen(
        [*PONDER, *args],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
    ) as process:
        assert process.stderr is not None
        try:
            while b"READY" not in (line := process.stderr.readline()):
                assert line
            *first, last = [getattr(signal, name) for name in sent]
            for number in first:
                process.send_signal(number)
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.5)
            process.send_signal(last)
            code = process.wait(20)
        finally:
            process.kill()
    status = json.loads((out / "manifest.json").read_text())["status"]
    if not first:
        assert (code, status) == (130, "interrupted")
        return
    # By the handler, by the system (the first one's handler did not come to run), or from outside.
    assert code in (128 + last, -last, -signal.SIGKILL)
    assert status == "running"


def test_an_interrupt_that_nobody_pressed_is_known() -> None:
    assert signals.is_real(KeyboardInterrupt())  # in a script, where Python's own handler raises it
    with signals.handled():
        assert not signals.is_real(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt) as pressed:
            signal.raise_signal(signal.SIGINT)
        assert signals.is_real(pressed.value)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
