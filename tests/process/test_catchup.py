"""Peers that catch up while others train on: nobody waits for them, and they get through whatever their sources do."""

import re
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Measured
from tests.process.harness import Run

WIDE = ("--hidden", "16384")
"""344 k weights: 22 chunks, 2.8 MB of state, 0.3 MB for an update in int8."""
NARROW = ("--hidden", "4096")
FROZEN = {"sync": {"deadline_floor_s": 3.0}, "liveness": {"suspect_floor_s": 1.5, "suspect_ceiling_s": 5.0}}
LIES = """
from wantrain.peers.engine import Engine

honest = Engine.read_state

def read_state(self, k):
    payload = honest(self, k)
    payload[0] ^= 1
    return payload

Engine.read_state = read_state
"""


def peer(run: Run, name: str) -> dict[str, Any]:
    """What the coordinator says of a peer; {} while it knows nothing."""
    return next((one for one in run.status().get("peers", []) if one["name"] == name), {})


def updates_bytes(run: Run, name: str, *, after: int = 0, last: int = sys.maxsize) -> int:
    """Bytes of the updates that a peer has applied, with numbers above `after` up to `last`."""
    return sum(event["bytes"] for event in run.events(name, "commit") if after < event["number"] <= last)


class Window:
    """How long the steps of some peers' trainers take between two moments."""

    def __init__(self, run: Run, *names: str) -> None:
        self.run, self.names = run, names
        self.before, self.at = self._steps(), time.monotonic()

    def step_s(self) -> float:
        """Seconds for a step since the window was opened, in the mean over the peers."""
        after = self.run.until(lambda: (now := self._steps()) > self.before and now, "they train on")
        return (time.monotonic() - self.at) * len(self.names) / (after - self.before)

    def _steps(self) -> float:
        return self.run.until(lambda: self._known(), "all report their steps")

    def _known(self) -> float:
        stats = [peer(self.run, name).get("stats", {}) for name in self.names]
        return sum(one["step"] for one in stats) if all("step" in one for one in stats) else 0.0


@pytest.mark.scenario(9)
def test_incumbents_train_on_while_a_newcomer_fetches_the_state(
    new_run: Callable[..., Run], measured: Measured
) -> None:
    run = new_run()
    for name in ("anna", "bert"):
        run.peer(name, "--max-upload", "16mbit", trainer=WIDE)
    run.until_commits(3, "anna", "bert")
    window = Window(run, "anna", "bert")
    run.until_commits(10, "anna", "bert")
    alone_s = window.step_s()
    head = run.head
    run.peer("nora", "--max-upload", "16mbit", trainer=WIDE)
    run.until(lambda: [e for e in run.events("coordinator", "joined") if e["name"] == "nora"], "nora has joined")
    window = Window(run, "anna", "bert")
    (current, *_) = run.until(lambda: run.events("nora", "current"), "nora holds the state")
    joining_s = window.step_s()
    run.until_commits(3, "anna", "bert", "nora")
    assert run.events("coordinator", "abort") == run.events("coordinator", "chasing") == []
    assert all({"anna", "bert"} <= set(commit["contributors"]) for commit in run.commits(after=head))
    measured(9, "step of the incumbents without a newcomer", 1e3 * alone_s, "ms")
    measured(9, "step of the incumbents while a newcomer fetches the state", 1e3 * joining_s, "ms")
    measured(9, "bytes that the newcomer fetched", current["fetched_bytes"], "B")
    run.assert_parity("anna", "bert", "nora")
    run.stop("anna", "bert", "nora")


@pytest.mark.scenario(3)
def test_a_returning_peer_fetches_the_updates_that_it_has_missed_and_nothing_else(
    new_run: Callable[..., Run], measured: Measured
) -> None:
    run = new_run(options=FROZEN)
    for name in ("anna", "bert"):
        run.peer(name, trainer=WIDE)
    run.until_commits(2, "anna", "bert")
    run.peer("carl", trainer=WIDE)
    run.until_commits(3, "anna", "bert", "carl")
    state_bytes = 2 * peer(run, "carl")["stats"]["model_bytes"]
    run.signal("carl", signal.SIGSTOP, group=True)
    frozen_at, frozen = time.monotonic(), run.head
    run.until(lambda: [e for e in run.events("coordinator", "lost") if e["name"] == "carl"], "carl counts as lost")
    measured(3, "time until a frozen peer counts as lost", time.monotonic() - frozen_at, "s")
    run.until_commits(2, "anna", "bert")
    run.pause()
    before = peer(run, "carl")["stats"]["fetched_bytes"]
    run.signal("carl", signal.SIGCONT, group=True)
    thawed_at = time.monotonic()
    run.until(lambda: peer(run, "carl").get("log_number", -1) == run.status()["log"]["head"], "carl is at the head")
    measured(3, "time from its return until it is at the head of the log", time.monotonic() - thawed_at, "s")
    missed = run.head - frozen
    # What a peer counts comes a little later to the coordinator than its place in the log.
    fetched = run.until(lambda: peer(run, "carl")["stats"]["fetched_bytes"] - before, "carl says what it has fetched")
    assert run.events("carl", "behind") == []  # no snapshot
    assert fetched <= updates_bytes(run, "carl", after=frozen)
    measured(3, f"bytes fetched by a peer that had missed {missed} updates", fetched, "B")
    measured(3, "bytes of the whole state", state_bytes, "B")
    run.resume()
    run.until_commits(3, "anna", "bert", "carl")
    run.assert_parity("anna", "bert", "carl")
    run.stop("anna", "bert", "carl")


@pytest.mark.scenario(10)
def test_a_download_goes_on_with_what_it_has_when_its_source_is_killed(
    new_run: Callable[..., Run], measured: Measured
) -> None:
    run = new_run()
    run.pause()  # on so slow a link a lone peer makes updates faster than another can fetch them
    for name in ("anna", "bert"):
        run.peer(name, "--max-upload", "2mbit", trainer=WIDE)
    run.until(lambda: all(peer(run, name).get("state") == "member" for name in ("anna", "bert")), "both are in")
    run.resume()
    run.until_commits(3, "anna", "bert")
    run.pause()
    run.peer("nora", trainer=WIDE)

    def chunks() -> int:
        found = re.search(r"fetching the state from .*: (\d+) of \d+ chunks", peer(run, "nora").get("waiting", ""))
        return int(found[1]) if found else 0

    run.until(lambda: chunks() >= 3, "nora has a few chunks")
    run.kill("anna")
    run.until(lambda: peer(run, "nora").get("state") == "member", "nora has it all")
    run.resume()
    run.until_commits(3, "bert", "nora")
    (current, *_) = run.events("nora", "current")
    state_bytes = 2 * peer(run, "nora")["stats"]["model_bytes"]
    fetched = current["fetched_bytes"] - updates_bytes(run, "nora", last=current["number"])
    assert fetched <= 1.2 * state_bytes  # what was there was not fetched again
    measured(10, "bytes fetched, of which one source was killed, as a share of the state", fetched / state_bytes, "")
    run.assert_parity("bert", "nora")
    run.stop("bert", "nora")


@pytest.mark.scenario(10)
def test_a_source_that_lies_is_named_and_only_its_chunks_are_fetched_again(
    new_run: Callable[..., Run], measured: Measured
) -> None:
    run = new_run()
    run.pause()  # on so slow a link a lone peer makes updates faster than another can fetch them
    for name in ("anna", "bert"):  # the honest ones take seconds to give it all, so the liar comes to give some
        run.peer(name, "--max-upload", "4mbit", trainer=WIDE)
    run.until(lambda: all(peer(run, name).get("state") == "member" for name in ("anna", "bert")), "both are in")
    run.peer("liar", trainer=WIDE, prepare=LIES)
    run.until(lambda: peer(run, "liar").get("state") == "member", "the liar is in, too")
    run.resume()
    run.until_commits(3, "anna", "bert", "liar")
    run.pause()  # all digest the same state
    run.peer("nora", trainer=WIDE)
    (found, *_) = run.until(lambda: run.events("nora", "false-state"), "nora finds out that its state is false")
    ids = {event["name"]: event["peer"] for event in run.events("coordinator", "joined")}
    assert found["sources"] == [ids["liar"]]
    assert found["chunks"] < found["of"]
    measured(10, "chunks fetched again because a source had lied", found["chunks"], f"of {found['of']}")
    run.until(lambda: peer(run, "nora").get("state") == "member", "nora is repaired")
    run.resume()
    run.until_commits(3, "anna", "bert", "liar", "nora")
    run.assert_parity("anna", "bert", "liar", "nora")
    assert len(run.events("nora", "false-state")) == 1
    run.stop("anna", "bert", "liar", "nora")


@pytest.mark.scenario(9)
def test_a_newcomer_on_a_link_that_is_slower_than_the_run_gets_in(
    new_run: Callable[..., Run], measured: Measured
) -> None:
    run = new_run()
    run.peer("anna", "--max-upload", "1500kbit", trainer=NARROW)
    run.until_commits(3, "anna")
    began_at = time.monotonic()
    run.peer("nora", trainer=NARROW)
    run.until_commits(1, "anna", "nora")
    measured(9, "time until a newcomer takes part whose link is slower than the run", time.monotonic() - began_at, "s")
    chased = [event["event"] for event in run.events("coordinator") if event["event"] in ("chasing", "gaining")]
    assert chased == ["chasing", "gaining"] * (len(chased) // 2)
    run.until_commits(3, "anna", "nora")
    run.assert_parity("anna", "nora")
    run.stop("anna", "nora")
