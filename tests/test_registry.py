"""Rooms of parts: which there are, and what is said of one that there is not."""

import ast
from pathlib import Path

import pytest

import ponder
from ponder import errors, registry
from ponder.cli.list import ROOMS
from ponder.errors import UserError


@pytest.mark.parametrize(
    ("room", "first"),
    [("environment", "environments"), ("strategies", "search.strategies"), ("training.loss", "training.losses")],
)
@pytest.mark.parametrize("ask", [registry.names, registry.listing, lambda room: registry.build(room, "direct")])
def test_a_wrong_room_is_one_sentence_with_the_known_rooms_the_nearest_first(ask, room, first):
    with pytest.raises(UserError) as caught:
        ask(room)
    said, _, known = str(caught.value).partition("; known: ")
    assert said == f"unknown room {room!r}"
    assert known.split(", ")[0] == first
    assert set(known.split(", ")) == set(registry.ROOMS)


def test_every_room_is_a_package_that_can_be_listed():
    for room in registry.ROOMS:
        assert registry.listing(room) == sorted(registry.listing(room), key=lambda part: part.name)
        assert (Path(ponder.__file__).parent / room.replace(".", "/") / "__init__.py").is_file()


def test_every_room_that_is_asked_for_is_known():
    asked = {
        node.args[0].value
        for path in Path(ponder.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("build", "find", "names", "listing")
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "registry"
        and isinstance(node.args[0], ast.Constant)
    }
    assert "environments" in asked
    assert asked | set(ROOMS.values()) <= set(registry.ROOMS)


def test_a_file_of_problems_is_an_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text('{"prompt": "2 + 2?", "answer": 4}\n')
    for name in ("mine.jsonl", "./mine.jsonl", str(tmp_path / "mine.jsonl")):
        environment = registry.build("environments", name, {"test_share": 1.0})
        assert (environment.name, environment.problem("test", 0).prompt) == ("jsonl", "2 + 2?")
    with pytest.raises(UserError, match=r"^jsonl: none\.jsonl: no such file"):
        registry.build("environments", "none.jsonl")


@pytest.mark.parametrize(
    ("spec", "options"), [("mine.jsonl", {"data": "other.jsonl"}), ("reasoning_gym:chain_sum", {"task": "maze"})]
)
def test_what_the_name_gives_is_not_given_again(spec, options):
    with pytest.raises(UserError, match=r"is given twice, in the name and as an option: give it once"):
        registry.build("environments", spec, options)


def test_a_suggestion_is_a_slip_or_a_part_of_the_name_and_nothing_far_fetched():
    known = ["max_tokens", "answer_tokens", "temperature", "top_k", "seed"]
    assert errors.alike("temprature", known) == ["temperature"]
    assert errors.alike("temp", known) == ["temperature"]
    assert errors.alike("tokens", known) == ["answer_tokens", "max_tokens"]
    assert errors.nearest("tokens", known) == "; did you mean 'answer_tokens' or 'max_tokens'?"
    for nonsense in ("qwertz", "e", "max_steps", "banana"):
        assert errors.alike(nonsense, known) == []


@pytest.mark.parametrize(
    ("room", "spec", "says"),
    [
        ("environments", "./none.json", "none.json: no such file (a file of your own is given as PATH.py:Class, "
         "problems as FILE.jsonl or FILE.jsonl.gz)"),
        ("scorers", "./none", "none: no such file (a file of your own is given as PATH.py:Class)"),
        ("environments", "./none.py:Mine", "none.py: no such file"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_there_is_said_with_what_could_be_given(room, spec, says):
    with pytest.raises(UserError) as caught:
        registry.find(room, spec)
    assert str(caught.value) == says
