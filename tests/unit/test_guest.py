"""A training process that its daemon has not started: who may attach, when it counts as gone, what is noted down."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wantrain.peers.guest import Guest
from wantrain.peers.orphan import find_orphan


@pytest.fixture
def other() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_one_process_at_a_time_may_attach(tmp_path: Path, other: "subprocess.Popen[bytes]") -> None:
    guest = Guest(None, tmp_path)
    assert (guest.running, guest.ended(0.0), guest.start_if_due(0.0)) == (False, False, False)
    guest.attached(other.pid)
    assert guest.running
    assert guest.admits(other.pid)
    assert not guest.admits(os.getpid())
    other.kill()
    other.wait()
    assert guest.admits(os.getpid())
    assert guest.ended(0.0)
    assert not guest.ended(0.0)
    assert f"process {other.pid} has ended" in guest.describe_exit()


def test_who_lets_go_is_gone_although_it_lives(tmp_path: Path) -> None:
    guest = Guest(None, tmp_path)
    guest.attached(os.getpid())
    assert find_orphan(tmp_path) is not None  # the next daemon at this place would find it
    guest.let_go("it has left")
    assert guest.ended(0.0)
    assert (guest.exit_code, guest.restart_later(0.0), guest.running) == (None, True, False)
    assert find_orphan(tmp_path) is None
    guest.attached(os.getpid())
    assert not guest.ended(0.0)


def test_the_daemon_of_one_process_ends_with_it(tmp_path: Path, other: "subprocess.Popen[bytes]") -> None:
    guest = Guest(other.pid, tmp_path)
    assert not guest.admits(os.getpid())
    assert guest.running
    assert not guest.ended(0.0)
    other.kill()
    other.wait()
    assert guest.ended(0.0)
    assert (guest.exit_code, guest.restart_later(0.0)) == (0, False)


def test_a_guest_is_not_the_daemons_to_end(tmp_path: Path, other: "subprocess.Popen[bytes]") -> None:
    guest = Guest(other.pid, tmp_path)
    guest.kill()
    guest.end()
    assert other.poll() is None


def test_the_daemon_of_a_process_that_died_before_that_was_ready_ends_too(
    tmp_path: Path, other: "subprocess.Popen[bytes]"
) -> None:
    other.kill()
    other.wait()
    guest = Guest(other.pid, tmp_path)
    assert guest.ended(0.0)
    shared = Guest(None, tmp_path)
    shared.attached(other.pid)
    assert shared.admits(os.getpid())
    assert shared.ended(0.0)
