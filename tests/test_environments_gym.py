"""reasoning-gym: its problems, splits and scorers, whatever a model writes."""

import importlib.util

import pytest

from ponder import registry
from ponder.environments.selfcheck import self_check
from ponder.errors import UserError
from ponder.types import Response, VerdictKind

pytest.importorskip("reasoning_gym")

SAMPLE = [
    "basic_arithmetic",
    "boxnet",
    "chain_sum",
    "countdown",
    "fraction_simplification",
    "game_of_life_halting",
    "graph_color",
    "letter_jumble",
    "n_queens",
    "propositional_logic",
    "spell_backward",
    "word_ladder",
]
"""A fast sample: own scorers, no given answer, scorers that read only the beginning, scorers that call `eval`."""
OPTIONS = {"composite": {"datasets": [{"name": "chain_sum"}, {"name": "spell_backward", "weight": 2.0}]}}


def build(task, **options):
    if task in OPTIONS:
        options.setdefault("options", OPTIONS[task])
    return registry.build("environments", f"reasoning-gym:{task}", options)


@pytest.mark.parametrize("task", SAMPLE)
def test_the_self_check_passes(task):
    assert self_check(build(task, seconds=1.5), "test", range(2)) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_self_check_passes_for_every_task_of_the_library():
    """Takes about five minutes on 2 cores: pytest -m slow tests/test_environments_gym.py"""
    from ponder.environments.reasoning_gym import tasks

    failures = {task: self_check(build(task), "test", range(3)) for task in tasks()}
    assert {task: found for task, found in failures.items() if found} == {}


def test_every_task_of_the_library_can_be_named():
    from ponder.environments.reasoning_gym import tasks

    assert len(tasks()) > 100
    assert {"chain_sum", "sudoku", "zebra_puzzles"} <= set(tasks())


def test_an_unknown_task_or_option_is_named():
    with pytest.raises(UserError, match="unknown task 'chain_sun' of reasoning-gym; did you mean 'chain_sum'"):
        build("chain_sun")
    with pytest.raises(UserError, match="name a task, as in reasoning-gym:chain_sum"):
        registry.build("environments", "reasoning-gym")
    with pytest.raises(UserError, match="min_trms"):
        build("chain_sum", options={"min_trms": 2})
    with pytest.raises(UserError, match="'seed' is set by the environment"):
        build("chain_sum", options={"seed": 2})
    with pytest.raises(UserError, match="did you mean 'partial'"):
        build("chain_sum", partiel=True)


def test_options_of_the_task_are_used():
    environment = build("chain_sum", options={"min_terms": 6, "max_terms": 6})
    assert all(environment.problem("train", i).public["question"].count(" ") >= 10 for i in range(5))


def test_splits_share_no_question_even_where_there_are_few():
    environment = build("coin_flip") if importlib.util.find_spec("reasoning_gym.probability") else build("chain_sum")
    train = {" ".join(environment.problem("train", i).prompt.split()) for i in range(60)}
    test = [" ".join(environment.problem("test", i).prompt.split()) for i in range(20)]
    assert not train & set(test)
    assert len(set(test)) == 20


def test_the_same_index_gives_the_same_problem():
    for task in ("family_relationships", "syllogism", "word_ladder"):
        first, second = build(task), build(task)
        for index in range(3):
            problem = first.problem("test", index)
            assert problem == second.problem("test", index)
            assert first.gold(problem) == second.gold(problem)


def test_partial_scores_are_rewards_only_when_asked():
    for partial in (False, True):
        environment = build("spell_backward", partial=partial)
        problem = environment.problem("test", 0)
        gold = environment.gold_response(problem)
        near = gold[:-1] + ("x" if gold[-1] != "x" else "y")
        verdict = environment.judge(problem, Response(near))
        assert verdict.kind is VerdictKind.WRONG
        assert (verdict.reward > 0) is partial
        assert environment.judge(problem, Response(gold)).reward == 1.0


def test_an_answer_in_prose_or_tags_is_found():
    environment = build("chain_sum")
    problem = environment.problem("test", 0)
    gold = environment.gold_response(problem)
    for text in (f"The answer is {gold}.", f"<answer>{gold}</answer>", f"So \\boxed{{{gold}}}"):
        assert environment.judge(problem, Response(text)).correct


@pytest.mark.parametrize("task", ["binary_matrix", "n_queens", "spiral_matrix", "string_insertion"])
def test_an_answer_is_never_run_as_code(task, tmp_path):
    """Scorers of these tasks call `eval` on the answer."""
    environment = build(task)
    problem = environment.problem("test", 0)
    for text in (f"open({str(tmp_path / 'x')!r}, 'w')", f"__import__('os').mkdir({str(tmp_path / 'y')!r})"):
        assert environment.judge(problem, Response(text)).reward == 0.0
    assert list(tmp_path.iterdir()) == []


def test_a_formula_is_looked_through_before_sympy_sees_it(tmp_path):
    from ponder.environments._gym_worker import harmless

    for formula in ("x**2/2 + C", "(5-2)*8", "3*exp(-7*x**2) + sqrt(2)", "1.5*x", "-sin(2*x)"):
        assert harmless(formula)
    for text in (
        "exec(chr(111))",
        "().__class__",
        "x.real",
        "open('x')",
        "lambda: 1",
        "[1]",
        "getattr (x, y)",
        "x; y",
        "(exec)(1)",
        "((chr)\n(111))",
        "sqrt(exec)(1)",
        "__import__",
    ):
        assert not harmless(text), text
    for task in ("countdown", "simple_integration", "polynomial_multiplication"):
        environment = build(task)
        problem = environment.problem("test", 0)
        path = "+".join(f"chr({ord(c)})" for c in str(tmp_path / "x"))
        for text in (f"open({path}, chr(119))", f"(open)({path.replace('chr', '(chr)')}, (chr)(119))"):
            assert environment.judge(problem, Response(text)).reward == 0.0
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_cannot_be_scored_in_time_is_the_answers_fault():
    environment = build("countdown", seconds=1.0)
    problem = environment.problem("test", 0)
    assert environment.judge(problem, Response("9**9**9**9")).kind is VerdictKind.TIMEOUT
    assert environment.judge(problem, Response(environment.gold_response(problem))).correct
