"""The RL loop on a model of random weights."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from rl_environment import Even
from training_play import completion, flat_group, sampled

from ponder import registry, sync
from ponder.config import from_mapping, load_toml
from ponder.engines.torch.engine import TorchEngine
from ponder.errors import MissingExtra, PonderError, TrainingDiverged, UserError
from ponder.models.decoder_config import DecoderConfig
from ponder.models.load import load
from ponder.models.save import save
from ponder.models.tiny import VOCAB_SIZE, new_model
from ponder.runs.files import read_lines
from ponder.training import rl, rl_run
from ponder.training.advantages.mean_only import MeanOnly
from ponder.training.credit import Credit
from ponder.training.interrupt import Interrupted
from ponder.training.rl import Trainer
from ponder.training.rl_checks import source_of
from ponder.training.rl_config import RLConfig
from ponder.training.rl_run import train
from ponder.training.rollouts import has_signal
from ponder.training.source import EngineSource
from ponder.types import Verdict, VerdictKind

ENVIRONMENT = f"{Path(__file__).parent / 'rl_environment.py'}:Even"
SHAPE = DecoderConfig(VOCAB_SIZE, 32, 64, 2, 2, 1, 16, 256, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "base"
    save(new_model(0, SHAPE), folder)
    return str(folder)


def config(base: str, out: Path, **changes) -> RLConfig:
    values = {
        "model": base,
        "out": str(out),
        "environment": ENVIRONMENT,
        "strategy": "budget_forcing",
        "strategy_options": {"thought_tokens": 6, "answer_tokens": 4},
        "problems": 4,
        "group_size": 4,
        "steps": 5,
        "learning_rate": 1e-3,
        "mask_truncated": False,
        "eval_every": 2,
        "eval_problems": 8,
        "checkpoint_every": 2,
        "record_problems": -1,
        "record_tokens": True,
    }
    return RLConfig(**{**values, **changes})


METRICS = """
reward verdicts length truncated entropy mismatch_mean mismatch_max mismatch_k3 gradient_norm clipped
sampled_tokens_per_second trained_tokens_per_second seconds_sample seconds_train seconds_publish flops
peak_memory_bytes groups_without_signal
"""
CLOCK = re.compile(r"seconds|per_second|peak_memory")


def timeless(value):
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not CLOCK.search(k)}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [timeless(r) for r in read_lines(run / name).rows]


def summary(run: Path) -> dict:
    """The facts of a finished run, gain and verdict moves among them."""
    facts = json.loads((run / "summary.json").read_text())["facts"]
    assert "Gain (paired)" in facts
    return facts


def test_the_same_seed_gives_the_same_run_bit_for_bit_and_another_seed_another(base, tmp_path) -> None:
    a = train(config(base, tmp_path / "a"))
    b = train(config(base, tmp_path / "b"))
    train(config(base, tmp_path / "c", seed=1))
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert rows(tmp_path / "a", "rollouts.jsonl") == rows(tmp_path / "b", "rollouts.jsonl")
    assert rows(tmp_path / "a") != rows(tmp_path / "c")


GRPO = {"loss": "grpo", "loss_options": {"kl": 0.5}, "updates": 2, "importance_cap": 2.0}


@pytest.mark.parametrize(("stop", "changes"), [(1, {}), (2, {}), (3, {}), (3, GRPO)])
def test_a_stopped_and_resumed_run_equals_one_that_was_not(stop, changes, base, tmp_path, monkeypatch) -> None:
    """With a reference model too: it is what the run began with, not what it was resumed from."""
    whole = train(config(base, tmp_path / "whole", **changes))
    step = Trainer.step
    interrupts = []
    interrupt = rl_run.Interrupt

    def made():
        interrupts.append(interrupt())
        return interrupts[-1]

    async def stopping(self):
        done = await step(self)
        interrupts[-1].requested = self.state.step == stop
        return done

    monkeypatch.setattr(rl_run, "Interrupt", made)
    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(Interrupted, match=r"continue with: ponder train rl --config .*config.toml --resume") as error:
        train(config(base, tmp_path / "parts", **changes))
    assert error.value.exit_code == 130
    monkeypatch.setattr(Trainer, "step", step)
    written = from_mapping(RLConfig, load_toml(tmp_path / "parts" / "config.toml"), "config.toml")
    parts = train(dataclasses.replace(written, resume=True))
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert summary(tmp_path / "whole") == summary(tmp_path / "parts")
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        assert rows(tmp_path / "whole", name) == rows(tmp_path / "parts", name)
    assert (tmp_path / "whole/curves.json").read_text() == (tmp_path / "parts/curves.json").read_text()


def test_every_metric_of_the_contract_is_logged_at_each_step(base, tmp_path) -> None:
    train(config(base, tmp_path / "run", steps=2))
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["model"]["forward"] == "native"
    for row in read_lines(tmp_path / "run" / "metrics.jsonl").rows:
        for name in METRICS.split():
            assert row[name] is not None, name
        assert row["mismatch_max"] < 1e-4  # float32, one module: sampler and trainer agree
        assert sum(row["verdicts"].values()) == 16


def test_the_policy_gradient_raises_the_reward(base, tmp_path) -> None:
    run, digits = tmp_path / "run", {"digits": True}
    train(
        config(
            base, run, environment_options=digits, steps=30, problems=8, group_size=8, learning_rate=2e-2, eval_every=0
        )
    )
    rewards = [r["reward"] for r in read_lines(run / "metrics.jsonl").rows]
    assert sum(rewards[-3:]) / 3 > 0.3 + sum(rewards[:3]) / 3


@dataclass(frozen=True)
class BySegment:
    """Credit that differs within a sample: the thought's as `mean_only`, less by `less` in each later segment."""

    less: float = 0.0

    def __call__(self, groups):
        flat = MeanOnly()(groups)
        pairs = (zip(g.samples, own, strict=True) for g, own in zip(groups, flat, strict=True))
        return [[self._credit(sample, credit) for sample, credit in own] for own in pairs]

    def _credit(self, sample, flat):
        if not any(flat.trained):
            return flat
        value = flat.values[flat.trained.index(True)]
        return Credit.of_segments(sample, [value - self.less * i for i in range(len(sample.transcript.segments))])


def test_a_line_of_rollouts_is_a_search_with_rewards_advantages_and_tokens(base, tmp_path) -> None:
    """A custom estimator may give credit per segment, which is recorded so."""
    run = tmp_path / "run"
    mine = f"{__file__}:BySegment"
    train(config(base, run, steps=2, advantage=mine, advantage_options={"less": 0.25}))
    lines = read_lines(run / "rollouts.jsonl").rows
    assert [line["step"] for line in lines] == [1] * 4 + [2] * 4
    varied = 0
    for line in lines:
        rewards = [n["reward"] for n in line["samples"]]
        mean = sum(rewards) / len(rewards)
        assert line["problem"].startswith("even-train-")
        assert rewards == [n["verdict"]["reward"] for n in line["samples"]]
        for node in line["samples"]:
            kinds = [s["kind"] for s in node["segments"]]
            assert len(node["prompt_ids"]) > 0
            assert set(kinds) <= {"sampled", "forced"}
            if len(set(rewards)) == 1:
                assert node["advantage"] == 0.0
            elif kinds.count("sampled") > 1:
                varied += 1
                want = [None, *(node["reward"] - mean - 0.25 * (i + 1) for i in range(len(kinds)))]
                want = [w if k == "sampled" else None for w, k in zip(want, ["given", *kinds], strict=True)]
                assert node["advantage"] == pytest.approx(want)
    assert varied


def trainer(base: str, tmp_path: Path, **changes) -> Trainer:
    c, model = config(base, tmp_path / "unused", **changes), load(base)
    environment = registry.build("environments", c.environment, c.environment_options)
    return Trainer(c, model, source_of(c, environment, TorchEngine(model)))


def close(one: Trainer) -> None:
    sync.run(one.source.engine.close())


def test_dynamic_sampling_replaces_groups_without_signal_and_counts_them(base, tmp_path) -> None:
    one = trainer(base, tmp_path, group_size=2, resample=20)
    step = sync.run(one.step())
    assert len(step.groups) == 4
    assert step.row["groups_replaced"] > 0
    assert all(has_signal(g) for g in step.groups)
    assert one.state.drawn == 4 + step.row["groups_replaced"]
    close(one)


def test_shuffled_rewards_are_permuted_within_a_group_among_those_that_were_judged() -> None:
    rewards = [[1.0, 0.0, 0.0, 1.0, None, 0.0], [0.0, 1.0, None, 0.0, 0.0, 0.5]]
    groups = [flat_group([completion((2,), (sampled((3, 4)),))] * 6, r, f"p{i}") for i, r in enumerate(rewards)]
    dealt = [[s.reward for s in g.samples] for g in rl.shuffled(groups, 5)]
    assert dealt != rewards
    for before, after in zip(rewards, dealt, strict=True):
        assert [r is None for r in before] == [r is None for r in after]
        assert sorted(r for r in before if r is not None) == sorted(r for r in after if r is not None)


def test_a_finite_training_set_is_shuffled_again_each_epoch_and_used_up_first(base, tmp_path) -> None:
    one = trainer(base, tmp_path, environment_options={"problems": 10})
    ids = [one.source.problem(i).id for i in range(20)]
    assert len(set(ids[:10])) == len(set(ids[10:])) == 10
    assert ids[:10] != ids[10:]
    close(one)


def test_too_many_failed_judgements_stop_the_run_with_the_reason(base, tmp_path) -> None:
    with pytest.raises(PonderError, match="the judge is broken"):
        train(config(base, tmp_path / "run", environment_options={"broken": True}))


def test_an_infrastructure_error_before_an_update_changes_no_weights_and_can_be_continued(
    base, tmp_path, monkeypatch
) -> None:
    whole = train(config(base, tmp_path / "whole"))
    judge, calls = EngineSource._judge, []

    async def failing(self, problem, responses):
        calls.append(1)
        if len(calls) > 10:
            return [Verdict(VerdictKind.JUDGE_ERROR, None, "the disk of the judge is full") for _ in responses]
        return await judge(self, problem, responses)

    monkeypatch.setattr(EngineSource, "_judge", failing)
    with pytest.raises(PonderError, match=r"step 3: .* the disk of the judge is full; .* continue with: ponder train"):
        train(config(base, tmp_path / "parts"))
    monkeypatch.setattr(EngineSource, "_judge", judge)
    parts = train(config(base, tmp_path / "parts", resume=True))
    # Killed before its first checkpoint: the run begins again.
    shutil.copytree(tmp_path / "parts", tmp_path / "killed", ignore=shutil.ignore_patterns("checkpoints", "model"))
    again = train(config(base, tmp_path / "killed", resume=True))
    assert (whole / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


def test_a_step_whose_weights_could_not_be_published_is_in_the_log_and_the_run_continues(
    base, tmp_path, monkeypatch
) -> None:
    whole = train(config(base, tmp_path / "whole"))
    publish = EngineSource.publish

    async def failing(self, update):
        if update.version == 3:
            raise MissingExtra("publishing", "server")
        return await publish(self, update)

    monkeypatch.setattr(EngineSource, "publish", failing)
    with pytest.raises(
        MissingExtra, match=r"pip install 'ponder\[server\]'; once that is fixed, continue with: ponder"
    ):
        train(config(base, tmp_path / "parts"))
    assert [r["step"] for r in rows(tmp_path / "parts")] == [1, 2, 3]
    assert {r["step"] for r in rows(tmp_path / "parts", "rollouts.jsonl")} == {1, 2, 3}
    monkeypatch.setattr(EngineSource, "publish", publish)
    parts = train(config(base, tmp_path / "parts", resume=True))
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert [r["step"] for r in rows(tmp_path / "parts")] == [1, 2, 3, 4, 5]


def test_no_checkpoint_is_written_in_the_middle_of_a_step(base, tmp_path, monkeypatch) -> None:
    whole = train(config(base, tmp_path / "whole", updates=2))
    update, calls = Trainer._update, []

    def failing(self, *given):
        calls.append(1)
        if len(calls) == 8:  # the second of step 4
            raise UserError("the disk is full")
        return update(self, *given)

    monkeypatch.setattr(Trainer, "_update", failing)
    with pytest.raises(UserError, match="the disk is full; once that is fixed"):
        train(config(base, tmp_path / "parts", updates=2))
    assert max(p.name for p in (tmp_path / "parts" / "checkpoints").iterdir()) == "step-000002"
    monkeypatch.setattr(Trainer, "_update", update)
    parts = train(config(base, tmp_path / "parts", updates=2, resume=True))
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


class Short(Even):
    """Does not know that it holds three test problems."""

    def size(self, split):
        return None

    def problem(self, split, index):
        if split == "test" and index >= 3:
            raise IndexError("short has 3 test problems")
        return super().problem(split, index)


def test_held_out_problems_that_run_out_are_one_sentence(base, tmp_path) -> None:
    with pytest.raises(UserError, match="8 test problems: short has 3 test problems; give fewer"):
        train(config(base, tmp_path / "run", environment=f"{__file__}:Short"))


def test_a_resumed_run_must_be_the_same_run(base, tmp_path) -> None:
    train(config(base, tmp_path / "run"))
    with pytest.raises(UserError, match=r"resume: learning_rate is 0.5, .* --config .*config.toml --resume"):
        train(config(base, tmp_path / "run", learning_rate=0.5, resume=True))
    train(config(base, tmp_path / "run", steps=7, resume=True))
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl").rows) == 7


def test_resuming_never_rewrites_history(base, tmp_path) -> None:
    """Fewer steps than done are refused, earlier configs kept, and the last step is evaluated whatever was before."""
    run = tmp_path / "run"
    train(config(base, run, steps=3, eval_every=0))
    written = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    with pytest.raises(UserError, match=r"steps = 2: .* has done 3 steps already; give at least 3"):
        train(config(base, run, steps=2, eval_every=0, resume=True))
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()} == written
    # A finished run that is continued with as many steps says what it said before.
    facts = summary(run)
    train(config(base, run, steps=3, eval_every=0, resume=True))
    assert summary(run) == facts
    assert not list(run.glob("config-*.toml"))
    # The learning rate need not be given again.
    train(config(base, run, steps=4, eval_every=0, learning_rate=None, resume=True))
    train(config(base, run, steps=5, eval_every=0, resume=True))
    configs = [run / f"config{k}.toml" for k in ("-2", "-3", "")]
    assert [load_toml(c)["steps"] for c in configs] == [3, 4, 5]
    assert {load_toml(c)["learning_rate"] for c in configs} == {1e-3}
    assert [p["step"] for p in json.loads((run / "curves.json").read_text())["train"]] == [0, 3, 4, 5]
    assert summary(run)["Steps"] == 5


def test_the_last_step_of_a_run_that_was_stopped_before_its_evaluation_is_evaluated(
    base, tmp_path, monkeypatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(rl_run.RLRun, "_last", lambda self, progress: None)
        train(config(base, tmp_path / "run", steps=2, eval_every=3))
    points = json.loads((tmp_path / "run" / "curves.json").read_text())["train"]
    assert [p["step"] for p in points] == [0]
    train(config(base, tmp_path / "run", steps=2, eval_every=3, resume=True))
    points = json.loads((tmp_path / "run" / "curves.json").read_text())["train"]
    assert [p["step"] for p in points] == [0, 2]
    assert "Gain (paired)" in summary(tmp_path / "run")


def test_a_run_without_evaluation_trains_and_its_report_says_what_it_knows(base, tmp_path) -> None:
    train(config(base, tmp_path / "run", steps=2, eval_problems=0))
    made = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert not any("accuracy" in name for name in made["facts"])
    assert made["facts"]["Steps"] == 2
    assert [c["phase"] for c in made["cost"]] == ["training"]
    from ponder.runs.report import render

    text = render(tmp_path / "run")[0].read_text()
    assert "Groups with a signal" in text


def test_a_run_without_a_signal_warns_on_the_console_and_in_the_report(base, tmp_path, capsys) -> None:
    same = f"{__file__}:Same"
    train(config(base, tmp_path / "run", steps=5, environment=same, eval_problems=2))
    console = capsys.readouterr().err
    says = (
        "no group of 5 steps had rewards that differ, so there is little to learn: 100.0 % of the responses are right"
    )
    assert console.count(f"warning: {says}") == 1
    assert "signal 0.0 %" in console
    made = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert made["warnings"][0].startswith(says)
    assert made["facts"]["Groups with a signal"] == "0.0 % (0 of 20)"
    # Two problems that never change are no proof of anything.
    assert "2 problems: too few" in made["facts"]["Gain (paired)"]
    from ponder.runs.report import render

    assert f"Warning: {says}" in render(tmp_path / "run")[0].read_text()


@dataclass(frozen=True)
class Same(Even):
    """Every response is right."""

    name = "same"

    def judge(self, problem, response):
        return Verdict(VerdictKind.CORRECT, 1.0, "")


def test_data_is_short_for_the_option_and_a_small_file_is_refused_before_the_model_is_loaded(
    base, tmp_path, monkeypatch
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(f'{{"prompt": "{i} + 1", "answer": {i + 1}}}\n' for i in range(30)))
    own = {"environment": "jsonl", "data": str(path), "problems": 2, "steps": 1}
    with monkeypatch.context() as patched:
        patched.setattr("ponder.models.load.load", lambda *args, **rest: pytest.fail("the model was loaded"))
        for changes, says in (
            (
                {},
                r"eval_problems = 8: jsonl has \d test problems?; give at most \d, or 0 for no evaluation, .*test_data",
            ),
            ({"problems": 100}, r"jsonl: \d+ training problems are fewer than the 100 of a step; give problems = \d+"),
            ({"environment": "countdown"}, "the environment 'countdown' reads no file; give --environment jsonl"),
            ({"environment_options": {"data": "x"}}, "data is given twice"),
            ({"loss": "grop"}, "did you mean 'grpo'"),
            ({"eval_strategy": "direkt"}, "did you mean 'direct'"),
        ):
            with pytest.raises(UserError, match=says):
                train(config(base, tmp_path / "run", **{**own, **changes}))
    train(config(base, tmp_path / "run", **own, eval_problems=0))
    assert load_toml(tmp_path / "run" / "config.toml")["data"] == str(path)


def test_a_diverged_step_names_itself_and_the_last_good_checkpoint(base, tmp_path, monkeypatch) -> None:
    step = Trainer.step

    async def broken(self):
        if self.state.step == 3:
            raise TrainingDiverged("the loss is nan")
        return await step(self)

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(TrainingDiverged, match=r"step 4: the loss is nan; the last good checkpoint is .*step-000002"):
        train(config(base, tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strategy_options": {"thought_tokens": 6, "top_p": 0.9}}, "top_p cuts the distribution"),
        ({"strategy_options": {"thought_tokens": 6, "temperature": 0}}, "RL needs samples that differ"),
        ({"strategy_options": {"thought_tokens": 600}}, "do not fit the context of 256"),
        ({"strategy": "bugdet_forcing"}, "did you mean 'budget_forcing'"),
        ({"environment": "countdwn"}, "did you mean 'countdown'"),
        ({"advantage": "meanonly_"}, "mean_only"),
        ({"loss_options": {"clip_hi": 0.3}}, "did you mean 'clip_high'"),
        ({"eval_problems": 1000}, "has 40 test problems; give at most 40, or 0 for no evaluation"),
        ({"problems": 100}, "fewer than the 100 of a step"),
        ({"strategy_options": {"thought_tokens": 6, "n": 3}}, "n is the group size"),
    ],
)
def test_bad_input_is_refused_before_a_directory_is_made(changes, reason, base, tmp_path) -> None:
    with pytest.raises(UserError, match=re.escape(reason)):
        train(config(base, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", ["problems", "group_size", "steps", "learning_rate", "micro_tokens", "lora_alpha", "minutes"]
)
def test_a_value_of_zero_is_refused_by_name(name, base, tmp_path) -> None:
    with pytest.raises(UserError, match=name):
        config(base, tmp_path, **{name: 0})
