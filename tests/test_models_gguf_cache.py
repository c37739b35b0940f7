"""Dequantised GGUF weights are kept by the file's digest, and never go stale, grow without end or fail an opening."""

import json
import os

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gguf")

from ponder.cli.main import main  # noqa: E402
from ponder.models import gguf_cache  # noqa: E402


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("PONDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_cache, "WORTH", 0.0)
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF one")
    return path


def ask(path, value=1.0):
    """The weights as the cache gives them, and whether they were dequantised."""
    asked = []

    def dequantise():
        asked.append(1)
        return {"w": torch.full((3, 5), value)}

    return gguf_cache.weights(path, dequantise)["w"], bool(asked)


def test_a_file_is_dequantised_once_and_again_when_its_bytes_change(file):
    assert [ask(file)[1] for _ in range(3)] == [True, False, False]
    moved = file.rename(file.with_name("renamed.gguf"))
    assert not ask(moved)[1]
    moved.write_bytes(b"GGUF two")
    weights, fresh = ask(moved, 2.0)
    assert fresh
    assert bool((weights == 2.0).all())


def test_what_is_kept_does_not_change_with_the_weights_in_memory(file):
    ask(file)
    weights, _ = ask(file)
    weights.add_(1.0)
    assert bool((ask(file)[0] == 1.0).all())


def test_a_broken_or_unwritable_cache_never_fails_an_opening(file, monkeypatch):
    ask(file)
    kept = gguf_cache.kept()[0].path
    kept.write_bytes(b"broken")
    assert ask(file)[1]
    (gguf_cache.folder() / "digests.json").write_text("{")
    assert not ask(file)[1]
    monkeypatch.setenv("PONDER_CACHE", "/dev/null/cache")
    assert ask(file)[1]
    monkeypatch.setenv("PONDER_CACHE", "")
    assert gguf_cache.folder() is None
    assert ask(file)[1]


def test_the_least_recently_used_file_goes_first_and_a_full_disk_keeps_nothing(file, monkeypatch):
    monkeypatch.setenv("PONDER_CACHE_GB", "300e-9")
    names = []
    for number in range(4):
        path = file.with_name(f"{number}.gguf")
        path.write_bytes(b"GGUF" + bytes([number]))
        ask(path)
        names += [k.path.name for k in gguf_cache.kept() if k.path.name not in names]
        os.utime(gguf_cache.folder() / names[-1], (number, number))
    left = {k.path.name for k in gguf_cache.kept()}
    assert names[0] not in left
    assert names[-1] in left
    gguf_cache.clear()
    monkeypatch.setattr(gguf_cache.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    assert [ask(file)[1] for _ in range(2)] == [True, True]


def test_doctor_shows_and_clears_the_cache(file, capsys):
    ask(file)
    main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["cache"]["files"] == 1
    main(["doctor", "--clear-cache", "--json"])
    cache = json.loads(capsys.readouterr().out)["cache"]
    assert cache["files"] == 0
    assert cache["freed_bytes"] > 0
    assert ask(file)[1]
