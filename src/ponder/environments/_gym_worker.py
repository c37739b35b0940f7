"""What `reasoning_gym` does inside a worker process: that library makes the problems and scores the answers.

Worker processes hash strings the same way each time and the global random states are set before each problem, so a
problem is the same in every run, even of a task that iterates over a set.
"""

from __future__ import annotations

import base64
import functools
import json
import pickle
import random
from typing import Any

import numpy
import reasoning_gym
from reasoning_gym.composite import DatasetSpec
from reasoning_gym.factory import DATASETS

from ponder.environments._gym_gold import solution

_SIZE = 1 << 31
_ONE_BY_ONE = {"acre", "composite", "gsm_symbolic", "list_functions", "word_ladder"}
"""Tasks whose data set does work for its whole size when it is made, or bounds its size: one is made per problem."""


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


def score(task: str, options: str, packed: str, answer: str) -> float:
    """The task's own score of an answer. The entry comes from `make`, never from outside."""
    one = task in _ONE_BY_ONE
    dataset = _dataset(task, options, 0, 1 if one else _SIZE)
    return float(dataset.score_answer(answer=answer, entry=pickle.loads(base64.b64decode(packed))))
