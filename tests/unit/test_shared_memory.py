"""The segment: what one side writes the other reads, memory is there when it was promised, bad files are refused."""

import errno
import os
import stat
from pathlib import Path

import pytest
import torch

from wantrain.errors import ConfigError, WantrainError
from wantrain.peers.shared_memory import Segment

ELEMENTS = {"param": 5000, "empty": 0, "grad": 3}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "segment"


def test_both_sides_see_the_same_memory(path: Path) -> None:
    daemon = Segment.create(path, ELEMENTS)
    trainer = Segment.open(path)
    assert trainer.elements == ELEMENTS
    for name, count in ELEMENTS.items():
        trainer.out(name).copy_(torch.arange(float(count)))
        daemon.given(name).fill_(7.0)
    for name, count in ELEMENTS.items():
        assert torch.equal(daemon.out(name), torch.arange(float(count)))
        assert torch.equal(trainer.given(name), torch.full((count,), 7.0))


def test_regions_start_zeroed_and_page_aligned(path: Path) -> None:
    segment = Segment.create(path, ELEMENTS)
    for name in ("param", "grad"):
        for region in (segment.out(name), segment.given(name)):
            assert region.data_ptr() % 4096 == 0
            assert not region.any()


def test_only_the_owner_may_read(path: Path) -> None:
    Segment.create(path, ELEMENTS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_progress_and_grants_are_seen_by_the_other_side(path: Path) -> None:
    daemon = Segment.create(path, ELEMENTS)
    trainer = Segment.open(path)
    assert daemon.progress() == (0, 0.0, 0)
    trainer.post_progress(steps_left=12, step_s=0.25, own_steps=2**40, global_step=2**41)
    daemon.bump()
    daemon.bump()
    assert daemon.progress() == (12, 0.25, 2**40)
    assert daemon.global_step == 2**41
    assert trainer.granted == 2


def test_tensors_outlive_close_and_unlink(path: Path) -> None:
    segment = Segment.create(path, ELEMENTS)
    out = segment.out("param")
    out.fill_(3.0)
    segment.unlink()
    segment.unlink()
    segment.close()
    del segment
    assert not path.exists()
    assert torch.equal(out, torch.full((5000,), 3.0))


def test_a_full_disk_is_told_at_creation(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WantrainError, match=r"0\.1 MiB of shared memory are needed .* MiB are free"):
        Segment.create(path, {"param": 2**13})
    assert not path.exists()


def test_memory_is_reserved_without_posix_fallocate_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    segment = Segment.create(path, {"param": 2**18 + 1})
    assert path.stat().st_size == segment.size_bytes
    Segment.open(path)


def test_a_file_that_is_there_is_not_taken_over(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(WantrainError, match="File exists"):
        Segment.create(path, ELEMENTS)
    assert path.read_bytes() == b"precious"


def test_more_streams_than_the_header_holds_are_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="300 streams"):
        Segment.create(path, {f"stream-{k}": 1 for k in range(300)})


def test_a_missing_file_is_told(path: Path) -> None:
    with pytest.raises(WantrainError, match="cannot open shared memory"):
        Segment.open(path)


@pytest.mark.parametrize("size_bytes", [0, 100, 4096, 5 * 4096])
def test_a_file_of_the_wrong_size_is_refused(path: Path, size_bytes: int) -> None:
    Segment.create(path, ELEMENTS)
    os.truncate(path, size_bytes)
    with pytest.raises(WantrainError, match=f"{size_bytes} bytes"):
        Segment.open(path)


@pytest.mark.parametrize(
    ("at", "data", "reason"),
    [
        (0, b"other", "no segment"),
        (8, b"\x09", "version 9"),
        (12, b"\xff\xff", "header"),
        (384, b"\xff\xff", "header is broken"),
        (391, b"\xff" * 8, "elements"),
    ],
)
def test_a_damaged_header_is_refused(path: Path, at: int, data: bytes, reason: str) -> None:
    Segment.create(path, ELEMENTS)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
    with pytest.raises(WantrainError, match=reason):
        Segment.open(path)
