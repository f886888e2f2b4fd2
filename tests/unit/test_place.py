"""A peer's place on its machine: one process at a time, one identity, and nothing left by one that was killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from wantrain.errors import AddressInUseError, ConfigError
from wantrain.peers.orphan import note_trainer, started_at
from wantrain.peers.place import open_place, remove_leftovers, scratch_directory

RUN = bytes(range(8))


def test_a_long_path_for_temporary_files_is_passed_over_for_a_socket_can_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with open_place(RUN, tmp_path / "home", "anna") as place, scratch_directory(place, tmp_path) as scratch:
        assert scratch.parent == Path("/tmp")
    assert list(long.iterdir()) == []


def test_a_place_keeps_its_identity_and_that_it_was_admitted(tmp_path: Path) -> None:
    with open_place(RUN, tmp_path / "home", "anna") as place:
        assert (place.name, place.enrolled) == ("anna", False)
        place.mark_enrolled()
    with open_place(RUN, tmp_path / "home", "anna") as again:
        assert again.identity == place.identity
        assert again.enrolled


def test_a_home_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    with open_place(RUN, tmp_path, None), pytest.raises(AddressInUseError, match="another process uses") as caught:
        open_place(RUN, tmp_path, None).__enter__()
    assert "--home" in caught.value.hint


def test_without_a_home_each_process_takes_the_first_free_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with open_place(RUN, None, None) as first, open_place(RUN, None, None) as second:
        assert first.path == tmp_path / "wantrain" / RUN.hex() / "peer-1"
        assert second.path.name == "peer-2"
        assert second.name == f"{first.name}-2"
        assert first.identity.peer != second.identity.peer
    with open_place(RUN, None, None) as again:
        assert again.identity == first.identity


def test_a_long_host_name_is_cut_so_that_the_run_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("socket.gethostname", lambda: "h" * 200)
    with open_place(RUN, None, None) as first, open_place(RUN, None, None) as second:
        assert first.name == "h" * 128
        assert second.name == "h" * 126 + "-2"


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        open_place(RUN, tmp_path / "file" / "home", None).__enter__()
    assert "--home" in caught.value.hint


def test_a_home_that_is_full_is_named_and_nothing_is_left_of_the_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with open_place(RUN, tmp_path / "home", None) as place:
        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(ConfigError, match=r"home/scratch cannot be written: No space left") as caught:
            scratch_directory(place, tmp_path).__enter__()
    assert "--home" in caught.value.hint
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_next_process_removes_what_a_killed_one_left_but_nothing_of_a_live_one(tmp_path: Path) -> None:
    segments = tmp_path / "shm"
    segments.mkdir()
    with open_place(RUN, tmp_path / "home", None) as place:
        alive = scratch_directory(place, segments)
        directory = alive.__enter__()
        segment = segments / f"{directory.name}-1"
        segment.touch()
        with scratch_directory(place, segments) as other:  # as from a copy of the place
            assert segment.exists()
            assert directory.exists()
        note = place.path / "scratch"
        assert note.read_text() == str(other)

        abandoned = tmp_path / "wantrain-killed"
        abandoned.mkdir()
        (abandoned / "lock").touch()
        (segments / "wantrain-killed-1").touch()
        note.write_text(str(abandoned))
        with scratch_directory(place, segments):
            assert not abandoned.exists()
            assert list(segments.iterdir()) == [segment]
        for nonsense in ("", "/", str(tmp_path / "home")):
            note.write_text(nonsense)
            with scratch_directory(place, segments):
                assert place.path.exists()
        alive.__exit__(None, None, None)
    assert not directory.exists()


def test_what_is_left_where_no_process_follows_is_removed_with_its_trainer_but_nothing_of_a_live_one(
    tmp_path: Path,
) -> None:
    segments = tmp_path / "shm"
    segments.mkdir()
    with open_place(RUN, tmp_path / "home", None) as place, scratch_directory(place, segments) as directory:
        (segments / f"{directory.name}-1").touch()
        remove_leftovers(place.path, segments)
        assert directory.exists()
        assert list(segments.iterdir())

        abandoned = tmp_path / "wantrain-killed"
        abandoned.mkdir()
        (abandoned / "lock").touch()
        (segments / "wantrain-killed-1").touch()
        (place.path / "scratch").write_text(str(abandoned))
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as trainer:
            note_trainer(abandoned, trainer.pid)
            remove_leftovers(place.path, segments)
            assert not started_at(trainer.pid)
        assert not abandoned.exists()
        assert [path.name for path in segments.iterdir()] == [f"{directory.name}-1"]
        remove_leftovers(place.path, segments)
        remove_leftovers(tmp_path / "nowhere", segments)
