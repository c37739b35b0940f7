"""The score of partial responses on Countdown."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.environments.countdown import Partial
from ponder.registry import build
from ponder.types import Problem, Response


def test_the_countdown_score_reads_a_chain():
    environment = build("environments", "countdown")
    assert isinstance(environment.scorer, Partial)
    problem = Problem("p", "", {"numbers": [3, 5, 7, 2], "target": 24, "operations": "+-*"})

    def score(thought, answer=None, lookahead=3):
        text = thought if answer is None else f"{thought}</think>{answer}"
        response = Response(answer, thought, text)
        return Partial(lookahead).value(problem, response)

    fresh = score("")
    assert fresh == pytest.approx(1 / 5)
    # 5-2=3, 7*3=21, 21+3=24
    path_ = [score(t) for t in ("5-2=3,", "5-2=3,7*3=21,", "5-2=3,7*3=21,21+3=24")]
    assert path_ == pytest.approx([2 / 5, 3 / 5, 1.0])
    assert score("5-2=4,") == 0.0 == score("5-2=3,5+7=12,") == score("5/2=2,") == score("5-2=3=4,")
    lost = score("3-2=1,7-5=2,")
    assert 0.0 < lost < fresh
    assert score("3-2=1,7-5=2;") == fresh == score("9+9=18;")
    # A step that is cut is not held against the chain, one that cannot get right is.
    assert score("5-2=3,7*3=2") == score("5-2=3,") == score("5-2=3,7*") == score("5-2=3,7*3=")
    assert score("5-2=3,7*3=3") == 0.0
    assert (score("5-2=3!", "(5-2)*7+3"), score("5-2=3!", "5+7")) == (1.0, 0.0)
    # Without looking ahead only what is nearest counts: after 7*3 it is 21 of 24.
    assert score("7*3=21,", lookahead=0) > score("7+3=10,", lookahead=0)
    assert score("7*3=21,", lookahead=1) < fresh


@given(st.integers(0, 5000))
@settings(max_examples=30, deadline=None)
def test_the_made_solution_scores_higher_at_every_step(index):
    environment = build("environments", "countdown")
    problem = environment.problem("train", index)
    steps = environment.gold(problem).metadata["steps"]
    chains = [",".join(f"{a}{o}{b}={c}" for a, o, b, c in steps[:k]) + "," for k in range(1, len(steps) + 1)]
    scores = [environment.scorer.value(problem, Response(None, c, c)) for c in ["", *chains]]
    # A step before the last may give the target, as in 8+11=19, 19*1=19: what is done then is a detour.
    risen = scores[: scores.index(1.0) + 1]
    assert risen == sorted(set(risen))
    assert scores[-1] == 1.0
