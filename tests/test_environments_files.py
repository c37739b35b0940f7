"""Environments over files: gsm8k and jsonl, with files as they should be and as they should not."""

import gzip
import json
import os
from pathlib import Path

import pytest

from ponder import registry
from ponder.environments.selfcheck import self_check
from ponder.errors import UserError
from ponder.types import Message, Response


def build(name, **options):
    return registry.build("environments", name, options)


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def sums(count, start=0):
    return [{"prompt": f"What is {n} plus {n + 1}?", "answer": 2 * n + 1} for n in range(start, start + count)]


def word_problems(count, start=0):
    return [
        {
            "question": f"Ann has {n} eggs and finds {n}. How many has she?",
            "answer": f"She has {n}+{n}=<<{n}+{n}={2 * n}>>{2 * n} eggs.\n#### {2 * n:,}",
        }
        for n in range(start, start + count)
    ]


# jsonl ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verifier", "rows"),
    [
        ("numeric", sums(80)),
        ("exact", [{"prompt": f"Name the animal {n}.", "answer": f"cat {chr(97 + n)}"} for n in range(26)]),
        ("math", [{"prompt": f"Expand {n}.", "answer": f"x^{n + 2}+{n}"} for n in range(30)]),
    ],
)
def test_the_self_check_passes_with_every_verifier(tmp_path, verifier, rows):
    environment = build("jsonl", data=write(tmp_path / "d.jsonl", rows), verifier=verifier, test_share=0.5)
    assert environment.size("train") + environment.size("test") == len(rows)
    assert self_check(environment, "test", range(3)) == []


def test_fields_instructions_messages_and_compression(tmp_path):
    path = tmp_path / "d.jsonl.gz"
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\ufeff" + json.dumps({"q": chat, "a": "2"}) + "\n\n")
    environment = build(
        "jsonl", data=str(path), prompt_field="q", answer_field="a", test_share=1.0, instructions="A number."
    )
    problem = environment.problem("test", 0)
    assert problem.prompt == (Message("system", "Be brief."), Message("user", "1+1?\nA number."))
    assert problem.metadata["source"] == "d.jsonl.gz:1"
    assert environment.judge(problem, Response("2")).correct
    assert environment.size("train") == 0


def test_verifier_options_reach_the_verifier(tmp_path):
    data = write(tmp_path / "d.jsonl", [{"prompt": "pi?", "answer": "3.14159"}])
    close = build("jsonl", data=data, test_share=1.0, verifier_options={"absolute": 0.01})
    assert close.judge(close.problem("test", 0), Response("3.14")).correct
    with pytest.raises(UserError, match="did you mean 'absolute'"):
        build("jsonl", data=data, verifier_options={"absolut": 0.01})
    with pytest.raises(UserError, match="did you mean 'numeric'"):
        build("jsonl", data=data, verifier="numerik")


BAD = {
    "not JSON": (b'{"prompt": "a", "answer": 1}\n{"prompt": "b"\n', "line 2 is not valid JSON"),
    "torn": (b'{"prompt": "a", "answer": 1}\n\n\n{"prom', "line 4 is not valid JSON"),
    "not an object": (b"[1]\n", "line 1 is not a JSON object but list"),
    "no prompt": (
        b'{"question": "a", "answer": 1}\n',
        "line 1 has no field 'prompt'; its fields: 'question', 'answer'",
    ),
    "no answer": (b'{"prompt": "a"}\n', "line 1 has no field 'answer'"),
    "null answer": (b'{"prompt": "a", "answer": null}\n', "line 1: the field 'answer' is empty"),
    "blank prompt": (b'{"prompt": " ", "answer": 1}\n', "line 1: the field 'prompt' is empty"),
    "prompt a number": (b'{"prompt": 3, "answer": 1}\n', "line 1: the prompt must be text"),
    "bad messages": (b'{"prompt": [{"role": "boss"}], "answer": 1}\n', "line 1: message 1 of the prompt: the role"),
    "gold no number": (b'{"prompt": "a", "answer": "many"}\n', "line 1: the gold 'many' is not a number"),
    "not UTF-8": (b'{"prompt": "a", "answer": 1}\n{"prompt": "\xff", "answer": 1}\n', "line 2 is not UTF-8"),
    "empty": (b"", "is empty; it must hold one JSON object a line"),
    "only blank lines": (b"\n\n", "is empty"),
    "binary": (b"\x00\x01\x02", "line 1 is not valid JSON"),
    "deep": (b"[" * 100_000 + b"\n", "line 1 is not valid JSON"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_one_sentence_that_names_file_and_line(tmp_path, content, message):
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        build("jsonl", data=str(path))
    text = str(caught.value)
    assert message in text
    assert "d.jsonl" in text
    assert "\n" not in text


def test_missing_files_and_impossible_options_are_named(tmp_path):
    with pytest.raises(UserError, match="data=PATH"):
        build("jsonl")
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no such file"):
        build("jsonl", data=str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(UserError, match="is a folder"):
        build("jsonl", data=str(tmp_path))
    data = write(tmp_path / "d.jsonl", sums(3))
    with pytest.raises(UserError, match="test_share must be between 0 and 1"):
        build("jsonl", data=data, test_share=2)
    (tmp_path / "broken.jsonl.gz").write_bytes(b"\x1f\x8bnot really")
    with pytest.raises(UserError, match=r"broken\.jsonl\.gz: cannot be read"):
        build("jsonl", data=str(tmp_path / "broken.jsonl.gz"))
    environment = build("jsonl", data=data, test_share=0.0)
    with pytest.raises(IndexError, match="jsonl has 0 test problems"):
        environment.problem("test", 0)


# gsm8k ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "gsm8k-train.jsonl", word_problems(40))
    write(tmp_path / "gsm8k-test.jsonl", word_problems(12, start=35))
    return tmp_path


def test_gsm8k_from_a_folder_and_from_the_file_in_it(folder):
    for data in (folder, folder / "gsm8k-test.jsonl", folder / "gsm8k-train.jsonl"):
        environment = build("gsm8k", data=str(data))
        assert (environment.size("train"), environment.size("test")) == (35, 12)  # 5 questions are in both files
        assert self_check(environment, "test", range(4)) == []


def test_gsm8k_from_a_single_file(tmp_path):
    data = write(tmp_path / "mine.jsonl", word_problems(60))
    environment = build("gsm8k", data=data)
    assert environment.size("train") + environment.size("test") == 60
    assert environment.size("test") > 0
    alone = write(tmp_path / "sub-test.jsonl", word_problems(5))
    environment = build("gsm8k", data=alone)
    assert (environment.size("train"), environment.size("test")) == (0, 5)
    with pytest.raises(UserError, match="put the train file beside the test file"):
        build("gsm8k", data=alone, few_shot=1)


def test_gsm8k_examples_come_from_training_without_calculator_marks(folder):
    environment = build("gsm8k", data=str(folder), few_shot=3, few_shot_style="text", instructions="Think.")
    train = {environment.row("train", i).prompt for i in range(35)}
    for split in ("train", "test"):
        problem = environment.problem(split, 2)
        *examples, asked = problem.prompt.split("\n\n")
        assert len(examples) == 3
        assert "<<" not in problem.prompt
        assert asked == f"Question: {environment.row(split, 2).prompt}\nThink.\nAnswer:"
        for example in examples:
            question = example.removeprefix("Question: ").split("\nThink.\n")[0]
            assert question in train
            assert question != environment.row(split, 2).prompt
            assert "#### " in example
    chat = build("gsm8k", data=str(folder), few_shot=1).problem("test", 0).prompt
    assert [m.role for m in chat] == ["user", "assistant", "user"]


def test_gsm8k_judges_the_final_number(folder):
    environment = build("gsm8k", data=str(folder))
    problem = environment.problem("test", 0)
    gold = int(environment.gold(problem).answer)
    for text in (f"{gold}", f"So she has {gold} eggs.", f"2*{gold // 2} = ${gold}.00", f"#### {gold}"):
        assert environment.judge(problem, Response(text)).correct, text
    assert not environment.judge(problem, Response(f"{gold}\n#### {gold + 1}")).correct
    assert not environment.judge(problem, Response(problem.prompt)).correct


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a"}, "line 1 has no field 'answer'"),
        ({"question": "a", "answer": "5"}, "line 1: the answer has no final number after ####"),
        ({"question": "a", "answer": "#### many"}, "line 1: the gold 'many' is not a number"),
        ({"question": "", "answer": "#### 1"}, "line 1: question and answer must be text"),
        ({"question": "a", "answer": 5}, "line 1: question and answer must be text"),
    ],
)
def test_gsm8k_names_the_line_of_a_bad_row(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        build("gsm8k", data=write(tmp_path / "x.jsonl", [row]))


def test_gsm8k_says_how_to_give_the_data(tmp_path):
    for options in ({}, {"data": str(tmp_path / "none.jsonl")}, {"data": str(tmp_path)}):
        with pytest.raises(UserError, match="give data=PATH") as caught:
            build("gsm8k", **options)
        assert "\n" not in str(caught.value)


def test_gsm8k_from_the_hub_takes_the_main_files(tmp_path, monkeypatch):
    import huggingface_hub

    (tmp_path / "main").mkdir()
    (tmp_path / "socratic").mkdir()
    for name, count in (("main/train", 20), ("main/test", 6), ("socratic/test", 3)):
        write(tmp_path / f"{name}.jsonl", word_problems(count, start=30 if "test" in name else 0))
    asked = []

    def download(repo, **options):
        asked.append((repo, options["repo_type"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    environment = build("gsm8k", data="openai/gsm8k")
    assert (environment.size("train"), environment.size("test")) == (20, 6)
    assert asked == [("openai/gsm8k", "dataset")]


def test_gsm8k_says_that_the_hub_failed(monkeypatch):
    import huggingface_hub

    def fail(*args, **options):
        raise ConnectionError("no network\nand a second line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        UserError, match=r"openai/gsm8k: is no local path, and its download from the hub failed \(no network\)"
    ):
        build("gsm8k", data="openai/gsm8k")


@pytest.mark.skipif("PONDER_DATA" not in os.environ, reason="PONDER_DATA is not set to a folder with gsm8k's files")
def test_every_worked_answer_of_the_real_gsm8k_is_judged_correct():
    environment = build("gsm8k", data=os.environ["PONDER_DATA"])
    for split, size in (("train", 7473), ("test", 1319)):
        assert environment.size(split) == size
        for index in range(size):
            problem = environment.problem(split, index)
            assert environment.judge(problem, Response(environment.gold(problem).metadata["worked"])).correct, (
                problem.id
            )
