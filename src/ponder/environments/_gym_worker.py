"""What `reasoning_gym` does inside a worker process: that library makes the problems and scores the answers.

Worker processes hash strings the same way each time and the global random states are set before each problem, so a
problem is the same in every run, even of a task that iterates over a set.

Some scorers call `eval` on the answer, which a model wrote: here they get literals only, formulas are looked through
before sympy parses them, and while an answer is scored an audit hook refuses processes, sockets and files to write.
"""

from __future__ import annotations

import ast
import base64
import functools
import json
import pickle
import random
import re
import sys
from typing import Any

import numpy
import reasoning_gym
from reasoning_gym.composite import DatasetSpec
from reasoning_gym.factory import DATASETS

from ponder.environments._gym_gold import solution

_SIZE = 1 << 31
_ONE_BY_ONE = {"acre", "composite", "gsm_symbolic", "list_functions", "word_ladder"}
"""Tasks whose data set does work for its whole size when it is made, or bounds its size: one is made per problem."""

_EVALUATED = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}
_PARSED = {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
_FORMULA = re.compile(r"(?:[A-Za-z0-9_+\-*/^(), \n]|\.(?![A-Za-z_ ]))*")
_CALLED = re.compile(r"([A-Za-z_][A-Za-z_0-9]*)\s*\(")
_CALLS_A_RESULT = re.compile(r"\)\s*\(")
_TRIGONOMETRY = [a + f + h for a in ("", "a") for f in ("sin", "cos", "tan", "cot") for h in ("", "h")]
_FUNCTIONS = {*_TRIGONOMETRY, "Abs", "csc", "erf", "exp", "ln", "log", "sec", "sign", "sqrt", "Rational", "Integer"}
_FORBIDDEN = (
    *("os.exec", "os.fork", "os.kill", "os.posix_spawn", "os.spawn", "os.system", "pty.", "subprocess.", "socket."),
    *("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate"),
    *("os.putenv", "os.unsetenv", "shutil."),
)
"""Audit events; importing (which lists folders and reads files) stays possible."""


def tasks() -> list[str]:
    return sorted(DATASETS)


@functools.lru_cache(maxsize=64)
def _dataset(task: str, options: str, seed: int, size: int) -> Any:
    _seed(seed)
    values = json.loads(options)
    if task == "composite" and "datasets" in values:
        values["datasets"] = [DatasetSpec(**{"weight": 1.0, "config": {}, **d}) for d in values["datasets"]]
    return reasoning_gym.create_dataset(task, **{**values, "seed": seed, "size": size})


def _seed(number: int) -> None:
    random.seed(number)
    numpy.random.seed(number % (1 << 32))


def make(task: str, options: str, number: int) -> dict[str, Any]:
    """Problem `number`: question, answer, and the whole entry as the scorer wants it (tuples and all)."""
    one = task in _ONE_BY_ONE
    dataset = _dataset(task, options, number, 1) if one else _dataset(task, options, 0, _SIZE)
    _seed(number)
    entry = dataset[0 if one else number]
    answer = entry.get("answer")
    if answer is None:
        answer = solution(entry["metadata"].get("source_dataset", task), entry["metadata"])
    packed = base64.b64encode(pickle.dumps(entry)).decode("ascii")
    return {"question": entry["question"], "answer": None if answer is None else str(answer), "entry": packed}


class _NotAllowed(OSError):
    """What an answer tried to do. An `OSError`, so that an import that cannot write its cache continues."""


_scoring = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _scoring:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event.startswith(_FORBIDDEN):
        raise _NotAllowed(event)


sys.addaudithook(_watch)


def harmless(answer: str) -> bool:
    """True for a formula that sympy's parser, which is `eval` inside, may see: arithmetic and known functions.

    No attribute, no string, no index, and nothing is called but a known function by its name.
    """
    if _FORMULA.fullmatch(answer) is None or _CALLS_A_RESULT.search(answer) or "__" in answer:
        return False
    return all(name in _FUNCTIONS for name in _CALLED.findall(answer))


def score(task: str, options: str, packed: str, answer: str) -> float:
    """The task's own score of an answer. The entry comes from `make`, never from outside."""
    global _scoring
    one = task in _ONE_BY_ONE
    dataset = _dataset(task, options, 0, 1 if one else _SIZE)
    entry = pickle.loads(base64.b64decode(packed))
    source = entry["metadata"].get("source_dataset", task)
    if source in _EVALUATED:
        # They call eval on the answer, to read a list.
        vars(sys.modules[DATASETS[source][0].__module__])["eval"] = ast.literal_eval
    if source in _PARSED and not harmless(answer):
        return 0.0
    _scoring = True
    try:
        return float(dataset.score_answer(answer=answer, entry=entry))
    finally:
        _scoring = False
