"""What waits to be sent: made when it can leave, several chunks in one message, nothing of an attempt that is over."""

from typing import Any

import pytest

from wantrain.errors import CodecError
from wantrain.peers.effects import SendContribution, SendPayload, SendState
from wantrain.peers.events import ReduceFailed
from wantrain.peers.messages import CommitRecord, Part, Record, Result, StateChunk, SyncId, UpdateChunk
from wantrain.peers.outbox import MAX_SERVED, REPEAT_AFTER_S, SERVED_EVERY_S, Outbox
from wantrain.transport.link import Done
from wantrain.transport.wire import MAX_BUFFERS

SYNC, OVER = SyncId("param", 1, 5), SyncId("param", 1, 4)
RECORD = CommitRecord(1, SYNC, ("a",), (1.0,), b"d" * 32, b"c" * 32)


class Core:
    """As much of a participant as the outbox looks at."""

    class facts:  # noqa: N801 - stands for an attribute
        me = "me"

    applied, chain, complete = 7, b"c" * 32, True

    def moving(self, sync: SyncId) -> bool:
        return sync == SYNC

    def codec(self, sync: SyncId) -> str:
        return ""


class Source:
    """Chunks of ten bytes."""

    def __init__(self) -> None:
        self.encoded: list[int] = []
        self.released: list[Any] = []
        self.flawed = -1

    def part(self, stream: str, chunk: int) -> bytes:
        if chunk == self.flawed:
            raise CodecError("too large")
        self.encoded.append(chunk)
        return b"part" + chunk.to_bytes(6, "big")

    def read_state(self, k: int) -> bytes:
        return b"state" + k.to_bytes(5, "big")

    def release(self, payload: Any) -> None:
        self.released.append(payload)

    def size_bytes(self, payload: Any) -> int:
        return len(payload)


class Way:
    """Takes `room` messages for each receiver."""

    def __init__(self, room: int = 1000, message_bytes: int = 35) -> None:
        self.room = room
        self.message_bytes = message_bytes
        self.sent: list[tuple[str, Record, int]] = []
        self.done: list[Done] = []
        self.under_way_s = 0.0

    def send_bulk(self, to: str, record: Record, payloads: tuple[Any, ...], done: Done | None = None) -> bool:
        if sum(receiver == to for receiver, _, _ in self.sent) >= self.room:
            return False
        self.sent.append((to, record, len(payloads)))
        if done is not None:
            self.done.append(done)
        return True

    def clears_s(self, to: str) -> float:
        return self.under_way_s

    def bulk_bytes(self, to: str) -> int:
        return self.message_bytes


def made(way: Way) -> tuple[Outbox, Source]:
    return Outbox(Core(), way), Source()  # type: ignore[arg-type]


def pump(outbox: Outbox, source: Source, now: float = 0.0) -> list[ReduceFailed]:
    """Until nothing moves any more."""
    failures = outbox.pump(source, now)
    while outbox.moved:
        failures += outbox.pump(source, now)
    return failures


def test_chunks_of_one_kind_and_sync_share_a_message_up_to_the_links_size() -> None:
    way = Way()
    outbox, source = made(way)
    for chunk in range(5):
        outbox.add(SendContribution("b", SYNC, chunk), 0.0)
    outbox.add(SendPayload("b", Result(SYNC, (9,)), b"x" * 10), 0.0)
    outbox.add(SendPayload("b", Part(SYNC, (10,)), b"x" * 10), 0.0)
    assert pump(outbox, source) == []
    assert [record for _, record, _ in way.sent] == [
        Part(SYNC, (0, 1, 2)),
        Part(SYNC, (3, 4)),
        Result(SYNC, (9,)),
        Part(SYNC, (10,)),
    ]
    assert [count for _, _, count in way.sent] == [3, 2, 1, 1]
    assert outbox.backlog == 0


def test_a_message_has_at_least_one_chunk_and_at_most_as_many_buffers_as_the_wire_allows() -> None:
    for message_bytes, first in ((1, 1), (10**9, MAX_BUFFERS)):
        way = Way(message_bytes=message_bytes)
        outbox, source = made(way)
        for chunk in range(MAX_BUFFERS + 1):
            outbox.add(SendPayload("b", Result(SYNC, (chunk,)), b"x" * 10), 0.0)
        pump(outbox, source)
        assert way.sent[0][2] == first
        assert sum(count for _, _, count in way.sent) == MAX_BUFFERS + 1


def test_nothing_is_encoded_ahead_of_what_a_full_link_takes() -> None:
    way = Way(room=1, message_bytes=10)
    outbox, source = made(way)
    for chunk in range(100):
        outbox.add(SendContribution("b", SYNC, chunk), 0.0)
    for _ in range(5):
        pump(outbox, source)
    assert source.encoded == [0, 1]
    assert outbox.backlog == 99
    way.room = 1000
    pump(outbox, source)
    assert source.encoded == list(range(100))
    assert [record.chunks for _, record, _ in way.sent if isinstance(record, Part)] == [(k,) for k in range(100)]


def test_at_a_time_each_receiver_gets_one_message() -> None:
    way = Way(message_bytes=10)
    outbox, source = made(way)
    for to in "bc":
        for chunk in range(3):
            outbox.add(SendContribution(to, SYNC, chunk), 0.0)
    outbox.pump(source, 0.0)
    assert sorted(to for to, _, _ in way.sent) == ["b", "c"]
    assert outbox.moved
    assert source.encoded == [0, 0]


def test_receivers_take_turns() -> None:
    way = Way(message_bytes=10)
    outbox, source = made(way)
    for to in "bcd":
        for chunk in range(2):
            outbox.add(SendContribution(to, SYNC, chunk), 0.0)
    pump(outbox, source)
    assert [sorted(to for to, _, _ in way.sent[k : k + 3]) for k in (0, 3)] == [["b", "c", "d"]] * 2


def test_what_belongs_to_an_attempt_that_is_over_is_neither_encoded_nor_sent() -> None:
    way = Way()
    outbox, source = made(way)
    outbox.add(SendContribution("b", OVER, 0), 0.0)
    outbox.add(SendPayload("b", Result(OVER, (1,)), b"x"), 0.0)
    outbox.add(SendPayload("b", UpdateChunk(3, 0), b"x"), 0.0)
    pump(outbox, source)
    assert source.encoded == []
    assert [record for _, record, _ in way.sent] == [UpdateChunk(3, 0)]


def test_a_message_that_waits_when_its_attempt_ends_is_dropped_and_its_memory_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    way = Way(room=0)
    outbox, source = made(way)
    outbox.add(SendContribution("b", SYNC, 4), 0.0)
    pump(outbox, source)
    assert outbox.backlog == 1
    monkeypatch.setattr(Core, "moving", lambda self, sync: False)
    pump(outbox, source)
    assert (outbox.backlog, source.released) == (0, [b"part" + (4).to_bytes(6, "big")])


def test_memory_of_parts_is_given_back_when_the_link_lets_go_of_it() -> None:
    way = Way()
    outbox, source = made(way)
    outbox.add(SendContribution("b", SYNC, 0), 0.0)
    outbox.add(SendPayload("b", Part(SYNC, (1,)), b"forwarded "), 0.0)
    pump(outbox, source)
    assert source.released == []
    for done in way.done:
        done()
    assert source.released == [b"part" + bytes(6)]


def test_a_chunk_that_does_not_encode_is_told_and_those_before_it_still_leave() -> None:
    way = Way(message_bytes=1000)
    outbox, source = made(way)
    source.flawed = 2
    for chunk in range(4):
        outbox.add(SendContribution("b", SYNC, chunk), 0.0)
    assert pump(outbox, source) == [ReduceFailed(SYNC, "too large", ("me",))]
    assert way.sent[0][1] == Part(SYNC, (0, 1))


def test_state_is_read_when_it_leaves_and_only_while_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    way = Way()
    outbox, source = made(way)
    outbox.add(SendState("b", 3), 0.0)
    pump(outbox, source)
    assert way.sent == [("b", StateChunk(3, 7, b"c" * 32), 1)]
    monkeypatch.setattr(Core, "complete", False)
    outbox.add(SendState("b", 4), 0.0)
    pump(outbox, source)
    assert len(way.sent) == 1


def test_served_chunks_are_bounded_and_hanging_up_forgets_them() -> None:
    way = Way(room=0)
    outbox, source = made(way)
    for chunk in range(2 * MAX_SERVED):
        outbox.add(SendState("b", chunk), 0.0)
    assert outbox.backlog == MAX_SERVED
    pump(outbox, source)
    outbox.drop("b")
    assert outbox.backlog == 0
    assert len(source.released) == 1


def test_a_chunk_asked_for_again_is_not_sent_twice_while_it_waits_or_has_just_left() -> None:
    way = Way(room=0)
    outbox, source = made(way)
    part = SendContribution("b", SYNC, 0)
    outbox.add(part, 0.0)
    outbox.add(part, 1.0)
    assert outbox.backlog == 1
    way.room = 1000
    pump(outbox, source, 1.5)
    outbox.add(part, 1.5 + REPEAT_AFTER_S - 0.1)
    outbox.add(SendPayload("b", Result(SYNC, (0,)), b"x"), 3.0)
    outbox.add(SendContribution("c", SYNC, 0), 3.0)
    assert outbox.backlog == 2
    outbox.add(part, 1.5 + REPEAT_AFTER_S)
    assert outbox.backlog == 3


def test_what_may_be_lost_with_a_connection_is_sent_again_at_once() -> None:
    way = Way()
    outbox, source = made(way)
    outbox.add(SendContribution("b", SYNC, 0), 0.0)
    pump(outbox, source)
    outbox.lost("b")
    outbox.add(SendContribution("b", SYNC, 0), 0.1)
    pump(outbox, source, 0.1)
    assert len(way.sent) == 2


def test_what_was_asked_for_again_is_not_sent_twice_while_it_may_still_be_on_its_way() -> None:
    way = Way()
    outbox, source = made(way)
    part, state = SendContribution("b", SYNC, 0), SendState("b", 3)
    for item in (part, state):
        outbox.add(item, 0.0)
    pump(outbox, source)
    way.under_way_s = 10.0  # a slow link
    for item in (part, state):
        outbox.add(item, 2 * 10.0 - 0.1)
    assert outbox.backlog == 0
    for item in (part, state):
        outbox.add(item, REPEAT_AFTER_S + 2 * 10.0)
    assert outbox.backlog == 2


def test_what_is_served_leaves_after_all_that_a_sync_waits_for() -> None:
    way = Way(room=0, message_bytes=10)
    outbox, source = made(way)
    outbox.add(SendState("b", 0), 0.0)
    outbox.add(SendPayload("c", UpdateChunk(3, 0), b"x" * 10), 0.0)
    for to in "bc":
        for chunk in range(3):
            outbox.add(SendContribution(to, SYNC, chunk), 0.0)
    pump(outbox, source)
    way.room = 1000
    pump(outbox, source, 0.1)
    assert [isinstance(record, Part) for _, record, _ in way.sent] == [True] * 6 + [False] * 2


def test_a_served_chunk_that_waits_for_the_link_does_not_hold_up_a_sync() -> None:
    way = Way(room=0)
    outbox, source = made(way)
    outbox.add(SendState("b", 0), 0.0)
    pump(outbox, source)  # it is read, and the link is full
    outbox.add(SendContribution("b", SYNC, 0), 0.1)
    way.room = 1
    pump(outbox, source, 0.2)
    assert [type(record) for _, record, _ in way.sent] == [Part]


def test_a_run_that_always_syncs_still_serves_a_newcomer() -> None:
    way = Way(message_bytes=10)
    outbox, source = made(way)
    for chunk in range(100):
        outbox.add(SendState("n", chunk), 0.0)
    sent = []
    for tenth in range(100):
        outbox.add(SendContribution("b", SYNC, 2 * tenth), tenth / 10)
        outbox.add(SendContribution("b", SYNC, 2 * tenth + 1), tenth / 10)
        way.sent.clear()
        outbox.pump(source, tenth / 10)  # one of the two stays
        sent.append([to for to, _, _ in way.sent])
    assert all("b" in receivers for receivers in sent)
    served = [tenth for tenth, receivers in enumerate(sent) if "n" in receivers]
    assert 8 <= len(served) <= 10 / SERVED_EVERY_S
    assert served[0] >= 10 * SERVED_EVERY_S
