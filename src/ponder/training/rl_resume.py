"""What a resumed RL run takes from the run in its directory, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ponder import config as configs
from ponder.errors import UserError
from ponder.runs.kinds import refuse_other
from ponder.training import checkpoint
from ponder.training.rl_config import RLConfig


def config_path(out: str) -> Path:
    """The config that a run's training was started with."""
    folder = Path(out)
    return folder / "rl.toml" if (folder / "rl.toml").exists() else folder / "config.toml"


FREE = (
    *("resume", "overwrite", "out", "steps", "minutes", "device", "threads", "track"),
    *("checkpoint_every", "keep_checkpoints", "record_problems", "record_tokens"),
)
"""Fields that may differ when a run is continued."""


def continued(config: RLConfig) -> RLConfig:
    """The config of a run that goes on; what it leaves open is filled in from the run's own.

    Raises `UserError` if the run has another config, or has done more steps than this one asks for.
    """
    path = config_path(config.out)
    if path.name == "config.toml":  # else it is the training of a quickstart
        refuse_other(Path(config.out), "train rl")
    saved = configs.from_mapping(RLConfig, configs.load_toml(path), where=str(path))
    filled = ["learning_rate", "problems", "eval_every", "eval_problems", "decay_from", "decay_steps"]
    filled += ["steps", "minutes"] if config.steps is None and config.minutes is None else []
    open_ones = [f for f in filled if getattr(config, f) is None]
    open_ones += [f for f in ("environment", "strategy") if not getattr(config, f)]
    if "strategy" in open_ones and not config.strategy_options:
        open_ones.append("strategy_options")
    config = dataclasses.replace(config, **{f: getattr(saved, f) for f in open_ones})
    configs.refuse_changed(config, path, FREE)
    done = checkpoint.last_step(Path(config.out) / "checkpoints")
    if config.steps is not None and config.steps < done:
        raise UserError(
            f"steps = {config.steps}: {config.out} has done {done} steps already; give at least {done}, or begin "
            "another run with another out"
        )
    return config
