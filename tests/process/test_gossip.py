"""Gossip between real processes: a partner that is lost before, between and after the two halves of an exchange."""

from collections.abc import Callable

import pytest

from tests.process.harness import Run

SAVED_EVERY = 4
LOST_AT = range(60, 400, 15)
"""Commits that are written when nobody has heard of them yet, until one is a pair's; all have saved by then."""
WIDE = ("--hidden", "8192")
"""Several chunks: each of a pair sums some of them."""
# At the first message of this kind in its so many-th exchange with somebody.
DIES = """
import os, signal
from wantrain.peers import sabotage
from wantrain.peers.messages import {kind}
seen = set()
def sending(self, record):
    if isinstance(record, {kind}):
        seen.add(record.sync.index)
        if len(seen) == self._index:
            os.killpg(os.getpgrp(), signal.SIGKILL)
sabotage.KillSwitch.sending = sending
"""


def applied(run: Run, name: str, after: int) -> list[int]:
    """Numbers of the lines behind `after` that a peer has applied, all its processes together."""
    return sorted({event["number"] for event in run.events(name, "commit") if event["number"] > after})


def assert_both_or_neither(run: Run, *, copied: bool, **since: int) -> None:
    """Each peer has applied just the lines that name it behind the one at which its present state began.

    `copied`: bert's is a copy of anna's. Parts of it may be older than others: until it is whole, before bert
    contributes, it takes in what anna alone has done.
    """
    peers = {peer["name"]: peer["peer"] for peer in run.status()["peers"]}
    run.stop(*since)
    records = run.assert_one_history(*since)
    for name, start in since.items():
        named = [record.number for record in records if record.number > start and peers[name] in record.contributors]
        done = applied(run, name, start)
        before = [number for number in done if number < named[0]]
        assert done[len(before) :] == named, (name, start, done)
        assert before == [] or (copied and name == "bert"), (name, start, done)
        assert all(records[number - 1].contributors == (peers["anna"],) for number in before)
        assert any(len(records[number - 1].contributors) == 2 for number in named)


@pytest.mark.scenario(23)
@pytest.mark.parametrize("kind", ["Part", "Result"])
def test_a_partner_that_is_killed_before_or_between_the_halves_leaves_the_other_to_go_on_alone(
    new_run: Callable[..., Run], kind: str
) -> None:
    run = new_run(method="noloco", codec="fp32")
    run.peer("anna", trainer=WIDE)
    run.until_commits(2, "anna")
    switch = {"WANTRAIN_KILL_AT": "param#5:moving"}
    run.peer("bert", trainer=WIDE, environment=switch, prepare=DIES.format(kind=kind))
    run.until_commits(2, "anna", "bert")
    assert run.exit_code("bert") == -9
    before = run.head
    alone = run.until_commits(3, "anna", after=before)
    assert all(commit["contributors"] == ["anna"] for commit in alone)
    entries = len(run.events("bert", "snapshot"))
    run.peer("bert", trainer=WIDE)
    run.until_commits(3, "anna", "bert")
    (entered,) = run.events("bert", "snapshot")[entries:]
    assert_both_or_neither(run, copied=True, anna=0, bert=entered["number"])


@pytest.mark.scenario(22, 23)
def test_who_was_away_when_its_exchange_was_committed_gets_it_from_its_partner(new_run: Callable[..., Run]) -> None:
    run = new_run(method="noloco", codec="fp32", options={"checkpoint": {"every": SAVED_EVERY}})
    run.kill("coordinator")
    for lost_at in LOST_AT:
        run.coordinator(environment={"WANTRAIN_KILL_COORDINATOR_AT": f"{lost_at}:persisted"})
        if lost_at == LOST_AT[0]:
            for name in ("anna", "bert"):
                run.peer(name)
        run.exit_code("coordinator")
        if len(run.assert_one_history()[-1].contributors) == 2:
            break
    assert run.head < lost_at
    assert all(run.events(name, "saved") for name in ("anna", "bert"))
    run.kill("bert")
    run.coordinator()
    run.until_commits(1, "anna", after=lost_at)
    run.peer("bert")
    run.until_commits(3, "anna", "bert")
    loaded = run.events("bert", "loaded")[-1]["number"]
    assert loaded < lost_at
    assert lost_at in applied(run, "anna", 0)
    since = loaded
    if entered := run.events("bert", "enters-anew"):  # it had taken a step alone that it had not saved: nobody has that
        assert len(run.assert_one_history()[entered[-1]["number"] - 1].contributors) == 1
        since = run.events("bert", "snapshot")[-1]["number"]
    assert_both_or_neither(run, copied=bool(entered), anna=0, bert=since)
