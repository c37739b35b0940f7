"""An evaluation as a log of inspect_ai (version 2 of its JSON format), so that its viewer opens it.

Written by hand after inspect_ai's `EvalLog` (UK AI Security Institute, inspect_ai 0.3); inspect_ai is not needed. A
problem is a sample, a sample of ponder an epoch. Left out: events, and the gold where the run does not hold it. The
branches of a search are in a sample's metadata.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ponder import figures
from ponder.config import load_toml
from ponder.errors import UserError
from ponder.responses import split_response
from ponder.runs.files import disk_errors, plain, read_json, write_json
from ponder.runs.lines import searches
from ponder.runs.run import read_manifest
from ponder.types import FinishReason, ThoughtFormat

STATUS = {"done": "success", "running": "started", "interrupted": "cancelled", "failed": "error"}
VALUES = {"correct": "C", "no_answer": "N"}
"""inspect_ai's letters: correct, no answer; every other verdict is `I`, incorrect."""
FINISH = {"stop": "stop", "length": "max_tokens"}
ROLES = ("system", "user", "assistant", "tool")
SCORER = "ponder"
Row = Mapping[str, Any]


def write(run: str | Path) -> Path:
    """Write `RUN/inspect/TIME_ENVIRONMENT_ID.json`; returns its path.

    Raises `UserError` if the directory is no evaluation, or holds a line that is none.
    """
    run = Path(run)
    found = log(run)
    # Its viewer lists files whose names begin with a time.
    started = str(found["eval"]["created"])[:19].replace(":", "-")
    task = re.sub(r"[^\w.-]+", "-", found["eval"]["task"])[:60]
    folder = run / "inspect"
    with disk_errors(folder, "made"):
        folder.mkdir(exist_ok=True)
    path = folder / f"{started}_{task}_{found['eval']['eval_id']}.json"
    write_json(path, found)
    return path


def log(run: Path) -> dict[str, Any]:
    """The log as plain JSON values."""
    manifest = read_manifest(run)
    if not (run / "rollouts.jsonl").exists():
        raise UserError(f"{run}: holds no evaluation (no rollouts.jsonl)")
    config, evaluation, golds = _config(run), _optional(run / "evaluation.json"), _golds(run)
    model = str((manifest.get("model") or {}).get("name") or config.get("model") or "unknown")
    samples = [_sample(line, where, model, golds) for where, line in _lines(run)]
    epochs = max((s["epoch"] for s in samples), default=1)
    ids = list(dict.fromkeys(s["id"] for s in samples))
    digest = hashlib.sha256(f"{run.absolute()} {manifest.get('start')}".encode()).hexdigest()[:22]
    usage: dict[str, int] = {}
    for sample in samples:
        for name, value in sample["output"]["usage"].items():
            usage[name] = usage.get(name, 0) + value
    started = str(manifest.get("start") or "1970-01-01T00:00:00+00:00")
    status = STATUS.get(str(manifest.get("status")), "started")
    environment = str(config.get("environment") or "ponder")
    found = {
        "version": 2,
        "status": status,
        "eval": {
            "eval_id": digest,
            "run_id": digest,
            "task_id": digest,
            "created": started,
            "task": environment,
            "task_args": config.get("environment_options") or {},
            "solver": config.get("strategy"),
            "dataset": {"name": environment, "samples": len(ids), "sample_ids": ids, "shuffled": False},
            "model": model,
            "config": {"limit": len(ids), "epochs": epochs},
            "packages": {"ponder": str((manifest.get("versions") or {}).get("ponder", ""))},
            "metadata": {"run": str(run), "command": manifest.get("command"), "config": config},
            "scorers": [{"name": SCORER}],
        },
        "plan": {"steps": [{"solver": str(config.get("strategy") or "generate"), "params": {}}]},
        "results": _results(evaluation, samples, len(ids) * epochs),
        "stats": {
            "started_at": started,
            "completed_at": manifest.get("end") or "",
            "model_usage": {model: usage} if usage else {},
        },
        "samples": samples,
    }
    if status == "error":
        message = str(manifest.get("error") or "failed")
        found["error"] = {"message": message, "traceback": message, "traceback_ansi": message}
    result: dict[str, Any] = _unicode(plain(found))
    return result


def _unicode(value: Any) -> Any:
    """With `?` for lone surrogates, which inspect_ai's reader of JSON refuses."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_unicode(k): _unicode(v) for k, v in value.items()}
    return [_unicode(v) for v in value] if isinstance(value, list) else value


def _lines(run: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The last line of each search, in the order of problems and samples."""
    last: dict[tuple[int, int], tuple[str, dict[str, Any]]] = {}
    for _, where, line in searches(run / "rollouts.jsonl", torn=[]):
        if "step" in line or not isinstance(line.get("index"), int) or not isinstance(line.get("verdict"), dict):
            raise UserError(f"{where} is no search of an evaluation: inspect_ai's log holds evaluations only")
        last[line["index"], int(line.get("sample") or 0)] = (where, line)
    if not last:
        raise UserError(f"{run}: holds no search yet")
    yield from (last[place] for place in sorted(last))


def _sample(line: Row, where: str, model: str, golds: Row) -> dict[str, Any]:
    try:
        return _sample_of(line, model, golds)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{where} is not a search that this version of ponder wrote ({error!r})") from None


def _sample_of(line: Row, model: str, golds: Row) -> dict[str, Any]:
    asked = _messages(line["prompt"])
    chosen: Row = next((s for s in line["samples"] if s["id"] == line["chosen"]), {})
    text, finish = str(line.get("text", chosen.get("text", ""))), str(chosen.get("finish", "unknown"))
    said = {"role": "assistant", "source": "generate", "model": model, "content": _content(text, finish, line)}
    spend = line["spend"]
    prompt, cached, sampled, forced = (
        int(spend.get(f"{name}_tokens") or 0) for name in ("prompt", "cached", "sampled", "forced")
    )
    usage = {
        "input_tokens": prompt + cached,
        "output_tokens": sampled + forced,
        "total_tokens": prompt + cached + sampled + forced,
        "input_tokens_cache_read": cached,
    }
    verdict = line["verdict"]
    gold = line.get("gold", golds.get(line["problem"]))
    sample: dict[str, Any] = {
        "id": line["problem"],
        "epoch": int(line.get("sample") or 0) + 1,
        "input": line["prompt"] if isinstance(line["prompt"], str) else asked,
        "target": "" if gold is None else str(gold),
        "messages": [*asked, said],
        "output": {
            "model": model,
            "choices": [{"message": said, "stop_reason": FINISH.get(finish, "unknown")}],
            "completion": text,
            "usage": usage,
            "time": line.get("seconds"),
        },
        "scores": {},
        "metadata": {
            "stop": line["stop"],
            "reason": line.get("reason"),
            "vote_share": figures.vote_share(line),
            "problem": line.get("metadata") or {},
            "branches": [_branch(s) for s in line["samples"]] if len(line["samples"]) > 1 else [],
        },
        "model_usage": {model: usage},
        "total_time": line.get("seconds"),
    }
    if verdict["kind"] == "judge_error":
        message = str(verdict.get("reason") or "the judge failed")
        sample["error"] = {"message": message, "traceback": message, "traceback_ansi": message}
    else:
        sample["scores"][SCORER] = {
            "value": VALUES.get(verdict["kind"], "I"),
            "answer": None if verdict.get("answer") is None else str(verdict["answer"]),
            "explanation": verdict.get("reason"),
            "metadata": {"verdict": verdict["kind"], "reward": verdict.get("reward")},
        }
    return sample


def _branch(sample: Row) -> dict[str, Any]:
    names = ("id", "parent", "text", "answer", "score", "vote", "note", "verdict", "check", "tokens")
    return {name: sample[name] for name in names if sample.get(name) is not None}


def _messages(prompt: Any) -> list[dict[str, Any]]:
    if not isinstance(prompt, list):
        return [{"role": "user", "content": str(prompt)}]
    found = []
    for message in prompt:
        role, content = message.get("role"), message.get("content")
        text = content if isinstance(content, str) else "" if content is None else msgspec.json.encode(content).decode()
        found.append({"role": role if role in ROLES else "user", "content": text})
    return found


def _content(text: str, finish: str, line: Row) -> list[dict[str, Any]]:
    """Thought and answer as inspect_ai has them; the text as it is where the model has no markers."""
    thought = line.get("thought")
    if thought is None:
        return [{"type": "text", "text": text}]
    form = msgspec.convert(thought, ThoughtFormat)
    reason = FinishReason.STOP if finish == "stop" else FinishReason.LENGTH
    found = split_response(text, reason, form)
    parts: list[dict[str, Any]] = []
    if found.thought:
        parts.append({"type": "reasoning", "reasoning": found.thought})
    if found.answer is not None or found.thought is None:
        parts.append({"type": "text", "text": text if found.answer is None else found.answer})
    return parts


def _results(evaluation: Row, samples: list[dict[str, Any]], total: int) -> dict[str, Any]:
    scored = [s for s in samples if s["scores"]]
    accuracy: Row = evaluation.get("accuracy") or {}
    value = accuracy.get("value")
    if value is None:
        right = sum(s["scores"][SCORER]["value"] == "C" for s in scored)
        value = right / len(scored) if scored else math.nan
    metrics = {}
    if value is not None and not math.isnan(value):
        about = {k: accuracy[k] for k in ("low", "high", "n", "method") if k in accuracy}
        metrics["accuracy"] = {"name": "accuracy", "value": value, "metadata": about}
    return {
        "total_samples": total,
        "completed_samples": len(scored),
        "scores": [
            {
                "name": SCORER,
                "scorer": SCORER,
                "scored_samples": len(scored),
                "unscored_samples": len(samples) - len(scored),
                "metrics": metrics,
            }
        ],
    }


def _config(run: Path) -> dict[str, Any]:
    return load_toml(run / "config.toml") if (run / "config.toml").exists() else {}


def _optional(path: Path) -> Row:
    found = read_json(path) if path.exists() else {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object at the top")
    return found


def _golds(run: Path) -> dict[str, Any]:
    path = run / "samples.json"
    rows = read_json(path) if path.exists() else []
    return {r["problem_id"]: r.get("gold") for r in rows if isinstance(r, dict) and "problem_id" in r}
