"""Revision: what a round is asked, when it stops, and what is kept."""

import dataclasses

import pytest
from mocks import MockEngine, MockEnvironment
from search_play import searched

from ponder.errors import Unsupported
from ponder.search import derive
from ponder.search.record import to_row
from ponder.search.strategies.cot import Cot
from ponder.search.strategies.refine import Refine
from ponder.types import Budget, Message, Problem, StopReason, Verdict, VerdictKind

ENV = MockEnvironment()
PROBLEM = ENV.problem("test", 3)
RIGHT = "206"


def run(strategy, engine, problem=PROBLEM, **options):
    return searched(strategy, problem, engine, **options)


def rounds(*texts, chat=False):
    """An engine that says one text after the other, whatever it is asked."""
    left = list(texts)
    engine = MockEngine(lambda request, rng: left.pop(0))
    engine.info = dataclasses.replace(engine.info, chat=chat)
    return engine


def test_it_revises_until_the_checker_accepts():
    engine = rounds("a</think>1", "b</think>2", f"c</think>{RIGHT}", "d</think>3")
    outcome = run(Refine(n=6), engine, checker=ENV.checker)
    assert (outcome.response.answer, outcome.stop, outcome.vote_share) == (RIGHT, StopReason.ACCEPTED, None)
    assert outcome.reason == "the checker accepted answer 3 of at most 6"
    assert engine.calls == 3
    assert [n.note for n in outcome.trace.nodes] == ["revised: 1 is not it", "revised: 2 is not it", ""]


def test_each_round_holds_the_last_answer_and_the_checkers_reason_and_never_the_gold():
    engine = rounds("a</think>1", "b</think>2", "c</think>3")
    run(Refine(n=3), engine, checker=ENV.checker)
    first, second, third = (r.prompt for r in engine.requests)
    assert first == PROBLEM.prompt
    assert second.startswith(PROBLEM.prompt)
    assert "\n\n1\n\nFeedback on your answer: 1 is not it\n" in second
    assert second.endswith(PROBLEM.prompt), "a model that continues text is asked once more"
    assert "2 is not it" in third
    assert "1 is not it" not in third
    assert RIGHT not in first + second + third
    assert [r.params.seed for r in engine.requests] == [derive(0, PROBLEM.id, i) for i in (0, 2, 4)]


def test_a_chat_model_gets_turns():
    engine = rounds("a</think>1", f"b</think>{RIGHT}", chat=True)
    run(Refine(), engine, checker=ENV.checker)
    assert engine.requests[1].prompt == (
        Message("user", PROBLEM.prompt),
        Message("assistant", "1"),
        Message("user", "Feedback on your answer: 1 is not it\nSolve the problem again and give a corrected answer."),
    )
    chat = Problem(PROBLEM.id, (Message("system", "Be exact."), Message("user", PROBLEM.prompt)), PROBLEM.public)
    engine = rounds("a</think>1", f"b</think>{RIGHT}", chat=True)
    run(Refine(), engine, chat, checker=ENV.checker)
    assert [m.role for m in engine.requests[1].prompt] == ["system", "user", "assistant", "user"]


def test_without_a_checker_the_model_criticises_itself_and_may_approve():
    engine = rounds("a</think>1", "</think>1 is too small.", "b</think>2", "</think>Correct.", "c</think>3")
    outcome = run(Refine(n=4), engine)
    assert (outcome.response.answer, outcome.stop) == ("2", StopReason.ACCEPTED)
    assert outcome.reason == "the model's own feedback accepted answer 2 of at most 4"
    critique, revision = engine.requests[1].prompt, engine.requests[2].prompt
    assert "reply only: CORRECT" in critique
    assert "Feedback on your answer: 1 is too small." in revision
    assert [n.response.answer for n in outcome.trace.nodes] == ["1", None, "2", None]
    assert outcome.trace.nodes[1].note == "feedback on answer 1, node 0"
    assert outcome.spend.tokens == engine.used.tokens


def test_incorrect_is_no_approval():
    outcome = run(Refine(n=2), rounds("</think>1", "</think>Incorrect, all of it.", "</think>2"))
    assert (outcome.response.answer, outcome.stop) == ("2", StopReason.FINISHED)
    assert outcome.reason == "answer 2 of 2, none of them accepted"


def test_the_best_by_the_checkers_reward_is_kept():
    def partial(problem, response):
        return Verdict(VerdictKind.WRONG, {"1": 0.2, "2": 0.6, "3": 0.4}[response.answer], "not yet")

    outcome = run(Refine(n=3), rounds("</think>1", "</think>2", "</think>3"), checker=partial)
    assert (outcome.response.answer, outcome.vote_share) == ("2", None)
    assert outcome.reason == "answer 2 of 3, none of them accepted"


def test_a_response_that_was_cut_off_is_not_quoted():
    engine = rounds("." * 50, f"</think>{RIGHT}")
    outcome = run(Refine(n=3, max_tokens=30), engine, checker=ENV.checker)
    assert outcome.response.answer == RIGHT
    assert "Your last response had no final answer" in engine.requests[1].prompt
    assert "..." not in engine.requests[1].prompt


def test_when_the_checker_fails_the_model_gives_the_feedback():
    def fails(problem, response):
        raise ConnectionError("gone")

    engine = rounds("</think>1", "</think>It should be 2.", "</think>2", "</think>CORRECT")
    outcome = run(Refine(n=3), engine, checker=fails)
    assert outcome.response.answer == "2"
    assert "the checker failed, the model's own feedback replaced it" in outcome.reason
    assert "ConnectionError: gone" in outcome.reason


def test_a_tight_budget_leaves_the_best_so_far():
    engine = rounds("</think>1", "</think>2", "</think>3")
    outcome = run(Refine(n=3, max_tokens=20), engine, checker=ENV.checker, budget=Budget(tokens=40))
    assert (outcome.response.answer, outcome.stop) == ("1", StopReason.BUDGET)
    assert "tokens are left" in outcome.reason
    assert to_row(PROBLEM, outcome)["samples"][0]["note"] == "revised: 1 is not it"


def test_feedback_by_a_checker_needs_one():
    with pytest.raises(Unsupported, match="refine by the checker's feedback needs one"):
        run(Refine(feedback="checker"), MockEngine())


# Chain of thought: what its prompt is -----------------------------------------------------------------------------

ASKS = "End with a line that says: The answer is ... Let's think step by step."


@pytest.mark.parametrize(
    ("prompt", "chat", "where", "asked"),
    [
        ("2 * 3 =", False, "end", f"2 * 3 =\n{ASKS}"),
        ("Q: 2 * 3?\nA:", False, "end", f"Q: 2 * 3?\nA: {ASKS}"),
        ("2 * 3 =", False, "system", f"2 * 3 =\n{ASKS}"),
        ("2 * 3 =", True, "system", (Message("system", ASKS), Message("user", "2 * 3 ="))),
        ((Message("user", "2 * 3?"),), True, "end", (Message("user", f"2 * 3?\n{ASKS}"),)),
        (
            (Message("system", "Be brief."), Message("user", "2 * 3?")),
            True,
            "system",
            (Message("system", f"Be brief.\n{ASKS}"), Message("user", "2 * 3?")),
        ),
    ],
)
def test_cot_asks_for_the_thought_in_the_prompt(prompt, chat, where, asked):
    engine = rounds("So 6.\nThe answer is 6.", chat=chat)
    engine.thought = None
    engine.info = dataclasses.replace(engine.info, thought=None)
    outcome = run(Cot(where=where), engine, Problem("p", prompt))
    assert engine.requests[0].prompt == asked
    assert outcome.response.answer == "So 6.\nThe answer is 6."


def test_any_strategy_over_samples_takes_an_instruction():
    engine = MockEngine("</think>4")
    run(Cot(instruction="Think.", answer_line="", n=2), engine)
    assert engine.requests[0].prompt == f"{PROBLEM.prompt}\nThink."
