"""Trainers and coordinators that die and are started again."""

import os
import signal
from collections.abc import Callable

import pytest

from tests.process.harness import Run
from wantrain.config import store_path
from wantrain.peers.store import Store

FETCHING = ("snapshot", "behind", "refetch", "catching-up")


@pytest.mark.scenario(16)
def test_a_trainer_that_dies_gets_its_state_from_the_daemon(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run.peer("anna")
    run.peer("bert", "--max-restarts", "2")
    run.until_commits(3, "anna", "bert")
    fetched = [event for kind in FETCHING for event in run.events("bert", kind)]

    os.kill(run.events("bert", "attached")[-1]["pid"], signal.SIGKILL)
    run.until(lambda: len(run.events("bert", "attached")) == 2, "the killed trainer is back")
    run.until_commits(2, "anna", "bert")
    (run.folder / "bert.raise").touch()
    run.until(lambda: len(run.events("bert", "attached")) == 3, "the failed trainer is back")
    run.until_commits(2, "anna", "bert")
    reasons = [event["reason"] for event in run.events("bert", "trainer-exit")]
    assert reasons == ["was killed by SIGKILL", "ended with exit code 1"]
    assert [event for kind in FETCHING for event in run.events("bert", kind)] == fetched
    run.assert_parity("anna", "bert")

    (run.folder / "bert.raise").touch()
    assert run.exit_code("bert") == 7
    assert "the training command ended with exit code 1, 3 times in a row" in run.error("bert")["error"]
    assert run.until_commits(3, "anna")[-1]["contributors"] == ["anna"]
    run.stop("anna")


@pytest.mark.scenario(6)
def test_a_killed_coordinator_forgets_no_commit_and_the_peers_find_it_again(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run.peer("anna")
    run.peer("bert")
    for _ in range(2):
        run.until_commits(5, "anna", "bert")
        run.kill("coordinator")
        with Store(store_path(run.run_file)) as store:
            lines = store.commits(1, store.head())
        assert len(lines) >= run.head
        run.coordinator()
        run.until_commits(5, "anna", "bert", after=len(lines))
        with Store(store_path(run.run_file)) as store:
            assert store.commits(1, len(lines)) == lines
    run.peer("carl")  # with the invite that the first coordinator printed
    run.until_commits(2, "anna", "bert", "carl")
    run.assert_parity("anna", "bert", "carl")
    run.stop("anna", "bert", "carl")
