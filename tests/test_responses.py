"""Thought and answer: one rule for readers, engines and the screen, by which nothing that was said can be hidden."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.cli._screen import Splitter
from ponder.engines._growth import Growth
from ponder.engines.requests import Markers, Ready
from ponder.engines.text import Vocabulary
from ponder.models import tiny
from ponder.models.base import LoadedModel
from ponder.responses import split_response
from ponder.types import FinishReason, Response, SamplingParams, Thinking, ThoughtFormat
from ponder.verifiers.numeric import Numeric

STOP = FinishReason.STOP
SHOWN = ThoughtFormat("<think>", "</think>")
OPENED = ThoughtFormat("<think>", "</think>", opened_by_template=True)


@pytest.mark.parametrize(
    ("text", "form", "thought", "answer"),
    [
        ("<think>a</think>2", SHOWN, "a", "2"),
        ("a</think>\n\n2\n", OPENED, "a", "\n\n2\n"),
        ("<think>a</think>2", OPENED, "a", "2"),
        # The prompt opened the thought, and the format does not say so.
        ("a</think>2", SHOWN, "a", "2"),
        ("2", SHOWN, None, "2"),
        # A second end marker.
        ("a</think>2</think>", OPENED, "a", "2"),
        ("a</think>2</think>\n", OPENED, "a", "2"),
        ("<think>a</think>2</think></think>", SHOWN, "a", "2"),
        ("a</think>4</think>2", OPENED, "a", "4\n2"),
        ("a</think></think>2", OPENED, "a", "2"),
        # A second thought.
        ("a</think>2<think>b</think>", OPENED, "a\nb", "2"),
        ("<think>a</think>4<think>b</think>2", SHOWN, "a\nb", "4\n2"),
        ("So: <think>a</think>2", SHOWN, "a", "So: \n2"),
        ("a<think>b</think>2", OPENED, "a\nb", "2"),
        # No answer.
        ("a</think>", OPENED, "a", ""),
        ("a", OPENED, "a", None),
        ("<think>a", SHOWN, "a", None),
        ("a</think>2<think>b", OPENED, "a</think>2b", None),
    ],
)
def test_the_answer_is_all_text_outside_of_thoughts(
    text: str, form: ThoughtFormat, thought: str | None, answer: str | None
) -> None:
    assert split_response(text, STOP, form) == Response(answer, thought, text)


def test_a_truncated_response_abstains_wherever_its_markers_are() -> None:
    for text in ("a</think>2", "a</think>2</think>", "<think>a</think>2<think>b</think>3"):
        assert split_response(text, FinishReason.LENGTH, OPENED).answer is None


PARTS = st.lists(st.sampled_from(["<think>", "</think>", "a", "12", " ", "<", "think>", "\n"]), max_size=10)


@given(PARTS.map("".join))
def test_no_text_is_in_both_and_none_is_lost(text: str) -> None:
    response = split_response(text, STOP, OPENED)
    if response.answer is None:
        return
    outside, inside = "", True
    for piece in re.split("(</?think>)", text):
        if piece in ("<think>", "</think>"):
            inside = piece == "<think>"
        else:
            outside += "" if inside else piece
    assert re.sub(r"\s", "", response.answer) == re.sub(r"\s", "", outside)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny.new_model(0)


@settings(deadline=None, max_examples=60)
@given(parts=PARTS)
def test_readers_engines_and_the_screen_divide_alike(model: LoadedModel, parts: list[str]) -> None:
    text = "".join(parts)
    ids = model.tokenizer.encode(text, special=True)
    markers = Markers.of(model)
    vocabulary = Vocabulary(model.tokenizer, model.tokenizer.vocab_size)
    params = SamplingParams(len(ids) + 1, thinking=Thinking())
    growth = Growth(params, Ready((1,), (), (), markers.opened_by_template, 0), markers, vocabulary, frozenset(), 0)
    kinds: dict[bool, list[int]] = {True: [], False: []}
    for i in ids:
        growth._add(i, forced=False)
        if (i,) not in (markers.open, markers.close):
            kinds[growth._inside].append(i)
    response = split_response(text, STOP, model.info.thought)
    splitter = Splitter(model.info.thought)
    shown = [*(piece for part in parts for piece in splitter.feed(part)), *splitter.end()]
    assert (response.answer is None) == growth._inside
    if response.answer is not None:
        for inside, read in ((True, response.thought), (False, response.answer)):
            for other in (model.tokenizer.decode(kinds[inside]), "".join(t for k, t in shown if k is inside)):
                plain = other.replace("<think>", "") if inside else other
                assert re.sub(r"\s", "", plain) == re.sub(r"\s", "", read or "")


# What a policy might try for a reward ---------------------------------------------------------------------------------


def judged(text: str, gold: str = "42") -> float | None:
    answer = split_response(text, STOP, OPENED).answer
    assert answer is not None
    return Numeric()(gold, answer).reward


@given(st.lists(st.sampled_from(["</think>", "\n", " ", "<think>x 17</think>", "</think></think>"]), max_size=5))
def test_no_marker_after_a_right_answer_loses_it(tail: list[str]) -> None:
    assert judged("hm</think>42" + "".join(tail)) == 1.0


@given(st.lists(st.sampled_from(["41", "43", "42"]), min_size=2, max_size=4), st.data())
def test_markers_between_guesses_gain_nothing_over_lines(guesses: list[str], data: st.DataObject) -> None:
    between = st.sampled_from(["</think>", "<think></think>", "<think>so</think>", "</think><think>1</think>"])
    text = guesses[0] + "".join(data.draw(between) + guess for guess in guesses[1:])
    assert judged("hm</think>" + text) == judged("hm</think>" + "\n".join(guesses))


def test_a_guess_cannot_be_put_out_of_sight() -> None:
    hidden = split_response("hm</think>It is 41.</think>It is 42.", STOP, OPENED)
    assert hidden.answer == "It is 41.\nIt is 42."
    assert split_response("hm</think>It is 41.<think>no</think>It is 42.", STOP, OPENED).answer == hidden.answer
