"""GSM8K: grade-school word problems in mathematics (Cobbe et al. 2021, arXiv:2110.14168)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ponder import jsonl
from ponder.environments._fewshot import Style, few_shot_prompt
from ponder.environments._rows import Row, Rows, divide, mark_of, refuse_split, split_in, take
from ponder.environments.base import stable_int
from ponder.errors import MissingExtra, UserError
from ponder.types import Gold, Problem, Split, Verdict
from ponder.verifiers.answers import VerifierAnswers
from ponder.verifiers.numeric import Numeric, read_gold

_HELP = "give data=PATH (a .jsonl file, or a folder with a train and a test file), or data=openai/gsm8k for the hub"
_CALCULATOR = re.compile(r"<<[^<>]*>>")
BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
"""How the makers of Qwen2.5-Math, DeepSeek-R1 and many others ask a chat model (their README files)."""


@dataclass(frozen=True, eq=False)
class Gsm8k(Rows):
    """Grade-school word problems, from a local file or the hub; the final number is judged.

    A file whose name says `test` is the test split, with the file beside it that says `train`, if there is one. Any
    other single file is divided by the field `split` of its rows, or by a hash of each row, a tenth for testing.
    """

    data: str = ""
    """A .jsonl file, a folder with a train and a test file, or a hub id such as openai/gsm8k."""
    few_shot: int = 0
    """Worked examples before the question, from the training split."""
    few_shot_style: Style = "chat"
    """Examples as chat turns (`chat`) or as plain text to be continued (`text`)."""
    instructions: str | None = None
    """Added after each question, on a line of its own (default: without examples `Please reason step by step, and put
    your final answer within \\boxed{}.`; with examples, or as text, nothing)."""
    seed: int = 0
    """Seed of the problems' order and of the examples."""

    name = "gsm8k"
    greedy = True
    answers = VerifierAnswers(Numeric())

    def __post_init__(self) -> None:
        if not self.data:
            raise UserError(f"gsm8k needs its problems: {_HELP}")
        if not 0 <= self.few_shot <= 64:
            raise UserError("few_shot must be from 0 to 64")
        files = _files(self.data)
        if "all" in files:
            train, test = divide(list(_read(files["all"])), None, self.data, "name the file test.jsonl to test on it")
        else:
            train = list(_read(files["train"])) if "train" in files else []
            test = list(_read(files["test"])) if "test" in files else []
            refuse_split(train, "test", "its file is named as training problems")
            refuse_split(test, "train", "its file is named as test problems")
        self._keep(train, test, self.seed)
        self.__dict__["_asked"] = self._default() if self.instructions is None else self.instructions
        if self.few_shot > self.size("train"):
            raise UserError(
                f"few_shot = {self.few_shot} needs as many training problems and {self.data} has {self.size('train')}; "
                "put the train file beside the test file, or give the folder"
            )

    def _default(self) -> str:
        return BOXED if self.few_shot == 0 and self.few_shot_style == "chat" else ""

    def _question(self, row: Row) -> str:
        return f"{row.prompt}\n{asked}" if (asked := self.__dict__["_asked"]) else str(row.prompt)

    def problem(self, split: Split, index: int) -> Problem:
        row = self.row(split, index)
        question = self._question(row)
        prompt = few_shot_prompt(question, self._examples(row), self.few_shot_style)
        metadata = {"family": "gsm8k", "source": row.source}
        return Problem(f"{self.name}-{split}-{index}", prompt, {"question": question}, metadata)

    def _examples(self, asked: Row) -> list[tuple[str, str]]:
        rng = Random(stable_int(self.name, "examples", self.seed))
        chosen = rng.sample(range(self.size("train")), min(self.size("train"), self.few_shot + 1))
        rows = [r for r in (self.row("train", i) for i in chosen) if r is not asked][: self.few_shot]
        return [(self._question(r), r.gold.metadata["worked"]) for r in rows]

    def verdict(self, problem: Problem, answer: str) -> Verdict:
        return Numeric()(self.gold(problem).answer, answer)


def _read(path: Path) -> Iterator[Row]:
    for number, where, row in _parquet(path) if path.suffix == ".parquet" else jsonl.objects(path):
        question, answer = take(row, "question", where), take(row, "answer", where)
        if not isinstance(question, str) or not question.strip() or not isinstance(answer, str):
            raise UserError(f"{where}: question and answer must be text")
        worked, marker, final = answer.rpartition("####")
        if not marker:
            raise UserError(f"{where}: the answer has no final number after ####")
        try:
            read_gold(final.strip())
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        worked = f"{_CALCULATOR.sub('', worked).rstrip()}\n#### {final.strip()}"
        gold = Gold(final.strip(), {"worked": worked})
        yield Row(f"{path.name}:{number}", question.strip(), gold, mark_of(row), split_in(row, "split", where))


def _parquet(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    try:
        import pyarrow.parquet  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise MissingExtra("reading a .parquet file", "pyarrow", "pip install pyarrow") from None
    for number, row in enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1):
        yield number, f"{path}: row {number}", row


def _files(data: str) -> dict[str, Path]:
    """The file of each split, or one for `all`."""
    path = Path(data).expanduser()
    if path.is_dir():
        found = _named([p for p in path.iterdir() if p.name.endswith((".jsonl", ".jsonl.gz", ".parquet"))])
        if found:
            return found
        raise UserError(f"{path}: holds no .jsonl file with train or test in its name; {_HELP}")
    if path.is_file():
        beside = _named([p for p in path.parent.iterdir() if p.name == path.name or _twin(p.name) == _twin(path.name)])
        return beside if path in beside.values() and "test" in beside else {"all": path}
    if re.fullmatch(r"[\w.-]+/[\w.-]+", data) and not data.startswith("."):
        return _from_hub(data)
    raise UserError(f"{path}: no such file or folder; {_HELP}")


def _named(paths: list[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(paths):
        for split in ("train", "test"):
            if split in path.name.lower():
                found.setdefault(split, path)
    return found


def _twin(name: str) -> str:
    return name.lower().replace("train", "*").replace("test", "*")


def _from_hub(repo: str) -> dict[str, Path]:
    """The files of a data set of the hub, downloaded or from its cache."""
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtra("data from the hub", "hf") from None
    kinds = ["*.jsonl", "*.jsonl.gz", "*.parquet"]
    try:
        folder = Path(huggingface_hub.snapshot_download(repo, repo_type="dataset", allow_patterns=kinds))
    except Exception as error:  # the errors of its HTTP library are too many to list
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{repo}: is no local path, and its download from the hub failed ({reason}); {_HELP}") from None
    found = _named([p for p in folder.rglob("*") if p.is_file() and "socratic" not in p.parts])
    if not found:
        raise UserError(f"{repo}: this data set has no .jsonl or .parquet file with train or test in its name")
    return found
