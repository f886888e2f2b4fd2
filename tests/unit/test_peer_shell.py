"""The shell around a participant: bytes are checked first, a late contribution is left alone, queues stay short."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from wantrain.errors import CodecError
from wantrain.optimizers.stream import Stream
from wantrain.peers.departure import LEAVE_PATIENCE_S
from wantrain.peers.events import CoordinatorLink, LeaveRequested, StateDigested
from wantrain.peers.inheritance import Held
from wantrain.peers.messages import (
    Abort,
    Attach,
    Attached,
    Commit,
    CommitRecord,
    Contribute,
    Detach,
    Detached,
    Genesis,
    GenesisWritten,
    Granted,
    Hello,
    Manifest,
    MayLeave,
    Member,
    Owed,
    Part,
    Record,
    Refetch,
    Refused,
    Report,
    Result,
    Start,
    StartOver,
    StateChunk,
    SyncId,
    TensorSpec,
    UpdateChunk,
    View,
    Waiting,
    WantGenesis,
    WantState,
    WantUpdate,
    Welcome,
)
from wantrain.peers.outbox import MAX_SERVED
from wantrain.peers.participant import COORDINATOR, Participant, PeerFacts
from wantrain.peers.peer import Peer
from wantrain.transport.digest import first_link, next_link, state_digest, update_digest
from wantrain.transport.link import Done

RUN = b"run-id-8"
MANIFEST = (TensorSpec("w", (10,), "float32"),)
CHAIN0 = first_link(RUN, b"s" * 32)
BOOT = b"trainer1"
SYNC = SyncId("param", 1, 5)
DIGEST = b"d" * 32


class Tensors:
    """Notes what it is asked to do; payloads are strings."""

    def __init__(self) -> None:
        self.did: list[Any] = []
        self.finite = True
        self.encodes = True
        self.sums = True
        self.released: list[Any] = []
        self.owed: list[Any] = []
        self.place = (-1, b"")

    def adopt_genesis(self) -> bytes:
        if not self.finite:
            raise CodecError("NaN in it")
        return b"s" * 32

    def stage(self, stream: str, offer: Contribute | None = None) -> tuple[float, bool]:
        self.did.append(("stage", stream))
        return 1.0, self.finite

    def use_stage(self, stream: str, floor: int = 0) -> None:
        self.did.append(("use", stream))

    def use_codec(self, stream: str, codec: str) -> None:
        self.did.append(("codec", stream, codec))

    def settle(self, stream: str, taken: bool) -> None:
        self.did.append(("settle", taken))

    def forget_residuals(self) -> None:
        self.did.append(("forget",))

    def residual(self, stream: str) -> list[Any]:
        return list(self.owed)

    def check_owed(self, stream: str, chunk: int, payload: Any) -> str | None:
        return None

    def add_residual(self, stream: str, payloads: Sequence[Any]) -> None:
        self.did.append(("owed", tuple(payloads)))

    def release(self, payload: Any) -> None:
        self.released.append(payload)

    def part(self, stream: str, chunk: int) -> str:
        if not self.encodes:
            raise CodecError("too large")
        return "mine"

    def reduce(self, stream: str, chunk: int, inputs: Sequence[tuple[float, Any]], divisor: float, final: bool) -> str:
        if not self.sums:
            raise CodecError("too large")
        return "sum"

    def longest(self, stream: str, chunk: int, inputs: Sequence[tuple[float, Any]]) -> int:
        return next(k for k, (_, payload) in enumerate(inputs) if payload is not None)

    def check(self, stream: str, chunk: int, payload: Any, *, part: bool, up: str) -> str | None:
        self.did.append(("check", up)) if up else None
        return "false bytes" if payload == "false" else None

    def digest(self, payload: Any) -> bytes:
        return DIGEST

    def size_bytes(self, payload: Any) -> int:
        return len(payload)

    def apply(self, stream: str, payloads: Sequence[Any], skip: frozenset[int], index: int) -> None:
        self.did.append(("apply", tuple(payloads)))

    def grant(self, stream: str, kind: str, answer: Granted | None = None, count: int = 0, share: float = 1.0) -> None:
        self.did.append(("grant", kind))

    def note_told(self, stream: str, count: int) -> None:
        self.did.append(("told", count))

    def note_place(self, number: int, chain: bytes) -> None:
        self.place = (number, chain)

    def note_reach(self, number: int, chain: bytes) -> None:
        self.did.append(("reach", number))

    def read_state(self, k: int) -> str:
        return "state"

    def check_state(self, k: int, payload: Any) -> str | None:
        return "false bytes" if payload == "false" else None

    def store_state(self, k: int, payload: Any) -> None:
        self.did.append(("store", payload))

    def digest_steps(self) -> Iterator[bytes]:
        yield b"s" * 32


class Around:
    """What a peer is connected to; nothing passes to a peer in `stuck`."""

    def __init__(self) -> None:
        self.tensors = Tensors()
        self.sent: list[tuple[str, Record, Any]] = []
        self.to_trainer: list[Record] = []
        self.refusals: list[Refused] = []
        self.notes: list[str] = []
        self.exits: list[int] = []
        self.segments = 0
        self.held: Held | None = None
        self.models = 0
        self.stuck: set[str] = set()
        self.message_bytes = 1

    def send(self, to: str, record: Record) -> bool:
        if to in self.stuck:
            return False
        self.sent.append((to, record, None))
        return True

    def send_bulk(self, to: str, record: Record, payloads: tuple[Any, ...], done: Done | None = None) -> bool:
        if to in self.stuck:
            return False
        self.sent.append((to, record, payloads[0] if len(payloads) == 1 else payloads))
        if done is not None:
            done()
        return True

    def under_way(self) -> bool:
        return False

    def clears_s(self, to: str) -> float:
        return 0.0

    def bulk_bytes(self, to: str) -> int:
        return self.message_bytes

    def dial(self, peer: str, address: str, curve_key: bytes) -> None: ...

    def hang_up(self, peer: str) -> None: ...

    def open_model(self, manifest: Manifest) -> Tensors:
        self.models += 1
        return self.tensors

    def open_segment(self, tensors: Any) -> str:
        self.segments += 1
        return f"segment-{self.segments}"

    def resume_segment(self, tensors: Any, path: str) -> Held | None:
        return self.held

    def tell_trainer(self, record: Record) -> None:
        self.to_trainer.append(record)

    def trainer_refused(self, refusal: Refused) -> None:
        self.refusals.append(refusal)

    def note(self, event: str, details: dict[str, Any]) -> None:
        self.notes.append(event)

    def exit(self, code: int, reason: str, hint: str) -> None:
        self.exits.append(code)


class One:
    """A peer shell with a core that has welcomed the run."""

    def __init__(self, stream: Stream, head: int = 0) -> None:
        hello = Hello(1, "0", b"", "me", b"bootboot", "", ("int8",))
        self.around = Around()
        self.peer = Peer(Participant(PeerFacts("me", RUN, hello, (stream,))), self.around)
        self.revision = 0
        self.peer.handle(CoordinatorLink(True), 0.0)
        self.welcome(head)

    def welcome(self, head: int) -> None:
        self.revision += 1
        state = (CHAIN0, CHAIN0, {"param": 0}, MANIFEST) if head >= 0 else (b"", b"", {}, ())
        self.hear(Welcome("me", self.revision, "", head, *state))

    def hear(self, record: Record, source: str = COORDINATOR, payload: Any = None) -> None:
        self.peer.receive(source, record, () if payload is None else (payload,), 0.0)

    def say(self, record: Record, now: float = 0.0) -> None:
        self.peer.from_trainer(record, now)

    def start(self, attempt: int = 5, contributors: tuple[str, ...] = ("b", "me")) -> None:
        shards = (1,) + (0,) * (len(contributors) - 1)
        sync = replace(SYNC, attempt=attempt)
        self.hear(Start(sync, 1, contributors, (1.0,) * len(contributors), (), shards))

    def report(self) -> Report:
        """What the coordinator was told last."""
        return [record for to, record, _ in self.around.sent if to == COORDINATOR and isinstance(record, Report)][-1]

    def commit(self, contributors: tuple[str, ...], number: int = 1, attempt: int = 5) -> None:
        chain = CHAIN0
        for _ in range(number):
            chain = next_link(chain, update_digest([DIGEST]))
        sync = SyncId("param", number, attempt)
        weights = (1.0,) * len(contributors)
        line = CommitRecord(number, sync, contributors, weights, update_digest([DIGEST]), chain)
        self.hear(Commit((line,), number, self.revision))

    def reports(self) -> list[Report]:
        return [record for _, record, _ in self.around.sent if isinstance(record, Report)]

    def parts(self) -> list[tuple[str, Any]]:
        return [(to, payload) for to, record, payload in self.around.sent if isinstance(record, Part)]

    def granted(self) -> list[str]:
        return [record.kind for record in self.around.to_trainer if isinstance(record, Granted)]


def running(stream: Stream | None = None) -> One:
    """A peer with the state at line 0, and a trainer that has started."""
    one = One(stream or Stream("param", every=10))
    one.hear(View(1, tuple(Member(peer, peer, "h:1", b"k" * 32, True) for peer in "bc")))
    one.hear(StateChunk(0, 0, CHAIN0), "b", "state")
    one.say(Attach(MANIFEST, 1, BOOT))
    assert one.granted() == ["start"]
    one.around.tensors.did.clear()
    return one


# ---- bytes from others


@pytest.mark.parametrize("record", [Part(SYNC, (0,)), Result(SYNC, (0,)), StateChunk(0, 0, CHAIN0), UpdateChunk(1, 0)])
def test_false_bytes_never_reach_the_core_and_end_nothing(record: Record) -> None:
    one = running()
    one.say(Contribute("param", 1, 10, 0, 1))
    one.start()
    before = len(one.around.sent)
    one.hear(record, "b", "false")
    told = [sent for _, sent, _ in one.around.sent[before:]]
    assert [type(sent) for sent in told] == [Report] * isinstance(record, Part | Result)
    assert one.peer.core.applied == 0


@pytest.mark.scenario(14)
@pytest.mark.parametrize(
    ("record", "payload", "why"),
    [
        (Part(SYNC, (0,)), "false", "Part: false bytes"),
        (Result(SYNC, (0,)), "false", "Result: false bytes"),
        (Part(SYNC, (0,)), None, "Part: 0 buffers for 1 chunks"),
        (Part(SYNC, (0, 1)), "false", "Part: 1 buffers for 2 chunks"),
        (Part(SYNC, (7,)), "part", "Part: no such chunk"),
    ],
)
def test_the_coordinator_hears_by_name_whose_contribution_cannot_be_used(
    record: Record, payload: str | None, why: str
) -> None:
    one = running()
    one.say(Contribute("param", 1, 10, 0, 1))
    one.start()
    one.hear(record, "c", payload)  # who is not in it cannot end it
    assert one.report().syncs[0].phase != "failed"
    one.hear(record, "b", payload)
    (line,) = one.report().syncs
    assert (line.phase, line.waiting_for, line.why) == ("failed", ("b",), why)
    assert one.peer.rejected == 2
    one.hear(Abort(SYNC, "b is out"))
    one.start(attempt=6, contributors=("me",))
    one.commit(("me",), attempt=6)
    assert one.peer.core.applied == 1


def test_parts_are_looked_at_and_written_in_the_codec_of_the_start() -> None:
    one = running(Stream("param", every=10, codec="auto", down="int8"))
    one.say(Contribute("param", 1, 10, 0, 1))
    sync = replace(SYNC, attempt=5)
    one.hear(Part(sync, (0,), "rms0.35+zstd"), "c", "part of c")  # it overtakes the START
    one.hear(Start(sync, 1, ("b", "c", "me"), (1.0,) * 3, (), (0, 0, 1), codec="rms0.35+zstd"))
    assert one.around.tensors.did[-2:] == [("check", "rms0.35+zstd"), ("codec", "param", "rms0.35+zstd")]
    one.hear(Part(sync, (0,), "int8"), "b", "part of b")
    (line,) = one.report().syncs
    assert (line.phase, line.waiting_for) == ("failed", ("b",))
    assert line.why == "Part: in 'int8' where 'rms0.35+zstd' was agreed on"


@pytest.mark.scenario(14)
def test_who_makes_the_sum_overflow_is_named() -> None:
    one = running()
    one.say(Contribute("param", 1, 10, 0, 1))
    one.start(contributors=("me", "b"))
    one.around.tensors.sums = False
    one.hear(Part(SYNC, (0,)), "b", "huge")
    assert one.report().syncs[0].waiting_for == ("b",)


def test_bytes_that_nobody_asked_for_are_dropped_before_they_are_looked_at() -> None:
    one = running()
    one.hear(StateChunk(0, 0, CHAIN0), "b", "state")
    one.hear(Part(replace(SYNC, index=9), (0,)), "b", "part")
    assert one.around.tensors.did == []
    assert "rejected" not in one.around.notes


# ---- contributions


def test_a_contribution_is_staged_reported_and_granted_with_the_outcome() -> None:
    one = running()
    one.say(Contribute("param", 1, 10, 0, 1))
    assert one.around.tensors.did == [("stage", "param"), ("use", "param")]
    one.start(contributors=("me",))
    assert one.around.tensors.did[2:] == []
    one.commit(("me",))
    assert one.around.tensors.did[2:] == [("reach", 1), ("settle", True), ("apply", ("sum",)), ("grant", "merge")]
    assert one.around.to_trainer[-1] == Granted("param", "merge", 1, 1, 10, count=2)


def test_a_contribution_that_crossed_a_grant_is_left_alone() -> None:
    """What it holds is a difference to weights that the grant has replaced."""
    one = running()
    one.hear(Refetch(0, CHAIN0, "digest differs"))
    one.say(Contribute("param", 1, 10, 0, 1))  # the state is gone
    one.welcome(0)
    one.hear(StateChunk(0, 0, CHAIN0), "b", "state")
    assert one.granted() == ["start", "start"]
    one.say(Contribute("param", 1, 10, 0, 1))  # sent before the second start came
    assert ("stage", "param") not in one.around.tensors.did
    one.say(Contribute("param", 2, 20, 0, 2))
    assert ("stage", "param") in one.around.tensors.did


def test_a_contribution_that_comes_twice_is_staged_once() -> None:
    one = running()
    one.say(Contribute("param", 1, 10, 0, 1))
    one.say(Contribute("param", 1, 10, 0, 1))
    assert one.around.tensors.did.count(("stage", "param")) == 1


def test_tokens_count_since_the_last_contribution_that_was_taken_in() -> None:
    one = running(Stream("param", every=10, weight="tokens"))
    one.say(Contribute("param", 1, 10, 100, 1))
    assert one.reports()[-1].syncs[0].weight == 100.0
    one.start(attempt=5, contributors=("b",))
    one.commit(("b",))  # went on without it
    one.hear(UpdateChunk(1, 0), "b", "sum")
    one.say(Contribute("param", 2, 15, 130, 2))
    assert one.reports()[-1].syncs[0].weight == 130.0
    one.hear(Start(SyncId("param", 2, 6), 1, ("me",), (130.0,), (), (1,)))
    one.commit(("me",), number=2, attempt=6)
    assert one.granted()[-1] == "merge"
    one.say(Contribute("param", 3, 25, 150, 3))
    assert one.reports()[-1].syncs[0].weight == 20.0


def test_tokens_of_dropped_progress_do_not_count() -> None:
    one = running(Stream("param", every=10, weight="tokens", late="adopt"))
    one.say(Contribute("param", 1, 10, 100, 1))
    one.commit(("b",))
    one.hear(UpdateChunk(1, 0), "b", "sum")
    assert one.granted()[-1] == "move"
    one.say(Contribute("param", 2, 20, 130, 2))
    assert one.reports()[-1].syncs[0].weight == 30.0


def test_a_sum_that_does_not_encode_is_reported() -> None:
    one = running()
    one.around.tensors.sums = False
    one.say(Contribute("param", 1, 10, 0, 1))
    one.start(contributors=("me", "b"))
    one.hear(Part(SYNC, (0,)), "b", "part")
    assert one.reports()[-1].syncs[0].phase == "failed"
    assert one.around.refusals == []


def test_a_contribution_that_does_not_encode_is_refused_and_ends_no_process() -> None:
    one = running()
    one.around.tensors.encodes = False
    one.say(Contribute("param", 1, 10, 0, 1))
    one.start()
    assert one.reports()[-1].syncs[0].phase == "failed"
    assert [refusal.code for refusal in one.around.refusals] == ["non-finite"]
    one.around.tensors.encodes = True
    one.peer.pump(1.0)
    assert one.parts() == []


# ---- the trainer


def test_a_trainer_that_asks_again_gets_the_same_answer_and_a_new_one_gets_memory_of_its_own() -> None:
    one = running()
    one.say(Attach(MANIFEST, 1, BOOT))
    answers = [record for record in one.around.to_trainer if isinstance(record, Attached)]
    assert [answer.segment for answer in answers] == ["segment-1", "segment-1"]
    one.peer.trainer_gone(1.0)
    one.say(Attach(MANIFEST, 2, b"trainer2"))
    assert one.around.to_trainer[-2].segment == "segment-2"  # type: ignore[union-attr]


def test_a_trainer_that_has_outlived_its_daemon_is_a_reader_before_it_asks_for_samples() -> None:
    """Else the coordinator would give its leases to others, as nothing was heard of it for too long."""
    one = One(Stream("param", every=10))
    one.around.held = Held(0, CHAIN0, {})
    one.say(Attach(MANIFEST, 1, BOOT, "segment", {}, {}, b"reader-1"))
    one.peer.tick(1.0)
    assert (one.report().log_number, one.report().reader) == (-1, b"reader-1")  # also while the daemon catches up
    one.peer.trainer_gone(2.0)
    one.peer.tick(3.0)
    assert one.report().reader == b""


def test_a_trainer_that_starts_over_keeps_its_memory() -> None:
    one = running()
    one.hear(Refetch(0, CHAIN0, "digest differs"))
    one.welcome(0)
    one.hear(StateChunk(0, 0, CHAIN0), "b", "state")
    assert (one.around.segments, one.around.models) == (1, 1)


def test_initial_weights_are_taken_only_while_they_are_asked_for() -> None:
    one = One(Stream("param"), head=-1)
    one.say(Attach(MANIFEST, 1, BOOT))
    one.say(GenesisWritten())
    one.hear(WantGenesis())
    one.say(GenesisWritten())
    assert [record for _, record, _ in one.around.sent if isinstance(record, Genesis)] == [Genesis(MANIFEST, b"s" * 32)]
    one.welcome(0)
    one.around.tensors.adopt_genesis = lambda: pytest.fail("the state of the run was overwritten")  # type: ignore[method-assign]
    one.say(GenesisWritten())


def test_initial_weights_that_are_not_finite_are_refused() -> None:
    one = One(Stream("param"), head=-1)
    one.say(Attach(MANIFEST, 1, BOOT))
    one.hear(WantGenesis())
    one.around.tensors.finite = False
    one.say(GenesisWritten())
    assert [refusal.code for refusal in one.around.refusals] == ["non-finite"]
    assert not any(isinstance(record, Genesis) for _, record, _ in one.around.sent)


def test_a_waiting_trainer_hears_for_whom_about_once_a_second() -> None:
    one = running()
    one.say(Contribute("param", 1, 10, 0, 1))
    one.hear(Waiting("waiting for b"))
    for tenth in range(1, 31):
        one.peer.tick(tenth / 10)
    reasons = [record.reason for record in one.around.to_trainer if isinstance(record, Waiting)]
    assert reasons == ["waiting for b"] * 3


def test_a_trainer_that_waits_for_its_first_state_hears_what_for() -> None:
    one = One(Stream("param", every=10))
    one.hear(View(1, (Member("b", "b", "h:1", b"k" * 32, True),)))
    one.say(Attach(MANIFEST, 1, BOOT))
    one.peer.tick(1.0)
    (said,) = [record.reason for record in one.around.to_trainer if isinstance(record, Waiting)]
    assert said == "fetching the state from b for 1.0 s: 0 of 1 chunks"
    one.hear(StateChunk(0, 0, CHAIN0), "b", "state")
    one.peer.tick(2.0)
    assert len([record for record in one.around.to_trainer if isinstance(record, Waiting)]) == 1


def test_a_trainer_whose_first_state_nobody_has_hears_that_until_somebody_comes() -> None:
    one = One(Stream("param", every=10))
    one.say(Attach(MANIFEST, 1, BOOT))
    one.hear(Waiting("bring back b"))
    one.peer.tick(1.0)
    one.hear(View(1, (Member("b", "b", "h:1", b"k" * 32, True),)))
    one.peer.tick(2.0)
    said = [record.reason for record in one.around.to_trainer if isinstance(record, Waiting)]
    assert said == [
        "fetching the state from a peer that holds it for 1.0 s: 0 of 1 chunks: bring back b",
        "fetching the state from b for 2.0 s: 0 of 1 chunks",
    ]


def test_a_trainer_that_takes_its_leave_is_told_when_it_may_end() -> None:
    one = running()
    one.say(Detach("training finished"))
    assert one.around.exits == []  # the digest of its last state is to be reported first
    while one.peer.idle_work(0.0):
        pass
    assert one.around.exits == []  # and somebody is to have that state
    one.hear(MayLeave(0, 2, heard=99))
    assert one.reports()[-1].state_digest == state_digest([b"s" * 32])
    assert one.around.to_trainer[-1] == Detached()
    assert one.around.exits == [0]


# ---- queues


def test_what_a_full_connection_refuses_goes_later_in_order() -> None:
    one = running()
    one.say(Contribute("param", 1, 10, 0, 1))
    one.around.stuck = {"b"}
    one.start()
    assert (one.parts(), one.peer.backlog) == ([], 1)
    one.around.stuck = set()
    one.peer.pump(1.0)
    assert (one.parts(), one.peer.backlog) == ([("b", "mine")], 0)


def test_what_is_of_no_use_any_more_is_not_sent() -> None:
    one = running()
    one.say(Contribute("param", 1, 10, 0, 1))
    one.around.stuck = {"b"}
    one.start()
    one.hear(Abort(SYNC, "lost b"))
    one.around.stuck = set()
    one.peer.pump(1.0)
    assert (one.parts(), one.peer.backlog) == ([], 0)


def test_one_who_asks_for_more_than_its_connection_takes_makes_no_endless_queue() -> None:
    one = running()
    one.around.stuck = {"d"}
    for _ in range(3 * MAX_SERVED):
        one.hear(WantState((0,)), "d")
        one.hear(WantUpdate(1, (0,)), "d")
    assert one.peer.backlog <= MAX_SERVED + 1


# ---- between messages


def test_the_state_is_digested_in_steps_and_anew_when_it_was_replaced() -> None:
    one = running()
    assert one.peer.idle_work(0.0)
    one.hear(Refetch(0, CHAIN0, "digest differs"))
    one.welcome(0)
    one.hear(StateChunk(0, 0, CHAIN0), "b", "state")
    assert [one.peer.idle_work(0.0) for _ in range(3)] == [True, True, False]
    one.peer.tick(one.peer.core.facts.heartbeat_s)
    assert (one.reports()[-1].state_number, one.reports()[-1].state_digest) == (0, state_digest([b"s" * 32]))


# ---- what a leaving peer owes


def test_a_leaving_peer_hands_what_it_owes_to_a_member_before_it_says_goodbye() -> None:
    one = running()
    one.around.tensors.owed = ["owed"]
    one.peer.handle(StateDigested(0, b"s" * 32), 0.0)
    one.around.stuck = {"b"}
    one.peer.handle(LeaveRequested("done"), 1.0)
    one.hear(MayLeave(0, 2, heard=99))
    one.peer.tick(1.1)
    one.peer.tick(1.2)
    assert one.around.exits == []
    one.around.stuck = set()
    one.peer.pump(1.3)
    one.peer.tick(1.4)
    assert ("b", Owed("param", 0, 1), "owed") in one.around.sent
    assert one.around.exits == [0]


def test_a_leaving_peer_hands_over_nothing_of_what_is_in_a_contribution_that_may_yet_be_taken_in() -> None:
    one = running()
    one.around.tensors.owed = ["owed"]
    one.say(Contribute("param", 1, 10, 0, 1))
    one.start(contributors=("b", "me"))
    one.peer.handle(StateDigested(0, b"s" * 32), 0.0)
    one.peer.handle(LeaveRequested("done"), 1.0)
    one.hear(MayLeave(0, 2, heard=99))
    for tenth in range(20):  # by then it does not wait for the sync any longer
        one.peer.tick(1.0 + LEAVE_PATIENCE_S + tenth / 10)
    assert one.around.exits == [0]
    assert not [record for _, record, _ in one.around.sent if isinstance(record, Owed)]


def test_a_leaving_peer_does_not_wait_for_ever_for_its_heir() -> None:
    one = running()
    one.around.tensors.owed = ["owed"]
    one.peer.handle(StateDigested(0, b"s" * 32), 0.0)
    one.around.stuck = {"b"}
    one.peer.handle(LeaveRequested("done"), 1.0)
    one.hear(MayLeave(0, 2, heard=99))
    one.peer.tick(2.0)
    one.peer.tick(1.0 + LEAVE_PATIENCE_S)
    assert one.around.exits == [0]


def test_what_a_leaving_peer_owed_is_taken_over_once_it_is_whole_and_only_from_members() -> None:
    one = running()
    one.hear(Owed("param", 0, 1), "stranger", "owed")
    one.hear(Owed("param", 0, 2), "b", "owed")
    one.hear(Owed("param", 1, 1), "b", "owed")
    one.hear(Owed("other", 0, 1), "b", "owed")
    assert one.around.tensors.did == []
    one.hear(Owed("param", 0, 1), "b", "owed")
    assert one.around.tensors.did == [("owed", ("owed",))]


# ---- starting over


def test_what_is_out_of_line_is_dropped_and_the_trainer_takes_over_the_state() -> None:
    one = running()
    one.say(Contribute("param", 1, 10, 0, 1))
    one.hear(StartOver("param", 2, "another sync"))
    one.hear(StartOver("other", 1, "another stream"))
    assert one.granted() == ["start"]
    one.hear(StartOver("param", 1, "norm 1e9"))
    assert "start-over" in one.around.notes
    assert one.granted() == ["start", "start"]
    assert not one.report().syncs
    one.hear(StartOver("param", 1, "norm 1e9"))
    assert one.granted() == ["start", "start"]
    one.say(Contribute("param", 2, 20, 0, 2))
    assert one.report().syncs[0].phase == "ready"


def test_what_one_asks_who_was_put_out_does_not_wait_for_ever() -> None:
    one = running()
    one.commit(("b",))
    one.hear(UpdateChunk(1, 0), "b", "sum")
    one.around.stuck = {"c"}
    one.hear(View(2, (Member("b", "b", "h:1", b"k" * 32, True),)))
    one.hear(WantUpdate(1, (0,)), "c")  # on the connection that c had dialled
    one.hear(WantState((0,)), "c")
    assert one.peer.backlog == 2
    for second in range(20):
        one.peer.tick(float(second))
    assert one.peer.backlog == 0


def test_a_newcomer_that_asks_before_its_view_is_here_is_served() -> None:
    one = running()
    one.around.stuck = {"d"}
    one.hear(WantState((0,)), "d")
    one.peer.tick(1.0)
    assert one.peer.backlog == 1
    members = [Member(peer, peer, "h:1", b"k" * 32, peer != "d") for peer in "bcd"]
    one.hear(View(2, tuple(members)))
    for second in range(2, 30):
        one.peer.tick(float(second))
    assert one.peer.backlog == 1


@pytest.mark.scenario(16)
def test_a_trainer_that_missed_two_grants_is_told_the_last_one_and_its_number() -> None:
    one = running()
    one.say(Contribute("param", 1, 10, 0, 1))
    one.around.to_trainer.clear()
    one.hear(StartOver("param", 1, "norm 1e9"))
    one.hear(Refetch(0, CHAIN0, "digest differs"))
    one.welcome(0)
    one.hear(StateChunk(0, 0, CHAIN0), "b", "state")
    assert one.granted() == ["start", "start"]  # both lost with the connection
    one.around.to_trainer.clear()
    one.say(Attach(MANIFEST, 1, BOOT, "segment-1", {"param": 1}, {"param": 0}))
    (told,) = [record for record in one.around.to_trainer if isinstance(record, Granted)]
    assert (told.kind, told.count) == ("start", 3)
    one.say(Contribute("param", 2, 20, 0, told.count))
    assert one.around.notes[-1] != "contribution-ignored"
    assert one.report().syncs[0].phase == "ready"
