"""Searches of ponder, its_hub and optillm over one endpoint: accuracy against the tokens that were truly spent.

    python benchmarks/search_peers.py [--itshub-python PY] [--optillm-python PY] [--model MODEL] [--problems 200]

The endpoint (`workers/endpoint.py`) counts every prompt token that came and every token that was sampled, by API key:
those are the true tokens, whatever a library reports. Without `--model` a scripted solver answers (right 6 times of
10, wrong answers scattered); with it a model runs in the torch engine behind the same endpoint, on `arithmetic`. Every
side gets the same problems one after another and the same sampling (temperature 1); samples differ, since the endpoint
is free to draw. its_hub finds the answer by a pattern; optillm votes over whole texts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _limits import machine
from _workers import SCRIPTS, PeerMissing, Worker, peer_versions

from ponder.engines.openai import OpenAI
from ponder.environments.arithmetic import Arithmetic
from ponder.evaluation.intervals import clopper_pearson
from ponder.protocols import Feedback, Strategy
from ponder.responses import split_response
from ponder.search.runner import solve
from ponder.search.strategies.adaptive import Adaptive
from ponder.search.strategies.direct import Direct
from ponder.search.strategies.majority import Majority
from ponder.types import Budget, FinishReason, Problem, ThoughtFormat
from ponder.verifiers.answers import VerifierAnswers
from ponder.verifiers.numeric import Numeric

THOUGHT = ThoughtFormat("<think>", "</think>")
PATTERN = r"(?:.*</think>)?\s*(-?\d+)\s*$"
"""Where its_hub finds the answer."""


@dataclass(frozen=True)
class Row:
    """One side on all problems; tokens are means per problem."""

    name: str
    problems: int = 0
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    true_tokens: float | None = None
    """Prompt and sampled tokens, counted at the endpoint."""
    reported_tokens: float | None = None
    """What the library says that it spent."""
    calls: float | None = None
    seconds: float | None = None
    note: str = ""
    skipped: str = ""

    def line(self) -> str:
        if self.skipped:
            return f"{self.name:<44} skipped: {self.skipped}"
        assert self.accuracy is not None
        assert self.low is not None
        assert self.high is not None
        assert self.true_tokens
        assert self.reported_tokens is not None
        share = self.reported_tokens / self.true_tokens
        return (
            f"{self.name:<44} {self.accuracy:6.1%} [{self.low:.1%}, {self.high:.1%}]  {self.true_tokens:8.1f} "
            f"{self.reported_tokens:8.1f} {share:6.2f} {self.calls:6.1f} {self.seconds:7.1f}  {self.note}"
        )


HEAD = f"{'side':<44} accuracy, 95 % interval     true  reported  share  calls seconds   (tokens, calls: per problem)"


class Endpoint:
    """The endpoint's process and its counters."""

    def __init__(self, arguments: Sequence[str], logs: Path) -> None:
        self._log = (logs / "endpoint.log").open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPTS / "endpoint.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the endpoint did not start: {(logs / 'endpoint.log').read_text()[-2000:]}")
        self.url: str = json.loads(line)["url"]

    def spent(self, key: str) -> tuple[int, int]:
        """True tokens and calls of a key so far."""
        request = urllib.request.Request(f"{self.url}/usage", headers={"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(request) as answer:
            found = json.load(answer)
        return found["tokens"], found["calls"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._log.close()


@dataclass(frozen=True)
class Task:
    """The problems that all sides get, and how a text is judged."""

    prompts: tuple[str, ...]
    golds: tuple[int, ...]
    max_tokens: int
    model: str

    def right(self, texts: Sequence[str]) -> int:
        """Judges texts as the endpoint sent them, or answers."""
        count = 0
        for text, gold in zip(texts, self.golds, strict=True):
            answer = split_response(text, FinishReason.STOP, THOUGHT).answer
            count += answer is not None and Numeric()(gold, answer).correct
        return count


def task_of(model: str | None, count: int) -> Task:
    if model is None:
        numbers = range(11, 11 + count)
        return Task(tuple(f"2 * {n} =" for n in numbers), tuple(2 * n for n in numbers), 64, "scripted")
    environment = Arithmetic()
    problems = [environment.problem("test", i) for i in range(count)]
    golds = tuple(int(environment.gold(p).answer) for p in problems)
    return Task(tuple(str(p.prompt) for p in problems), golds, 200, model)


def ours(strategy: Strategy, budget: Budget, task: Task, url: str, key: str) -> tuple[list[str], list[int]]:
    """ponder's side, one search a problem; chosen answers and the tokens that the outcome reports."""
    os.environ["PONDER_PEERS_KEY"] = key

    async def run() -> tuple[list[str], list[int]]:
        part = OpenAI(base_url=url, api_key_env="PONDER_PEERS_KEY", probe=False, capabilities=("n",))
        engine = await part.open_async(task.model)
        feedback = Feedback(answers=VerifierAnswers(Numeric()))
        texts, tokens = [], []
        try:
            for i, prompt in enumerate(task.prompts):
                problem = Problem(f"p{i}", prompt)
                outcome = await solve(strategy, problem, engine, budget=budget, seed=i, feedback=feedback)
                texts.append(outcome.response.answer or "")
                tokens.append(outcome.spend.tokens)
        finally:
            await engine.close()
        return texts, tokens

    return asyncio.run(run())


def measured(
    name: str, endpoint: Endpoint, task: Task, key: str, work: Callable[[], tuple[list[str], list[int]]]
) -> Row:
    began = time.perf_counter()
    texts, reported = work()
    seconds = time.perf_counter() - began
    tokens, calls = endpoint.spent(key)
    n = len(task.prompts)
    share = clopper_pearson(task.right(texts), n)
    return Row(name, n, share.value, share.low, share.high, tokens / n, sum(reported) / n, calls / n, seconds)


def our_rows(endpoint: Endpoint, task: Task) -> Iterator[Row]:
    options: dict[str, Any] = {"max_tokens": task.max_tokens}
    budget = 800 if task.model == "scripted" else 2000
    sides: Mapping[str, tuple[Strategy, Budget]] = {
        "ponder direct": (Direct(**options), Budget()),
        "ponder majority n=5": (Majority(n=5, **options), Budget()),
        "ponder majority n=16": (Majority(n=16, **options), Budget()),
        "ponder adaptive n=16": (Adaptive(n=16, **options), Budget()),
        f"ponder majority n=64, budget {budget} tokens": (Majority(n=64, **options), Budget(tokens=budget)),
    }
    for name, (strategy, limit) in sides.items():
        key = name.replace(" ", "-")
        yield measured(name, endpoint, task, key, lambda s=strategy, b=limit, k=key: ours(s, b, task, endpoint.url, k))


def peer_rows(
    peer: str, python: str | None, flag: str, sides: Mapping[str, tuple[str, int]], at: Endpoint, task: Task, logs: Path
) -> Iterator[Row]:
    script, package = {"its_hub": ("itshub_search.py", "its_hub"), "optillm": ("optillm_search.py", "optillm")}[peer]
    try:
        version = peer_versions(python, flag, (package, "openai"))[package]
    except PeerMissing as missing:
        yield Row(peer, skipped=str(missing))
        return
    with Worker(peer, script, logs, python=python) as worker:
        for name, (algorithm, samples) in sides.items():
            key = f"{peer}-{algorithm}-{samples}"

            def work(algorithm: str = algorithm, samples: int = samples, key: str = key) -> tuple[list[str], list[int]]:
                found = worker.call(
                    "solve",
                    algorithm=algorithm,
                    prompts=list(task.prompts),
                    samples=samples,
                    max_tokens=task.max_tokens,
                    url=at.url,
                    key=key,
                    model=task.model,
                    pattern=PATTERN,
                )
                return found["texts"], found["reported"]

            yield measured(f"{peer} {version} {name}", at, task, key, work)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--itshub-python", default=os.environ.get("ITSHUB_PYTHON"), help="a Python with its_hub[lm]")
    parser.add_argument("--optillm-python", default=os.environ.get("OPTILLM_PYTHON"), help="a Python with optillm")
    parser.add_argument("--model", help="a model behind the endpoint, such as ponder-tiny (default: scripted)")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="a few problems: does every row run?")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    options = parser.parse_args()
    task = task_of(options.model, 8 if options.quick else options.problems)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        logs = Path(folder)
        endpoint = Endpoint([] if options.model is None else ["--model", options.model], logs)
        stack.callback(endpoint.close)
        if not options.json:
            print(f"{machine()}\n\n{HEAD}")
        its_hub = {"self-consistency n=5": ("self_consistency", 5), "self-consistency n=16": ("self_consistency", 16)}
        optillm = {"self-consistency n=5": ("self_consistency", 5), "best of n=5": ("best_of_n", 5)}
        for row in itertools.chain(
            our_rows(endpoint, task),
            peer_rows("its_hub", options.itshub_python, "--itshub-python", its_hub, endpoint, task, logs),
            peer_rows("optillm", options.optillm_python, "--optillm-python", optillm, endpoint, task, logs),
        ):
            print(json.dumps({**asdict(row), "machine": machine()}) if options.json else row.line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
