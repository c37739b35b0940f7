"""The transcript of a path through a tree: each sampled id once, with the log-probability that it was drawn at."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tree_play import BEAM, DIGITS, MCTS, MockEngine, digits

from ponder.search import solve
from ponder.search.trace import Tree, samples
from ponder.types import (
    Completion,
    FinishReason,
    Node,
    Response,
    Segment,
    SegmentKind,
    Spend,
    Trace,
    Transcript,
)

GIVEN, SAMPLED, FORCED, TOOL = SegmentKind
PROMPT = (7, 8, 9)


def node(number: int, segments: tuple[Segment, ...], prompt: tuple[int, ...] = PROMPT) -> Node:
    completion = Completion("", FinishReason.STOP, Spend(), segments, prompt)
    return Node(number, number - 1 if number else None, completion, Response(""))


def sampled(*ids: int) -> Segment:
    return Segment(SAMPLED, ids, tuple(-i / 8 for i in ids))


def begun(ids: tuple[int, ...]) -> tuple[Segment, ...]:
    """A prefix as engines give it back."""
    return (Segment(FORCED, ids),) if ids else ()


def flat(transcript: Transcript) -> list[tuple[int, SegmentKind, float, str]]:
    kinds = [(s.kind, s.weights_version) for s in transcript.segments for _ in s.ids]
    return [(i, k, x, v) for i, x, (k, v) in zip(transcript.ids, transcript.logprobs, kinds, strict=True)]


PARTS = st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 99), min_size=1, max_size=5)), min_size=1, max_size=5)


@given(parts=PARTS, data=st.data())
def test_a_response_grown_in_any_steps_is_the_response_in_one_go(parts, data) -> None:
    """Cut anywhere, each call continuing from the ids before: what was forced within a call stays forced."""
    whole = tuple(sampled(*ids) if drawn else Segment(FORCED, tuple(ids)) for drawn, ids in parts)
    length = sum(len(s.ids) for s in whole)
    cuts = sorted(data.draw(st.sets(st.integers(1, length), max_size=4)) | {length})
    nodes = []
    for number, (start, stop) in enumerate(itertools.pairwise([0, *cuts])):
        ids, own = tuple(i for s in whole for i in s.ids), []
        at = 0
        for segment in whole:
            piece = segment.after(max(0, start - at))
            keep = max(0, stop - max(at, start))
            logprobs = None if piece.logprobs is None else piece.logprobs[:keep]
            own.append(dataclasses.replace(piece, ids=piece.ids[:keep], logprobs=logprobs))
            at += len(segment.ids)
        nodes.append(node(number, (*begun(ids[:start]), *(s for s in own if s.ids))))
    stitched = Trace("p", tuple(nodes)).transcript(len(nodes) - 1)
    assert flat(stitched) == flat(Transcript().extend(Segment(GIVEN, PROMPT), *whole))


def test_a_prefix_that_came_back_as_other_ids_begins_another_transcript() -> None:
    first, second = node(0, (sampled(1, 2),)), node(1, (*begun((12,)), sampled(3)))
    trace = Trace("p", (first, second))
    assert [t.ids for t in trace.transcripts(1)] == [(7, 8, 9, 1, 2), (7, 8, 9, 12, 3)]
    with pytest.raises(ValueError, match="the path to node 1 of problem 'p' is 2 transcripts"):
        trace.transcript(1)
    assert trace.transcript(0) == first.completion.transcript


def test_what_a_further_prompt_adds_is_of_a_tool() -> None:
    asked = (*PROMPT, 1, 2, 50, 51)
    trace = Trace("p", (node(0, (sampled(1, 2),)), node(1, (sampled(3),), asked)))
    transcript = trace.transcript(1)
    assert [(s.kind, s.ids) for s in transcript.segments] == [
        (GIVEN, PROMPT),
        (SAMPLED, (1, 2)),
        (TOOL, (50, 51)),
        (SAMPLED, (3,)),
    ]
    assert transcript.loss_mask == (False,) * 3 + (True,) * 2 + (False,) * 2 + (True,)


def test_a_history_that_was_rewritten_begins_another_transcript() -> None:
    trace = Trace("p", (node(0, (sampled(1, 2),)), node(1, (sampled(3),), (*PROMPT, 2, 50))))
    assert [t.loss_mask.count(True) for t in trace.transcripts(1)] == [2, 1]


def test_a_call_that_ended_before_its_first_token_adds_nothing() -> None:
    trace = Trace("p", (node(0, (sampled(1, 2),)), node(1, ()), node(2, (*begun((1, 2)), sampled(3)))))
    assert trace.transcript(1) == trace.transcript(0)
    assert trace.transcript(2).ids == (*PROMPT, 1, 2, 3)
    alone = Trace("p", (node(0, ()),)).transcript(0)
    assert alone == Transcript((Segment(GIVEN, PROMPT),))


def test_a_call_without_ids_is_refused() -> None:
    trace = Trace("p", (node(0, (), ()),))
    with pytest.raises(ValueError, match="node 0 of problem 'p' has no token ids"):
        trace.transcript(0)


@pytest.mark.parametrize("strategy", [BEAM, MCTS], ids=["beam", "mcts"])
def test_the_mask_of_a_leaf_has_what_was_sampled_on_its_path_and_nothing_else(strategy) -> None:
    outcome = asyncio.run(solve(strategy, DIGITS, MockEngine(digits)))
    leaves = samples(outcome.trace)
    assert max(len(outcome.trace.path(leaf.id)) for leaf in leaves) > 2
    for leaf in leaves:
        path, transcript = outcome.trace.path(leaf.id), outcome.trace.transcript(leaf.id)
        assert transcript.ids == leaf.completion.prompt_ids + leaf.completion.ids
        assert sum(transcript.loss_mask) == sum(n.completion.spend.sampled_tokens for n in path)
        forced = [s for s in transcript.segments if s.kind is FORCED]
        assert sum(len(s.ids) for s in forced) == sum(n.completion.spend.forced_tokens for n in path)


# The torch engine ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine():
    pytest.importorskip("torch")
    from ponder.engines.torch import TorchEngine
    from ponder.models.load import load

    engine = TorchEngine(load("ponder-tiny"), exact=True)
    yield engine
    engine.close_now()


def test_steps_of_a_tree_search_are_bit_for_bit_the_response_in_one_go(engine) -> None:
    from ponder.protocols import SearchContext
    from ponder.registry import build
    from ponder.search.step import Step
    from ponder.search.step_calls import Continuing
    from ponder.search.strategies.beam import Beam
    from ponder.types import Request, SamplingParams, Thinking

    problem = build("environments", "countdown").problem("test", 0)
    context = SearchContext(engine.info, engine.capabilities, 0)
    calls = Continuing(problem, context, Beam(step_tokens=7, delimiters=(",", ";"), answer_tokens=12))
    for seed in range(4):
        tree, step = Tree(problem.id, engine.info.thought), None
        for number in range(5):
            last = number == 4 or (step is not None and step.ended)
            work = calls.end(step, number) if last else calls.grow(step, 1, number)
            request = dataclasses.replace(work.request, params=dataclasses.replace(work.request.params, seed=seed))
            [completion] = engine.generate_many([request])[0]
            tree.add(number, completion, number - 1 if number else None)
            ended = completion.ids[-1] in engine.model.end_ids
            step = Step.after(step, number, completion, 0, ended=ended)
            if last or ended:
                break
        stitched = tree.trace().transcript(number)
        # The end closed the thought, if it was open, after so many tokens.
        closed = sum(s.kind is FORCED for s in stitched.segments)
        thought = sum(len(n.completion.ids) for n in tree.trace().nodes[-2:-1])
        thinking = Thinking(max_tokens=thought) if closed else None
        params = SamplingParams(len(completion.ids), seed=seed, thinking=thinking)
        [[whole]] = engine.generate_many([Request(problem.prompt, params)])
        assert number >= 2
        assert flat(stitched) == flat(whole.transcript)


def test_a_beam_on_ponder_tiny_has_one_transcript_for_each_leaf(engine) -> None:
    from ponder.registry import build
    from ponder.search.strategies.beam import Beam

    problem = build("environments", "countdown").problem("test", 1)
    strategy = Beam(2, 3, depth=4, step_tokens=8, delimiters=(",", ";"), answer_tokens=12)
    trace = asyncio.run(solve(strategy, problem, engine)).trace
    for leaf in samples(trace):
        transcript = trace.transcript(leaf.id)
        assert sum(transcript.loss_mask) == sum(n.completion.spend.sampled_tokens for n in trace.path(leaf.id))
        for segment in transcript.segments:
            assert (segment.logprobs is not None) == (segment.kind is SAMPLED)
