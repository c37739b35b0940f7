"""ponder's side of `rl_step.py`: whole steps of `training.rl.Trainer`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from forced import FileOfProblems
from pipe import forget_peak, peak_bytes, serve

from ponder import sync
from ponder.engines.torch import TorchEngine
from ponder.models.load import load
from ponder.training.rl import Trainer
from ponder.training.rl_checks import source_of
from ponder.training.rl_config import RLConfig

STRATEGY = f"{Path(__file__).parent / 'forced.py'}:ForcedLengths"
PHASES = ("seconds_sample", "seconds_train", "seconds_publish")


class Side:
    trainer: Trainer

    def open(
        self,
        model: str,
        problems: str,
        groups: int,
        group_size: int,
        learning_rate: float,
        options: dict[str, Any],
        device: str = "cpu",
        compile: bool = False,
    ) -> dict[str, Any]:
        """Load model and problems; `options` are further fields of `RLConfig`."""
        loaded = dataclasses.replace(load(model, device=device), end_ids=())
        config = RLConfig(
            model=model,
            strategy=STRATEGY,
            strategy_options={"temperature": 1.0},
            problems=groups,
            group_size=group_size,
            steps=1_000_000,
            learning_rate=learning_rate,
            warmup_steps=0,
            loss="dapo",
            **options,
        )
        engine = TorchEngine(loaded, max_rows=config.max_rows, compile=compile)
        self.trainer = Trainer(config, loaded, source_of(config, FileOfProblems(Path(problems)), engine))
        forget_peak()
        return {"micro_tokens": config.micro_tokens}

    def step(self) -> dict[str, Any]:
        """One step, timed. Its own mismatch is the parity test: the trainer's log-probabilities before the update."""
        began = time.perf_counter()
        step = sync.run(self.trainer.step())
        seconds = time.perf_counter() - began
        row = step.row
        return {
            "seconds": seconds,
            "tokens": row["response_tokens"],
            "trained_tokens": row["trained_tokens"],
            "mismatch_max": row["mismatch_max"],
            "peak_bytes": peak_bytes(),
            **{p: row[p] for p in PHASES},
        }


if __name__ == "__main__":
    side = Side()
    serve({"open": side.open, "step": side.step})
