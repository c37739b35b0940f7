"""Help texts: each option once, with its default once, in the words of its docstring."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import pytest

from ponder import config as configs
from ponder import flags
from ponder.errors import UserError


@dataclass(frozen=True)
class Inner:
    """A part."""

    rate: float = 0.5
    """How
    fast."""


@dataclass(frozen=True)
class Outer:
    """A whole."""

    name: str | None = None
    """A name of something at a/long/path
    (default: the usual one)."""
    kind: Literal["a", "b"] | None = None
    """Which one."""
    count: int = 3
    """How many."""
    words: tuple[str, ...] = ("x", "y")
    """Some words."""
    on: bool = False
    """Whether."""
    options: configs.Options = field(default_factory=dict)
    """Options."""
    inner: Inner = field(default_factory=Inner)
    """The part."""

    def __post_init__(self):
        if self.count < 1:
            raise UserError("count: give more")


def shown(capsys, *args):
    with pytest.raises(SystemExit):
        configs.parse(Outer, ["--help", *args], prog="outer")
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_a_default_is_said_once_and_not_where_the_words_say_it(capsys):
    text = shown(capsys)
    assert "--name STR A name of something at a/long/path (default: the usual one). --kind" in text
    assert "--kind {a,b} Which one. --count" in text
    assert "How many. (default: 3)" in text
    assert "How fast. (default: 0.5)" in text
    assert "(default: None)" not in text
    assert "{None}" not in text


def test_what_is_read_is_the_config_itself_with_its_nested_parts_and_checks():
    read = configs.parse(
        Outer, ["--count", "5", "--inner.rate", "2", "--options", "a=1", "--kind", "b", "--words", "z"], prog="outer"
    )
    assert read == Outer(count=5, inner=Inner(2.0), options={"a": 1}, kind="b", words=("z",))
    assert type(read.inner) is Inner
    with pytest.raises(UserError, match="give more"):
        configs.parse(Outer, ["--count", "0"], prog="outer")


def test_defaults_of_a_file_are_kept_under_the_flags(tmp_path):
    path = tmp_path / "c.toml"
    saved = dataclasses.replace(Outer(), name="mine", inner=Inner(0.25), on=True)
    path.write_text(configs.to_toml(saved))
    read = configs.parse(Outer, ["--config", str(path), "--count", "7"], prog="outer")
    assert read == dataclasses.replace(saved, count=7)


def test_the_words_below_a_field_are_found_in_bases_too():
    @dataclass(frozen=True)
    class Below(Inner):
        """One more."""

        more: int = 1
        """And more."""

    assert flags.field_docs(Below) == {"rate": "How fast.", "more": "And more."}


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--coumt", "; did you mean --count?"),
        ("--inner.rat=2", "; did you mean --inner.rate?"),
        ("--rate", "; did you mean --inner.rate?"),
        ("--nonsense", "; see outer --help"),
        # A flag that only shares letters with what was given is no suggestion.
        ("--e", "; see outer --help"),
        ("--out", "; see outer --help"),
    ],
)
def test_an_unknown_flag_is_one_sentence_with_what_is_meant_alone(flag, said):
    with pytest.raises(UserError) as caught:
        configs.parse(Outer, [flag, "3"], prog="outer")
    assert str(caught.value) == f"there is no option {flag.partition('=')[0]}{said}"


def test_every_flag_that_tyro_makes_is_known():
    words = [*("--name", "n", "--kind", "b", "--count", "4", "--words", "x", "--on", "--options", "a=1")]
    assert configs.parse(Outer, [*words, "--inner.rate", "2"], prog="outer").inner.rate == 2.0
    assert not configs.parse(Outer, ["--no-on"], prog="outer").on
    assert set(flags.names(Outer)) >= {w for w in words if w.startswith("--")}
