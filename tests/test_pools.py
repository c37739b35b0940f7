"""Recorded pools: what is read, written and judged, and what is refused."""

import dataclasses
import gzip
import json
import os
from pathlib import Path

import pytest
from mocks import MockEngine, MockEnvironment
from pool_play import judged, row, sample, write
from search_play import judged as with_judgement

from ponder import registry, sync
from ponder.errors import UserError
from ponder.evaluation.pools.judges import EnvironmentJudge, VerifierJudge, default_verifier
from ponder.evaluation.pools.judging import judge_pool
from ponder.evaluation.pools.record import Writer, at_least, read_pool
from ponder.search.record import to_row
from ponder.search.runner import solve
from ponder.search.strategies.direct import Direct
from ponder.types import Gold, Problem, Response, ThoughtFormat, Verdict, VerdictKind
from ponder.verifiers.exact import Exact
from ponder.verifiers.math import Math
from ponder.verifiers.numeric import Numeric

RECORDED = Path(os.environ.get("PONDER_DATA", "")) / "pool-math500-qwen2.5-1.5b-x8-seed0.jsonl"

# Reading --------------------------------------------------------------------------------------------------------------


def test_every_optional_field_may_be_missing(tmp_path):
    bare = {"problem_id": 7, "samples": [{"text": "x", "tokens": 3}]}
    pool = read_pool(write(tmp_path / "p.jsonl", bare))
    assert pool.rows[0].id == "7"
    assert (pool.rows[0].gold, pool.rows[0].prompt, pool.rows[0].samples[0].finish) == (None, None, None)


def test_a_gzipped_pool_is_read(tmp_path):
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(row("a", [1])) + "\n").encode()))
    assert read_pool(path).rows[0].id == "a"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "is not a JSON object but list"),
        ({"samples": [sample(1)]}, "'problem' must be a name, and is missing"),
        ({"problem_id": True, "samples": [sample(1)]}, "'problem_id' must be a name, and is true"),
        ({"problem_id": "b"}, "'samples' must be a list of at least one sample, and is missing"),
        (row("b", []), r"'samples' must be a list of at least one sample, and is \[\]"),
        ({"problem_id": "b", "samples": [sample(1), 3]}, "sample 1 is not a JSON object but int"),
        ({"problem": "b", "samples": [{**sample(1), "parent": "x"}]}, "sample 0: 'parent' must be a whole number"),
        (row("b", [{"tokens": 1}]), "sample 0: 'text' must be text, and is missing"),
        (row("b", [{"text": "x"}]), "sample 0: 'tokens' must be a whole number of 0 or more, and is missing"),
        (row("b", [sample(1, tokens=-1)]), "'tokens' must be a whole number of 0 or more, and is -1"),
        (row("b", [sample(1, score="high")]), "'score' must be a number, and is \"high\""),
        (row("b", [sample(1, score=float("nan"))]), "'score' must be a number, and is NaN"),
        (row("b", [sample(1, mean_logprob=0.5)]), "'mean_logprob' must be 0 or less"),
        (row("b", [sample(1, correct="yes")]), "'correct' must be true or false"),
        (row("b", [1], prompt=[{"role": "me"}]), "message 1 of the prompt: the role must be"),
        (row("b", [1], thought="<think>"), "'thought' must be an object"),
        (row("a", [1]), "problem 'a' is on line 1 already"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, bad, said):
    path = write(tmp_path / "p.jsonl", row("a", [1]), "", bad, row("c", [1]))
    with pytest.raises(UserError, match=r"p\.jsonl: line 3.*" + said):
        read_pool(path)


def test_a_torn_last_line_is_skipped_with_a_note_and_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row("a", [1])) + '\n{"problem_id": "b", "sam')
    pool = read_pool(path)
    assert [r.id for r in pool.rows] == ["a"]
    assert "line 2 is torn" in pool.notes[0]
    path.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_pool(path)
    with pytest.raises(UserError, match="is a folder"):
        read_pool(tmp_path)


# Rollouts of an evaluation --------------------------------------------------------------------------------------------


def searched(name, number, *answers, **more):
    """A line of an evaluation's rollouts: a search with several samples, in the record of `search.record`."""
    samples = [
        {"id": i, "parent": None, "text": f"The answer is {a}.", "tokens": 10, "finish": "stop", "verdict": None}
        for i, a in enumerate(answers)
    ]
    return {"problem": name, "prompt": "?", "stop": "finished", "sample": number, "samples": samples, **more}


def texts(pool):
    return {r.id: [s.text.split()[-1].rstrip(".") for s in r.samples] for r in pool.rows}


def test_searches_of_one_problem_are_one_row_in_the_order_of_their_numbers(tmp_path):
    lines = [searched("a", 2, 5), searched("b", 0, 1), searched("a", 0, 1, 2), searched("a", 1, 3)]
    assert texts(read_pool(write(tmp_path / "r.jsonl", *lines))) == {"a": ["1", "2", "3", "5"], "b": ["1"]}


def test_of_a_search_that_was_run_again_the_last_line_counts(tmp_path):
    failed = searched("a", 0, stop="failed")
    path = write(tmp_path / "r.jsonl", failed, searched("a", 1, 3), searched("a", 0, 1), searched("a", 0, 2))
    assert texts(read_pool(path)) == {"a": ["2", "3"]}


def test_a_problem_without_a_whole_response_is_left_out_with_a_note(tmp_path):
    cut, broken = searched("b", 0, 1), searched("c", 0, 1)
    cut["samples"][0]["finish"], broken["samples"][0]["error"] = "cancelled", "gone"
    pool = read_pool(write(tmp_path / "r.jsonl", searched("a", 0, 1), cut, broken, searched("d", 0, stop="budget")))
    assert texts(pool) == {"a": ["1"]}
    assert pool.notes == ("3 of 4 problems have no whole response and are left out",)
    with pytest.raises(UserError, match="no problem has a whole response"):
        read_pool(write(tmp_path / "r.jsonl", cut))


def test_of_a_tree_the_leaves_are_its_responses_in_the_order_that_they_began(tmp_path):
    parents = [None, None, 1, 0, 2, 0]
    tree = searched("a", 0, *range(6))
    for sample_, parent in zip(tree["samples"], parents, strict=True):
        sample_["parent"] = parent
    assert texts(read_pool(write(tmp_path / "r.jsonl", tree))) == {"a": ["3", "5", "4"]}


def test_lines_that_cannot_be_of_one_evaluation_are_refused(tmp_path):
    for other, said in (
        (searched("a", 1, 2, prompt="??"), "line 2: problem 'a' has another prompt than on line 1"),
        (searched("a", None, 2), "line 2: problem 'a' is on line 1 already"),
        (searched("a", "x", 2), "line 2: 'sample' must be a whole number"),
    ):
        with pytest.raises(UserError, match=said.replace("?", r"\?")):
            read_pool(write(tmp_path / "r.jsonl", searched("a", 0, 1), other))


def test_a_search_is_read_from_its_line_as_from_a_recorded_pool(tmp_path):
    problem = MockEnvironment().problem("train", 2)
    engine = MockEngine(("</think>4", "</think>5", "."))
    outcome = sync.run(solve(Direct(n=3, max_tokens=20), problem, engine))
    outcome = dataclasses.replace(outcome, trace=with_judgement(outcome.trace, problem, MockEnvironment().judge))
    Writer(tmp_path / "pool.jsonl", engine.thought).add(problem, None, outcome.trace)
    line = to_row(problem, outcome, thought=engine.thought) | {"index": 0, "sample": 0}
    rollouts = read_pool(write(tmp_path / "rollouts.jsonl", line))
    assert rollouts.rows == read_pool(tmp_path / "pool.jsonl").rows
    assert [s.correct for s in rollouts.rows[0].samples] == [True, False, False]
    assert all(s.mean_logprob < 0 for s in rollouts.rows[0].samples)


# Writing --------------------------------------------------------------------------------------------------------------


def record(writer, index, texts=("</think>0", "</think>1", "."), n=3, max_tokens=20):
    environment = MockEnvironment()
    problem = environment.problem("train", index)
    outcome = sync.run(solve(Direct(n=n, max_tokens=max_tokens), problem, MockEngine(texts)))
    trace = with_judgement(outcome.trace, problem, environment.judge)
    return writer.add(problem, environment.gold(problem), trace)


def test_what_is_recorded_is_read_back_and_judged_the_same(tmp_path):
    path = tmp_path / "p.jsonl"
    thought = MockEngine().thought
    writer = Writer(path, thought)
    assert [record(writer, i) for i in range(2)] == [3, 3]
    pool = read_pool(path)
    first = pool.rows[0]
    assert (first.id, first.prompt, first.gold, first.thought) == ("train-0", "2 * 0 =", 0, thought)
    assert [s.correct for s in first.samples] == [True, False, False]
    assert [s.tokens for s in first.samples] == [3, 3, 2]
    assert all(s.mean_logprob < 0 for s in first.samples)
    ours = judge_pool(pool, VerifierJudge(Numeric(), "numeric"))
    assert list(ours.problems[0].correct_G) == [1.0, 0.0, 0.0]
    assert not ours.disagreements


def test_recording_resumes_where_it_was_killed(tmp_path):
    path = tmp_path / "p.jsonl"
    writer = Writer(path)
    record(writer, 0)
    path.write_text(path.read_text() + '{"problem_id": "train-1", "pro')
    again = Writer(path)
    assert again.done == {"train-0": 3}
    assert "cut off" in again.notes[0]
    with pytest.raises(UserError, match="'train-0' is recorded already"):
        record(again, 0)
    record(again, 1)
    assert again.done_ids == {"train-0", "train-1"} == {r.id for r in read_pool(path).rows}


def test_traces_of_several_searches_make_one_row_and_what_failed_none(tmp_path):
    writer = Writer(tmp_path / "p.jsonl")
    problem = Problem("a", "?", metadata={"difficulty": 3})
    traces = [sync.run(solve(Direct(), problem, MockEngine(f"</think>{i}"))).trace for i in range(3)]
    assert writer.add(problem, Gold("1"), traces) == 3
    broken = MockEngine(fail=lambda number, request: ConnectionError("gone"))
    nothing = sync.run(solve(Direct(), Problem("b", "?"), broken)).trace
    assert writer.add(Problem("b", "?"), Gold("1"), nothing) == 0
    pool = read_pool(tmp_path / "p.jsonl")
    assert [(r.id, len(r.samples), r.difficulty) for r in pool.rows] == [("a", 3, 3)]
    assert pool.rows[0].samples[0].correct is None


def test_a_pool_cannot_be_recorded_over_something_else(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"something": "else"}\n')
    with pytest.raises(UserError, match="line 1: 'problem'"):
        Writer(tmp_path / "p.jsonl")


# Judging --------------------------------------------------------------------------------------------------------------


def test_truncated_responses_abstain_and_finished_ones_are_judged_by_text(tmp_path):
    pool = judged(tmp_path / "p.jsonl", row("a", [1, 2, None, {"text": "The answer is 1", "tokens": 5}, "1.0"]))
    problem = pool.problems[0]
    assert list(problem.correct_G) == [1, 0, 0, 1, 1]
    assert list(problem.cluster_G) == [0, 1, -1, 0, 0]
    assert list(problem.answered_G) == [True, True, False, True, True]
    assert pool.kinds == {"correct": 3, "wrong": 1, "no_answer": 1}
    assert "1 samples have no finish_reason" in pool.notes[0]


def test_where_the_recorded_judgement_differs_the_case_is_listed(tmp_path):
    samples = [sample(1, correct=True), sample(1, correct=False), sample(2, correct=True), sample(2)]
    pool = judged(tmp_path / "p.jsonl", row("a", samples))
    assert [(d.problem_id, d.sample, d.recorded, d.judged) for d in pool.disagreements] == [
        ("a", 1, False, True),
        ("a", 2, True, False),
    ]
    assert pool.disagreements[1].reason == "2 is not 1"


def test_a_row_without_gold_is_left_out_unless_what_was_recorded_is_trusted(tmp_path):
    bare = row("b", [sample(5, correct=True), sample(5, correct=True), sample(6, correct=False)], gold=None)
    rows = row("a", [1, 2, 2]), bare
    pool = judged(tmp_path / "p.jsonl", *rows)
    assert [p.row.id for p in pool.problems] == ["a"]
    assert "1 of 2 rows have no gold (the first: line 2) and are left out" in pool.notes
    trusted = judged(tmp_path / "p.jsonl", *rows, trust_recorded=True)
    assert list(trusted.problems[1].correct_G) == [1, 1, 0]
    assert list(trusted.problems[1].cluster_G) == [0, 0, 1]
    assert trusted.kinds == {"correct": 3, "wrong": 3}
    with pytest.raises(UserError, match=r"no row has a gold .* --environment .* --trust-recorded"):
        judged(tmp_path / "p.jsonl", bare)
    with pytest.raises(UserError, match="line 1 has neither a gold nor a recorded 'correct'"):
        judged(tmp_path / "p.jsonl", row("b", [5], gold=None), trust_recorded=True)


def test_thoughts_are_no_answers(tmp_path):
    closed = {"text": "<think>2 or 3</think>The answer is 1", "tokens": 5}
    open_ended = {"text": "<think>The answer is 1", "tokens": 5}
    thought = {"open": "<think>", "close": "</think>"}
    for pool in (
        judged(tmp_path / "p.jsonl", row("a", [closed, open_ended], thought=thought)),
        judged(tmp_path / "p.jsonl", row("a", [closed, open_ended]), thought=ThoughtFormat("<think>", "</think>")),
    ):
        assert list(pool.problems[0].cluster_G) == [0, -1]


def test_what_the_judge_fails_on_is_left_out_as_if_never_drawn(tmp_path):
    class Breaks(Numeric):
        def __call__(self, gold, answer):
            if "2" in answer:
                raise RuntimeError("broken")
            return super().__call__(gold, answer)

    pool = judge_pool(
        read_pool(write(tmp_path / "p.jsonl", row("a", [2, 1, sample(2, correct=True)]))),
        VerifierJudge(Breaks(), "breaks"),
    )
    assert pool.problems[0].kept == (1,)
    assert pool.kinds == {"correct": 1, "judge_error": 2}
    assert "2 samples could not be judged" in pool.notes[0]
    assert not pool.disagreements
    with pytest.raises(UserError, match="failed on every sample"):
        judge_pool(read_pool(write(tmp_path / "p.jsonl", row("a", [2]))), VerifierJudge(Breaks(), "breaks"))


@pytest.mark.parametrize(
    ("golds", "name"),
    [([1, 2.5], "numeric"), (["1", "-2,000", "1/2", "50%"], "numeric"), (["1", "\\frac{1}{2}"], "math"),
     (["x=5"], "math"), (["1,-2"], "math"), (["."], "math"), ([None, 3], "numeric")],
)  # fmt: skip
def test_numbers_are_judged_as_numbers_and_formulas_as_formulas(tmp_path, golds, name):
    path = write(tmp_path / "p.jsonl", *(row(f"p{i}", [1], gold=g) for i, g in enumerate(golds)))
    assert default_verifier(read_pool(path)) == name


def test_a_gold_that_the_verifier_cannot_read_is_named_by_line(tmp_path):
    path = tmp_path / "p.jsonl"
    with pytest.raises(UserError, match=r"line 2: the gold 'red' is not a number"):
        judged(path, row("a", [1]), row("b", [1], gold="red"))
    with pytest.raises(UserError, match=r"line 1: a verifier needs a gold that is text or a number"):
        judged(path, row("a", [1], gold={"x": 1}))


def test_equal_formulas_are_one_cluster_marked_or_not(tmp_path):
    pytest.importorskip("math_verify")
    texts = [
        "so \\boxed{\\frac{1}{2}}",
        "The answer is $0.5$",
        "\\boxed{1/2}",
        "hence $x = \\frac{2}{4}$.",
        "\\boxed{2}",
    ]
    path = write(tmp_path / "p.jsonl", row("a", [{"text": t, "tokens": 1} for t in texts], gold="\\frac{1}{2}"))
    pool = judge_pool(read_pool(path), VerifierJudge(Math(), "math"))
    assert list(pool.problems[0].correct_G) == [1, 1, 1, 1, 0]
    assert list(pool.problems[0].cluster_G) == [0, 0, 0, 0, 1]


def test_clusters_are_those_of_the_verifier(tmp_path):
    path = write(tmp_path / "p.jsonl", row("a", ["Paris", "paris", "Rome"], gold="Paris"))
    pool = judge_pool(read_pool(path), VerifierJudge(Exact(), "exact"))
    assert list(pool.problems[0].cluster_G) == [0, 0, 1]


def test_an_environment_judges_its_own_problems_and_no_others(tmp_path):
    environment = registry.build("environments", "arithmetic", {"seed": 3})
    problem = environment.problem("test", 2)
    right = environment.gold_response(problem)
    known = {"problem_id": problem.id, "prompt": problem.prompt, "samples": [{"text": right, "tokens": 4}]}
    judge = EnvironmentJudge(environment, "arithmetic")
    pool = judge_pool(read_pool(write(tmp_path / "p.jsonl", known)), judge)
    assert list(pool.problems[0].correct_G) == [1.0]
    with pytest.raises(UserError, match=r"line 1: problem 'other-1' cannot be judged by --environment arithmetic"):
        judge_pool(read_pool(write(tmp_path / "p.jsonl", row("other-1", [1]))), judge)
    with pytest.raises(UserError, match=r"asks something else .* --environment-options"):
        judge_pool(read_pool(write(tmp_path / "p.jsonl", known | {"prompt": "Who?"})), judge)


def test_the_environments_own_answers_decide_votes(tmp_path):
    class Parity:
        def extract(self, problem, response):
            return response.answer.split()[-1].rstrip(".")

        def same(self, a, b):
            return int(a) % 2 == int(b) % 2

    class Even(MockEnvironment):
        answers = Parity()

        def address(self, problem):
            return "train", int(problem.id)

        def judge(self, problem: Problem, response: Response) -> Verdict:
            return Verdict(VerdictKind.WRONG, 0.0, "no", "same text")

    path = write(tmp_path / "p.jsonl", {"problem_id": "1", "samples": [sample(i) for i in (2, 4, 5, 7)]})
    pool = judge_pool(read_pool(path), EnvironmentJudge(Even(), "even"))
    assert list(pool.problems[0].cluster_G) == [0, 0, 1, 1]


def test_problems_with_fewer_samples_are_left_out_when_asked(tmp_path):
    pool = read_pool(write(tmp_path / "p.jsonl", row("a", [1, 2, 3]), row("b", [1])))
    assert [r.id for r in at_least(pool, 2).rows] == ["a"]
    assert "1 of 2 problems have fewer than 2 samples" in at_least(pool, 2).notes[0]
    assert at_least(pool, 1) == dataclasses.replace(pool)
    with pytest.raises(UserError, match="no problem has 4 samples, the most are 3"):
        at_least(pool, 4)


@pytest.mark.skipif(not RECORDED.is_file(), reason="PONDER_DATA is not set to a folder with the recorded pool")
def test_a_third_party_pool_is_judged_as_recorded_but_for_a_few_cases():
    pytest.importorskip("math_verify")
    pool = read_pool(RECORDED)
    assert default_verifier(pool) == "math"
    ours = judge_pool(pool, VerifierJudge(Math(), "math"))
    recorded = sum(bool(s.correct) for r in pool.rows for s in r.samples)
    mine = sum(p.correct_G.sum() for p in ours.problems)
    assert recorded == 117
    assert abs(mine - recorded) <= 5
    assert len(ours.disagreements) <= 8
