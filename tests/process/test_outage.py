"""The coordinator is killed, away or cannot write for a while: nothing is forgotten, and trainers go on meanwhile."""

import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.conftest import Measured
from tests.process.harness import EVERY, Run
from tests.process.small_disk import filled, small_disk
from wantrain.config import store_path
from wantrain.peers.store import Store

SLACK = {"method": {"every": 400, "delay": 400}}
DISK_BYTES = 32 * 2**20
"""The log of writes grows to 4 MB before any of it is used again."""
MOMENTS = {"persist": 7, "persisted": 15, "send": 23}
"""Where in the commit of line 8, 16 or 24 the coordinator is killed, and the newest line that it had announced."""


@pytest.mark.scenario(6)
def test_a_coordinator_killed_around_a_commit_forgets_none_and_makes_none_twice(new_run: Callable[..., Run]) -> None:
    run = new_run()
    for moment, announced in MOMENTS.items():
        run.kill("coordinator")
        run.coordinator(environment={"WANTRAIN_KILL_COORDINATOR_AT": f"{announced + 1}:{moment}"})
        if moment == "persist":
            run.peer("anna")
            run.peer("bert")
        assert run.exit_code("coordinator") == -signal.SIGKILL
        with Store(store_path(run.run_file)) as store:
            lines = store.commits(1, store.head())
        assert len(lines) == announced + (moment != "persist")
        assert run.head == announced
    run.coordinator()
    run.until_commits(5, "anna", "bert", after=len(lines))
    with Store(store_path(run.run_file)) as store:
        assert store.commits(1, len(lines)) == lines
    run.assert_parity("anna", "bert")
    run.stop("anna", "bert")


@pytest.mark.scenario(6)
def test_training_does_not_stop_while_the_coordinator_is_away(new_run: Callable[..., Run], measured: Measured) -> None:
    run = new_run(options=SLACK)
    names = ("anna", "bert")
    for name in names:
        run.peer(name)
    run.until_commits(1, *names)
    before = waited_s(run)
    run.kill("coordinator")
    killed_at, steps = time.monotonic(), {name: run.steps(name) for name in names}
    run.until(lambda: all(run.steps(name) > steps[name] + 200 for name in names), "they train on without it")
    away_s = time.monotonic() - killed_at
    run.pause()  # how long it takes to start a coordinator here is not to decide whether the slack is enough
    run.coordinator()
    run.until(lambda: sum(p["state"] == "member" for p in run.status().get("peers", [])) == 2, "both are back")
    run.resume()
    run.until_commits(1, *names)
    pause_s = max(after - before[name] for name, after in waited_s(run).items())
    measured(6, "training while the coordinator was away, with a method that has more slack than that", away_s, "s")
    measured(6, "pause of the trainers meanwhile", pause_s, "s")
    assert pause_s == 0.0
    run.stop(*names)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own for the database, as a directory."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        with small_disk(path, DISK_BYTES):
            yield path
    except PermissionError as error:
        pytest.skip(f"NO FULL DISK WAS TRIED: a file system to fill up needs root ({error})")


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Another process writes to the database, and does not end."""
    with closing(sqlite3.connect(store_path(run.run_file), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@pytest.mark.scenario(7)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a mount namespace to fill a disk in")
def test_a_coordinator_that_cannot_write_says_so_and_decides_nothing_until_it_can(
    tmp_path: Path, disk: Path, measured: Measured
) -> None:
    with Run(tmp_path, options={"sync": {"wait_ceiling_s": 1.0}}) as run:
        store_path(run.run_file).symlink_to(disk / "run.db")
        run.coordinator(fork=False)  # from a process that sees the disk
        it_says_so_and_goes_on(run, disk, measured)


def it_says_so_and_goes_on(run: Run, disk: Path, measured: Measured) -> None:
    """Two peers train, twice the coordinator cannot write for a while, and nothing is lost."""
    run.peer("anna")
    run.peer("bert")
    run.until_commits(5, "anna", "bert")
    troubles = ((filled(disk), "the disk is full"), (locked(run), "it is locked by another process"))
    for trouble, words in troubles:
        with trouble:
            run.until(lambda words=words: words in run.status().get("reason", ""), f"status says that {words} is why")
            head, steps = run.head, {name: run.steps(name) for name in ("anna", "bert")}
            run.until(lambda steps=steps: all(run.steps(n) > steps[n] + 2 * EVERY for n in steps), "both train on")
            assert words in run.events("coordinator", "store-failed")[-1]["reason"]
            assert run.head == head
            failing_since = run.events("coordinator", "store-failed")[-1]["time_unix"]
            room_again = time.time()
        (commit, *_) = run.until_commits(3, "anna", "bert", after=head)
        assert commit["number"] == head + 1
        assert commit["time_unix"] > failing_since
        measured(
            7, f"first commit after the coordinator could write again ({words})", commit["time_unix"] - room_again, "s"
        )
    assert run.events("coordinator", "lost") == []
    run.assert_parity("anna", "bert")
    run.stop("anna", "bert")


def waited_s(run: Run) -> dict[str, float]:
    """For how long each trainer was stopped so far, as it says itself."""

    def told() -> dict[str, float]:
        peers = run.status().get("peers", [])
        said = {peer["name"]: peer["stats"]["waited_s"] for peer in peers if "waited_s" in peer["stats"]}
        return said if len(said) == 2 else {}

    return run.until(told, "both trainers have said how long they waited")
