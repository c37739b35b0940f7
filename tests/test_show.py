"""Results say what they are in a line, and in a notebook as a small page with model text escaped."""

import asyncio
import json
import math

from mocks import MockEngine, MockEnvironment, doubler

from ponder import figures, show
from ponder.evaluation.evaluate import evaluate
from ponder.search.runner import solve
from ponder.search.strategies.direct import Direct
from ponder.search.strategies.majority import Majority
from ponder.types import Estimate, Problem, Segment, SegmentKind, to_json


def outcome(text="</think>42"):
    return asyncio.run(solve(Majority(4), Problem("p", "What is 6 * 7?"), MockEngine(text)))


def test_a_result_is_one_short_line_without_token_ids():
    found = outcome("</think>" + "4" * 5000)
    for value in (found, found.trace, found.trace.nodes[0], found.trace.nodes[0].completion):
        assert len(repr(value)) < 200
        assert "\n" not in repr(value)
    assert repr(outcome()) == "Outcome(answer='42', finished, vote_share=1.00, 4 branches, 72 tokens)"
    assert repr(Segment(SegmentKind.SAMPLED, tuple(range(1000)))).startswith("Segment(sampled, 1000 ids")
    assert repr(Estimate(0.5, 0.4, 0.6, 100)) == "Estimate(0.5 [0.4, 0.6], n 100)"
    assert repr(Estimate(0.5, 0.4, 0.6, 100, "Gaffke")) == "Estimate(0.5 [0.4, 0.6], n 100, Gaffke)"
    chosen = show.estimate(Estimate(0.5, 0.4, 0.6, 100, "Gaffke", chosen_of=3))
    assert "chosen as the highest of 3 on the same problems: optimistic" in chosen


def test_an_estimate_without_an_interval_says_why_and_has_null_in_json():
    found = Estimate(5.0, math.nan, math.nan, 1, "no interval: 1 problem, 10 can carry one")
    assert repr(found) == "Estimate(5, n 1, no interval: 1 problem, 10 can carry one)"
    assert figures.text("mean_tokens_per_search", found) == "5 (no interval: 1 problem, 10 can carry one)"
    assert json.loads(json.dumps(to_json([found]), allow_nan=False))[0]["low"] is None


def test_model_text_is_escaped_in_a_notebook():
    page = outcome("</think><script>alert('x')</script>\x1b[31m")._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page


def test_a_page_names_answer_reason_cost_and_every_response():
    page = outcome()._repr_html_()
    for text in ("42", "finished", "4 branches", " prompt (", "votes 42", "share of the votes", "chosen"):
        assert text in page, text


def test_an_evaluation_is_a_line_and_a_page():
    environment, engine = MockEnvironment(), MockEngine(doubler(0.5))
    problems = [environment.problem("test", i) for i in range(3)]
    found = asyncio.run(evaluate(Direct(), environment, engine, problems))
    assert repr(found).startswith("Evaluation(accuracy ")
    assert "n 3" in repr(found)
    assert problems[0].id in found._repr_html_()
