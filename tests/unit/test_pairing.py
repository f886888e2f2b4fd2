"""Pairs of a gossip stream: who exchanges with whom, that nobody else waits for it, and how all come to one."""

import itertools
from collections.abc import Callable

import pytest

from wantrain.errors import ProtocolBug
from wantrain.peers.messages import Abort, CommitRecord, Start, SyncId, SyncReport
from wantrain.peers.pairing import Pairing
from wantrain.peers.round_events import Cast, Persist, Persisted, Reported, RoundEffect, Tell, Tick
from wantrain.peers.timing import Policy
from wantrain.transport.cost import Choice
from wantrain.transport.partition import split_chunks

POLICY = Policy(
    quorum=0.5, grace_floor_s=1.0, grace_ceiling_s=10.0, deadline_floor_s=5.0, deadline_ceiling_s=60.0, heartbeat_s=1.0
)
DIGEST = b"d" * 32


class Run:
    """A stream with its peers and its log."""

    def __init__(
        self,
        live: str,
        *,
        records: tuple[CommitRecord, ...] = (),
        together: Callable[[tuple[str, ...]], int] = len,
        last: int = 0,
    ) -> None:
        attempts = itertools.count(1)

        def plan(contributors: tuple[str, ...], receivers: tuple[str, ...], direct: bool) -> Choice:
            assert not receivers
            return Choice("direct", contributors, (), split_chunks(4, [1.0] * len(contributors)), 0.0, "")

        self.pairing = Pairing("param", plan, records, POLICY, lambda: next(attempts), together=together, last=last)
        self.records = list(records)
        self.last = dict.fromkeys(live, 0)
        self.cast(live)

    def cast(self, live: str, now: float = 0.0) -> list[RoundEffect]:
        return self.pairing.handle(Cast(1, tuple(live), frozenset(live), dict.fromkeys(live)), now)

    def ready(self, *peers: str, now: float = 0.0) -> list[Start]:
        """They report themselves ready; what is started then, once for each attempt."""
        return starts([e for p in peers for e in self.says(p, SyncReport("param", self.last[p] + 1, "ready"), now)])

    def says(self, peer: str, line: SyncReport, now: float = 0.0) -> list[RoundEffect]:
        return self.pairing.handle(Reported(peer, line), now)

    def done(self, start: Start, *peers: str, now: float = 0.0) -> list[RoundEffect]:
        """Contributors (all, if none are named) report that they are done."""
        lines = [
            (peer, SyncReport("param", self.last[peer] + 1, "done", attempt=start.sync.attempt, digest=DIGEST))
            for peer in peers or start.contributors
        ]
        return [effect for peer, line in lines for effect in self.says(peer, line, now)]

    def commit(self, effects: list[RoundEffect], now: float = 0.0) -> list[RoundEffect]:
        """What is to be written becomes durable, and its contributors know."""
        (persist,) = [effect for effect in effects if isinstance(effect, Persist)]
        start = persist.start
        number = len(self.records) + 1
        weights = tuple(1.0 for _ in start.contributors)
        record = CommitRecord(
            number, start.sync, start.contributors, weights, DIGEST, DIGEST, consensus=start.consensus
        )
        self.records.append(record)
        self.pairing.committed(record)
        found = self.pairing.handle(Persisted(start.sync.attempt), now)
        self.last |= dict.fromkeys(start.contributors, start.sync.index)
        return found


def starts(effects: list[RoundEffect]) -> list[Start]:
    told = [effect.record for effect in effects if isinstance(effect, Tell) and isinstance(effect.record, Start)]
    return list({start.sync: start for start in told}.values())


def partner(run: Run, peer: str) -> str:
    """Who was drawn for `peer`, who is ready and waits."""
    (late,) = run.pairing.waiting_for
    assert late != peer
    return late


def pair_of(run: Run, peer: str, now: float = 0.0) -> Start:
    """Let `peer` and whoever is drawn for it exchange."""
    assert run.ready(peer, now=now) == []
    (start,) = run.ready(partner(run, peer), now=now)
    return start


def test_a_pair_begins_when_both_are_ready_and_no_other_waits_for_it() -> None:
    run = Run("abcd")
    first = pair_of(run, "a")
    assert set(first.contributors) > {"a"}
    assert (len(first.contributors), first.receivers, first.consensus) == (2, (), False)
    rest = sorted(set("abcd").difference(first.contributors))
    assert run.ready(rest[0]) == []
    (second,) = run.ready(rest[1])
    assert sorted(second.contributors) == rest
    assert run.pairing.busy == (*first.contributors, *second.contributors)
    run.commit(run.done(second))
    assert run.pairing.busy == first.contributors
    assert [record.contributors for record in run.records] == [second.contributors]


def test_everybody_is_drawn_for_everybody_sooner_or_later() -> None:
    run = Run("abcd")
    met = set()
    for _ in range(60):
        start = pair_of(run, "a")
        rest = [peer for peer in "abcd" if peer not in start.contributors]
        run.ready(rest[0])
        (other,) = run.ready(rest[1])
        met |= {frozenset(start.contributors), frozenset(other.contributors)}
        run.commit(run.done(start))
        run.commit(run.done(other))
    assert len(met) == 6
    assert set(run.last.values()) == {60}


def test_of_an_odd_number_one_takes_its_step_alone() -> None:
    run = Run("abc")
    for _ in range(20):
        found = run.ready("a", "b", "c")
        assert sorted(len(start.contributors) for start in found) == [1, 2]
        for start in found:
            run.commit(run.done(start))


def test_the_index_grows_for_both_whoever_was_behind() -> None:
    run = Run("ab")
    run.last["b"] = 6
    assert run.ready("b") == []
    (start,) = run.ready("a")
    assert start.sync.index == 7
    assert run.pairing.index == 8


@pytest.mark.scenario(23)
def test_a_partner_that_is_lost_before_it_has_all_leaves_the_other_alone_with_the_same_input() -> None:
    run = Run("ab")
    start = pair_of(run, "a")
    effects = run.cast("a", now=1.0)
    assert Tell("a", Abort(start.sync, "lost b")) in effects
    (alone,) = starts(effects)
    assert alone.contributors == ("a",)
    assert alone.sync.attempt > start.sync.attempt


@pytest.mark.scenario(23)
def test_a_partner_that_is_lost_when_the_other_has_all_is_in_the_commit() -> None:
    run = Run("ab")
    start = pair_of(run, "a")
    assert run.done(start, "a") == []
    (persist,) = run.cast("a", now=1.0)
    assert isinstance(persist, Persist)
    assert persist.start == start
    # It comes back before the commit is durable: what it holds is still of use.
    run.cast("ab", now=2.0)
    assert run.done(start, "b", now=2.0) == []
    run.commit([persist], now=2.0)
    old = SyncReport("param", 1, "done", attempt=start.sync.attempt, digest=DIGEST)
    assert run.says("b", old, 3.0) == []


@pytest.mark.scenario(23)
def test_who_comes_back_while_its_commit_is_written_is_in_no_other_pair_before_that_is_done() -> None:
    """What it has staged is in that commit: in another one it would count twice."""
    run = Run("abc")
    first = pair_of(run, "a")
    (lost,) = set(first.contributors) - {"a"}
    (third,) = set("abc").difference(first.contributors)
    run.done(first, "a")
    (persist,) = [effect for effect in run.cast(f"a{third}", now=1.0) if isinstance(effect, Persist)]
    run.cast("abc", now=2.0)
    assert run.ready(lost, now=2.0) == []  # it may have been told that the attempt is over
    (alone,) = run.ready(third, now=2.0)
    assert alone.contributors == (third,)
    assert lost not in run.pairing.waiting_for
    run.commit([persist], now=3.0)
    run.commit(run.done(alone, now=3.0), now=3.0)
    found = run.ready("a", lost, third, now=4.0)
    assert {peer for start in found for peer in start.contributors} == set("abc")


def test_who_is_late_beyond_the_grace_time_is_left_alone_and_not_waited_for_next_time() -> None:
    run = Run("ab")
    assert run.ready("a") == []
    assert starts(run.pairing.handle(Tick(), 9.0)) == []
    (alone,) = starts(run.pairing.handle(Tick(), 10.1))
    assert alone.contributors == ("a",)
    run.commit(run.done(alone, now=10.2), now=10.2)
    (again,) = run.ready("a", now=11.0)
    assert again.contributors == ("a",)


def test_a_pair_that_stalls_falls_apart_and_each_goes_on_alone() -> None:
    run = Run("ab")
    start = pair_of(run, "a")
    effects = run.pairing.handle(Tick(), 6.0)
    aborted = [effect for effect in effects if isinstance(effect, Tell) and isinstance(effect.record, Abort)]
    assert {effect.to for effect in aborted} == set("ab")
    found = starts(effects)
    assert sorted(one.contributors for one in found) == [("a",), ("b",)]
    assert all(one.sync.attempt > start.sync.attempt for one in found)


def test_two_that_cannot_meet_are_no_pair() -> None:
    run = Run("ab", together=lambda peers: 1)
    assert [start.contributors for start in run.ready("a", "b")] == [("a",), ("b",)]


def test_an_attempt_that_is_over_is_ended_and_what_is_old_changes_nothing() -> None:
    record = CommitRecord(1, SyncId("param", 4, 9), ("a", "b"), (1.0, 1.0), DIGEST, DIGEST)
    run = Run("ab", records=(record,))
    assert run.pairing.index == 5
    assert run.says("a", SyncReport("param", 4, "done", attempt=9, digest=DIGEST)) == []
    (told,) = run.says("a", SyncReport("param", 5, "moving", attempt=10))
    assert told == Tell("a", Abort(SyncId("param", 5, 10), "the attempt is over"))


def test_for_a_consensus_pairs_that_move_finish_and_then_all_are_in_one_sync() -> None:
    run = Run("abcd")
    start = pair_of(run, "a")
    late, later = sorted(set("abcd").difference(start.contributors))
    assert run.ready(late) == []
    run.pairing.wants_consensus = True
    run.pairing.handle(Tick(), 0.5)
    assert run.ready(later, now=0.6) == []
    assert "then all replicas come to one" in run.pairing.told()[late]
    assert starts(run.commit(run.done(start, now=0.7), now=0.7)) == []
    (whole,) = run.ready(*start.contributors, now=0.8)
    assert (set(whole.contributors), whole.consensus) == (set("abcd"), True)
    assert run.pairing.agreed == 0
    run.commit(run.done(whole, now=0.9), now=0.9)
    assert (run.pairing.agreed, run.pairing.wants_consensus) == (2, False)
    assert run.pairing.agreed_still("abcd") == tuple("abcd")
    run.pairing.held_back = "a"
    (pair, *_) = [start for start in run.ready("a", "b", "c", "d", now=1.0) if len(start.contributors) == 2]
    assert "a" not in pair.contributors
    run.commit(run.done(pair, now=1.1), now=1.1)
    assert set(run.pairing.agreed_still("abcd")) == set("abcd").difference(pair.contributors)


def test_the_last_sync_of_the_run_is_one_of_everybody() -> None:
    """As soon as somebody is ready for it; who is behind ends with the others."""
    run = Run("abc", last=2)
    first = pair_of(run, "a")
    (behind,) = set("abc").difference(first.contributors)
    run.commit(run.done(first))
    assert run.ready(*first.contributors, now=0.1) == []
    (whole,) = run.ready(behind, now=0.2)
    assert (set(whole.contributors), whole.consensus, whole.sync.index) == (set("abc"), True, 2)
    run.commit(run.done(whole, now=0.3), now=0.3)
    assert run.pairing.agreed_still("abc") == tuple("abc")


def test_a_commit_of_nothing_is_a_bug() -> None:
    with pytest.raises(ProtocolBug, match="attempt 3 of stream param is committed and not under way"):
        Run("ab").pairing.handle(Persisted(3), 0.0)
