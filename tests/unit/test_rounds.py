"""The syncs of one stream: who is waited for, what ends an attempt, and that a commit is durable before it is known."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from wantrain.errors import ProtocolBug
from wantrain.peers.messages import Abort, Start, SyncReport
from wantrain.peers.rounds import (
    AGAIN_S,
    MOST_WEIGHED,
    Aborted,
    Absent,
    Cast,
    Committed,
    LeftBehind,
    Persist,
    Persisted,
    Phase,
    Rejected,
    Reported,
    Round,
    RoundEffect,
    Seen,
    Tell,
    Tick,
)
from wantrain.peers.timing import Policy
from wantrain.transport.cost import Choice
from wantrain.transport.partition import split_chunks

POLICY = Policy(
    quorum=0.5, grace_floor_s=1.0, grace_ceiling_s=10.0, deadline_floor_s=5.0, deadline_ceiling_s=60.0, heartbeat_s=1.0
)


def cast(live: str, *, eta: dict[str, float | None] | None = None, abreast: str | None = None, view: int = 1) -> Cast:
    expected = dict.fromkeys(live) if eta is None else eta
    return Cast(view, tuple(live), frozenset(live if abreast is None else abreast), expected)


def round_of(
    live: str,
    *,
    chunks: int = 4,
    eta: dict[str, float | None] | None = None,
    topology: str = "direct",
    together: Callable[[tuple[str, ...]], int] = len,
    predicted_s: float = 0.0,
    slowest_s: float = 0.0,
) -> Round:
    attempts = itertools.count(1)

    def plan(contributors: tuple[str, ...], receivers: tuple[str, ...], direct: bool) -> Choice:
        shards = split_chunks(chunks, [1.0] * len(contributors))
        ring = topology == "ring" and not direct
        how = "ring" if ring else "direct"
        return Choice(how, contributors, () if ring else receivers, shards, predicted_s, "", slowest_s)

    current = Round("param", plan, 1, POLICY, lambda: next(attempts), together=together)
    current.handle(cast(live, eta=eta), 0.0)
    return current


def ready(peer: str, index: int = 1, *, weight: float = 1.0, norm: float = 1.0) -> Reported:
    return Reported(peer, SyncReport("param", index, "ready", weight, norm))


def moving(peer: str, attempt: int, *, missing: int = 1, waiting_for: str = "") -> Reported:
    line = SyncReport("param", 1, "moving", attempt=attempt, missing=missing, waiting_for=tuple(waiting_for))
    return Reported(peer, line)


def done(peer: str, attempt: int, digest: bytes = b"d" * 32) -> Reported:
    return Reported(peer, SyncReport("param", 1, "done", attempt=attempt, digest=digest))


def failed(peer: str, attempt: int, blamed: str = "", why: str = "", index: int = 1) -> Reported:
    line = SyncReport("param", index, "failed", attempt=attempt, waiting_for=tuple(blamed), why=why)
    return Reported(peer, line)


def starts(effects: list[RoundEffect]) -> dict[str, Start]:
    return {
        effect.to: effect.record for effect in effects if isinstance(effect, Tell) and isinstance(effect.record, Start)
    }


def begun(live: str, now: float = 0.0, **options: Any) -> Round:
    """A round whose first attempt moves among `live`; options as of `round_of`."""
    current = round_of(live, **options)
    effects = [effect for peer in live for effect in current.handle(ready(peer), now)]
    assert set(starts(effects)) == set(live)
    return current


def done_line(index: int, attempt: int) -> SyncReport:
    return SyncReport("param", index, "done", attempt=attempt, digest=b"d" * 32)


def commit_alone(current: Round, peer: str, index: int, now: float) -> None:
    """One contributor and all receivers are done with the attempt, and it is committed."""
    assert current.start is not None
    for receiver in current.start.receivers:
        current.handle(Reported(receiver, done_line(index, current.start.sync.attempt)), now)
    current.handle(Reported(peer, done_line(index, current.start.sync.attempt)), now)
    current.handle(Persisted(), now)


def aborts(effects: list[RoundEffect]) -> list[Aborted]:
    return [effect for effect in effects if isinstance(effect, Aborted)]


# ---- gathering


def test_it_starts_when_everybody_is_ready_in_the_order_of_the_view() -> None:
    current = round_of("abc")
    assert current.handle(ready("c", weight=3.0), 0.0) == []
    assert current.handle(ready("a", weight=1.0), 0.5) == []
    start = starts(current.handle(ready("b", weight=2.0), 0.6))["a"]
    assert (start.contributors, start.weights, start.receivers) == (("a", "b", "c"), (1.0, 2.0, 3.0), ())
    assert sum(start.shards) == 4


def test_who_is_waited_for_in_vain_is_waited_for_in_ever_fewer_syncs() -> None:
    current, now, waited = round_of("ab"), 0.0, []
    for index in range(1, 16):
        if not current.handle(ready("a", index), now):
            waited.append(index)
            now += POLICY.grace_ceiling_s
            assert starts(current.handle(Tick(), now))["a"].contributors == ("a",)
        commit_alone(current, "a", index, now)
    assert waited == [1, 3, 7, 15]  # and not in the 1, 3 and 7 syncs after them
    assert not current.handle(ready("b", 16), now)
    both = starts(current.handle(ready("a", 16), now))["a"]
    assert both.contributors == ("a", "b")  # who shows up takes part, and is waited for again
    for peer in "ab":
        effects = current.handle(Reported(peer, done_line(16, both.sync.attempt)), now)
    assert any(isinstance(effect, Persist) for effect in effects)
    current.handle(Persisted(), now)
    assert current.handle(ready("a", 17), now) == []


def test_a_lone_peer_starts_at_once() -> None:
    assert starts(round_of("a").handle(ready("a"), 0.0))["a"].contributors == ("a",)


def test_below_the_quorum_it_waits_for_the_ceiling_and_says_for_whom() -> None:
    current = round_of("abcde")
    current.handle(ready("a"), 0.0)
    assert current.handle(Tick(), 9.9) == []
    assert current.reason.startswith("waiting for 4 of 5 to be ready: b, c, d, e")
    assert starts(current.handle(Tick(), 10.0))["b"].receivers == ("b", "c", "d", "e")


def test_with_a_quorum_a_peer_that_is_expected_soon_is_waited_for_and_one_that_is_not_is_left_out() -> None:
    soon = round_of("abc", eta={"a": 0.0, "b": 0.0, "c": 4.0})
    soon.handle(ready("a"), 0.0)
    soon.handle(ready("b"), 0.0)
    assert soon.handle(Tick(), 5.9) == []
    assert starts(soon.handle(Tick(), 6.1))
    never = round_of("abc", eta={"a": 0.0, "b": 0.0, "c": 100.0})
    never.handle(ready("a"), 0.0)
    never.handle(ready("b"), 0.0)
    assert starts(never.handle(Tick(), 1.1))["c"].receivers == ("c",)


def test_a_peer_that_does_not_train_is_not_waited_for_and_receives() -> None:
    current = round_of("abc", eta={"a": None, "b": None})
    current.handle(ready("a"), 0.0)
    assert starts(current.handle(ready("b"), 0.0))["c"].receivers == ("c",)


def test_who_is_behind_the_log_need_not_receive() -> None:
    current = round_of("ab")
    current.handle(cast("abc", eta={"a": None, "b": None}, abreast="ab"), 0.0)
    current.handle(ready("a"), 0.0)
    assert starts(current.handle(ready("b"), 0.0))["a"].receivers == ()


def test_a_peer_that_lost_what_it_was_ready_with_is_not_started_with() -> None:
    current = round_of("abc", eta={"a": None, "b": None, "c": None})
    current.handle(ready("a"), 0.0)
    current.handle(ready("b"), 0.0)
    assert current.handle(Absent("b"), 0.1) == []
    assert current.ready == ("a",)


def test_a_report_of_another_sync_does_not_make_ready() -> None:
    current = round_of("a")
    assert current.handle(ready("a", index=2), 0.0) == []
    assert current.handle(ready("a", index=0), 0.0) == []


# ---- moving


def test_it_commits_when_all_are_done_with_one_digest_and_only_after_it_is_durable() -> None:
    current = begun("ab")
    assert current.handle(done("a", 1), 1.0) == []
    (persist,) = current.handle(done("b", 1), 2.0)
    assert isinstance(persist, Persist)
    assert (persist.digest, persist.move_s) == (b"d" * 32, 2.0)
    assert current.phase is Phase.COMMITTING
    assert current.handle(done("a", 1), 2.1) == current.handle(Tick(), 99.0) == current.handle(cast("a"), 99.0) == []
    assert current.handle(Persisted(), 2.5) == [Committed()]
    assert (current.index, current.phase) == (2, Phase.GATHERING)
    assert current.handle(ready("a", index=1), 3.0) == []


@pytest.mark.scenario(1)
@pytest.mark.parametrize("lost", "abc")
def test_losing_a_contributor_starts_anew_with_the_others(lost: str) -> None:
    current = begun("abc")
    effects = current.handle(cast("abc".replace(lost, "")), 1.0)
    assert [abort.reason for abort in aborts(effects)] == [f"lost {lost}"]
    start = starts(effects)
    assert {s.contributors for s in start.values()} == {tuple("abc".replace(lost, ""))}
    assert {s.sync.attempt for s in start.values()} == {2}


@pytest.mark.scenario(1)
def test_a_peer_lost_after_all_others_are_done_does_not_undo_their_work() -> None:
    current = begun("abc")
    current.handle(done("a", 1), 1.0)
    current.handle(done("b", 1), 1.0)
    assert isinstance(current.handle(cast("ab"), 2.0)[0], Persist)


def test_when_all_are_lost_the_attempt_ends_and_nothing_starts() -> None:
    current = begun("ab")
    assert aborts(current.handle(cast(""), 1.0))
    assert current.phase is Phase.GATHERING
    assert current.handle(Tick(), 100.0) == []


def test_a_receiver_that_is_stuck_is_left_behind_and_the_sync_commits() -> None:
    current = round_of("ab", eta={"a": None})
    assert starts(current.handle(ready("a"), 0.0))["a"].receivers == ("b",)
    current.handle(done("a", 1), 0.1)
    effects = current.handle(Tick(), 5.0)
    assert isinstance(effects[0], LeftBehind)
    assert isinstance(effects[1], Persist)


def isolated(trains: str) -> Round:
    """Of three peers `a` has gone ahead alone after the grace time, and the two others get nothing from it."""
    current = round_of("abc", eta=dict.fromkeys(trains))
    start = starts([*current.handle(ready("a"), 0.0), *current.handle(Tick(), 10.0)])["a"]
    assert (start.contributors, start.receivers) == (("a",), ("b", "c"))
    current.handle(done("a", 1), 10.1)
    for peer in "bc":
        current.handle(moving(peer, 1, waiting_for="a"), 10.1)
    return current


@pytest.mark.scenario(4)
def test_who_gives_its_update_to_few_of_those_that_train_is_left_out_and_the_others_go_on_together() -> None:
    current = isolated("abc")
    effects = current.handle(Tick(), 15.2)
    assert aborts(effects)[0].dropped == ("a",)
    assert not starts(effects)
    assert not starts(current.handle(ready("a"), 15.3))
    current.handle(ready("b"), 16.0)
    start = starts(current.handle(ready("c"), 17.0))["b"]
    assert (start.contributors, start.receivers) == (("b", "c"), ())


@pytest.mark.scenario(4)
def test_who_gives_its_update_to_few_goes_on_alone_if_nobody_else_has_come_by_the_next_time() -> None:
    current = isolated("abc")
    current.handle(Tick(), 15.2)
    current.handle(ready("a"), 15.3)
    assert not starts(current.handle(Tick(), 25.2))
    assert starts(current.handle(Tick(), 25.3))["a"].contributors == ("a",)
    current.handle(done("a", 2), 25.4)
    for peer in "bc":
        current.handle(moving(peer, 2, waiting_for="a"), 25.4)
    left = [effect for at_s in (30.5, 30.6) for effect in current.handle(Tick(), at_s)]
    assert [type(effect) for effect in left] == [LeftBehind, LeftBehind, Persist]


@pytest.mark.scenario(4)
def test_as_many_as_lack_an_update_hold_it_so_it_is_committed() -> None:
    current = isolated("ab")
    left = [effect for at_s in (15.2, 15.3) for effect in current.handle(Tick(), at_s)]
    assert [type(effect) for effect in left] == [LeftBehind, LeftBehind, Persist]


def apart(live: str, cut_off: str) -> Cast:
    trains = live.replace(cut_off, "")
    return Cast(1, tuple(live), frozenset(live), dict.fromkeys(trains), cut_off=frozenset(cut_off))


@pytest.mark.scenario(4, 18)
def test_who_is_cut_off_is_not_in_a_sync_of_the_others_and_does_not_go_ahead_of_them() -> None:
    current = round_of("abc")
    current.handle(apart("abc", "c"), 0.0)
    current.handle(ready("c"), 0.0)
    assert not starts(current.handle(Tick(), 59.9))
    assert current.reason == "c cut off; waiting for a, b"
    current.handle(ready("a"), 60.0)
    start = starts(current.handle(ready("b"), 60.1))["a"]
    assert (start.contributors, start.receivers) == (("a", "b"), ())


@pytest.mark.scenario(4, 18)
def test_who_was_cut_off_while_a_sync_moved_is_left_out_and_not_whom_the_others_wait_for() -> None:
    """Seed 449: all waited for b, who owned everything and had not got the part of a."""
    current = round_of("abc")
    for peer in "ab":
        current.handle(ready(peer), 0.0)
    current.handle(Tick(), 10.0)
    for peer, waits_for in (("a", "b"), ("b", "a"), ("c", "b")):
        current.handle(moving(peer, 1, waiting_for=waits_for), 10.1)
    current.handle(apart("abc", "a"), 14.0)
    effects = current.handle(Tick(), 15.2)
    assert aborts(effects)[0].dropped == ("a",)
    start = starts(effects)["b"]
    assert (start.contributors, start.receivers) == (("b",), ("c",))


@pytest.mark.scenario(4, 18)
def test_rather_with_one_who_was_left_out_than_with_one_who_is_cut_off() -> None:
    current = begun("ab")
    for peer, waits_for in (("a", "b"), ("b", "a")):
        current.handle(moving(peer, 1, waiting_for=waits_for), 0.1)
    effects = current.handle(Tick(), 5.2)
    assert aborts(effects)[0].dropped == ("b",)
    current.handle(apart("ab", "a"), 5.3)
    effects = current.handle(Tick(), 10.3)
    assert aborts(effects)[0].dropped == ("a",)
    assert starts(effects)["b"].contributors == ("b",)


@pytest.mark.scenario(4, 18)
@pytest.mark.parametrize(("trains", "now"), [("ab", 60.0), ("", 10.0)])
def test_who_is_cut_off_goes_on_if_nobody_else_does(trains: str, now: float) -> None:
    current = round_of("abc")
    current.handle(replace(apart("abc", "c"), expected=dict.fromkeys(trains)), 0.0)
    current.handle(ready("c"), 0.0)
    assert starts(current.handle(Tick(), now))["c"].contributors == ("c",)


@pytest.mark.scenario(4)
def test_without_progress_the_one_whom_most_wait_for_is_left_out_and_benched_longer_each_time() -> None:
    current = begun("abc")
    current.handle(moving("a", 1, waiting_for="b"), 0.1)
    current.handle(moving("c", 1, waiting_for="b"), 0.1)
    effects = current.handle(Tick(), 5.2)
    assert aborts(effects)[0].dropped == ("b",)
    assert starts(effects)["a"].contributors == ("a", "c")


@pytest.mark.scenario(4)
def test_where_all_meet_at_one_peer_the_other_end_of_a_dead_path_is_left_out() -> None:
    """All wait for b, who waits for c alone; without b nobody could go on with anybody."""
    current = begun("abc", together=lambda peers: len(peers) if "b" in peers else 1)
    for peer, waits_for in (("a", "b"), ("b", "c"), ("c", "b")):
        current.handle(moving(peer, 1, waiting_for=waits_for), 0.1)
    assert aborts(current.handle(Tick(), 5.2))[0].dropped == ("c",)


@pytest.mark.scenario(4)
def test_of_more_than_can_be_weighed_the_one_whom_all_wait_for_is_left_out() -> None:
    live = "abcdefghijklmnopqrst"
    assert len(live) > MOST_WEIGHED
    current = begun(live)
    for peer in live[:-1]:
        current.handle(moving(peer, 1, waiting_for="t"), 0.1)
    assert aborts(current.handle(Tick(), 5.2))[0].dropped == ("t",)


@pytest.mark.scenario(17)
@pytest.mark.parametrize(("predicted_s", "slowest_s"), [(4.0, 0.0), (0.0, 4.0)])
def test_a_first_sync_over_a_slow_link_gets_the_time_that_it_was_predicted_to_take(
    predicted_s: float, slowest_s: float
) -> None:
    current = begun("ab", predicted_s=predicted_s, slowest_s=slowest_s)
    assert aborts(current.handle(Tick(), 11.9)) == []  # the floor is 5 s
    assert aborts(current.handle(Tick(), 12.1))


def test_progress_puts_the_deadline_off() -> None:
    current = begun("ab")
    for step in range(1, 10):
        assert current.handle(moving("a", 1, missing=20 - step), 4.0 * step) == []
        assert aborts(current.handle(Tick(), 4.0 * step + 3.9)) == []
    assert aborts(current.handle(Tick(), 4.0 * 9 + 5.0))


def test_what_the_store_takes_to_write_a_commit_puts_no_deadline_off() -> None:
    current = begun("ab")
    for peer in "ab":
        current.handle(done(peer, 1), 1.0)
    current.handle(Persisted(), 600.0)
    for peer in "ab":
        current.handle(ready(peer, 2), 600.0)
    assert aborts(current.handle(Tick(), 606.1))


def test_a_peer_that_is_left_alone_after_it_was_dropped_goes_on_alone() -> None:
    """Seeds 8, 299 and 464: the only peer was excluded from its own sync for ever."""
    current = begun("a")
    effects = current.handle(Tick(), 5.0)
    assert aborts(effects)[0].dropped == ("a",)
    assert starts(effects)["a"].contributors == ("a",)


def test_a_dropped_peer_waits_for_the_others_before_it_goes_on_alone() -> None:
    current = begun("ab")
    current.handle(moving("a", 1, waiting_for="b"), 0.1)
    effects = current.handle(Tick(), 5.2)
    assert starts(effects)["a"].contributors == ("a",)
    current.handle(cast("bc"), 6.0)
    assert current.handle(Tick(), 9.9) == []
    assert current.reason == "b left out after a failed attempt; waiting for c"
    assert starts(current.handle(Tick(), 10.0))["b"].contributors == ("b",)


@pytest.mark.scenario(15)
def test_a_digest_that_differs_is_not_committed_and_the_minority_is_left_out() -> None:
    current = begun("abc")
    current.handle(done("a", 1), 1.0)
    current.handle(done("b", 1, b"x" * 32), 1.0)
    effects = current.handle(done("c", 1), 1.0)
    assert aborts(effects)[0].dropped == ("b",)
    assert starts(effects)["a"].contributors == ("a", "c")


@pytest.mark.scenario(15)
def test_two_digests_without_a_majority_are_tried_again_before_one_is_left_out() -> None:
    current = begun("ab")
    for attempt in (1, 2):
        current.handle(done("a", attempt), 1.0)
        effects = current.handle(done("b", attempt, b"x" * 32), 1.0)
        assert aborts(effects)[0].dropped == ()
    current.handle(done("a", 3), 1.0)
    assert aborts(current.handle(done("b", 3, b"x" * 32), 1.0))[0].dropped == ("b",)


@pytest.mark.scenario(14)
def test_a_chunk_that_does_not_encode_ends_the_attempt_at_once_without_the_largest() -> None:
    current = round_of("abc")
    for peer, norm in (("a", 1.0), ("b", 30.0), ("c", 2.0)):
        current.handle(ready(peer, norm=norm), 0.0)
    effects = current.handle(failed("c", 1), 0.1)
    assert aborts(effects)[0].dropped == ("b",)
    assert starts(effects)["a"].contributors == ("a", "c")


def test_a_peer_that_blames_itself_is_left_out() -> None:
    current = begun("abc")
    assert aborts(current.handle(failed("a", 1, blamed="a"), 0.1))[0].dropped == ("a",)


def test_a_contributor_that_lost_its_contribution_ends_the_attempt_at_once() -> None:
    current = begun("ab")
    effects = current.handle(Absent("b"), 0.1)
    assert aborts(effects)
    assert current.phase is Phase.GATHERING  # a waits for b again
    assert starts(current.handle(ready("b"), 0.2))


# ---- what got lost


def test_a_start_that_got_lost_is_sent_again_but_not_at_every_report() -> None:
    current = round_of("ab", eta={"a": None})
    current.handle(ready("a"), 0.0)
    assert set(starts(current.handle(ready("a"), 0.1))) == {"a"}
    assert set(starts(current.handle(Absent("b"), 0.1))) == {"b"}
    assert current.handle(ready("a"), 0.5) == current.handle(Absent("b"), 0.5) == []
    assert set(starts(current.handle(ready("a"), 0.7))) == {"a"}


def test_an_abort_that_got_lost_is_sent_again() -> None:
    current = round_of("ab")
    (tell,) = current.handle(moving("a", 7), 1.0)
    assert isinstance(tell, Tell)
    assert isinstance(tell.record, Abort)
    assert tell.record.sync.attempt == 7


def test_late_reports_of_an_older_attempt_count_for_nothing() -> None:
    current = begun("ab")
    current.handle(cast("a"), 1.0)
    current.handle(cast("ab"), 1.0)
    assert not any(isinstance(effect, Persist) for effect in current.handle(done("a", 1), 1.1))


def test_an_impossible_event_raises_with_the_history() -> None:
    with pytest.raises(ProtocolBug, match="Persisted"):
        round_of("a").handle(Persisted(), 0.0)


# ---- topologies


def test_a_ring_that_stalls_blames_nobody_and_the_next_attempt_is_direct() -> None:
    current = round_of("abc", topology="ring")
    effects = [effect for peer in "abc" for effect in current.handle(ready(peer), 0.0)]
    assert {start.topology for start in starts(effects).values()} == {"ring"}
    current.handle(moving("a", 1, waiting_for="c"), 1.0)
    effects = current.handle(Tick(), 100.0)
    assert [aborted.dropped for aborted in aborts(effects)] == [()]
    assert {start.topology for start in starts(effects).values()} == {"direct"}
    assert set(starts(effects)) == set("abc")
    for peer in "abc":
        effects = current.handle(done(peer, 2), 101.0)
    assert isinstance(effects[0], Persist)
    current.handle(Persisted(), 101.0)
    effects = [effect for peer in "abc" for effect in current.handle(ready(peer, 2), 102.0)]
    assert {start.topology for start in starts(effects).values()} == {"ring"}


def test_a_ring_has_no_receivers() -> None:
    current = round_of("abc", topology="ring", eta={"a": None, "b": None})
    effects = [effect for peer in "ab" for effect in current.handle(ready(peer), 0.0)]
    assert set(starts(effects)) == {"a", "b"}


# ---- one peer has changed


def test_a_peer_that_begins_to_train_is_waited_for() -> None:
    current = round_of("ab", eta={"a": None})
    current.handle(Seen("b", True, True, None), 0.0)
    assert current.handle(ready("a"), 0.0) == []
    assert current.waiting_for == ("b",)


def test_a_peer_that_ends_training_is_waited_for_no_longer() -> None:
    current = round_of("ab")
    assert current.handle(ready("a"), 0.0) == []
    effects = current.handle(Seen("b", True, False, None), 0.1)
    assert starts(effects)["b"].contributors == ("a",)
    assert starts(effects)["b"].receivers == ("b",)


def test_a_peer_behind_the_log_does_not_receive() -> None:
    current = round_of("ab", eta={"a": None})
    current.handle(Seen("b", False, False, None), 0.0)
    assert set(starts(current.handle(ready("a"), 0.0))) == {"a"}


def test_of_many_late_peers_a_reason_names_a_few_and_their_number() -> None:
    current = round_of("abcdefghijklmnop")
    current.handle(ready("a"), 0.0)
    assert "b, c, d, e, f, g, h, i and 7 more" in current.reason


# ---- contributions that cannot be used


def rejected(effects: list[RoundEffect]) -> list[Rejected]:
    return [effect for effect in effects if isinstance(effect, Rejected)]


@pytest.mark.scenario(14)
def test_whose_bytes_cannot_be_used_is_left_out_by_name_and_longer_each_time() -> None:
    current = round_of("abc")
    attempt, left_out = 0, []
    for index in range(1, 9):
        effects = [e for peer in "abc" for e in current.handle(ready(peer, index), 10.0 * index)]
        attempt += 1
        contributors = starts(effects)["a"].contributors
        if "c" in contributors:
            effects = current.handle(failed("b", attempt, "c", "NaN", index), 10.0 * index)
            assert [(r.peer, r.by, r.reason) for r in rejected(effects)] == [("c", "b", "NaN")]
            attempt += 1
            assert starts(effects)["a"].contributors == ("a", "b")
        else:
            left_out.append(index)
        for peer in starts(effects):
            line = SyncReport("param", index, "done", attempt=attempt, digest=b"d" * 32)
            current.handle(Reported(peer, line), 10.0 * index)
        current.handle(Persisted(), 10.0 * index)
    assert left_out == [3, 5, 6, 7]  # found out in 1, 2 and 4, and again in 8


@pytest.mark.scenario(14)
def test_who_was_let_in_for_want_of_others_is_tried_again_ever_later_and_has_offended_once() -> None:
    current = round_of("ab")
    current.handle(cast("ab", eta={"a": None}), 0.0)
    assert starts(current.handle(ready("a"), 0.0))["a"].contributors == ("a",)
    attempts_s: list[float] = []
    now, attempt = 0.0, 1
    while now < 60.0:
        effects = current.handle(failed("b", attempt, "a", "3 chunks"), now)
        assert [(r.peer, r.by) for r in rejected(effects)] == [("a", "b")]
        while not starts(effects) and now < 60.0:
            assert current.reason.startswith("a left out after a failed attempt")
            now += 0.05
            effects = current.handle(Tick(), now)
        attempts_s.append(now)
        attempt += 1
    apart_s = [round(later - earlier, 3) for earlier, later in itertools.pairwise(attempts_s[1:-1])]
    assert apart_s == sorted(apart_s)
    assert AGAIN_S <= apart_s[0] < 2.5 * AGAIN_S < apart_s[-1] < POLICY.grace_ceiling_s + 0.1
    assert current._offences.guilty["a"].times == 1
    current.handle(ready("b"), now)
    line = SyncReport("param", 1, "done", attempt=attempt, digest=b"d" * 32)
    for peer in "ab":
        current.handle(Reported(peer, line), now)
    current.handle(Persisted(), now)
    current.handle(cast("ab"), now)
    effects = [e for peer in "ab" for e in current.handle(ready(peer, 2), now)]
    assert starts(effects)["a"].contributors == ("a", "b")  # left out of one sync for one offence


def test_who_alone_accuses_one_after_another_is_left_out_itself() -> None:
    current = round_of("abcd")
    effects = [e for peer in "abcd" for e in current.handle(ready(peer), 0.0)]
    effects = current.handle(failed("a", 1, "b", "NaN"), 0.1)
    assert starts(effects)["a"].contributors == ("a", "c", "d")
    effects = current.handle(failed("a", 2, "c", "NaN"), 0.2)
    assert rejected(effects)[0].peer == "a"
    assert starts(effects)["c"].contributors == ("c", "d")


@pytest.mark.scenario(14)
@pytest.mark.parametrize("norm", [0.0, 1e6])
def test_a_norm_out_of_line_is_not_in_the_sync_and_the_others_do_not_wait(norm: float) -> None:
    current = round_of("abcd")
    effects = [
        e for peer in "abcd" for e in current.handle(ready(peer, norm=norm if peer == "b" else 1.0), 0.0)
    ]  # fmt: skip
    assert [(r.peer, r.by) for r in rejected(effects)] == [("b", "")]
    assert starts(effects)["a"].contributors == ("a", "c", "d")


def test_claimed_weights_count_only_where_the_run_weighs() -> None:
    current = round_of("ab")
    current._weighted = False
    effects = [e for peer in "ab" for e in current.handle(ready(peer, weight=1e15), 0.0)]
    assert starts(effects)["a"].weights == (1.0, 1.0)


# ---- a peer that catches up and does not gain


def test_a_sync_waits_for_a_peer_that_chases_the_log_but_not_beyond_the_ceiling() -> None:
    current = round_of("ab")
    chased = Cast(2, ("a", "b"), frozenset("ab"), {"a": None, "b": None}, {"n": 40})
    current.handle(chased, 0.0)
    current.handle(ready("a"), 1.0)
    assert starts(current.handle(ready("b"), 2.0)) == {}
    assert current.reason == ("waiting for n to catch up, 40 commits behind and not gaining; going on without in 9.0 s")
    assert starts(current.handle(Tick(), 10.9)) == {}
    assert set(starts(current.handle(Tick(), 11.0))) == {"a", "b"}


def test_a_sync_starts_as_soon_as_nobody_chases_the_log_any_more() -> None:
    current = round_of("ab")
    current.handle(Cast(2, ("a", "b"), frozenset("ab"), {"a": None, "b": None}, {"n": 40}), 0.0)
    current.handle(ready("a"), 1.0)
    current.handle(ready("b"), 2.0)
    assert set(starts(current.handle(cast("ab", view=3), 2.5))) == {"a", "b"}
