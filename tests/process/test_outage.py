"""The coordinator is killed at a chosen instant, or away for a while: nothing is forgotten, who has slack trains on."""

import signal
import time
from collections.abc import Callable

import pytest

from tests.conftest import Measured
from tests.process.harness import Run
from wantrain.config import store_path
from wantrain.peers.store import Store

SLACK = {"method": {"every": 2000, "delay": 2000}}
"""Ten seconds and more of training until a result is missed: longer than it takes to start the coordinator again."""


@pytest.mark.scenario(6)
@pytest.mark.parametrize("moment", ["persist", "persisted", "send"])
def test_a_coordinator_killed_around_a_commit_forgets_none_and_makes_none_twice(
    new_run: Callable[..., Run], moment: str
) -> None:
    run = new_run()
    run.kill("coordinator")
    run.coordinator(environment={"WANTRAIN_KILL_COORDINATOR_AT": f"8:{moment}"})
    run.peer("anna")
    run.peer("bert")
    assert run.exit_code("coordinator") == -signal.SIGKILL
    with Store(store_path(run.run_file)) as store:
        lines = store.commits(1, store.head())
    assert len(lines) == (7 if moment == "persist" else 8)
    assert run.head == 7  # the eighth was not announced
    run.coordinator()
    run.until_commits(5, "anna", "bert", after=8)
    with Store(store_path(run.run_file)) as store:
        assert store.commits(1, len(lines)) == lines
    run.assert_parity("anna", "bert")
    run.stop("anna", "bert")


@pytest.mark.scenario(6)
def test_training_does_not_stop_while_the_coordinator_is_away(new_run: Callable[..., Run], measured: Measured) -> None:
    run = new_run(options=SLACK)
    run.peer("anna")
    run.peer("bert")
    run.until_commits(1, "anna", "bert")
    before = waited_s(run)
    run.kill("coordinator")
    killed_at = time.monotonic()
    run.coordinator()
    away_s = time.monotonic() - killed_at
    run.until_commits(1, "anna", "bert")
    pause_s = max(after - before[name] for name, after in waited_s(run).items())
    measured(6, "coordinator away, with a method that has more slack than that", away_s, "s")
    measured(6, "pause of the trainers meanwhile", pause_s, "s")
    assert pause_s == 0.0
    run.stop("anna", "bert")


def waited_s(run: Run) -> dict[str, float]:
    """For how long each trainer was stopped so far, as it says itself."""

    def told() -> dict[str, float]:
        peers = run.status().get("peers", [])
        said = {peer["name"]: peer["stats"]["waited_s"] for peer in peers if "waited_s" in peer["stats"]}
        return said if len(said) == 2 else {}

    return run.until(told, "both trainers have said how long they waited")
