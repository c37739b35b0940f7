"""Experiment trackers: the rows of `metrics.jsonl`, sent to other tools while they are written.

The files of the run stay the truth: a tracker that fails is left out from then on, with a note, and never stops the
work. Nothing leaves the machine unless the user's own settings of a tool say so:

| name | where it writes | to send it elsewhere |
|---|---|---|
| `tensorboard` | `RUN/tensorboard` | - |
| `trackio` | its local database (`TRACKIO_DIR`, else `RUN/trackio`) | - |
| `wandb` | `RUN/wandb`, offline | `WANDB_MODE=online`, after `wandb login` |
| `mlflow` | `RUN/mlflow.db` | `MLFLOW_TRACKING_URI` |
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ponder.errors import MissingExtra, UserError, nearest

PROJECT = "ponder"


class Tracker(Protocol):
    """One tool that a run reports to."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, status: str) -> None: ...


class TensorBoard:
    """Event files, read by `tensorboard --logdir RUN/tensorboard`."""

    def __init__(self, run: Path, config: Mapping[str, Any], resumed: bool) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(run / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        summary = self._summary(value=[self._summary.Value(tag=k, simple_value=v) for k, v in values.items()])
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self, status: str) -> None:
        self._writer.close()


class Trackio:
    """Hugging Face's local tracker, read by `trackio show`."""

    def __init__(self, run: Path, config: Mapping[str, Any], resumed: bool) -> None:
        os.environ.setdefault("TRACKIO_DIR", str((run / "trackio").resolve()))
        import trackio

        self._run = trackio.init(
            project=PROJECT, name=run.name, config=dict(config), resume="allow" if resumed else "never", embed=False
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, status: str) -> None:
        self._run.finish()


class Wandb:
    """Weights & Biases, offline unless `WANDB_MODE` says otherwise; `wandb sync RUN/wandb/offline-run-*` sends it."""

    def __init__(self, run: Path, config: Mapping[str, Any], resumed: bool) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        if mode == "online" and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
            raise UserError("--track wandb: not logged in: run `wandb login`, or leave WANDB_MODE out to write offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            dir=str(run),
            config=dict(config),
            mode=mode,
            resume="allow" if resumed else None,
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "done" else 1)


class Mlflow:
    """MLflow, in a database of the run unless `MLFLOW_TRACKING_URI` names a server."""

    def __init__(self, run: Path, config: Mapping[str, Any], resumed: bool) -> None:
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(run / 'mlflow.db').resolve()}"
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
        for key, value in flat(config).items():
            self._client.log_param(self._id, key, str(value)[:500])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._client.log_metric(self._id, key, value, step=step)

    def close(self, status: str) -> None:
        self._client.set_terminated(self._id, {"done": "FINISHED", "interrupted": "KILLED"}.get(status, "FAILED"))


_TRACKERS: dict[str, tuple[str, Callable[[Path, Mapping[str, Any], bool], Tracker]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "trackio": ("trackio", Trackio),
    "wandb": ("wandb", Wandb),
    "mlflow": ("mlflow", Mlflow),
}
"""By name: the module that must be there, and what opens it."""
NAMES = tuple(_TRACKERS)


def names(track: str) -> tuple[str, ...]:
    """The trackers of `--track tensorboard,wandb`. Raises `UserError` for one that is unknown or not installed."""
    wanted = tuple(dict.fromkeys(n.strip().lower() for n in track.split(",") if n.strip()))
    for name in wanted:
        if name not in _TRACKERS:
            raise UserError(f"--track {name}: no such tracker{nearest(name, NAMES)}")
    missing = [name for name in wanted if importlib.util.find_spec(_TRACKERS[name][0]) is None]
    if missing:
        raise MissingExtra(f"--track {','.join(missing)}", ",".join(missing))
    return wanted


class Trackers:
    """The open trackers of a run; one that fails is left out from then on and named in a note."""

    def __init__(self, open_ones: Mapping[str, Tracker], note: Callable[[str], None]) -> None:
        self._open, self._note = dict(open_ones), note

    @classmethod
    def begin(
        cls, track: str, run: Path, config: Mapping[str, Any], note: Callable[[str], None], *, resumed: bool = False
    ) -> Trackers:
        """Open what `--track` names. Raises `UserError` if a tool refuses, such as for a missing login."""
        found: dict[str, Tracker] = {}
        for name in names(track):
            try:
                with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
                    found[name] = _TRACKERS[name][1](run, config, resumed)
            except UserError:
                raise
            except Exception as error:  # the tools' own errors are too many to list
                raise UserError(f"--track {name}: cannot be opened: {_first_line(error)}") from None
        return cls(found, note)

    def log(self, row: Mapping[str, Any]) -> None:
        """Send the numbers of a row of metrics; the row holds `step`."""
        values = numbers(row)
        for name in list(self._open):
            self._guard(name, lambda tracker: tracker.log(int(row.get("step", 0)), values))

    def close(self, status: str) -> None:
        for name in list(self._open):
            self._guard(name, lambda tracker: tracker.close(status))
        self._open.clear()

    def _guard(self, name: str, work: Callable[[Tracker], None]) -> None:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                work(self._open[name])
        except Exception as error:
            del self._open[name]
            self._note(
                f"--track {name}: {_first_line(error)}; it is left out from here on (metrics.jsonl has all rows)"
            )


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row, those of nested tables as `outer/inner`; `step` apart."""
    return {
        key: float(value)
        for key, value in flat(row).items()
        if key != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with keys `outer/inner`."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}/"))
        else:
            found[f"{prefix}{key}"] = value
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
