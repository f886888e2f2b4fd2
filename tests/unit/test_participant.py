"""A peer's decisions: apply only what is committed, keep what is staged until it is decided, catch up, serve, leave."""

from dataclasses import replace
from typing import Any

import pytest

from wantrain.optimizers.stream import Stream
from wantrain.peers.departure import HEIR_PATIENCE_S, LEAVE_PATIENCE_S, RETURN_PATIENCE_S
from wantrain.peers.effects import (
    Apply,
    Effect,
    Exit,
    Grant,
    HandOver,
    Note,
    PassOn,
    ReduceChunk,
    RefuseTrainer,
    SendContribution,
    SendPayload,
    SendState,
    Settle,
    StoreState,
    Tell,
    TellTrainer,
    UseCodec,
    UseStage,
)
from wantrain.peers.events import (
    CoordinatorLink,
    Event,
    FromPeer,
    GenesisReady,
    HandedOver,
    LeaseWanted,
    LeaveRequested,
    PeerLink,
    Progress,
    Reduced,
    ReduceFailed,
    Staged,
    StateDigested,
    Tick,
    TrainerAttached,
    TrainerGone,
    TrainerResumed,
)
from wantrain.peers.inheritance import Held, Mark
from wantrain.peers.messages import (
    Abort,
    Commit,
    CommitRecord,
    Drawn,
    Genesis,
    Hello,
    Leased,
    Leave,
    MayLeave,
    Member,
    NotHeld,
    Part,
    Record,
    Refetch,
    Refused,
    Report,
    Result,
    Start,
    StateChunk,
    SyncId,
    TensorSpec,
    UpdateChunk,
    View,
    Waiting,
    WantGenesis,
    WantHello,
    WantLease,
    WantRecords,
    WantState,
    WantUpdate,
    Welcome,
)
from wantrain.peers.participant import COORDINATOR, Participant, PeerFacts
from wantrain.transport.digest import first_link, next_link, update_digest

RUN = b"run-id-8"
MANIFEST = (TensorSpec("w", (10,), "float32"),)
"""One chunk."""
CHAIN0 = first_link(RUN, b"s" * 32)
HELLO = Hello(1, "0", b"", "me", b"bootboot", "", ("int8",))
PARAM = Stream("param", every=10)
PAIR = Stream("param", every=10, topology="pair", merge="noloco", codec="fp32")


def chunk_digest(number: int) -> bytes:
    return bytes([number]) * 32


def line(
    number: int, contributors: str = "b", *, attempt: int = 0, salt: int = 0, stream: str = "param"
) -> CommitRecord:
    """Line `number` of a history in which every line is a sync of one stream; another salt is another history."""
    chain = CHAIN0
    for k in range(1, number + 1):
        chain = next_link(chain, update_digest([chunk_digest(k + salt)]))
    digest = update_digest([chunk_digest(number + salt)])
    sync = SyncId(stream, number, attempt or number)
    return CommitRecord(number, sync, tuple(contributors), (1.0,) * len(contributors), digest, chain)


def chain(number: int) -> bytes:
    return line(number).chain if number else CHAIN0


class One:
    """A participant with the shell's part played by the test."""

    def __init__(self, *streams: Stream, keep_updates: int = 256) -> None:
        self.core = Participant(PeerFacts("me", RUN, HELLO, streams or (PARAM,), keep_updates=keep_updates))
        self.revision = 0
        self.now = 0.0

    def do(self, event: Event) -> list[Effect]:
        effects = self.core.handle(event, self.now)
        for effect in effects:
            if isinstance(effect, Apply):
                self.core.log.append(effect.record, effect.payloads, 1)
        return effects

    def hear(self, record: Record, source: str = COORDINATOR, payload: Any = None, digest: bytes = b"") -> list[Effect]:
        return self.do(FromPeer(source, record, payload, digest))

    def welcome(self, head: int, *, genesis: bytes = CHAIN0) -> list[Effect]:
        self.revision += 1
        link = b"" if head < 0 else chain(head)
        first = b"" if head < 0 else genesis
        manifest = () if head < 0 else MANIFEST
        indices = {"param": max(head, 0)}
        return self.hear(Welcome("me", self.revision, "", head, link, first, indices, manifest))

    def view(self, *current: str, joining: tuple[str, ...] = ()) -> list[Effect]:
        members = [Member(peer, peer, "h:1", b"k" * 32, peer in current) for peer in (*current, *joining)]
        return self.hear(View(1, tuple(members)))

    def commit(self, *lines: CommitRecord) -> list[Effect]:
        return self.hear(Commit(lines, lines[-1].number, self.revision))

    def start(self, attempt: int, contributors: str, receivers: str = "", index: int = 1) -> list[Effect]:
        names = [("me" if p == "m" else p) for p in contributors]
        others = [("me" if p == "m" else p) for p in receivers]
        shards = (1,) + (0,) * (len(names) - 1)
        sync = SyncId("param", index, attempt)
        return self.hear(Start(sync, 1, tuple(names), (1.0,) * len(names), tuple(others), shards))

    def heartbeat(self) -> list[Effect]:
        """So much later that a report is due whatever has happened."""
        self.now += self.core.facts.heartbeat_s
        return self.do(Tick())

    def stage(self, serial: int = 1, boot: bytes = b"trainer1", *, finite: bool = True) -> list[Effect]:
        return self.do(Staged(boot, "param", serial, 10, 1.0, 1.0, finite))


def joined(*streams: Stream, head: int = 0, trainer: bool = True) -> One:
    """A peer that holds the state at `head`, with a trainer that has started."""
    one = One(*streams)
    one.do(CoordinatorLink(True))
    one.welcome(head)
    one.view("b", "c")
    one.hear(StateChunk(0, head, chain(head)), "b", "state")
    assert one.core.complete
    if trainer:
        one.do(TrainerAttached(b"trainer1", MANIFEST))
    return one


def of(kind: type, effects: list[Effect]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def told(kind: type, effects: list[Effect]) -> list[Any]:
    return [effect.record for effect in effects if isinstance(effect, Tell) and isinstance(effect.record, kind)]


def lines_of(effects: list[Effect]) -> list[tuple[str, int]]:
    report = told(Report, effects)[-1]
    return [(sync.phase, sync.attempt) for sync in report.syncs]


# ---- one sync


def test_a_contribution_is_reported_moved_and_applied_only_after_its_commit() -> None:
    one = joined()
    effects = one.stage()
    assert of(UseStage, effects) == [UseStage("param")]
    assert lines_of(effects) == [("ready", 0)]
    effects = one.start(5, "bm")
    assert of(SendContribution, effects) == [SendContribution("b", SyncId("param", 1, 5), 0)]
    effects = one.hear(Result(SyncId("param", 1, 5), (0,)), "b", "sum", chunk_digest(1))
    assert lines_of(effects) == [("done", 5)]
    assert of(Apply, effects) == of(Grant, effects) == []
    effects = one.commit(line(1, "b", attempt=5))
    assert [apply.payloads for apply in of(Apply, effects)] == [("sum",)]


def test_that_an_attempt_has_begun_or_a_state_was_digested_is_told_with_the_next_heartbeat() -> None:
    one = joined()
    one.stage()
    assert told(Report, [*one.start(5, "bm"), *one.do(StateDigested(0, b"s" * 32))]) == []
    (report,) = told(Report, one.heartbeat())
    assert [(line.phase, line.attempt) for line in report.syncs] == [("moving", 5)]
    assert (report.state_number, report.state_digest) == (0, b"s" * 32)


def test_who_is_asked_who_it_is_reports_again_only_once_it_is_welcome() -> None:
    """Seed 558: the coordinator took its identity for in use, and each report was followed by the next at once."""
    one = joined()
    assert of(Tell, one.hear(WantHello())) == [Tell(COORDINATOR, HELLO)]
    assert told(Report, one.welcome(0))


@pytest.mark.parametrize(("contributors", "kind"), [(("b", "me"), "merge"), (("b",), "move")])
def test_the_trainer_learns_whether_its_contribution_was_in(contributors: tuple[str, ...], kind: str) -> None:
    one = joined()
    one.stage(7)
    one.start(5, "bm")
    one.hear(Result(SyncId("param", 1, 5), (0,)), "b", "sum", chunk_digest(1))
    record = line(1, attempt=5)
    record = CommitRecord(1, record.sync, contributors, (1.0,) * len(contributors), record.digest, record.chain)
    assert of(Grant, one.commit(record)) == [Grant("param", kind, 7, 1, 10)]


def test_a_commit_of_an_attempt_that_this_contribution_was_not_in_does_not_take_it_in() -> None:
    """The recorded contributor may be this peer's former process."""
    one = joined()
    one.stage()
    one.view("b", "c")
    one.commit(line(1, "b", attempt=4))
    record = line(1, attempt=4)
    mine = CommitRecord(1, record.sync, ("me",), (1.0,), record.digest, record.chain)
    assert one.core.applied == 0
    effects = one.hear(UpdateChunk(1, 0), "b", "sum", chunk_digest(1))
    assert [grant.kind for grant in of(Grant, effects)] == ["move"]
    assert mine.contributors == ("me",)


@pytest.mark.scenario(2)
def test_after_an_abort_the_same_contribution_goes_into_the_next_attempt() -> None:
    one = joined()
    one.stage()
    one.start(5, "bm")
    one.hear(Abort(SyncId("param", 1, 5), "lost b"))
    assert lines_of(one.heartbeat()) == [("ready", 0)]
    effects = one.start(6, "m")
    assert of(ReduceChunk, effects)[0].inputs == ((1.0, None),)
    assert of(UseStage, effects) == []


@pytest.mark.scenario(2)
def test_an_attempt_that_is_over_is_never_taken_up_again() -> None:
    """Its parts may come from another contribution than those that are sent now."""
    one = joined()
    one.stage()
    one.hear(Abort(SyncId("param", 1, 5), "late"))
    assert of(SendContribution, one.start(5, "bm")) == []
    assert of(SendContribution, one.start(6, "bm"))
    assert of(SendContribution, one.start(6, "bm")) == of(SendContribution, one.start(4, "bm")) == []


def test_a_start_that_does_not_fit_changes_nothing() -> None:
    one = joined()
    assert of(SendContribution, one.start(5, "bm")) == []  # nothing is staged
    one.stage()
    for contributors, receivers, index in (("bm", "", 2), ("bm", "", 0), ("bc", "", 1), ("bmb", "", 1), ("bm", "m", 1)):
        assert of(SendContribution, one.start(6, contributors, receivers, index)) == []
    assert not one.core.moving(SyncId("param", 1, 6))


AUTO = Stream("param", every=10, codec="auto", down="int8")


def test_the_codec_of_an_attempt_is_what_its_start_says_before_anything_is_sent() -> None:
    one = joined(AUTO)
    one.stage()
    sync = SyncId("param", 1, 5)
    effects = one.hear(Start(sync, 1, ("b", "me"), (1.0, 1.0), (), (1, 0), codec="rms0.35+zstd"))
    kinds = [type(effect) for effect in effects]
    assert of(UseCodec, effects) == [UseCodec("param", "rms0.35+zstd")]
    assert kinds.index(UseCodec) < kinds.index(SendContribution)
    assert one.core.codec(sync) == "rms0.35+zstd"
    assert one.core.accepts("b", Part(sync, (0,), "rms0.35+zstd"))


@pytest.mark.parametrize(("stream", "codec"), [(PARAM, "int8"), (AUTO, ""), (AUTO, "fp32"), (AUTO, "auto")])
def test_a_codec_that_the_run_does_not_leave_open_is_not_used(stream: Stream, codec: str) -> None:
    one = joined(stream)
    one.stage()
    sync = SyncId("param", 1, 5)
    assert not one.core.accepts("b", Part(sync, (0,), codec))
    effects = one.hear(Start(sync, 1, ("b", "me"), (1.0, 1.0), (), (1, 0), codec=codec))
    assert [note.event for note in of(Note, effects)] == ["bad-start"]
    assert not one.core.moving(sync)


def test_what_overtakes_its_start_is_kept() -> None:
    one = joined()
    one.stage()
    sync = SyncId("param", 1, 5)
    assert one.core.accepts("b", Part(sync, (0,)))
    one.hear(Part(sync, (0,)), "b", "part of b")
    effects = one.start(5, "mb")
    assert of(ReduceChunk, effects)[0].inputs == ((1.0, None), (1.0, "part of b"))


def test_the_owner_sends_the_sum_to_all_contributors_and_receivers() -> None:
    one = joined()
    one.stage()
    sync = SyncId("param", 1, 5)
    one.start(5, "mb", "c")
    one.hear(Part(sync, (0,)), "b", "part of b")
    effects = one.do(Reduced(sync, 0, "sum", chunk_digest(1)))
    assert {(send.to, send.payload) for send in of(SendPayload, effects)} == {("b", "sum"), ("c", "sum")}


def test_a_chunk_that_does_not_encode_is_reported_and_nothing_more_is_sent_for_the_attempt() -> None:
    one = joined()
    one.stage()
    one.start(5, "bm")
    effects = one.do(ReduceFailed(SyncId("param", 1, 5), "too large"))
    assert lines_of(effects) == [("failed", 5)]
    assert not one.core.moving(SyncId("param", 1, 5))
    assert of(RefuseTrainer, effects) == []


def test_a_contribution_that_does_not_encode_is_dropped_with_its_trainer() -> None:
    one = joined()
    one.stage()
    one.start(5, "bm")
    effects = one.do(ReduceFailed(SyncId("param", 1, 5), "too large", ("me",)))
    assert [refusal.code for refusal in of(RefuseTrainer, effects)] == ["non-finite"]
    assert lines_of(effects) == [("failed", 5)]
    assert lines_of(one.hear(Abort(SyncId("param", 1, 5), "failed"))) == []


# ---- the trainer


def test_a_trainer_starts_from_the_state_once_there_is_one() -> None:
    one = One()
    one.do(CoordinatorLink(True))
    one.do(TrainerAttached(b"trainer1", MANIFEST))
    assert [tell.record.genesis for tell in of(TellTrainer, one.welcome(0))] == [False]
    one.view("b")
    assert [grant.kind for grant in of(Grant, one.hear(StateChunk(0, 0, CHAIN0), "b", "state"))] == ["start"]


def test_a_trainer_with_another_model_is_turned_away_and_told_the_difference() -> None:
    one = joined(trainer=False)
    (refusal,) = of(RefuseTrainer, one.do(TrainerAttached(b"trainer1", (TensorSpec("w", (11,), "float32"),))))
    assert refusal.code == "model"
    assert "the run has [10]" in refusal.reason


@pytest.mark.scenario(14)
def test_a_contribution_that_is_not_finite_is_refused_by_name_and_never_used() -> None:
    one = joined()
    effects = one.stage(finite=False)
    assert of(UseStage, effects) == []
    assert "stream param at step 10" in of(RefuseTrainer, effects)[0].reason


def test_a_late_contribution_is_moved_not_counted() -> None:
    one = joined()
    one.commit(line(1))
    one.hear(UpdateChunk(1, 0), "b", "sum", chunk_digest(1))
    assert of(Grant, one.stage(3)) == [Grant("param", "move", 3, 1, 10)]


def test_what_a_dead_trainer_had_staged_counts_and_its_successors_contribution_comes_next() -> None:
    one = joined()
    one.stage()
    one.start(5, "m")
    one.do(TrainerGone(False))
    one.do(TrainerAttached(b"trainer2", MANIFEST))
    assert of(UseStage, one.stage(1, b"trainer2")) == []
    one.do(Reduced(SyncId("param", 1, 5), 0, "sum", chunk_digest(1)))
    record = line(1, attempt=5)
    effects = one.commit(CommitRecord(1, record.sync, ("me",), (1.0,), record.digest, record.chain))
    assert of(Grant, effects) == [Grant("param", "move", 1, 1, 10)]


def test_only_a_started_trainer_may_stage_and_only_once() -> None:
    one = joined()
    assert one.core.takes_stage(b"trainer1", "param")
    assert not one.core.takes_stage(b"another1", "param")
    one.stage()
    assert not one.core.takes_stage(b"trainer1", "param")


# ---- the initial state


def test_a_peer_gives_the_initial_state_when_asked_and_goes_on_from_it() -> None:
    one = One()
    one.do(CoordinatorLink(True))
    one.do(TrainerAttached(b"trainer1", MANIFEST))
    assert of(TellTrainer, one.welcome(-1)) == []
    assert of(TellTrainer, one.hear(WantGenesis()))[0].record.genesis
    assert one.core.takes_genesis
    assert told(Genesis, one.do(GenesisReady(b"s" * 32))) == [Genesis(MANIFEST, b"s" * 32)]
    effects = one.welcome(0)
    assert [grant.kind for grant in of(Grant, effects)] == ["start"]
    assert (one.core.applied, one.core.chain) == (0, CHAIN0)
    assert not one.core.takes_genesis


def test_a_model_that_the_method_cannot_cut_does_not_become_the_runs() -> None:
    one = One(Stream("a", fragment="strided:0/2"), Stream("b", fragment="strided:1/2"))
    one.do(CoordinatorLink(True))
    one.do(TrainerAttached(b"trainer1", MANIFEST))
    one.welcome(-1)
    (refusal,) = of(RefuseTrainer, one.hear(WantGenesis()))
    assert (refusal.code, "no blocks" in refusal.reason, "balanced" in refusal.hint) == ("model", True, True)


def test_initial_weights_that_are_not_finite_are_refused() -> None:
    one = One()
    one.do(CoordinatorLink(True))
    one.do(TrainerAttached(b"trainer1", MANIFEST))
    one.welcome(-1)
    one.hear(WantGenesis())
    effects = one.do(GenesisReady(b""))
    assert [refusal.code for refusal in of(RefuseTrainer, effects)] == ["non-finite"]
    assert told(Genesis, effects) == []


def test_who_was_asked_for_the_initial_state_too_late_asks_where_the_run_is() -> None:
    one = joined()
    assert told(Hello, one.hear(WantGenesis())) == [HELLO]


# ---- catching up


def test_a_snapshot_taken_at_different_lines_is_replayed_chunk_by_chunk() -> None:
    two_chunks = (TensorSpec("w", (20_000,), "float32"),)
    one = One()
    one.do(CoordinatorLink(True))
    one.revision = 1
    one.hear(Welcome("me", 1, "", 2, chain(2), CHAIN0, {"param": 2}, two_chunks))
    assert told(WantState, one.view("b")) == [WantState((0, 1))]
    one.hear(StateChunk(0, 2, chain(2)), "b", "older")
    one.hear(StateChunk(1, 3, chain(3)), "b", "newer")
    assert (one.core.applied, one.core.complete) == (2, False)
    assert told(WantUpdate, one.commit(line(3))) == [WantUpdate(3, (0, 1))]


def test_a_snapshot_beyond_the_welcome_needs_the_lines_between_to_know_the_syncs() -> None:
    one = One()
    one.do(CoordinatorLink(True))
    one.welcome(1)
    one.view("b")
    one.hear(StateChunk(0, 3, chain(3)), "b", "state")
    assert one.core.applied == -1
    one.now = 1.0
    assert told(WantRecords, one.do(Tick())) == [WantRecords(2)]
    one.commit(line(2), line(3))
    assert (one.core.applied, one.core.indices) == (3, {"param": 3})


def test_a_snapshot_below_the_welcome_counts_its_syncs_back() -> None:
    one = One()
    one.do(CoordinatorLink(True))
    one.welcome(3)
    one.view("b")
    one.hear(StateChunk(0, 1, chain(1)), "b", "state")
    one.commit(line(2), line(3))
    assert (one.core.applied, one.core.indices) == (1, {"param": 1})
    assert one.core.complete


@pytest.mark.scenario(11)
def test_a_snapshot_of_another_history_is_not_taken() -> None:
    one = One()
    one.do(CoordinatorLink(True))
    one.welcome(1)
    one.view("b")
    effects = one.hear(StateChunk(0, 1, b"x" * 32), "b", "state")
    assert one.core.applied == -1
    assert told(WantState, effects) == [WantState((0,))]


def test_state_from_somebody_who_should_not_have_it_is_not_taken() -> None:
    one = One()
    one.do(CoordinatorLink(True))
    one.welcome(0)
    one.view("b", joining=("d",))
    assert of(StoreState, one.hear(StateChunk(0, 0, CHAIN0), "d", "state")) == []


def test_lines_that_come_out_of_order_or_twice_are_applied_once_in_order() -> None:
    one = joined()
    one.commit(line(2))
    one.commit(line(1))
    one.hear(UpdateChunk(1, 0), "b", "one", chunk_digest(1))
    effects = one.hear(UpdateChunk(2, 0), "b", "two", chunk_digest(2))
    assert [apply.record.number for apply in of(Apply, effects)] == [2]
    assert of(Apply, one.commit(line(1), line(2))) == []


@pytest.mark.scenario(10)
def test_an_update_with_false_bytes_is_not_applied_and_fetched_from_another() -> None:
    one = joined()
    one.commit(line(1))
    effects = one.hear(UpdateChunk(1, 0), "b", "false", b"x" * 32)
    assert of(Apply, effects) == []
    assert [effect.to for effect in effects if isinstance(effect, Tell) and isinstance(effect.record, WantUpdate)][
        -1
    ] == "c"


@pytest.mark.scenario(4)
def test_who_cannot_be_reached_is_not_asked_until_it_can() -> None:
    one = joined()

    def asked(effects: list[Effect]) -> list[str]:
        return [effect.to for effect in effects if isinstance(effect, Tell) and isinstance(effect.record, WantUpdate)]

    first = asked(one.commit(line(1)))[0]
    other = "c" if first == "b" else "b"
    assert asked(one.do(Progress(-1.0, reached=frozenset({other})))) == [other]
    one.hear(UpdateChunk(1, 0), other, "sum", chunk_digest(1))
    assert asked(one.commit(line(2))) == [other]
    assert asked(one.do(Progress(-1.0, reached=frozenset({first})))) == [first]


def test_an_update_that_nobody_has_yet_is_waited_for() -> None:
    one = joined()
    one.commit(line(1))
    for source in "bc":
        one.hear(NotHeld(1, 0), source)
    assert one.core.applied == 0
    assert told(WantUpdate, one.do(Tick())) == [WantUpdate(1, (0,))]


def test_an_update_that_is_no_longer_kept_takes_a_snapshot_and_what_is_staged_is_decided_by_the_skipped_lines() -> None:
    one = joined()
    one.stage(3)
    one.start(5, "bm")
    one.commit(line(1, attempt=9))
    one.hear(NotHeld(1, 300), "b")
    effects = one.hear(NotHeld(1, 300), "c")
    assert told(WantState, effects) == [WantState((0,))]
    assert not one.core.moving(SyncId("param", 1, 5))
    one.commit(line(2))
    effects = one.hear(StateChunk(0, 2, chain(2)), "b", "state")
    assert of(Grant, effects) == [Grant("param", "move", 3, 2, 20)]
    assert one.core.applied == 2


def test_a_mean_gradient_that_is_no_longer_kept_is_done_without() -> None:
    one = joined(Stream("param", every=10), Stream("grad", state="grad", every=1))
    record = line(1, stream="grad")
    one.do(Staged(b"trainer1", "grad", 4, 1, 1.0, 1.0, True))
    one.commit(record)
    one.hear(NotHeld(1, 300), "b")
    effects = one.hear(NotHeld(1, 300), "c")
    assert of(Apply, effects) == told(WantState, effects) == []
    assert of(Grant, effects) == [Grant("grad", "start", 4, 1, 1)]
    assert one.core.applied == 1


def test_after_a_rewind_the_newer_line_of_the_same_number_counts() -> None:
    one = joined()
    old, new = line(1, attempt=5, salt=7), line(1, attempt=6)
    one.commit(old)
    one.commit(new)
    one.commit(old)
    effects = one.hear(UpdateChunk(1, 0), "b", "sum", chunk_digest(1))
    assert [apply.record for apply in of(Apply, effects)] == [new]


def test_the_update_of_a_line_that_a_rewind_has_given_up_is_not_fetched_on() -> None:
    """Nobody may have it any more. The line that then gets its number has an update of its own."""
    one = joined()
    old, new = line(1, attempt=5, salt=7), line(1, attempt=6)
    assert told(WantUpdate, one.commit(old))
    one.welcome(0)
    assert "update 1" not in one.core.waiting(one.now)
    assert told(WantUpdate, one.commit(new))
    effects = one.hear(UpdateChunk(1, 0), "b", "sum", chunk_digest(1))
    assert [apply.record for apply in of(Apply, effects)] == [new]


def test_an_update_is_not_taken_for_that_of_another_line_of_the_same_number() -> None:
    """The line was forgotten before the newer one came, so that none has replaced it."""
    one = joined()
    old, new = line(1, attempt=5, salt=7), line(1, attempt=6)
    one.commit(old)
    one.welcome(0)
    assert of(Apply, one.hear(UpdateChunk(1, 0), "b", "old", chunk_digest(8))) == []
    assert of(Apply, one.commit(new)) == []
    effects = one.hear(UpdateChunk(1, 0), "b", "sum", chunk_digest(1))
    assert [apply.record for apply in of(Apply, effects)] == [new]


def test_a_line_that_does_not_follow_is_not_applied() -> None:
    one = joined()
    one.commit(line(1, salt=3), line(2))
    one.hear(UpdateChunk(2, 0), "b", "two", chunk_digest(2))
    assert one.core.applied == 0


# ---- a state that is not the run's


def test_a_refetch_forgets_state_and_contribution_and_starts_the_trainer_again() -> None:
    one = joined()
    one.stage()
    one.start(5, "bm")
    assert one.hear(Refetch(3, b"x" * 32, "late")) == []
    one.do(StateDigested(0, b"y" * 32))
    one.hear(Refetch(0, CHAIN0, "digest differs"))
    assert (one.core.applied, one.core.digested) == (-1, -1)
    assert not one.core.takes_stage(b"trainer1", "param")
    one.welcome(0)
    effects = one.hear(StateChunk(0, 0, CHAIN0), "b", "state")
    assert [grant.kind for grant in of(Grant, effects)] == ["start"]
    assert lines_of(effects) == []
    assert of(SendContribution, one.start(5, "bm")) == []


def test_after_a_refetch_mean_gradients_are_not_waited_for() -> None:
    one = joined(Stream("param", every=10), Stream("grad", state="grad", every=1))
    one.hear(Refetch(0, CHAIN0, "digest differs"))
    one.welcome(0)
    effects = one.hear(StateChunk(0, 0, CHAIN0), "b", "state")
    assert [(grant.stream, grant.kind) for grant in of(Grant, effects)] == [("param", "start"), ("grad", "start")]


def test_a_run_that_has_begun_anew_is_joined_anew() -> None:
    one = joined()
    one.welcome(0, genesis=b"n" * 32)
    assert one.core.applied == -1


def test_a_gossip_peer_takes_part_in_no_exchange_that_its_trainer_has_left_behind() -> None:
    """A coordinator that was started again may count from less; the outcome would be taken for an older one's."""
    one = joined(PAIR, head=2, trainer=False)
    assert one.core.indices == {"param": 2}
    held = Held(2, chain(2), {"param": Mark()})
    one.do(TrainerResumed(b"trainer1", MANIFEST, held, {"param": 0}, {"param": 5}))
    one.commit(line(2))  # the one that the trainer stood at
    assert one.core.indices == {"param": 5}


def test_lines_that_were_said_before_the_newest_welcome_change_nothing() -> None:
    """They may have been given up since: who believed that the run is further would wait for ever."""
    one = joined(head=2)
    late = Commit((line(3),), 3, one.revision)
    one.welcome(2)
    one.hear(late)
    assert one.core._recovery.head == 2
    one.commit(line(3))
    assert one.core._recovery.head == 3


def test_an_older_welcome_changes_nothing() -> None:
    one = joined(head=2)
    one.revision = -1
    assert told(WantState, one.welcome(0, genesis=b"n" * 32)) == []
    assert one.core.applied == 2


# ---- serving, leaving, being refused


def test_state_and_updates_are_served_or_denied_with_what_is_held() -> None:
    one = joined()
    one.commit(line(1))
    one.hear(UpdateChunk(1, 0), "b", "sum", chunk_digest(1))
    assert of(SendState, one.hear(WantState((0, 99)), "d")) == [SendState("d", 0)]
    assert of(SendPayload, one.hear(WantUpdate(1, (0, 99)), "d")) == [SendPayload("d", UpdateChunk(1, 0), "sum")]
    assert told(NotHeld, one.hear(WantUpdate(7, (0,)), "d")) == [NotHeld(7, 1)]
    fresh = One()
    assert told(NotHeld, fresh.hear(WantState((0,)), "d")) == [NotHeld(-1, -1)]


def test_leaving_waits_for_what_is_in_flight_but_not_for_ever() -> None:
    one = joined()
    one.stage()
    assert of(Exit, one.do(LeaveRequested("done"))) == []
    one.now = 9.9
    assert of(Exit, one.do(Tick())) == []
    one.now = 10.0
    assert of(Exit, one.do(Tick())) == []  # hands over first
    effects = one.do(HandedOver())
    assert told(Leave, effects) == [Leave(b"bootboot", "done")]
    assert of(Exit, effects)[0].code == 0
    assert one.do(Tick()) == []


def with_an_update() -> One:
    """A peer that holds the state with update 1."""
    one = joined()
    one.commit(line(1))
    one.hear(UpdateChunk(1, 0), "b", "sum", chunk_digest(1))
    assert one.core.applied == 1
    one.do(StateDigested(1, b"s" * 32))
    return one


def test_who_leaves_says_so_and_stays_until_somebody_who_stays_has_its_state() -> None:
    one = with_an_update()
    effects = one.do(LeaveRequested("done"))
    assert [report.leaving for report in told(Report, effects)] == [True]
    assert of(HandOver, effects) == of(HandOver, one.hear(MayLeave(0, 2, heard=99))) == []
    one.now = 30.0
    one.hear(Waiting("for another peer to hold the state at log number 1"))
    assert of(HandOver, one.do(Tick())) == []
    assert of(HandOver, one.hear(MayLeave(1, 3, heard=99)))
    assert of(Exit, one.do(HandedOver()))


def test_a_leave_that_was_taken_back_before_it_came_does_not_count() -> None:
    one = with_an_update()
    one.do(LeaveRequested("done"))
    one.hear(MayLeave(-1, 8, heard=99))
    assert of(HandOver, one.hear(MayLeave(1, 7, heard=99))) == []  # sent before, when nobody else was there
    assert of(HandOver, one.hear(MayLeave(1, 9, heard=99)))


def test_what_a_coordinator_has_said_of_heirs_ends_with_its_connection_and_with_a_new_welcome() -> None:
    one = with_an_update()
    one.hear(MayLeave(1, 8, heard=99))  # when nobody else was there
    one.revision = 8
    one.welcome(1)  # by its next process, which may know of somebody
    assert of(HandOver, one.do(LeaveRequested("done"))) == []
    assert of(HandOver, one.hear(MayLeave(1, 8, heard=99))) == []
    assert of(HandOver, one.hear(MayLeave(1, 10, heard=99)))
    other = with_an_update()
    other.hear(MayLeave(1, 8, heard=99))
    other.do(CoordinatorLink(False))
    other.do(CoordinatorLink(True))
    assert of(HandOver, other.do(LeaveRequested("done"))) == []
    assert of(HandOver, other.hear(MayLeave(1, 9, heard=99)))


def test_a_word_of_heirs_that_was_under_way_when_the_connection_changed_does_not_count() -> None:
    """It may be of a process that is gone, and the one that is there now may know of somebody who came meanwhile."""
    one = with_an_update()
    (before, *_) = told(Report, one.do(LeaveRequested("done")))
    one.do(CoordinatorLink(False))
    one.do(CoordinatorLink(True))
    assert of(HandOver, one.hear(MayLeave(1, 8, before.sequence))) == []
    (after, *_) = told(Report, one.heartbeat())
    assert of(HandOver, one.hear(MayLeave(1, 9, after.sequence)))


def test_who_leaves_does_not_go_at_once_when_the_connection_to_the_coordinator_breaks() -> None:
    one = with_an_update()
    one.do(LeaveRequested("done"))
    assert of(HandOver, one.do(CoordinatorLink(False))) == []
    one.now = RETURN_PATIENCE_S - 0.1
    assert of(HandOver, one.do(Tick())) == []
    one.now = RETURN_PATIENCE_S
    assert of(HandOver, one.do(Tick()))


def test_who_leaves_while_its_state_is_repaired_waits_until_others_have_the_updates_that_came_with_it() -> None:
    one = with_an_update()
    one.do(StateDigested(1, b"s" * 32, (b"s" * 32,)))
    one.hear(Refetch(1, chain(1), "another digest", b"t" * 32))
    assert not one.core.complete
    assert of(HandOver, one.do(LeaveRequested("done"))) == []
    assert of(HandOver, one.hear(MayLeave(0, 2, heard=99))) == []
    assert of(HandOver, one.hear(MayLeave(1, 3, heard=99)))


def test_who_leaves_does_not_wait_for_what_others_commit_meanwhile() -> None:
    one = with_an_update()
    one.do(LeaveRequested("done"))
    one.commit(line(2))
    one.hear(UpdateChunk(2, 0), "b", "sum", chunk_digest(2))
    one.do(StateDigested(2, b"s" * 32))
    assert one.core.applied == 2
    assert of(HandOver, one.hear(MayLeave(1, 2, heard=99)))


def test_who_leaves_bequeaths_what_it_is_in_also_if_that_is_committed_later() -> None:
    """An attempt may be given up when it asks to leave, and be made once more, by itself alone even."""
    one = with_an_update()
    one.do(LeaveRequested("done"))
    one.commit(replace(line(2), contributors=("me",)))
    one.hear(UpdateChunk(2, 0), "b", "sum", chunk_digest(2))
    one.do(StateDigested(2, b"s" * 32))
    assert one.core.applied == 2
    assert of(HandOver, one.hear(MayLeave(1, 2, heard=99))) == []
    assert of(HandOver, one.hear(MayLeave(2, 3, heard=99)))


@pytest.mark.parametrize("answered", [True, False])
def test_nobody_waits_for_an_heir_for_ever_nor_long_for_a_coordinator_that_says_nothing(answered: bool) -> None:
    one = with_an_update()
    one.do(LeaveRequested("done"))
    for second in range(1, int(HEIR_PATIENCE_S) + 1):
        one.now = float(second)
        left = one.hear(MayLeave(0, 2, heard=99)) if answered else one.do(Tick())
        if of(HandOver, left):
            break
    assert one.now == (HEIR_PATIENCE_S if answered else LEAVE_PATIENCE_S)


def test_a_refusal_ends_the_peer_except_while_its_former_process_may_still_count_as_alive() -> None:
    one = joined()
    in_use = Refused("identity-in-use", "another process", "")
    assert of(Exit, one.hear(in_use)) == []
    one.now = 70.0  # a stray one, long after: meant for the other process
    assert of(Exit, one.hear(in_use)) == []
    for second in range(71, 130, 5):
        one.now = float(second)
        assert of(Exit, one.hear(in_use)) == []
    one.now = 130.0
    assert of(Exit, one.hear(in_use))[0].code == 3
    assert of(Exit, joined().hear(Refused("spec", "another run", "")))[0].code == 3


def test_reports_come_with_every_change_and_every_heartbeat() -> None:
    one = joined()
    assert told(Report, one.do(Tick())) == []
    one.now = 1.0
    (report,) = told(Report, one.do(Tick()))
    assert (report.log_number, report.chain, report.trainer, report.view) == (0, CHAIN0, "training", 1)
    assert told(Report, one.stage())[0].sequence == report.sequence + 1


# ---- data leases


def want(serial: int = 1, *, reader: bytes = b"reader-1", dry: bool = False, left: int = 0) -> WantLease:
    return WantLease("d", 100, 0, 1, reader, serial, 0, left, 10, 1, 0, dry)


def test_a_question_for_samples_is_a_line_of_the_report_until_it_is_answered() -> None:
    one = joined()
    (report,) = reports(one.do(LeaseWanted(want())))
    assert (report.reader, report.wants) == (b"reader-1", (want(),))
    assert reports(one.do(LeaseWanted(want()))) == []  # the trainer asks again; the report need not
    assert "samples of data set 'd'" in one.core.waiting(one.now)
    assert one.hear(Leased("d", b"reader-1", 2, "granted")) == []  # to another question
    assert one.hear(Leased("d", b"reader-2", 1, "granted")) == []
    answer = Leased("d", b"reader-1", 1, "granted")
    effects = one.hear(answer)
    assert of(PassOn, effects) == [PassOn(answer)]
    assert [(report.reader, report.wants) for report in reports(effects)] == [(b"reader-1", ())]
    assert of(PassOn, one.hear(answer)) == []
    assert one.core.waiting(one.now) == ""


def test_a_trainer_without_data_is_reported_dry_until_it_has_some() -> None:
    one = joined()
    (report,) = reports(one.do(LeaseWanted(want(2, dry=True))))
    assert report.trainer == "dry"
    assert reports(one.hear(Leased("d", b"reader-1", 2, "later")))[-1].trainer == "dry"
    one.do(LeaseWanted(want(3, dry=True)))
    assert reports(one.hear(Leased("d", b"reader-1", 3, "granted")))[-1].trainer == "training"


def test_a_contribution_says_what_of_the_data_it_contains() -> None:
    one = joined()
    drawn = Drawn(b"reader-1", {"d": 7})
    (report,) = reports(one.do(Staged(b"trainer1", "param", 1, 10, 1.0, 1.0, True, drawn)))
    assert report.syncs[0].drawn == drawn
    one.start(5, "bm")
    (report,) = reports(one.heartbeat())
    assert (report.syncs[0].phase, report.syncs[0].drawn) == ("moving", drawn)
    # Also where the attempt cannot be used: the contribution stays, and is in the next one.
    one.do(ReduceFailed(SyncId("param", 1, 5), "too large"))
    (report,) = reports(one.heartbeat())
    assert (report.syncs[0].phase, report.syncs[0].drawn) == ("failed", drawn)


def test_the_next_trainer_is_another_reader() -> None:
    one = joined()
    one.do(LeaseWanted(want()))
    one.do(TrainerGone(False))
    one.now += 1.0
    (report,) = reports(one.do(Tick()))
    assert (report.reader, report.wants) == (b"", ())
    one.do(TrainerAttached(b"trainer2", MANIFEST))
    (report,) = reports(one.do(LeaseWanted(want(reader=b"reader-2"))))
    assert (report.reader, len(report.wants)) == (b"reader-2", 1)


def reports(effects: list[Effect]) -> list[Report]:
    return [tell.record for tell in of(Tell, effects) if isinstance(tell.record, Report)]


def test_a_line_that_is_older_than_what_is_staged_decides_nothing() -> None:
    """A peer that falls back to an older state goes through lines again that its trainer has been moved by."""
    one = joined(head=2)
    one.stage()
    assert one.core._mine.decide(line(2)) == []
    assert one.core._mine.staged["param"].serial == 1
    assert one.core._mine.decide(line(3)) == [Settle("param", False)]


# ---- what sources claim


def newcomer(links: dict[str, bytes], number: int = 2) -> tuple[One, dict[str, int]]:
    """One that fetches 12 chunks from sources that say that theirs are of this log number and these links."""
    one = One()
    one.do(CoordinatorLink(True))
    one.revision += 1
    model = (TensorSpec("w", (16384 * 12,), "float32"),)
    one.hear(Welcome("me", one.revision, "", 2, chain(2), CHAIN0, {"param": 2}, model))
    queues: dict[str, list[int]] = {name: [] for name in links}
    given = dict.fromkeys(links, 0)

    def take(effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Tell) and isinstance(effect.record, WantState):
                queues[effect.to] += effect.record.chunks
            elif isinstance(effect, Tell) and isinstance(effect.record, WantRecords):
                take(one.commit(line(1), line(2)))

    take(one.view(*links))
    while one.now < 300.0 and not one.core.complete:
        one.now += 0.1
        for name, queue in queues.items():
            if queue:
                given[name] += 1
                at = 2 if links[name] == chain(2) else number
                take(one.hear(StateChunk(queue.pop(0), at, links[name]), name, "state"))
        take(one.do(Tick()))
    return one, given


@pytest.mark.scenario(10)
@pytest.mark.parametrize("number", [2, 10**9])
def test_who_gives_chunks_of_no_history_of_the_run_is_asked_last(number: int) -> None:
    one, given = newcomer({"b": chain(2), "c": b"x" * 32}, number)
    assert one.core.complete
    assert given["c"] <= 12
    honest, _ = newcomer({"b": chain(2), "c": chain(2)})
    assert honest.core.complete
    assert honest.now < 3.0


def test_who_is_back_without_an_address_is_not_suspected() -> None:
    one = joined()
    one.do(PeerLink("b", False, "connection lost"))
    one.hear(View(2, (Member("b", "b", "", b"k" * 32, True), Member("c", "c", "h:1", b"k" * 32, True))))
    one.now += 1000.0
    assert told(Report, one.do(Tick()))[-1].suspects == {}
