"""A process that is not our child: known by id and start time, found by its note, watched and ended."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wantrain.peers.orphan import NOTE, UNKNOWN, Orphan, find_orphan, note_trainer, started_at
from wantrain.peers.supervisor import Supervisor

STAY = "import sys, time; print('ready', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + STAY


@pytest.fixture
def orphan(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ready."""
    script = getattr(request, "param", STAY)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_a_process_is_known_by_its_start_time_too(orphan: subprocess.Popen[bytes]) -> None:
    started = started_at(orphan.pid)
    assert started
    assert Orphan(orphan.pid, started).poll() is None
    assert Orphan(orphan.pid, started + "1").poll() == UNKNOWN
    another = Orphan(orphan.pid, started + "1")
    another.kill()  # its id belongs to somebody else by now
    assert orphan.poll() is None


def test_a_process_that_was_gone_when_it_was_first_looked_for_has_ended(orphan: subprocess.Popen[bytes]) -> None:
    orphan.kill()
    orphan.wait()
    assert started_at(orphan.pid) == ""
    assert Orphan(orphan.pid, started_at(orphan.pid)).poll() == UNKNOWN


def test_it_is_found_by_its_note_as_long_as_it_lives(orphan: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert find_orphan(tmp_path) is None
    note_trainer(tmp_path, orphan.pid)
    found = find_orphan(tmp_path)
    assert found == Orphan(orphan.pid, started_at(orphan.pid))
    orphan.kill()
    assert found.wait(30.0) == UNKNOWN  # although nobody has asked for its exit code: only its remains are there
    assert find_orphan(tmp_path) is None


@pytest.mark.parametrize(
    "note", ["", "{", "[]", '{"pid": 1, "started": "1"}', '{"pid": 12}', '{"pid": -1, "started": ""}']
)
def test_a_note_that_makes_no_sense_is_no_orphan(tmp_path: Path, note: str) -> None:
    (tmp_path / NOTE).write_text(note)
    assert find_orphan(tmp_path) is None


@pytest.mark.parametrize("orphan", [STAY, STUBBORN], indirect=True)
def test_a_supervisor_takes_it_over_and_ends_it(
    orphan: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wantrain.peers.supervisor.END_PATIENCE_S", 0.5)
    made = Supervisor(("no-such-program",), {}, 2, tmp_path)
    made.adopt(Orphan(orphan.pid, started_at(orphan.pid)), 0.0)
    assert made.running
    assert not made.start_if_due(100.0)
    assert not made.ended(100.0)
    made.end()
    assert not started_at(orphan.pid)
    assert "only the daemon that had started it" in made.describe_exit()


def test_an_orphan_that_ends_is_started_again(orphan: subprocess.Popen[bytes], tmp_path: Path) -> None:
    made = Supervisor((sys.executable, "-c", "pass"), {}, 2, tmp_path)
    taken_over = Orphan(orphan.pid, started_at(orphan.pid))
    made.adopt(taken_over, 0.0)
    os.kill(orphan.pid, 9)
    taken_over.wait(30.0)
    assert made.ended(1.0)
    assert made.restart_later(1.0)
    assert made.start_if_due(100.0)
    assert (tmp_path / NOTE).exists()
    made.end()
