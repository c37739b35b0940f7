"""Answer one question: the thought as it streams, then the answer and what it cost."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import tyro

from ponder.cli._common import ModelOptions, build_strategy, engine_for, rate, spend_text
from ponder.config import Options, parse
from ponder.errors import PonderError, UserError
from ponder.runs.sections import visible

if TYPE_CHECKING:
    from ponder.protocols import Engine, Strategy
    from ponder.types import Delta, Outcome, ThoughtFormat

DESCRIPTION = """Answer one question. The thought streams to stderr (dim on a terminal), the answer goes to stdout, what
it cost to stderr. The exit code is 1 if there is no answer, such as when the response was cut off.

examples:
  ponder solve "Make 24 from 3 5 7 2."
  ponder solve "Make 24 from 3 5 7 2." --thought-tokens 64 --seed 3
  echo "What is 17 + 25?" | ponder solve - --model smollm2-135m --temperature 0
"""
WHOLE = 10_000_000
"""Characters of a response that are shown: all of them."""


@dataclass(frozen=True)
class SolveConfig(ModelOptions):
    """Options of `ponder solve`."""

    question: tyro.conf.Positional[str] = ""
    """The question; - reads it from stdin."""
    strategy: str | None = None
    """A name of `ponder list strategies` (default: direct; budget_forcing with --thought-tokens)."""
    strategy_options: Options = field(default_factory=dict)
    """Options of the strategy."""
    max_tokens: int | None = None
    """Most tokens of a response, thought and answer (default: the strategy's own)."""
    thought_tokens: int | None = None
    """Most tokens of thought; then it is closed by force."""
    temperature: float | None = None
    """Of the strategy; 0 is greedy (default: the strategy's own, 1 for most)."""
    seed: int = 0
    """Same seed, same answer."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object, without streaming."""


def main(args: list[str]) -> int:
    # tyro takes a lone dash for a flag.
    stdin = "-" in args
    config = parse(SolveConfig, [a for a in args if a != "-"], prog="ponder solve", description=DESCRIPTION)
    question = _question(config.question, stdin)
    strategy = strategy_of(config)
    with engine_for(config) as engine:
        thinks = engine.info.thought is not None
        screen = None if config.json else Screen(engine.info.thought, single(strategy), sys.stdout, sys.stderr)
        began = time.perf_counter()
        outcome = _solve(question, strategy, engine, config.seed, screen)
        seconds = time.perf_counter() - began
        if config.json:
            print(json.dumps(as_json(question, config, outcome, seconds), indent=1))
        if screen is not None:
            screen.finish(outcome)
    if outcome.response.answer is None or not outcome.response.answer.strip():
        raise PonderError(f"no answer: {_why(outcome, thinks)}")
    if not config.json:
        print(spend_text(outcome.spend, seconds), file=sys.stderr)
    return 0


def _question(given: str, stdin: bool) -> str:
    if stdin and given:
        raise UserError("give the question as words or as -, not both")
    question = (sys.stdin.read() if stdin else given).strip()
    if not question:
        raise UserError('there is no question; give one, as in: ponder solve "Make 24 from 3 5 7 2."')
    return question


def strategy_of(config: SolveConfig) -> Strategy:
    """The strategy that the flags ask for."""
    options = dict(config.strategy_options)
    name = config.strategy or ("direct" if config.thought_tokens is None else "budget_forcing")
    shortcuts: dict[str, Any] = {
        "max_tokens": config.max_tokens,
        "thought_tokens": config.thought_tokens,
        "temperature": config.temperature,
    }
    if config.max_tokens is not None and config.thought_tokens is not None and name == "budget_forcing":
        if config.max_tokens <= config.thought_tokens:
            raise UserError(
                f"--max-tokens {config.max_tokens} leaves no token for an answer after --thought-tokens "
                f"{config.thought_tokens}: give more"
            )
        shortcuts["answer_tokens"] = config.max_tokens - config.thought_tokens
        del shortcuts["max_tokens"]
    return build_strategy(name, options, shortcuts)


def single(strategy: Strategy) -> bool:
    """True if the one response that streams is the one that the strategy will choose."""
    return type(strategy).__name__ in ("Direct", "BudgetForcing") and getattr(strategy, "n", 1) == 1


def _solve(question: str, strategy: Strategy, engine: Engine, seed: int, screen: Screen | None) -> Outcome:
    from ponder import sync
    from ponder.search.runner import solve
    from ponder.types import Problem

    on_delta = None if screen is None else screen.show
    problem = Problem("question", question)
    return sync.run(solve(strategy, problem, engine, seed=seed, on_delta=on_delta))


def _why(outcome: Outcome, thinks: bool) -> str:
    """One clause on why there is no answer, with the mend."""
    from ponder.types import FinishReason

    if outcome.reason and not outcome.trace.nodes:
        return outcome.reason
    completions = [n.completion for n in outcome.trace.nodes]
    tokens = max((c.spend.response_tokens for c in completions), default=0)
    if any(c.finish_reason is FinishReason.LENGTH for c in completions):
        force = ", or let the thought be closed by force with --thought-tokens" if thinks else ""
        return f"the response was cut off at {tokens} tokens; give more with --max-tokens{force}"
    if outcome.response.answer is not None:
        return "the response is empty; try another --seed"
    return "the thought never closed; try another --seed or --thought-tokens"


def as_json(question: str, config: SolveConfig, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """What `--json` prints."""
    from ponder.types import to_json

    chosen = next((n for n in outcome.trace.nodes if n.id == outcome.chosen), None)
    return {
        "question": question,
        "model": config.model,
        "seed": config.seed,
        "answer": outcome.response.answer,
        "thought": outcome.response.thought,
        "text": outcome.response.text,
        "confidence": outcome.confidence,
        "finish_reason": None if chosen is None else chosen.completion.finish_reason.value,
        "stop": outcome.stop.value,
        "reason": outcome.reason,
        "responses": len(outcome.trace.nodes),
        "spend": to_json(outcome.spend),
        "seconds": seconds,
        "tokens_per_second": rate(outcome.spend, seconds),
    }


class Splitter:
    """Splits streamed text into thought and answer at the model's markers, wherever the pieces break."""

    def __init__(self, thought: ThoughtFormat | None) -> None:
        self._thought = thought
        self._inside = thought is not None and thought.opened_by_template
        self._held = ""

    def feed(self, text: str) -> Iterator[tuple[bool, str]]:
        """`(is thought, text)` of what is certain by now; markers are left out."""
        self._held += text
        while self._thought is not None:
            marker = self._thought.close if self._inside else self._thought.open
            before, found, after = self._held.partition(marker)
            if not found:
                keep = _overlap(self._held, marker)
                before, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
                if before:
                    yield self._inside, before
                return
            if before:
                yield self._inside, before
            self._held, self._inside = after, not self._inside
        if self._held:
            yield False, self._held
            self._held = ""

    def end(self) -> Iterator[tuple[bool, str]]:
        """What was held back as the possible beginning of a marker."""
        if self._held:
            yield self._inside, self._held
            self._held = ""


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that begins `marker`."""
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if marker.startswith(text[-n:])), 0)


class Screen:
    """Shows a response as it streams: thoughts on `log` (dim on a terminal), the answer on `out`.

    Where several responses are sampled, the leading ones stream to `log` and the chosen answer is printed at the end.
    """

    def __init__(self, thought: ThoughtFormat | None, single: bool, out: TextIO, log: TextIO) -> None:
        self._format, self._single, self._out, self._log = thought, single, out, log
        self._splitter = Splitter(thought)
        self._dim = log.isatty()
        self._answered = self._streamed = False
        self._last = ""

    def show(self, delta: Delta) -> None:
        if delta.sample != 0:
            return
        for inside, text in self._splitter.feed(delta.text):
            self._write(inside, text)
        if delta.completion is not None:
            for inside, text in self._splitter.end():
                self._write(inside, text)
            if not self._single:
                self._end_line()
            self._splitter = Splitter(self._format)

    def _write(self, inside: bool, text: str) -> None:
        text = visible(text, WHOLE)
        if inside or not self._single:
            self._log.write(f"\x1b[2m{text}\x1b[0m" if self._dim else text)
            self._log.flush()
            self._streamed, self._last = True, text
            return
        if not self._answered:
            self._end_line()
            text = text.lstrip()
            if not text:
                return
        self._answered = True
        self._out.write(text)
        self._out.flush()

    def _end_line(self) -> None:
        """End the line of the thought, if it did not end by itself."""
        if self._streamed and not self._last.endswith("\n"):
            self._log.write("\n")
            self._log.flush()
        self._streamed = False

    def finish(self, outcome: Outcome) -> None:
        """Print the answer if it did not stream, and end its line."""
        self._end_line()
        if not self._answered and outcome.response.answer is not None and outcome.response.answer.strip():
            self._answered = True
            self._out.write(visible(outcome.response.answer.strip(), WHOLE))
        if self._answered:
            self._out.write("\n")
            self._out.flush()
