"""Reports of trainings: settings, panels, the headline's interval, samples; and what is read on every picture."""

from __future__ import annotations

import dataclasses
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import runs_fixture as fixture
from hypothesis import given
from hypothesis import strategies as st

from ponder.runs import examples, figure, panels, plots, report, results
from ponder.runs.headline import headline
from ponder.runs.results import Results
from ponder.runs.sections import with_interval
from ponder.runs.settings import settings
from ponder.runs.ticks import FEWEST

matplotlib = pytest.importorskip("matplotlib")

PAGE = (report.TEMPLATES / "report.html.j2").read_text()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results.read(fixture.make(tmp_path_factory.mktemp("runs") / "full"))


def drawn(found: Results) -> list[Any]:
    """All figures, laid out."""
    sides = [plots.curves, plots.parallel, lambda r, narrow: panels.training(r.metrics, narrow=narrow)]
    with matplotlib.rc_context(figure.STYLE):
        figures = [draw(found, narrow=narrow) for draw in sides for narrow in (False, True)]
        for one in figures:
            one.canvas.draw()
    return figures


def test_every_text_is_readable_at_the_printed_size_and_no_labels_overlap(found: Results) -> None:
    inches = float(re.search(r"figure img \{[^}]*max-width: ([\d.]+)rem", PAGE)[1]) / 6
    assert inches >= figure.WIDE, "the page would shrink the pictures"
    for one in drawn(found):
        assert one.get_figwidth() in (figure.WIDE, figure.NARROW)
        for axis in one.axes:
            if not axis.get_visible():
                continue
            texts = [axis.title, axis.xaxis.label, axis.yaxis.label, *axis.get_xticklabels(), *axis.get_yticklabels()]
            texts += [*axis.texts, *(t for legend in one.legends for t in legend.get_texts())]
            assert min(t.get_fontsize() for t in texts) >= 8
            for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
                boxes = [t.get_window_extent() for t in labels if t.get_visible() and t.get_text()]
                assert not any(a.overlaps(b) for a, b in pairwise(boxes))
                assert all(box.x0 >= -1 and box.x1 <= one.bbox.x1 + 1 for box in boxes)


def test_every_axis_has_three_ticks_that_it_shows(found: Results) -> None:
    for one in drawn(found):
        for axis in one.axes:
            for ticks, (low, high) in ((axis.get_xticks(), axis.get_xlim()), (axis.get_yticks(), axis.get_ylim())):
                assert sum(low <= t <= high for t in ticks) >= FEWEST


def test_panels_are_those_that_have_numbers() -> None:
    rows = [{"step": 1, "reward": 0.5, "entropy": None}, {"step": 2, "reward": None}, {"step": 3, "reward": 0.7}]
    assert [(p.title, p.points) for p in panels.panels(rows)] == [("reward", [(1, 0.5), (3, 0.7)])]
    odd = [{"step": 1, "loss": float("nan"), "reward": True, "gradient_norm": 1e300, "signal": "x"}]
    assert panels.panels(odd) == []


def test_a_training_shows_loss_gradient_clip_truncation_signal_and_entropy(found: Results) -> None:
    titles = [p.title for p in panels.panels(found.metrics)]
    assert titles == [
        *("reward", "loss", "gradient norm", "clipped tokens", "truncated responses", "groups with a signal"),
        *("entropy (nats per token)", "response length (tokens)", "learning rate", "mismatch, mean |Δ log p|"),
    ]


def test_shaped_rewards_have_a_panel_of_right_responses_beside_them() -> None:
    kinds = {"correct": 1, "wrong": 2, "judge_error": 5}
    shaped = panels.panels([{"step": 1, "reward": 0.5, "verdicts": kinds}])
    assert [(p.title, p.points) for p in shaped] == [("reward", [(1, 0.5)]), ("right responses", [(1, 1 / 3)])]
    plain = panels.panels([{"step": 1, "reward": 1 / 3, "verdicts": kinds}])
    assert [p.title for p in plain] == ["reward: the share of right responses"]


def test_the_validation_loss_is_drawn_with_the_loss() -> None:
    rows = [{"step": s, "loss": 1.0 / s, **({"validation_loss": 2.0} if s % 2 else {})} for s in range(1, 6)]
    (panel,) = panels.panels(rows)
    assert panel.title == "loss (nats per token)"
    assert panel.validation == ((1, 2.0), (3, 2.0), (5, 2.0))


@given(st.integers(0, 500))
def test_the_running_mean_is_of_as_many_steps_as_its_label_says(steps: int) -> None:
    width = panels.window(steps)
    assert width % 2 == 1
    assert width <= max(1, min(panels.WIDEST, steps // 3))
    means = panels.running_mean([(s, 3.0 * s) for s in range(1, steps + 1)], width)
    # The mean of a line is its middle: a window that is cut at the ends would be off it.
    assert means == [(s, pytest.approx(3.0 * s)) for s in range(1 + width // 2, steps + 1 - width // 2)]
    assert (f"mean of {width} steps" in panels.caption([{}] * steps)) == (width > 1)


def test_a_mean_over_a_gap_is_left_out() -> None:
    points = [(1, 1.0), (2, 1.0), (3, 1.0), (5, 9.0), (6, 9.0), (7, 9.0)]
    assert panels.running_mean(points, 3) == [(2, 1.0), (6, 9.0)]


def test_three_steps_have_no_mean_of_nine(tmp_path: Path) -> None:
    path = fixture.make(tmp_path / "run", parts=())
    lines = [f'{{"step": {s}, "reward": 0.{s}}}\n' for s in (1, 2, 3)]
    (path / "metrics.jsonl").write_text("".join(lines))
    text = report.render(path)[0].read_text()
    assert "3 steps, each a point" in text
    assert "mean of" not in text


def test_the_settings_of_a_training_are_at_the_top(found: Results) -> None:
    rows = dict(settings(found))
    assert rows["model"] == "ponder-tiny"
    assert rows["loss"] == "dapo"
    assert rows["advantage"] == "mean_only"
    assert rows["group size"] == "16 samples of a problem"
    assert rows["batch"] == "32 problems × 16 samples, 4 updates"
    assert rows["learning rate"] == "0.0002: 5 steps of warm-up, then linear to 50 % of it at the last step"
    timed = dataclasses.replace(found, config={**found.config, "decay_from": 90, "decay_steps": 30})
    assert dict(settings(timed))["learning rate"].endswith("constant, from step 90 on linear to 50 % of it in 30 steps")
    assert rows["held-out evaluation"] == "512 problems, before training, every 20 steps, at the end"
    assert rows["test-time budgets"] == "thoughts of 16, 32, 64, 128, 256 tokens; 1, 2, 4, 8, 16, 32, 64 samples"


def test_one_of_a_kind_is_not_called_several(found: Results) -> None:
    one = {**found.config, "problems": 1, "group_size": 1, "updates": 1, "eval_problems": 1, "eval_every": 0}
    rows = dict(settings(dataclasses.replace(found, config=one)))
    assert rows["batch"] == "1 problem × 1 sample, 1 update"
    assert rows["held-out evaluation"] == "1 problem, before training, at the end"


def test_a_rate_of_one_step_is_seen() -> None:
    for steps, marker in ((1, "o"), (2, "none")):
        figure_ = panels.training([{"step": s + 1, "learning_rate": 0.1} for s in range(steps)], narrow=False)
        (axis,) = [a for a in figure_.axes if a.get_visible()]
        assert str(axis.lines[0].get_marker()).lower() == marker


def test_options_that_the_config_leaves_out_are_taken_from_the_manifest(found: Results) -> None:
    direct = {"name": "direct", "options": {"n": 1, "temperature": 0.7, "max_tokens": 96, "stop": [], "top_p": 1.0}}
    config = {"model": "m", "split": "test", "n": 40, "strategy": "direct", "budget_tokens": 600, "seed": 3}
    evaluation = dataclasses.replace(found, config=config, manifest={"strategy": direct, "model": {"dtype": "float32"}})
    rows = dict(settings(evaluation))
    assert rows["model"] == "m (float32)"
    assert rows["strategy"] == "direct: n=1 top_p=1.0"
    assert rows["temperature"] == "0.700"
    assert rows["max tokens of a response"] == "96"
    assert rows["budget of a search"] == "600 tokens"
    assert rows["budget of all searches"] == "no limit"
    assert rows["problems"] == "n = 40, from the start of the test split"
    without = dict(settings(dataclasses.replace(evaluation, manifest={})))
    assert without["temperature"] == "the strategy's default"


@pytest.mark.parametrize(
    "config",
    [
        {"split": "test", "samples": "x", "seed": 1},
        {"group_size": "many", "seed": 1},
        {"fit": 3, "seed": 1},
        {"minutes": 8.0, "seed": 1, "options": {"a": 1}},
    ],
)
def test_a_config_of_another_shape_is_shown_as_it_is(config: dict[str, Any], found: Results) -> None:
    rows = dict(settings(dataclasses.replace(found, config=config)))
    assert rows["seed"] == "1"
    assert rows.keys() <= config.keys()


def gain(value: float, low: float, high: float, n: int, method: str = "paired, Gaffke") -> dict[str, Any]:
    return {"gain": {"value": value, "low": low, "high": high, "n": n, "method": method}}


def test_a_difference_from_few_problems_is_no_headline(found: Results) -> None:
    few = "paired, Gaffke; 3 problems: too few to say much, 385 give ±10 points"
    said = headline(dataclasses.replace(found, summary=gain(2 / 3, -0.204, 0.991, 3, few)), with_interval)
    assert said.startswith("What training changed cannot be told (3 problems: too few to say much")
    assert "-20.4 to +99.1 points" in said
    assert "66.7" not in said


def test_a_difference_that_may_be_none_is_said_as_its_interval(found: Results) -> None:
    said = headline(dataclasses.replace(found, summary=gain(0.02, -0.018, 0.058, 500)), with_interval)
    assert said.startswith("Training changed accuracy by -1.8 to +5.8 points (paired, 95 %), maybe not at all")
    sure = headline(found, with_interval)
    assert sure.startswith("Training changed accuracy by +28.0 points [+23.4, +33.2] (paired, 95 %)")
    unknown = headline(dataclasses.replace(found, summary={}), with_interval)
    assert unknown.startswith("In training, accuracy on 512 held-out problems went from 38.0 % [")
    assert "points" not in unknown


def test_a_right_and_a_wrong_response_of_the_first_and_the_last_step_are_shown(tmp_path: Path) -> None:
    path = fixture.make(tmp_path / "run", parts=("metrics",))
    long = "so 5+7=12, " * 200 + fixture.NASTY
    lines = [
        fixture.group(1, ("wrong", 0.0, "first wrong"), ("wrong", 0.0, "second wrong"), problem="only-wrong"),
        fixture.group(1, ("judge_error", None, "unjudged"), ("wrong", 0.0, long), ("correct", 1.0, "first right")),
        fixture.group(2, ("correct", 1.0, "in between")),
        fixture.group(3, ("correct", 1.0, "last right"), problem="only-right"),
    ]
    with results_run(path) as run:
        for line in lines:
            run.log_rollout(line)
    markdown, page = (p.read_text() for p in report.render(path))
    assert "## Samples of training" in markdown
    for text in ("first right", "last right", "reward 1: it is correct", "step 1", "step 3"):
        assert text in page
        assert text in markdown
    for text in ("first wrong", "unjudged", "in between", "only-wrong"):
        assert text not in page
    assert "<script>alert" not in page
    assert page.count('<details class="long">') == 1
    assert "characters" in page


def results_run(path: Path) -> Any:
    from ponder.runs.run import Run

    return Run.open(path)


@pytest.mark.parametrize("samples", [[], ["x"], [{"verdict": None}], [{"verdict": {"kind": "correct"}}]])
def test_lines_without_judged_samples_show_none(samples: list[Any]) -> None:
    assert examples.examples([{"step": 1, "samples": samples}]) == []
