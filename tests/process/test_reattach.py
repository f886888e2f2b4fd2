"""Daemons that are killed while their trainers live, and daemons that are started again beside them."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Measured
from tests.process.harness import Run
from wantrain.peers.orphan import NOTE, started_at
from wantrain.peers.place import segment_directory


def trainer_of(run: Run, name: str) -> int:
    """Process id of the trainer that has attached last."""
    pid = run.events(name, "attached")[-1]["pid"]
    assert isinstance(pid, int)
    return pid


@pytest.mark.scenario(16)
def test_a_trainer_outlives_its_daemon_and_the_next_one_goes_on_from_where_it_stands(
    new_run: Callable[..., Run], measured: Measured
) -> None:
    run = new_run()
    run.pause()  # until both are there, or the first is past the sync in which the second is to be killed
    run.peer("anna")
    run.peer("bert", environment={"WANTRAIN_KILL_AT": "param#12:moving daemon"})
    run.until(lambda: run.events("anna", "granted") and run.events("bert", "granted"), "both trainers start")
    run.resume()
    pid = left_alone(run)
    began = time.monotonic()
    run.peer("bert")
    taken_over(run, pid, times=1)
    measured(16, "daemon started again until it has its trainer back", time.monotonic() - began, "s")
    run.until_commits(3, "anna", "bert")
    run.signal("bert", signal.SIGKILL)  # between two syncs, most likely
    assert left_alone(run) == pid
    run.peer("bert")
    taken_over(run, pid, times=2)
    run.until_commits(3, "anna", "bert")
    grants = run.events("bert", "granted")
    assert [grant["kind"] for grant in grants].count("start") == 1
    run.assert_parity("anna", "bert")

    # From now on it is the new daemon's: it is started again when it ends, and it is told when the run is over.
    os.kill(pid, signal.SIGKILL)
    run.until(lambda: trainer_of(run, "bert") != pid, "another trainer in its place")
    assert "only the daemon that had started it" in run.events("bert", "trainer-exit")[-1]["reason"]
    run.until_commits(2, "anna", "bert")
    run.assert_parity("anna", "bert")
    run.stop("anna", "bert")
    assert left_behind(run, "anna", "bert") == []


def left_alone(run: Run) -> int:
    """Bert's daemon is killed, anna goes on and so does bert's trainer; its process id."""
    assert run.exit_code("bert") == -signal.SIGKILL
    pid = trainer_of(run, "bert")
    run.until(lambda: run.commits()[-1]["contributors"] == ["anna"], "anna goes on alone")
    run.until_commits(5, "anna")
    assert started_at(pid)
    return pid


def taken_over(run: Run, pid: int, *, times: int) -> None:
    """Another daemon goes on with the trainer that has outlived bert's."""
    run.until(lambda: len(run.events("bert", "resumed")) == times, "the new daemon takes the trainer over")
    assert run.events("bert", "resumed")[-1]["lost"] == ""
    assert trainer_of(run, "bert") == pid


@pytest.mark.scenario(16)
def test_daemon_and_trainer_that_are_both_killed_begin_anew(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run.peer("anna")
    run.peer("bert")
    run.until_commits(3, "anna", "bert")
    pid = trainer_of(run, "bert")
    scratch = Path((run.folder / "bert" / "scratch").read_text())
    run.signal("bert", signal.SIGKILL)
    assert run.exit_code("bert") == -signal.SIGKILL
    assert (scratch / NOTE).exists()
    os.kill(pid, signal.SIGKILL)
    run.until(lambda: not started_at(pid), "the trainer is gone")
    run.peer("bert")
    run.until_commits(3, "anna", "bert")
    assert trainer_of(run, "bert") != pid
    assert run.events("bert", "orphan") == []
    assert not scratch.exists()
    assert not list(segment_directory().glob(f"{scratch.name}-*"))
    run.assert_parity("anna", "bert")
    run.stop("anna", "bert")


@pytest.mark.scenario(8)
@pytest.mark.scenario(11)
def test_when_the_last_daemon_is_killed_it_says_who_has_the_state_and_goes_on_when_that_one_is_back(
    new_run: Callable[..., Run],
) -> None:
    run = new_run()
    run.peer("anna")
    run.peer("bert")
    run.until_commits(3, "anna", "bert")
    run.signal("bert", signal.SIGTERM)
    assert run.exit_code("bert") == 0
    run.until_commits(2, "anna")
    run.signal("anna", signal.SIGKILL)
    assert run.exit_code("anna") == -signal.SIGKILL
    run.peer("anna")
    words = "one of them back (bert has saved it at"
    run.until(lambda: any(words in e["reason"] for e in run.events("anna", "waiting")), "anna says for whom it waits")
    assert len(run.events("anna", "attached")) == 2  # its trainer asks again and again, and is heard of once
    run.peer("bert")
    run.until_commits(3, "anna", "bert")
    run.assert_parity("anna", "bert", rewound=True)
    run.stop("anna", "bert")


def left_behind(run: Run, *names: str) -> list[Path]:
    """Sockets and shared memory of peers that have ended."""
    return left_of([Path((run.folder / name / "scratch").read_text()) for name in names])


def left_of(scratches: list[Path]) -> list[Path]:
    """What is there of scratch directories and the shared memory that belongs to them."""
    segments = [path for scratch in scratches for path in segment_directory().glob(f"{scratch.name}-*")]
    return [scratch for scratch in scratches if scratch.exists()] + segments
