"""Gossip between real processes: a partner that is lost before, between and after the two halves of an exchange."""

from collections.abc import Callable

import pytest

from tests.process.harness import Run
from wantrain.peers.messages import CommitRecord

SAVED_EVERY = 4
LOST_AT = 40
"""The commit that is written when nobody has heard of it yet; some states are on disk by then."""


def ids(run: Run) -> dict[str, str]:
    """Peer ids by name."""
    return {peer["name"]: peer["peer"] for peer in run.status()["peers"]}


def named(records: list[CommitRecord], peer: str, after: int) -> list[int]:
    """Numbers of the lines behind `after` that name a peer."""
    return [record.number for record in records if record.number > after and peer in record.contributors]


def applied(run: Run, name: str, after: int) -> list[int]:
    """Numbers of the lines behind `after` that a peer has applied."""
    return [event["number"] for event in run.events(name, "commit") if event["number"] > after]


@pytest.mark.scenario(23)
@pytest.mark.parametrize("names", [("anna", "bert"), ("bert", "anna")])
def test_a_partner_that_is_killed_before_its_half_has_left_takes_nothing_along(
    new_run: Callable[..., Run], names: tuple[str, str]
) -> None:
    """One of the two owns the only chunk: killed before its first bytes, it has the other's half or it has not."""
    run = new_run(method="noloco", codec="fp32")
    first, killed = names
    run.peer(first)
    run.until_commits(2, first)
    run.peer(killed, environment={"WANTRAIN_KILL_AT": "param#30:moving"})
    run.until_commits(3, first, killed)
    run.exit_code(killed)
    before = run.head
    alone = run.until_commits(3, first, after=before)
    assert all(commit["contributors"] == [first] for commit in alone)
    run.peer(killed)
    run.until_commits(3, first, killed)
    entered = run.until(lambda: run.events(killed, "snapshot")[1:], "it has entered anew")[-1]["number"]
    run.stop(first, killed)
    peers, records = {commit["contributors"][0] for commit in alone}, run.assert_one_history(first, killed)
    assert peers == {first}
    owner = {name: record for event in run.events(first, "commit") for name, record in [(event["number"], event)]}
    assert sorted(owner) == [record.number for record in records if record.number in owner]
    assert not [n for n in applied(run, killed, entered) if n not in {record.number for record in records}]


@pytest.mark.scenario(23)
def test_who_was_away_when_its_exchange_was_committed_gets_it_from_its_partner(new_run: Callable[..., Run]) -> None:
    run = new_run(method="noloco", codec="fp32", options={"checkpoint": {"every": SAVED_EVERY}})
    run.kill("coordinator")
    run.coordinator(environment={"WANTRAIN_KILL_COORDINATOR_AT": f"{LOST_AT}:persisted"})
    for name in ("anna", "bert"):
        run.peer(name)
    run.until_commits(2, "anna", "bert")
    peers = ids(run)
    run.exit_code("coordinator")
    assert all(run.events(name, "saved") for name in peers)
    run.kill("bert")
    run.coordinator()
    run.until_commits(1, "anna", after=LOST_AT)
    run.peer("bert")
    loaded = run.until(lambda: run.events("bert", "loaded"), "it goes on with its own state")[-1]["number"]
    run.until_commits(3, "anna", "bert")
    run.stop("anna", "bert")
    records = run.assert_one_history("anna", "bert")
    assert applied(run, "anna", 0) == named(records, peers["anna"], min(applied(run, "anna", 0)) - 1)
    mine = [number for number in applied(run, "bert", loaded) if number > loaded]
    assert LOST_AT in named(records, peers["bert"], loaded)
    assert set(named(records, peers["bert"], loaded)) == set(mine)
