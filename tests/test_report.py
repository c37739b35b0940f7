"""Reports: every part that a run has, none that it lacks, and model text that cannot break out."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import runs_fixture as fixture
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.errors import UserError
from ponder.runs import figure, plots, results
from ponder.runs.report import _fence, render, to_html, to_markdown
from ponder.runs.sections import Sample, Section
from ponder.show import visible

pytest.importorskip("matplotlib")


class Page(HTMLParser):
    """Tags, attributes and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.seen = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action", "data", "background")]

    def handle_data(self, data: str) -> None:
        self.seen += data


@pytest.fixture(autouse=True, scope="module")
def coarse() -> Iterator[None]:
    """Small pictures: what is drawn does not depend on the resolution, the time does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure, "DPI", 40)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = fixture.make(tmp_path_factory.mktemp("runs") / "full")
    render(path)
    return path


def headings(path: Path) -> list[str]:
    return re.findall(r"^## (.*)$", (path / "report.md").read_text(), flags=re.M)


def test_a_full_run_shows_every_part(run: Path) -> None:
    assert headings(run) == [
        "Settings", "Result", "Both curves", "More samples", "Training", "Samples", "What it cost", "What to try next",
        "How it was made",
    ]  # fmt: skip
    for name in ("curves.png", "parallel.png", "training.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    assert not list(run.glob("*narrow*"))


def test_both_reports_say_the_same_numbers(run: Path) -> None:
    page, markdown = Page((run / "report.html").read_text()), (run / "report.md").read_text()
    for text in ("38.0 %", "66.0 %", "+28.0 points", "Wilson score", "n = 512", "3,600,000", "4 min 50 s", "1.43 GB"):
        assert text in page.seen
        assert text in markdown
    # A rung of the ladder with its interval, base and trained side by side.
    assert "57.5 % [53.2, 61.8]" in page.seen
    assert "28.5 % [24.6, 32.4]" in page.seen


def test_the_page_needs_no_network_and_runs_no_script(run: Path) -> None:
    page = Page((run / "report.html").read_text())
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    assert "@import" not in (run / "report.html").read_text()
    assert "url(" not in (run / "report.html").read_text()


def test_model_text_is_shown_and_not_obeyed(run: Path) -> None:
    html = (run / "report.html").read_text()
    page = Page(html)
    assert "<script>alert(1)</script>" in page.seen
    assert {"b", "i", "script", "think"}.isdisjoint(page.tags)
    for text in (html, (run / "report.md").read_text()):
        assert "\x00" not in text
        assert "\u202e" not in text
        assert "\u2400" in text
        assert r"\ud800" in text


def test_a_fence_in_model_text_does_not_end_the_block(run: Path) -> None:
    markdown = (run / "report.md").read_text()
    block = re.search(r"^(`{4,})text\n(.*?)\n\1$", markdown, flags=re.M | re.S)
    assert block is not None
    assert "</pre>" in block[2]
    assert block[2].endswith("<b>8</b>")


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters() | st.sampled_from("`~\n<>&\"'")))
def test_no_text_escapes_its_fence_or_its_element(text: str) -> None:
    shown = visible(text)
    fenced = _fence(shown).splitlines()
    assert not any(line.strip().startswith(fenced[0].removesuffix("text")) for line in fenced[1:-1])
    sample = Sample(shown, shown, shown, ((shown, shown, shown, shown),))
    page = Page(to_html(shown, [Section("Samples", (sample,))], {}))
    clean = Page(to_html("x", [Section("Samples", (Sample("x", "x", "x", (("x", "x", "x", "x"),)),))], {}))
    assert page.tags == clean.tags or not text.strip()
    markdown = to_markdown(shown, [Section("Samples", (sample,))])
    markdown.encode("utf-8")
    assert sum(line.startswith("#") for line in re.sub(r"(?ms)^(`{3,})text\n.*?\n\1$", "", markdown).splitlines()) == 3


def test_long_responses_are_cut_and_say_so() -> None:
    assert visible("9" * 1_000_000).endswith("… (996,000 more characters)")
    assert len(visible("9" * 1_000_000)) < 4100


PARTS = [
    (("metrics", "summary"), ["Settings", "Result", "Training", "What it cost", "What to try next", "How it was made"]),
    (("summary", "samples"), ["Settings", "Result", "Samples", "What it cost", "What to try next", "How it was made"]),
    (("metrics",), ["Settings", "Training", "What it cost", "How it was made"]),
    ((), ["Settings", "What it cost", "How it was made"]),
]


@pytest.mark.parametrize(("parts", "expected"), PARTS)
def test_what_a_run_lacks_is_left_out(tmp_path: Path, parts: tuple[str, ...], expected: list[str]) -> None:
    path = fixture.make(tmp_path / "run", parts=parts)
    render(path)
    assert headings(path) == expected
    assert (path / "training.png").exists() == ("metrics" in parts)


def test_a_training_run_without_a_test_ladder_draws_its_one_curve(tmp_path: Path) -> None:
    path = fixture.make(tmp_path / "run", parts=())
    curves = fixture.curves()
    for part, heading in (("train", "Held-out accuracy"), ("test", "Test-time compute")):
        (path / "curves.json").write_text(json.dumps({part: curves[part]}))
        render(path)
        assert heading in headings(path)
        assert "Both curves" not in headings(path)
        assert (path / "curves.png").exists()


def test_before_the_first_step_there_is_no_curve_yet(tmp_path: Path) -> None:
    path = fixture.make(tmp_path / "run", parts=())
    (path / "curves.json").write_text(json.dumps({"train": fixture.curves()["train"][:1]}))
    render(path)
    assert "Held-out accuracy" in headings(path)
    assert not (path / "curves.png").exists()


def test_one_point_curves_with_equal_ends_can_be_drawn(tmp_path: Path) -> None:
    path = fixture.make(tmp_path / "run", parts=())
    one = {
        "budget_tokens": 8,
        "mean_response_tokens_per_search": 8.0,
        "accuracy": 0.0,
        "low": 0.0,
        "high": 0.0,
        "no_answer": 1.0,
        "n": 1,
    }
    many = {
        "samples": 1,
        "mean_response_tokens_per_search": 8.0,
        "accuracy": 1.0,
        "coverage": 1.0,
        "low": 1.0,
        "high": 1.0,
        "n": 1,
    }
    ladder = {"sequential": [one], "parallel": [many]}
    train = [{"step": 1, "flops": 1e9, "sampled_tokens": 1, "accuracy": 1.0, "low": 1.0, "high": 1.0, "n": 1}]
    (path / "curves.json").write_text(json.dumps({"train": train, "test": ladder, "base": ladder}))
    render(path)
    assert (path / "parallel.png").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"train": 3}', "'train' must be a JSON array"),
        ('{"train": [{"flops": 1}]}', "point 0 of 'train' has no number 'accuracy'"),
        ('{"test": {"sequential": ["x"]}}', "point 0 of 'sequential' has no number 'mean_response_tokens_per_search'"),
    ],
)
def test_broken_curves_are_named_by_file_and_field(tmp_path: Path, text: str, said: str) -> None:
    path = fixture.make(tmp_path / "run", parts=())
    (path / "curves.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        render(path)
    assert "curves.json" in str(caught.value)


def test_a_torn_line_of_metrics_is_reported(tmp_path: Path) -> None:
    path = fixture.make(tmp_path / "run", parts=("metrics",))
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 121, "rew')
    render(path)
    assert "line 121 is torn" in (path / "report.md").read_text()


def test_the_same_run_gives_the_same_picture(run: Path) -> None:
    found = results.read(run)
    assert figure.png(plots.curves(found)) == figure.png(plots.curves(found))


def test_without_matplotlib_the_report_has_its_tables_and_says_what_is_missing(tmp_path: Path) -> None:
    path = fixture.make(tmp_path / "run")
    script = "import sys; sys.modules['matplotlib'] = None; from ponder.runs.report import render; render(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    html = (path / "report.html").read_text()
    assert "pip install" in html
    assert "57.5 % [53.2, 61.8]" in html
    assert not (path / "curves.png").exists()


def test_a_flag_of_a_command_is_not_split_where_a_narrow_page_breaks_its_line(tmp_path: Path) -> None:
    run = fixture.make(tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["command"] = ["ponder", "eval", "--budget-tokens", "600", "--out", "a b"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    page = render(run)[1].read_text()
    assert 'ponder eval <span class="word">--budget-tokens</span> 600 ' in page
    (block,) = [b for b in re.findall(r"<pre>(.*?)</pre>", page, re.S) if "--budget-tokens" in b]
    assert html.unescape(re.sub(r"<[^>]+>", "", block)) == "ponder eval --budget-tokens 600 --out 'a b'"


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (("metrics.jsonl",), "every number above in metrics.jsonl."),
        (
            ("evaluation.json", "rollouts.jsonl"),
            "config.toml, every number above in evaluation.json and rollouts.jsonl.",
        ),
        ((), "is in config.toml."),
    ],
)
def test_a_report_names_the_files_with_its_numbers_that_there_are(kept, says, tmp_path: Path) -> None:
    run = fixture.make(tmp_path / "run")
    for name in ("curves.json", "evaluation.json", "metrics.jsonl", "rollouts.jsonl"):
        (run / name).unlink(missing_ok=True)
    for name in kept:
        (run / name).write_text("{}\n")
    assert render(run)[0].read_text().endswith(f"{says}\n")
