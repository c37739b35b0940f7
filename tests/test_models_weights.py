"""A folder of weights appears whole or not at all, and a changed byte is noticed."""

import errno
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.errors import PonderError, UserError
from ponder.models import weights


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_publish_gives_the_folder_its_name_only_at_the_end(tmp_path: Path) -> None:
    with weights.publish(tmp_path / "deep" / "out") as beside:
        (beside / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert files(tmp_path) == {"deep/out/a": b"1"}


def test_publish_refuses_a_folder_that_exists(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"), weights.publish(tmp_path / "out"):
        raise AssertionError("the block must not run")


def test_publish_replaces_when_asked_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with weights.publish(tmp_path / "out", replace=True) as beside:
        (beside / "new").write_text("new")
    assert files(tmp_path) == {"out/new": b"new"}


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), ValueError("x"), OSError(errno.EIO, "broken")])
def test_whatever_goes_wrong_the_old_folder_stays_and_no_other_is_left(tmp_path: Path, fault: BaseException) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")

    def half_way() -> None:
        with weights.publish(tmp_path / "out", replace=True) as beside:
            (beside / "new").write_text("half")
            raise fault

    with pytest.raises((KeyboardInterrupt, ValueError)):
        half_way()
    assert files(tmp_path) == {"out/old": b"old"}


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence_and_the_old_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with (
        pytest.raises(PonderError, match="out: the disk is full") as caught,
        weights.publish(tmp_path / "out", replace=True),
        open("/dev/full", "w") as full,
    ):
        full.write("x" * 100_000)
    assert caught.value.exit_code == 1
    assert files(tmp_path) == {"out/old": b"old"}


def test_a_full_disk_in_the_middle_of_the_weights_is_the_same_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(tensors: object, path: str, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", fails)
    with pytest.raises(PonderError, match="the disk is full"), weights.publish(tmp_path / "out") as beside:
        weights.write_tensors(beside / "model.safetensors", {"a": torch.zeros(3)})
    assert files(tmp_path) == {}


def test_tensors_come_back_as_they_were_even_views_and_shared_ones(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    given = {"a": base, "b": base.t(), "c": base[1:], "d": base.bfloat16(), "e": torch.tensor(3)}
    weights.write_tensors(tmp_path / "x.safetensors", given)
    read = weights.read_tensors(tmp_path / "x.safetensors")
    assert read.keys() == given.keys()
    assert all(torch.equal(read[k], given[k]) and read[k].dtype == given[k].dtype for k in given)


def test_truncated_and_missing_safetensors_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="no such file"):
        weights.read_tensors(path)
    weights.write_tensors(path, {"a": torch.zeros(1000)})
    whole = path.read_bytes()
    for size in (0, 4, 60, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="not a whole safetensors file"):
            weights.read_tensors(path)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_flipped_byte_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("sums")
    (folder / "sub").mkdir()
    (folder / "a").write_bytes(b"some bytes")
    (folder / "sub" / "b").write_bytes(bytes(range(64)))
    weights.write_checksums(folder)
    assert weights.verify_checksums(folder)
    victim = folder / data.draw(st.sampled_from(["a", "sub/b"]))
    raw = bytearray(victim.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    victim.write_bytes(raw)
    with pytest.raises(UserError, match=rf"{victim} is corrupt \(its checksum differs"):
        weights.verify_checksums(folder)
    victim.unlink()
    with pytest.raises(UserError, match=r"is missing although checksums.json lists it"):
        weights.verify_checksums(folder)


def test_a_folder_without_checksums_is_not_verified(tmp_path: Path) -> None:
    assert not weights.verify_checksums(tmp_path)


@pytest.mark.parametrize(("text", "says"), [("{", "line 1"), ("[1]", "JSON object"), ("\ud800", "cannot be read")])
def test_bad_json_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=f"x.json.*{says}"):
        weights.read_json(tmp_path / "x.json")
