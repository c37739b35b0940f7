import dataclasses
import json

import pytest

from ponder.errors import UserError
from ponder.evaluation import curves as c

SEQUENTIAL = (
    c.SequentialPoint(16, 20.5, 0.2, 0.1, 0.3, 0.05, 500),
    c.SequentialPoint(32, 30.0, 0.3, 0.2, 0.4, 0.0, 500),
)
PARALLEL = (
    c.ParallelPoint(1, 20.0, 0.2, 0.2, 0.1, 0.3, 500),
    c.ParallelPoint(2, 40.0, 0.3, 0.35, 0.2, 0.4, 500, 0.25, 0.45),
)
CURVES = c.Curves(
    train=(c.TrainPoint(0, 0.0, 0, 0.1, 0.05, 0.2, 500), c.TrainPoint(10, 1e12, 5000, 0.3, 0.2, 0.4, 500)),
    test=c.TestTime(SEQUENTIAL, PARALLEL),
    base=c.TestTime(SEQUENTIAL, ()),
    base_accuracy=0.1,
    trained_accuracy=0.3,
    run_seconds=12.5,
    peak_memory_bytes=10**9,
    seed=3,
)


def test_what_is_written_is_read_back(tmp_path):
    c.write(tmp_path / "curves.json", CURVES)
    assert c.read(tmp_path / "curves.json") == CURVES
    assert [p.name for p in tmp_path.iterdir()] == ["curves.json"]


def test_the_file_has_the_documented_form(tmp_path):
    c.write(tmp_path / "curves.json", CURVES)
    values = json.loads((tmp_path / "curves.json").read_text())
    assert list(values) == [
        "train", "test", "base", "base_accuracy", "trained_accuracy", "run_seconds", "peak_memory_bytes", "seed",
        "interval",
    ]  # fmt: skip
    assert list(values["train"][0]) == ["step", "flops", "sampled_tokens", "accuracy", "low", "high", "n"]
    assert list(values["test"]) == list(values["base"]) == ["sequential", "parallel"]
    assert list(values["test"]["sequential"][0]) == [
        "budget_tokens", "mean_response_tokens_per_search", "accuracy", "low", "high", "no_answer", "n",
    ]  # fmt: skip
    assert list(values["test"]["parallel"][0]) == [
        "samples", "mean_response_tokens_per_search", "accuracy", "coverage", "low", "high", "n",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"train": CURVES.train[::-1]}, "train: step must rise"),
        ({"trained_accuracy": 1.2}, "trained_accuracy is 1.2"),
        ({"run_seconds": float("nan")}, "run_seconds is nan"),
        ({"test": c.TestTime((dataclasses.replace(SEQUENTIAL[0], low=0.25),))}, r"test.sequential\[0\]: accuracy 0.2"),
        ({"base": c.TestTime((), (dataclasses.replace(PARALLEL[1], coverage=0.5),))}, r"base.parallel\[0\]: coverage"),
        ({"test": c.TestTime((dataclasses.replace(SEQUENTIAL[0], n=0),))}, "n is 0"),
    ],
)
def test_an_impossible_number_is_refused_by_name_and_nothing_is_written(tmp_path, change, named):
    with pytest.raises(UserError, match=named):
        c.write(tmp_path / "curves.json", dataclasses.replace(CURVES, **change))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"trian": []}', "unknown key 'trian'; did you mean 'train'"),
        ('{"train": [{"step": 0}]}', "train"),
        ('{"seed": "x"}', "seed"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, text, named):
    path = tmp_path / "curves.json"
    path.write_text(text)
    with pytest.raises(UserError, match=named) as error:
        c.read(path)
    assert str(path) in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        c.read(tmp_path / "none.json")
