"""RL on conversations: what is sampled in any turn is trained on, what the environment says is not."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from rl_environment import Twice

from ponder import sync
from ponder.engines.torch.engine import TorchEngine
from ponder.errors import PonderError, Unsupported
from ponder.models.tiny import new_model
from ponder.runs.files import read_lines
from ponder.search.strategies.direct import Direct
from ponder.search.strategies.turns import Turns
from ponder.training.rl_config import RLConfig
from ponder.training.rl_run import train
from ponder.training.source import EngineSource
from ponder.types import SegmentKind

ENVIRONMENT = f"{Path(__file__).parent / 'rl_environment.py'}:Twice"


@pytest.fixture
def engine():
    engine = TorchEngine(new_model(0))
    yield engine
    engine.close_now()


def groups(engine, strategy, environment=None):
    return sync.run(EngineSource(strategy, environment or Twice(), engine, 3).groups(4, 0)).groups


def test_each_sample_is_one_transcript_of_all_turns_that_earns_what_they_earned(engine) -> None:
    for group in groups(engine, Turns(n=3, max_tokens=6)):
        assert len(group.trace.nodes) == 6
        for sample in group.samples:
            first, last = group.trace.path(sample.leaf)
            kinds = [s.kind for s in sample.transcript.segments]
            assert kinds == [SegmentKind.GIVEN, SegmentKind.SAMPLED, SegmentKind.TOOL, SegmentKind.SAMPLED]
            assert sum(sample.transcript.loss_mask) == len(first.completion.ids) + len(last.completion.ids)
            earned = 2.0 * (len(first.response.text) % 2 == 0)
            assert sample.reward == earned + sample.verdict.reward


def test_a_strategy_that_plays_no_turns_is_refused_before_anything_is_sampled(engine) -> None:
    with pytest.raises(Unsupported, match=r"twice-train-\d is a conversation of several turns, and Direct gives one"):
        groups(engine, Direct(n=3, max_tokens=6))


class Broken(Twice):
    def episode(self, problem):
        raise OSError("no connection")


def test_an_environment_that_fails_gives_no_rewards(engine) -> None:
    with pytest.raises(PonderError, match="no group to train on: the environment twice failed: OSError: no connection"):
        groups(engine, Turns(n=3, max_tokens=6), Broken())


def test_a_run_trains_on_conversations(tmp_path) -> None:
    given = {"strategy": "turns", "strategy_options": {"max_tokens": 6}, "environment": ENVIRONMENT}
    sizes = {"problems": 4, "group_size": 4, "steps": 2, "eval_problems": 4, "record_problems": -1}
    run = tmp_path / "run"
    train(RLConfig(out=str(run), mask_truncated=False, **given, **sizes))
    lines = read_lines(run / "rollouts.jsonl").rows
    assert len(lines) == 8
    rewards = {n["reward"] for line in lines for n in line["samples"] if n["parent"] is not None}
    assert rewards & {2.0, 3.0}
    assert all(m["trained_tokens_per_second"] > 0 for m in read_lines(run / "metrics.jsonl").rows)


@pytest.mark.parametrize("which", ["strategy", "eval_strategy"])
def test_a_run_whose_strategy_plays_no_turns_is_refused_before_there_is_a_directory(tmp_path, which) -> None:
    plays = {"strategy": "turns", "eval_strategy": "turns"} | {which: "direct"}
    sizes = {"problems": 4, "group_size": 4, "steps": 2, "eval_problems": 4}
    with pytest.raises(Unsupported, match="is a conversation of several turns, and Direct gives one"):
        train(RLConfig(out=str(tmp_path / "run"), environment=ENVIRONMENT, **plays, **sizes))
    assert not (tmp_path / "run").exists()
