"""Peers that are killed, come anew, freeze, leave and return, while the others train on."""

import signal
from collections.abc import Callable

from tests.process.harness import Run

FROZEN = {"sync": {"deadline_floor_s": 3.0}, "liveness": {"suspect_floor_s": 1.5, "suspect_ceiling_s": 5.0}}


def test_a_peer_killed_in_the_middle_of_a_sync_costs_one_attempt_and_comes_back(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run.peer("anna")
    run.peer("bert")
    run.until_commits(3, "anna", "bert")
    doomed = run.head + 60
    run.peer("carl", environment={"WANTRAIN_KILL_AT": f"param#{doomed}:moving"})
    assert run.exit_code("carl") == -signal.SIGKILL
    run.until_commits(5, "anna", "bert", after=doomed)
    records = run.assert_one_history("anna", "bert")
    aborts = [e for e in run.events("coordinator", "abort") if e["sync"].startswith(f"param#{doomed}.")]
    assert len(aborts) <= 1
    ids = {event["name"]: event["peer"] for event in run.events("coordinator", "joined")}
    both = [ids["anna"], ids["bert"]]
    assert list(records[doomed - 1].contributors) in (both, [*both, ids["carl"]])
    for name in ("anna", "bert"):
        applied = next(e for e in run.events(name, "commit") if e["number"] == doomed)
        assert applied["contributors"] == list(records[doomed - 1].contributors)

    run.peer("carl")
    run.until_commits(3, "anna", "bert", "carl")
    run.assert_parity("anna", "bert", "carl")
    run.stop("anna", "bert", "carl")


def test_a_newcomer_aborts_no_sync_and_contributes_within_two_commits(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run.peer("anna")
    run.peer("bert")
    run.until_commits(5, "anna", "bert")
    before = run.head
    run.peer("nora")
    run.until_commits(5, "nora")
    assert run.events("coordinator", "abort") == []
    assert all({"anna", "bert"} <= set(commit["contributors"]) for commit in run.commits(after=before))
    started = next(e["index"] for e in run.events("nora", "granted") if e["kind"] == "start")
    first = next(commit["number"] for commit in run.commits() if "nora" in commit["contributors"])
    assert first <= started + 2
    run.assert_parity("anna", "bert", "nora")
    run.stop("anna", "bert", "nora")


def test_a_frozen_peer_is_left_behind_and_catches_up(new_run: Callable[..., Run]) -> None:
    run = new_run(options=FROZEN)
    for name in ("anna", "bert", "carl"):
        run.peer(name)
    run.until_commits(5, "anna", "bert", "carl")
    run.signal("carl", signal.SIGSTOP, group=True)
    run.until(lambda: [e for e in run.events("coordinator", "lost") if e["name"] == "carl"], "carl counts as lost")
    run.until_commits(10, "anna", "bert")
    assert "carl" not in run.commits()[-1]["contributors"]
    run.signal("carl", signal.SIGCONT, group=True)
    run.until_commits(3, "anna", "bert", "carl")
    run.assert_parity("anna", "bert", "carl")
    run.stop("anna", "bert", "carl")


def test_the_last_peer_goes_on_alone_until_another_joins(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run.peer("anna")
    run.peer("bert")
    run.until_commits(3, "anna", "bert")
    run.signal("anna", signal.SIGTERM)
    assert run.exit_code("anna") == 0
    left = run.events("coordinator", "left")
    assert [(event["name"], event["reason"]) for event in left] == [("anna", "left")]
    alone = run.until_commits(5, "bert")
    assert alone[-1]["contributors"] == ["bert"]
    run.peer("carl")
    run.until_commits(3, "bert", "carl")
    run.assert_parity("bert", "carl")
    run.stop("bert", "carl")
