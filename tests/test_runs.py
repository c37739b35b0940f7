"""Run directories: nothing that was written is lost, nothing torn is read, nothing is written twice."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.errors import PonderError, UserError
from ponder.runs import files, manifest
from ponder.runs.run import Run, read_manifest, refuse_existing
from ponder.types import Spend, to_json

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def new(path: Path, **kwargs: object) -> Run:
    return Run.create(path, "seed = 7\n", 7, ["ponder", "train"], **kwargs)  # type: ignore[arg-type]


def test_a_new_run_records_how_it_was_made(tmp_path: Path) -> None:
    with new(tmp_path / "a" / "b") as run:
        assert read_manifest(run.path)["status"] == "running"
    made = read_manifest(tmp_path / "a" / "b")
    assert made["seed"] == 7
    assert made["command"] == ["ponder", "train"]
    assert made["status"] == "done"
    assert made["end"] >= made["start"]
    assert made["versions"]["python"].count(".") == 2
    assert made["versions"]["ponder"]
    assert made["hardware"]["cores"] >= 1
    assert made["hardware"]["memory_bytes"] > 1e8
    assert 1e6 < made["peak_memory_bytes"] < 1e12
    assert (tmp_path / "a" / "b" / "config.toml").read_text() == "seed = 7\n"


def test_facts_are_noted_in_the_manifest_while_the_run_is_open(tmp_path: Path) -> None:
    with new(tmp_path) as run:
        run.note(model={"name": "m"})
        assert read_manifest(tmp_path)["status"] == "running"
        run.note(other=1)
    made = read_manifest(tmp_path)
    assert (made["model"], made["other"], made["seed"], made["status"]) == ({"name": "m"}, 1, 7, "done")


def test_a_directory_with_a_run_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with new(tmp_path) as run:
        run.log({"step": 1})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(
        UserError, match="already holds a run; continue it with --resume, replace it with --overwrite, or"
    ):
        new(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_place_where_no_run_can_be_made_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    for free in ("empty", "new/deep"):
        refuse_existing(tmp_path / free)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"empty: cannot be written to; choose another --out"):
        refuse_existing(tmp_path / "empty")
    with pytest.raises(UserError, match=f"cannot be made in {tmp_path}; choose another --out"):
        refuse_existing(tmp_path / "new" / "deep")
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made in"):
        refuse_existing(tmp_path / "file" / "run")


def test_a_directory_with_other_files_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds other files"):
            new(tmp_path, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwrite_removes_the_old_run_and_nothing_else(tmp_path: Path) -> None:
    with new(tmp_path) as run:
        run.log({"step": 1})
        run.checkpoint(1).mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    with new(tmp_path, overwrite=True) as run:
        assert run.metrics().rows == ()
        assert not run.checkpoints.exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_in_the_place_of_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file, not a directory"):
        new(tmp_path / "out")


def test_two_writers_of_one_run_are_refused(tmp_path: Path) -> None:
    run = new(tmp_path)
    with pytest.raises(UserError, match="another process is writing this run"):
        Run.open(tmp_path)
    run.close()
    Run.open(tmp_path).close()


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    script = "import os, sys; from ponder.runs.run import Run; r = Run.create(sys.argv[1], '', 0, []); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 9
    assert read_manifest(tmp_path)["status"] == "running"
    with Run.open(tmp_path, ["ponder", "train", "--resume"]):
        pass
    made = read_manifest(tmp_path)
    assert made["status"] == "done"
    assert made["resumed"][0]["command"] == ["ponder", "train", "--resume"]


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), "interrupted"), (ValueError("no"), "failed")])
def test_the_manifest_says_how_a_run_ended(tmp_path: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), new(tmp_path):
        raise error
    assert read_manifest(tmp_path)["status"] == status


def test_a_config_that_an_earlier_start_wrote_is_kept(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", "steps = 1\n", 0) as run:
        run.write_config("config.toml", "steps = 2\n")  # resolved by the same start
    for steps in (2, 3, 3, 4):
        with Run.open(tmp_path / "run") as run:
            run.write_config("config.toml", f"steps = {steps}\n")
            run.write_config("config.toml", f"steps = {steps}\nresolved = true\n")
    kept = {p.name: p.read_text() for p in (tmp_path / "run").glob("config*.toml")}
    assert list(kept.values()).count("steps = 2\n") == 1
    assert kept["config-1.toml"] == "steps = 2\n"
    assert kept["config-2.toml"] == "steps = 2\nresolved = true\n"
    assert kept["config.toml"] == "steps = 4\nresolved = true\n"
    Run.create(tmp_path / "run", "steps = 9\n", 0, overwrite=True).close()
    assert [p.name for p in (tmp_path / "run").glob("config*.toml")] == ["config.toml"]


def test_resuming_drops_what_the_checkpoint_does_not_know(tmp_path: Path) -> None:
    with new(tmp_path / "whole") as whole:
        for step in range(1, 7):
            whole.log({"step": step, "reward": step / 10})
            whole.log_rollout({"step": step, "problem": "p"})
    with new(tmp_path / "stopped") as stopped:
        for step in range(1, 6):
            stopped.log({"step": step, "reward": step / 10})
            stopped.log_rollout({"step": step, "problem": "p"})
    with Run.open(tmp_path / "stopped") as again:
        assert again.truncate_after(3) == 4
        assert again.truncate_after(3) == 0
        for step in range(4, 7):
            again.log({"step": step, "reward": step / 10})
            again.log_rollout({"step": step, "problem": "p"})
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.dictionaries(st.text(), JSON, max_size=3), min_size=1, max_size=4), data=st.data())
def test_a_file_torn_anywhere_loses_its_last_line_at_most(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("torn") / "metrics.jsonl"
    for row in rows:
        files.append_line(path, row)
    whole = path.read_bytes()
    assert files.read_lines(path) == files.Lines(tuple(rows))
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    cut = data.draw(st.integers(last, len(whole)))
    path.write_bytes(whole[:cut])
    read = files.read_lines(path)
    # A line that lacks nothing but its newline is whole.
    complete = cut >= len(whole) - 1
    assert read.rows == tuple(rows if complete else rows[:-1])
    assert (read.torn is not None) == (not complete and cut > last)
    files.mend_tail(path)
    files.append_line(path, {"after": 1})
    mended = files.read_lines(path)
    assert mended.torn is None
    assert mended.rows == (*read.rows, {"after": 1})


def test_a_bad_line_in_the_middle_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is not valid JSON"):
        files.read_lines(path)


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    files.append_line(path, {"loss": float("nan"), "deep": [float("inf"), 1.5], "text": "\ud800\x00"})
    assert json.loads(path.read_text()) == {"loss": None, "deep": [None, 1.5], "text": "\ud800\x00"}


def test_a_line_of_dataclasses_is_the_line_of_their_fields(tmp_path: Path) -> None:
    for row in ({"spend": Spend(3)}, {"spend": to_json(Spend(3))}):
        files.append_line(tmp_path / "metrics.jsonl", row)
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert first == second


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(PonderError, match="the disk is full") as caught:
        files.append_line(tmp_path / "metrics.jsonl", {"step": 1})
    assert caught.value.exit_code == 1


def test_a_disk_that_fills_mid_line_keeps_every_earlier_line_whole(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from ponder.errors import PonderError
        from ponder.runs import files
        path = Path(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            for step in range(100):
                files.append_line(path / "metrics.jsonl", {"step": step, "text": "x" * 90})
        except PonderError as error:
            print(step, error)
        try:
            files.write_json(path / "curves.json", ["y" * 2000])
        except PonderError as error:
            print(error)
    """)
    (tmp_path / "curves.json").write_text("[]")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    failed_at = int(first.split()[0])
    assert "the disk is full" in first
    assert "the disk is full" in second
    read = files.read_lines(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in read.rows] == list(range(failed_at))
    assert failed_at >= 5
    assert read.torn is None
    assert (tmp_path / "curves.json").read_text() == "[]"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.json", "metrics.jsonl"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": "other"}'])
def test_a_broken_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        Run.open(tmp_path)


def test_the_commit_of_a_checkout_and_whether_it_is_clean(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    source = tmp_path / "module.py"
    source.write_text("")
    git("init")
    assert manifest.commit(source) is None, "not tracked: the commit would say nothing about this file"
    git("add", "module.py")
    git("commit", "-m", "one")
    found = manifest.commit(source)
    assert found is not None
    assert found["clean"]
    assert len(found["commit"]) == 40
    source.write_text("changed")
    assert manifest.commit(source) == {"commit": found["commit"], "clean": False}


def test_peak_memory_counts_bytes_and_never_falls() -> None:
    block = bytearray(b"x") * 300_000_000
    peak = manifest.peak_memory_bytes()
    del block
    assert 300_000_000 < peak <= manifest.peak_memory_bytes() < 100_000_000_000
