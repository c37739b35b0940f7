"""Episodes: tools that are called, fail or take too long; turns that end; and what a conversation is judged by."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from mocks import MockEnvironment

from ponder.environments.calculator import CALCULATE, Calculator, calculate
from ponder.environments.judging import judge_path
from ponder.environments.turns import BaseEpisode, Offer, OneStep, ToolEpisode
from ponder.errors import UserError
from ponder.protocols import Episode, Turn
from ponder.types import Message, Problem, Response, Tool, ToolCall, VerdictKind

SUM = ToolCall("call_0", "calculate", '{"expression": "12345 + 54321"}')


def asking(*calls: ToolCall) -> Response:
    return Response("", tool_calls=calls)


def episode(*more: Offer, **options) -> ToolEpisode:
    return ToolEpisode([Offer(CALCULATE, calculate), *more], **options)


def said(call: ToolCall, *more: Offer, **options) -> str:
    """What a call gives."""
    turn = asyncio.run(episode(*more, **options).step(asking(call)))
    (message,) = turn.messages
    assert (turn.done, message.role, message.tool_call_id, message.name) == (False, "tool", call.id, call.name)
    return message.content


def test_the_calls_of_a_response_run_at_once_and_answer_in_order() -> None:
    met = asyncio.Barrier(2)

    async def wait(who: str) -> str:
        await met.wait()
        return who

    async def run() -> Turn:
        calls = [ToolCall(str(i), "wait", f'{{"who": "{i}"}}') for i in range(2)]
        return await episode(Offer(Tool("wait"), wait)).step(asking(*calls))

    turn = asyncio.run(asyncio.wait_for(run(), 5))
    assert [(m.tool_call_id, m.content) for m in turn.messages] == [("0", "0"), ("1", "1")]


async def breaks() -> str:
    raise KeyError("no such row")


async def hangs() -> str:
    await asyncio.sleep(60)
    return "late"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (SUM, "66666"),
        (ToolCall("1", "calculate", '{"expression": "7 / 2"}'), "7/2"),
        (ToolCall("1", "calculate", '{"expression": "1 / 0"}'), "error: calculate: division by zero"),
        (ToolCall("1", "calculate", '{"expression": "__import__"}'), "error: calculate: not an arithmetic expression"),
        (ToolCall("1", "calculate", '{"expression": [1]}'), "error: calculate: not an arithmetic expression"),
        (ToolCall("1", "calculate", "12 + 3"), "error: the arguments of calculate are no JSON object"),
        (ToolCall("1", "calculate", "{}"), "error: calculate: missing a required argument: 'expression'"),
        (ToolCall("1", "calculate", '{"text": "1"}'), "error: calculate: missing a required argument: 'expression'"),
        (ToolCall("1", "calculat"), "error: there is no tool 'calculat'; did you mean 'calculate'?"),
        (ToolCall("1", "breaks"), "error: breaks: KeyError: 'no such row'"),
        (ToolCall("1", "hangs"), "error: hangs took longer than 0.05 seconds"),
    ],
    ids=lambda v: v.arguments if isinstance(v, ToolCall) else "",
)
def test_a_call_gives_a_result_or_one_sentence_why_not(call: ToolCall, sentence: str) -> None:
    more = (Offer(Tool("breaks"), breaks), Offer(Tool("hangs"), hangs))
    assert said(call, *more, seconds=0.05) == sentence


def test_a_response_without_a_call_ends_the_episode() -> None:
    one = episode()
    assert asyncio.run(one.step(Response("3"))) == Turn(done=True)
    with pytest.raises(ValueError, match="the episode is over, after 1 turns"):
        asyncio.run(one.step(Response("3")))


def test_the_last_turn_ends_the_episode_and_runs_nothing() -> None:
    ran = []

    async def run() -> str:
        ran.append(1)
        return ""

    one, call = episode(Offer(Tool("run"), run), most_turns=3), asking(ToolCall("0", "run"))
    turns = [asyncio.run(one.step(call)) for _ in range(3)]
    assert [t.done for t in turns] == [False, False, True]
    assert (len(ran), turns[-1].messages) == (2, ())


def test_a_fork_goes_on_by_itself() -> None:
    first = episode(most_turns=3)
    asyncio.run(first.step(asking(SUM)))
    second = first.fork()
    asyncio.run(first.step(Response("3")))
    assert not asyncio.run(second.step(asking(SUM))).done
    assert asyncio.run(second.step(asking(SUM))).done


def test_one_question_and_one_answer_is_an_episode_of_one_step() -> None:
    one = MockEnvironment().episode(MockEnvironment().problem("test", 0))
    assert isinstance(one, OneStep)
    before = one.fork()
    assert asyncio.run(one.step(Response("1"))) == Turn(done=True)
    with pytest.raises(ValueError, match="the episode is over"):
        asyncio.run(one.step(Response("1")))
    assert asyncio.run(before.step(Response("1"))).done


# The calculator -----------------------------------------------------------------------------------------------------


def test_the_calculator_is_offered_with_every_question() -> None:
    for environment in (Calculator(), Calculator(few_shot=2)):
        prompt = environment.problem("train", 0).prompt
        assert [m.tools for m in prompt if isinstance(m, Message)] == [(CALCULATE,)] + [()] * (len(prompt) - 1)
        assert (environment.feedback.episode is not None, environment.turns) == (True, True)


def test_options_that_leave_no_conversation_are_refused() -> None:
    with pytest.raises(UserError, match="few_shot_style must be chat"):
        Calculator(few_shot=2, few_shot_style="text")
    with pytest.raises(UserError, match="most_turns = 0"):
        Calculator(most_turns=0)


# Judging ------------------------------------------------------------------------------------------------------------


@dataclass
class Paying(MockEnvironment):
    """Two turns; each response earns its length."""

    turns: bool = True
    breaks: bool = False

    def episode(self, problem: Problem) -> Episode:
        if self.breaks:
            raise OSError("no connection")
        return _Paid()


class _Paid(BaseEpisode):
    closed = 0

    def __init__(self) -> None:
        self.steps = 0

    async def close(self) -> None:
        _Paid.closed += 1

    async def step(self, response: Response) -> Turn:
        self.steps += 1
        return Turn(done=self.steps == 2, reward=float(len(response.text)))


def path(*texts: str) -> list[Response]:
    return [Response(t, text=t) for t in texts]


def judged(environment: MockEnvironment, *texts: str):
    return asyncio.run(judge_path(environment, environment.problem("train", 1), path(*texts)))


def test_a_conversation_earns_what_its_turns_earned_beside_the_verdict_of_its_end() -> None:
    found = judged(Paying(), "abc", "2")
    assert (found.verdict.kind, found.turns_reward, found.reward) == (VerdictKind.CORRECT, 4.0, 5.0)
    assert judged(Paying(), "2", "abc").reward == 4.0


def test_with_one_turn_only_the_last_response_counts() -> None:
    found = judged(MockEnvironment(), "abc", "2")
    assert (found.verdict.correct, found.turns_reward, found.reward) == (True, 0.0, 1.0)


def test_an_episode_that_cannot_be_repeated_is_an_infrastructure_error() -> None:
    for environment, texts, why in (
        (Paying(breaks=True), ("a", "2"), "OSError: no connection"),
        (Paying(), ("a", "b", "2"), "ValueError: it ended after 2 of 3 turns"),
    ):
        found = judged(environment, *texts)
        assert (found.verdict.kind, found.reward) == (VerdictKind.JUDGE_ERROR, None)
        assert found.verdict.reason.startswith(f"the episode of the environment doubling could not be repeated: {why}")
    broken = judged(Paying(broken=lambda i: True), "a", "2")
    assert (broken.verdict.kind, broken.reward) == (VerdictKind.JUDGE_ERROR, None)


def test_an_episode_that_is_repeated_is_closed_and_has_a_time_limit() -> None:
    class Slow(_Paid):
        async def step(self, response: Response) -> Turn:
            await asyncio.sleep(60)
            raise AssertionError

    class Hanging(Paying):
        def episode(self, problem: Problem) -> Episode:
            return Slow()

    _Paid.closed = 0
    judged(Paying(), "abc", "2")
    assert _Paid.closed == 1
    environment = Hanging()
    found = asyncio.run(judge_path(environment, environment.problem("train", 1), path("2"), seconds=0.05))
    assert (found.verdict.kind, found.reward, _Paid.closed) == (VerdictKind.JUDGE_ERROR, None, 2)
    why = "could not be repeated: it took longer than 0.05 seconds"
    assert found.verdict.reason == f"the episode of the environment doubling {why}"


def test_tools_do_not_run_again_where_turns_earn_nothing() -> None:
    assert Paying.turn_rewards
    assert not Calculator.turn_rewards
    found = judged(Paying(breaks=True, turn_rewards=False), "abc", "2")
    assert (found.verdict.kind, found.reward) == (VerdictKind.CORRECT, 1.0)


def test_what_turns_earn_is_summed_without_rounding() -> None:
    class Tenths(BaseEpisode):
        async def step(self, response: Response) -> Turn:
            return Turn(done=False, reward=0.1)

    class Paid(Paying):
        def episode(self, problem: Problem) -> Episode:
            return Tenths()

    assert judged(Paid(), *["2"] * 10).turns_reward == 1.0
