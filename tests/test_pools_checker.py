"""`best_of_n` on a recorded pool ranks as it does in a search: by the environment's checker where there is one."""

import itertools
import json

import numpy as np
import pytest
from pool_play import judged, row, sample

from ponder.cli.main import main
from ponder.errors import UserError
from ponder.evaluation.pools.analysis import build, defaults, full_name
from ponder.evaluation.pools.formulas import BestOfK
from ponder.types import Verdict, VerdictKind

KINDS = {"1": VerdictKind.CORRECT, "2": VerdictKind.WRONG, "3": VerdictKind.WRONG, "4": VerdictKind.JUDGE_ERROR}
REWARDS = {"1": 1.0, "2": 0.1, "3": 0.4, "4": None}


def checker(problem, response):
    """Accepts 1, likes 3 better than 2, cannot decide on 4 and fails on anything else."""
    text = response.answer.split()[-1].rstrip(".")
    return Verdict(KINDS[text], REWARDS[text], "", text)


def best(drawn):
    """What a search takes: accepted, then unchecked, then rejected by reward; of equals the first."""
    order = {"1": (2, 1.0), "2": (0, 0.1), "3": (0, 0.4)}
    answered = [a for a in drawn if a is not None]
    return max(answered, key=lambda a: order.get(str(a), (1, 0.0))) if answered else None


@pytest.mark.parametrize(
    "answers", [[2, 1, 3, None], [2, 3, 4], [3, 3, 2, 2], [4, 9, 2], [None, 2, 1, 9, 3], [None, None]]
)
def test_it_takes_what_a_search_takes_over_every_order(tmp_path, answers):
    pool = judged(tmp_path / "p.jsonl", row("a", answers))
    for k in range(1, len(answers) + 1):
        reached = BestOfK("checker", checker).reach(pool.problems, [k])[0]
        draws = list(itertools.permutations(answers, k))
        assert reached.accuracy_K[0] == pytest.approx(sum(best(d) == 1 for d in draws) / len(draws))
        assert reached.decision == (best(answers[:k]) == 1)


def test_where_the_checker_fails_on_every_response_what_was_recorded_decides(tmp_path):
    samples = [sample(8, score=0.2), sample(1, score=0.9), sample(9, score=0.5)]
    pool = judged(tmp_path / "p.jsonl", row("a", samples))

    def broken(problem, response):
        raise ValueError("no")

    assert BestOfK("checker", broken).reach(pool.problems, [3])[0].accuracy_K[0] == 1.0
    bare = judged(tmp_path / "q.jsonl", row("a", [8, 1, 9]))
    assert BestOfK("checker", broken).reach(bare.problems, [3])[0].accuracy_K[0] == pytest.approx(1 / 3)


def test_the_ranking_that_a_name_leaves_open_is_that_of_a_search_and_is_said(tmp_path):
    rows = [p.row for p in judged(tmp_path / "p.jsonl", row("a", [sample(1, score=1.0, mean_logprob=-1.0)])).problems]
    for spec, given, by in (
        ("best_of_n", checker, "checker"),
        ("best_of_n", None, "score"),
        ("best-of-n:scorer", checker, "score"),
        ("best_of_n:logprob", checker, "logprob"),
        ("weighted", checker, "logprob"),
        ("weighted:score", None, "score"),
    ):
        strategy = build(spec, rows, checker=given)
        assert strategy.by == by
        assert full_name(spec, strategy).rpartition(":")[2] in (by, "scorer")
    assert full_name("best_of_n", build("best_of_n", rows, checker=checker)) == "best_of_n:checker"
    assert "best_of_n:checker" in defaults(rows, checker)
    assert "best_of_n:checker" not in defaults(rows)
    with pytest.raises(UserError, match="give --environment"):
        build("best_of_n:checker", rows).check(rows)
    with pytest.raises(UserError, match="score or logprob"):
        build("weighted:checker", rows)


def test_replay_and_eval_agree_and_say_the_ranking_in_the_same_words(tmp_path, capsys):
    pool, asked = tmp_path / "pool.jsonl", ["--environment", "countdown", "--json"]
    flags = ["-n", "24", "--strategy", "best_of_n", "--strategy-options", "n=4", "--max-tokens", "48"]
    assert main(["eval", *flags, "--record", str(pool), *asked]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert main(["replay", str(pool), "--strategies", "best_of_n", "--budgets", "4", *asked]) == 0
    (name, points), *_ = json.loads(capsys.readouterr().out)["strategies"].items()
    assert name == f"{evaluated['strategy']}:{evaluated['ranking']}" == "best_of_n:checker"
    tokens = "mean_response_tokens_per_search"
    assert points[0]["accuracy"] == pytest.approx(evaluated["accuracy"]["value"])
    assert points[0][tokens] == pytest.approx(evaluated[tokens]["value"])
    assert 0 < evaluated["accuracy"]["value"] < 1
    assert np.isfinite(points[0]["low"])
