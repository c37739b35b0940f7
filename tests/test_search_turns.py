"""Searches that play turns: conversations with tools, their transcripts, their budgets, and who may play them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import ClassVar

import pytest
from mocks import MockEngine, MockEnvironment
from search_play import Asks
from turn_play import Talking, calculating, call, scripted

from ponder import registry
from ponder.environments.calculator import Calculator
from ponder.environments.countdown import Countdown
from ponder.environments.simulated import Simulated
from ponder.environments.turns import BaseEpisode
from ponder.errors import Unsupported, UserError
from ponder.evaluation.evaluate import evaluate
from ponder.protocols import Feedback, Turn, Vote
from ponder.search import solve
from ponder.search.clusters import TextAnswers, cluster_answers
from ponder.search.episodes import Episodes
from ponder.search.journal import Journal
from ponder.search.strategies.direct import Direct
from ponder.search.strategies.majority import Majority
from ponder.search.strategies.turns import Turns
from ponder.search.trace import samples
from ponder.types import (
    Budget,
    Capabilities,
    Completion,
    Message,
    Problem,
    Response,
    SegmentKind,
    StopReason,
    ToolCall,
    VerdictKind,
)

GIVEN, SAMPLED, FORCED, TOOL = SegmentKind
CALCULATOR = Calculator(max_operands=2)
PROBLEM = CALCULATOR.problem("test", 0)


def run(strategy, engine, environment=CALCULATOR, problem=PROBLEM, **options):
    return asyncio.run(solve(strategy, problem, engine, feedback=environment, **options))


# A conversation -----------------------------------------------------------------------------------------------------


def test_a_model_that_calls_the_calculator_answers_right() -> None:
    engine = Talking(calculating)
    outcome = run(Turns(n=2), engine)
    assert outcome.stop is StopReason.FINISHED
    assert CALCULATOR.judge(PROBLEM, outcome.response).correct
    assert [len(outcome.trace.path(leaf.id)) for leaf in samples(outcome.trace)] == [2, 2]
    assert outcome.chosen == samples(outcome.trace)[0].id
    assert outcome.spend.tokens == engine.used.tokens
    assert outcome.spend.seconds > 0


def test_the_second_prompt_has_the_response_by_its_ids_its_calls_and_their_results() -> None:
    engine = Talking(calculating)
    outcome = run(Turns(), engine)
    first, _ = outcome.trace.path(outcome.chosen)
    asked, said, told = engine.requests[1].prompt
    assert (asked,) == PROBLEM.prompt
    assert said == Message("assistant", "", tool_calls=first.response.tool_calls, ids=first.completion.ids)
    assert (told.role, told.tool_call_id, told.name) == ("tool", "call_0", "calculate")
    assert told.content in outcome.response.answer


def test_the_transcript_is_given_sampled_tool_sampled_and_trained_on_what_was_sampled_alone() -> None:
    outcome = run(Turns(), Talking(calculating))
    first, last = outcome.trace.path(outcome.chosen)
    transcript = outcome.trace.transcript(outcome.chosen)
    assert [s.kind for s in transcript.segments] == [GIVEN, SAMPLED, TOOL, SAMPLED]
    trained = tuple(i for i, on in zip(transcript.ids, transcript.loss_mask, strict=True) if on)
    assert trained == first.completion.ids + last.completion.ids
    assert transcript.ids == last.completion.prompt_ids + last.completion.ids


def test_an_engine_without_ids_continues_by_messages() -> None:
    class Telling(Talking):
        """An endpoint: no ids, calls separate from the text."""

        def __post_init__(self):
            super().__post_init__()
            self.info = dataclasses.replace(self.info, tools=None)

        def complete(self, request, sample) -> Completion:
            done = super().complete(request, sample)
            if len(request.prompt) > 1:
                return dataclasses.replace(done, segments=(), prompt_ids=())
            calls = (ToolCall("abc", "calculate", '{"expression": "2 + 2"}'),)
            return dataclasses.replace(done, segments=(), prompt_ids=(), tool_calls=calls)

    engine = Telling(scripted("</think>Let me see.", "</think>4"), capabilities=Capabilities(seed=True))
    outcome = run(Turns(), engine)
    assert outcome.response.answer == "4"
    said, told = engine.requests[1].prompt[1:]
    assert said == Message(
        "assistant", "Let me see.", tool_calls=(ToolCall("abc", "calculate", '{"expression": "2 + 2"}'),)
    )
    assert told == Message("tool", "4", tool_call_id="abc", name="calculate")


def test_an_invalid_call_is_text_and_ends_the_conversation() -> None:
    outcome = run(Turns(), Talking(scripted("</think><tool_call>{calculate}</tool_call>")))
    assert outcome.response.answer == "<tool_call>{calculate}</tool_call>"
    assert len(outcome.trace.nodes) == 1


def test_a_tools_error_is_a_message_and_the_model_continues() -> None:
    engine = Talking(scripted(f"</think>{call('1 / 0')}", f"</think>{call('2', name='calc')}", "</think>No."))
    outcome = run(Turns(), engine)
    assert outcome.response.answer == "No."
    told = [m.content for m in engine.requests[2].prompt if m.role == "tool"]
    assert told == ["error: calculate: division by zero", "error: there is no tool 'calc'; did you mean 'calculate'?"]


# Ends that are none -------------------------------------------------------------------------------------------------


def test_a_conversation_that_would_continue_abstains() -> None:
    engine = Talking(lambda r, rng: f"</think>5 {call('1 + 1')}")
    outcome = run(Turns(most_turns=3), engine)
    assert (engine.calls, outcome.chosen, outcome.response.answer) == (3, None, None)
    assert outcome.trace.nodes[-1].note == "the environment would continue after most_turns = 3"


def test_a_call_in_the_last_turn_of_the_environment_is_no_answer() -> None:
    outcome = run(Turns(), Talking(lambda r, rng: f"</think>{call('1 + 1')}"), Calculator(most_turns=2))
    assert len(outcome.trace.nodes) == 2
    assert Calculator(most_turns=2).judge(PROBLEM, outcome.response).kind is VerdictKind.NO_ANSWER


def test_the_right_text_beside_a_call_in_the_last_turn_is_no_answer() -> None:
    right = CALCULATOR.gold_response(PROBLEM)
    environment = Calculator(max_operands=2, most_turns=1)
    outcome = run(Turns(), Talking(lambda r, rng: f"</think>{right} {call('1 + 1')}"), environment)
    (node,) = outcome.trace.nodes
    assert (node.note, outcome.chosen) == ("the conversation ended with a call of a tool", None)
    assert (outcome.response.answer, len(outcome.response.tool_calls)) == (None, 1)
    beside = Response(right, text=right, tool_calls=outcome.response.tool_calls)
    for judge in (environment.judge, Countdown().checker, Simulated().judge, Simulated().checker):
        verdict = judge(PROBLEM, beside)
        assert (verdict.kind, verdict.reason) == (
            VerdictKind.NO_ANSWER,
            "the response calls a tool: it is not an answer",
        )


def test_a_response_that_calls_a_tool_has_no_vote() -> None:
    plain, calling = Response("4"), Response("5", tool_calls=(ToolCall("a", "calculate", "{}"),))
    assert cluster_answers(TextAnswers(), PROBLEM, [calling, plain]) == (None, Vote(1, "4"))
    engine = Talking(scripted(f"</think>5 {call('1 + 1')}"))
    outcome = run(Majority(n=3), engine, Feedback())
    assert (outcome.response.answer, outcome.chosen) == (None, None)
    assert {n.note for n in outcome.trace.nodes} == {"abstains: it calls a tool"}


@pytest.mark.parametrize("tokens", [20, 150, 250, 400, 600])
def test_a_budget_that_ends_within_a_conversation_is_kept_and_gives_no_answer(tokens) -> None:
    engine = Talking(lambda r, rng: f"</think>{call('1 + 1')}")
    outcome = run(Turns(n=2, max_tokens=100), engine, budget=Budget(tokens=tokens))
    assert outcome.spend.tokens == engine.used.tokens <= tokens
    assert (outcome.stop, outcome.chosen, outcome.response.answer) == (StopReason.BUDGET, None, None)
    assert all(n.note.startswith("cut short") for n in samples(outcome.trace) if n.completion.finish_reason == "stop")


def test_a_conversation_longer_than_the_context_is_the_models_fault() -> None:
    engine = Talking(lambda r, rng: f"</think>{call('1 + 1')}", context=400)
    outcome = run(Turns(max_tokens=150), engine)
    assert (outcome.stop, outcome.response.answer, engine.calls) == (StopReason.FINISHED, None, 3)
    assert "do not fit the context of 400" in outcome.reason


class Failing(BaseEpisode):
    """An environment that fails at a step."""

    def __init__(self, at=1) -> None:
        self.left = at

    async def step(self, response) -> Turn:
        self.left -= 1
        if not self.left:
            raise OSError("no connection")
        return Turn((Message("user", "Go on."),), done=False)


@pytest.mark.parametrize("at", [1, 2])
def test_an_environment_that_fails_is_no_fault_of_the_model(at) -> None:
    feedback = Feedback(episode=lambda problem: Failing(at))
    outcome = run(Turns(), Talking("</think>4"), feedback)
    assert (outcome.stop, outcome.response.answer, outcome.chosen) == (StopReason.FAILED, None, None)
    assert outcome.reason.startswith("the environment failed: OSError: no connection (")
    assert len(outcome.trace.nodes) == at


def test_a_tool_that_hangs_is_ended_by_the_budget_of_the_search() -> None:
    class Hanging(Failing):
        async def step(self, response):
            await asyncio.sleep(60)

    outcome = run(Turns(), Talking("</think>4"), Feedback(episode=lambda p: Hanging()), budget=Budget(seconds=0.2))
    assert (outcome.stop, outcome.response.answer) == (StopReason.BUDGET, None)


# Branches -----------------------------------------------------------------------------------------------------------


class Counted(BaseEpisode):
    """An episode that says how many responses it has received; counts all steps ever made."""

    steps = 0

    def __init__(self, forks=True) -> None:
        self.forks, self.heard = forks, ()

    async def step(self, response) -> Turn:
        Counted.steps += 1
        self.heard += (response.text,)
        return Turn((Message("user", " ".join(self.heard)),), done=response.text == "end", reward=7.0)

    def fork(self):
        if not self.forks:
            raise Unsupported("no forks")
        other = Counted()
        other.heard = self.heard
        return other


@pytest.mark.parametrize(("forks", "steps"), [(True, 6), (False, 9)])
def test_branches_have_their_own_past_by_a_fork_or_by_replay(forks, steps) -> None:
    Counted.steps = 0
    episodes = Episodes(Problem("p", "?"), lambda p: Counted(forks))

    async def tree() -> list[Turn]:
        paths = ["a", "ab", "abc", "abd", "ae", "abf"]
        return [await episodes.turn(tuple(Response(t, text=t) for t in path)) for path in paths]

    turns = asyncio.run(tree())
    assert [t.messages[0].content for t in turns] == ["a", "a b", "a b c", "a b d", "a e", "a b f"]
    assert {t.reward for t in turns} == {0.0}
    # Without forks the first branch takes the episode along: only others repeat.
    assert Counted.steps == steps + (0 if forks else 2)


class Closing(Counted):
    """Says how often it was opened, and what was closed."""

    log: ClassVar[list[str]] = []

    def __init__(self, fails=False) -> None:
        super().__init__()
        self.closed, self.fails = 0, fails
        Closing.log.append("opened")

    def fork(self):
        other = Closing(self.fails)
        other.heard = self.heard
        return other

    async def close(self) -> None:
        assert not self.closed
        self.closed += 1
        Closing.log.append("closed")
        if self.fails:
            raise OSError("it is gone already")


@pytest.mark.parametrize("says", ["</think>end", "</think>more"])
@pytest.mark.parametrize("fails", [False, True])
def test_every_episode_is_closed_once_when_its_search_is_over(says, fails) -> None:
    Closing.log.clear()
    opens = Feedback(episode=lambda p: Closing(fails))
    outcome = run(Turns(n=2, most_turns=3), Talking(says), opens)
    assert outcome.stop is StopReason.FINISHED
    assert Closing.log.count("closed") == Closing.log.count("opened") >= 2


def test_episodes_are_closed_where_the_search_is_cancelled_or_the_environment_fails() -> None:
    class Stuck(Closing):
        async def step(self, response) -> Turn:
            await asyncio.sleep(60)
            raise AssertionError

    class Breaking(Closing):
        async def step(self, response) -> Turn:
            raise OSError("no connection")

    for kind, stop in ((Stuck, StopReason.BUDGET), (Breaking, StopReason.FAILED)):
        Closing.log.clear()
        made = Feedback(episode=lambda p, kind=kind: kind())
        assert run(Turns(), Talking("</think>4"), made, budget=Budget(seconds=0.2)).stop is stop
        assert Closing.log == ["opened", "closed"]


def test_closing_an_episode_ends_after_a_while(monkeypatch, caplog) -> None:
    class Hanging(Counted):
        async def close(self) -> None:
            await asyncio.sleep(60)

    monkeypatch.setattr("ponder.environments.turns.CLOSE_SECONDS", 0.05)
    assert run(Turns(most_turns=1), Talking("</think>4"), Feedback(episode=lambda p: Hanging())).stop == "finished"
    assert "an episode could not be closed: TimeoutError" in caplog.text


def test_a_path_that_ended_does_not_continue() -> None:
    episodes = Episodes(Problem("p", "?"), lambda p: Counted())
    with pytest.raises(ValueError, match="the episode of 'p' ended after 1 turns"):
        asyncio.run(episodes.turn((Response("end", text="end"), Response("a", text="a"))))


def test_a_conversation_resumes_in_another_process() -> None:
    journal = Journal()
    whole = run(Turns(n=2), Talking(calculating), journal=journal)
    rows = journal.to_json()
    assert [r["kind"] for r in rows["answers"]].count("turn") == 4
    for cut in range(len(rows["answers"])):
        part = Journal.from_json(json.loads(json.dumps(rows | {"answers": rows["answers"][:cut]})))
        assert run(Turns(n=2), Talking(calculating), journal=part).trace == whole.trace


# Who plays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in registry.names("search.strategies") if n != "turns"])
def test_a_strategy_that_plays_no_turns_is_refused(name) -> None:
    options = {"thought_tokens": 8} if name == "budget_forcing" else {}
    with pytest.raises(Unsupported, match=r"calculator-test-0 is a conversation of several turns, and \w+ gives one"):
        run(registry.build("search.strategies", name, options), Talking(calculating))


def test_turns_are_not_played_with_one_question_or_without_messages() -> None:
    environment = MockEnvironment()
    with pytest.raises(Unsupported, match="turns plays environments of several turns, and this one asks one question"):
        run(Turns(), Talking(calculating), environment, environment.problem("test", 0))
    with pytest.raises(Unsupported, match="turns needs a model that takes messages, and mock continues plain text"):
        run(Turns(), MockEngine("</think>4"))


def test_invalid_options_are_refused() -> None:
    for options in ({"most_turns": 0}, {"max_tokens": 0}, {"n": 0}, {"temperature": -1.0}):
        with pytest.raises(UserError, match=next(iter(options))):
            Turns(**options)


def test_an_evaluation_of_conversations_judges_their_last_responses() -> None:
    problems = [CALCULATOR.problem("test", i) for i in range(6)]
    found = asyncio.run(evaluate(Turns(), CALCULATOR, Talking(calculating), problems))
    assert found.accuracy.value == 1.0
    with pytest.raises(Unsupported, match="use the strategy turns"):
        asyncio.run(evaluate(Direct(), CALCULATOR, Talking(calculating), problems))


# The torch engine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["tools", "ponder-tiny's own"])
def test_a_real_models_second_prompt_begins_with_its_first_turn(template) -> None:
    pytest.importorskip("torch")
    from chat_templates import TOOLS, with_template

    from ponder.engines.torch import TorchEngine
    from ponder.models.load import load

    model = load("ponder-tiny")
    if template == "tools":
        model = with_template(model, TOOLS)
    problem = PROBLEM if template == "tools" else Problem("p", "What is 12+34?")
    engine = TorchEngine(model, exact=True)
    try:
        strategy = Turns(n=2, max_tokens=24)
        outcome = run(strategy, engine, Feedback(episode=lambda p: Asks()), problem, seed=3)
    finally:
        engine.close_now()
    assert len(outcome.trace.nodes) == 4
    for leaf in samples(outcome.trace):
        first, last = (n.completion for n in outcome.trace.path(leaf.id))
        begun = first.prompt_ids + first.ids
        assert last.prompt_ids[: len(begun)] == begun
        transcript = outcome.trace.transcript(leaf.id)
        assert [s.kind for s in transcript.segments] == [GIVEN, SAMPLED, TOOL, SAMPLED]
        assert sum(transcript.loss_mask) == len(first.ids) + len(last.ids)
        assert last.spend.cached_tokens > 0
