"""The direct all-reduce: who is in a sum, exactly once, in order; what is asked for again; what is ignored."""

import hashlib
import itertools
from collections import deque
from typing import Any

import pytest

from wantrain.errors import ProtocolBug
from wantrain.transport import collective
from wantrain.transport.collective import (
    Ask,
    Asked,
    Begin,
    ChunkReduced,
    Complete,
    Effect,
    Event,
    PartCame,
    Plan,
    Reduce,
    ResultCame,
    SendPart,
    SendResult,
    Tick,
)
from wantrain.transport.digest import update_digest
from wantrain.transport.direct import Direct
from wantrain.transport.partition import split_chunks

VALUES = {"a": 1, "b": 100, "c": 10_000}
"""Powers: any sum shows who is in it, and how often."""


def digest(payload: Any) -> bytes:
    return hashlib.sha256(repr(payload).encode()).digest()


def plan_of(contributors: str, shards: tuple[int, ...], weights: tuple[float, ...] = (), receivers: str = "") -> Plan:
    return Plan(tuple(contributors), weights or (1.0,) * len(contributors), tuple(receivers), shards)


class Table:
    """All cores of one attempt, with numbers as payloads; messages in flight are a queue that a test may cut."""

    def __init__(self, contributors: str, chunks: int, receivers: str = "", shards: tuple[int, ...] = ()) -> None:
        shards = shards or split_chunks(chunks, [1.0] * len(contributors))
        plan = plan_of(contributors, shards, receivers=receivers)
        self.cores = {peer: Direct(peer, plan) for peer in (*contributors, *receivers)}
        self.complete: dict[str, Complete] = {}
        self.flying: deque[tuple[str, str, Event]] = deque()
        self.sent = 0

    def begin(self) -> None:
        for peer in self.cores:
            self.handle(peer, Begin())

    def handle(self, peer: str, event: Event, now: float = 0.0) -> None:
        events = deque([event])
        while events:
            for effect in self.cores[peer].handle(events.popleft(), now):
                match effect:
                    case SendPart(to, chunk):
                        self.fly(peer, to, PartCame(peer, chunk, VALUES[peer]))
                    case SendResult(to, chunk, payload):
                        self.fly(peer, to, ResultCame(peer, chunk, payload, digest(payload)))
                    case Ask(to, parts, results):
                        self.fly(peer, to, Asked(peer, parts, results))
                    case Reduce(chunk, inputs, divisor, True):
                        total = sum(weight * (VALUES[peer] if part is None else part) for weight, part in inputs)
                        assert divisor == sum(weight for weight, _ in inputs)
                        events.append(ChunkReduced(chunk, total, digest(total)))
                    case Complete():
                        assert peer not in self.complete
                        self.complete[peer] = effect

    def fly(self, source: str, to: str, event: Event) -> None:
        self.sent += 1
        self.flying.append((source, to, event))

    def run(self, *, without: str = "", lose_sent: int = -1, now: float = 0.0) -> None:
        """Deliver everything; nothing from or to `without`, and not message number `lose_sent`."""
        number = itertools.count()
        while self.flying:
            source, to, event = self.flying.popleft()
            if next(number) != lose_sent and without not in (source, to):
                self.handle(to, event, now)


@pytest.mark.parametrize("chunks", [0, 1, 2, 3, 7, 64])
@pytest.mark.parametrize("contributors", ["a", "ab", "abc"])
def test_everybody_gets_the_sum_of_all_contributions_once(contributors: str, chunks: int) -> None:
    table = Table(contributors, chunks, receivers="r")
    table.begin()
    table.run()
    total = sum(VALUES[peer] for peer in contributors)
    assert set(table.complete) == {*contributors, "r"}
    for done in table.complete.values():
        assert done.payloads == (total,) * chunks
        assert done.digest == update_digest([digest(float(total))] * chunks)


def test_shards_may_be_uneven_and_empty() -> None:
    table = Table("abc", 5, shards=(0, 4, 1))
    table.begin()
    table.run()
    assert [done.payloads for done in table.complete.values()] == [(10_101,) * 5] * 3


def test_a_contributor_sends_each_chunk_once_to_its_owner_starting_with_the_next() -> None:
    core = Direct("b", plan_of("abc", (2, 2, 2)))
    sent = [(e.to, e.chunk) for e in core.handle(Begin(), 0.0) if isinstance(e, SendPart)]
    assert sent == [("c", 4), ("a", 0), ("c", 5), ("a", 1)]


def test_the_sum_is_in_contributor_order_whatever_comes_first() -> None:
    for order in itertools.permutations("ac"):
        core = Direct("b", plan_of("abc", (0, 1, 0), weights=(1.0, 2.0, 3.0)))
        core.handle(Begin(), 0.0)
        effects: list[Effect] = []
        for peer in order:
            effects += core.handle(PartCame(peer, 0, VALUES[peer]), 0.0)
        assert effects == [Reduce(0, ((1.0, 1), (2.0, None), (3.0, 10_000)), 6.0)]


def test_a_part_that_comes_twice_counts_once() -> None:
    core = Direct("a", plan_of("abc", (1, 0, 0)))
    core.handle(Begin(), 0.0)
    core.handle(PartCame("b", 0, 100), 0.0)
    assert core.handle(PartCame("b", 0, 100), 0.0) == []
    assert core.handle(PartCame("c", 0, 10_000), 0.0) == [Reduce(0, ((1.0, None), (1.0, 100), (1.0, 10_000)), 3.0)]
    assert core.handle(PartCame("c", 0, 10_000), 0.0) == []


@pytest.mark.parametrize(
    "event",
    [
        PartCame("stranger", 0, 7),
        PartCame("a", 0, 7),  # our own, from the network
        PartCame("b", 1, 7),  # not ours to sum
        PartCame("b", 99, 7),
        ResultCame("c", 1, 7, b"d"),  # not its owner
        ResultCame("b", 99, 7, b"d"),
        ResultCame("r", 0, 7, b"d"),
    ],
)
def test_what_does_not_belong_changes_nothing(event: Event) -> None:
    core = Direct("a", plan_of("abc", (1, 1, 1), receivers="r"))
    core.handle(Begin(), 0.0)
    before = (core.missing, core.waiting_for)
    assert core.handle(event, 0.0) == []
    assert (core.missing, core.waiting_for) == before


@pytest.mark.parametrize("lost", "abc")
def test_without_a_peer_nobody_completes_who_needs_it_and_the_retry_has_the_others_once(lost: str) -> None:
    table = Table("abc", 3)
    table.begin()
    messages = table.sent
    for after in range(messages + 1):
        table = Table("abc", 3)
        table.begin()
        for _ in range(min(after, len(table.flying))):
            _, to, event = table.flying.popleft()
            table.handle(to, event)
        table.run(without=lost)
        for done in table.complete.values():
            assert done.payloads == (10_101,) * 3
        rest = "abc".replace(lost, "")
        retry = Table(rest, 3)
        retry.begin()
        retry.run()
        assert {done.payloads for done in retry.complete.values()} == {(sum(VALUES[p] for p in rest),) * 3}


def test_any_one_lost_message_is_asked_for_again() -> None:
    table = Table("abc", 4, receivers="r")
    table.begin()
    table.run()
    for lose in range(table.sent):
        table = Table("abc", 4, receivers="r")
        table.begin()
        table.run(lose_sent=lose)
        for ask in range(4):
            now = collective.ASK_AFTER_S * 2 ** (ask + 1)
            for peer in table.cores:
                table.handle(peer, Tick(), now)
            table.run(now=now)
        assert {done.payloads for done in table.complete.values()} == {(10_101,) * 4}
        assert set(table.complete) == set("abcr")


def test_asking_waits_longer_each_time_and_starts_over_with_progress() -> None:
    core = Direct("a", plan_of("ab", (1, 1)))
    core.handle(Begin(), 0.0)
    ask = [Ask("b", (0,), (1,))]
    assert core.handle(Tick(), 0.9) == []
    assert core.handle(Tick(), 1.0) == ask
    assert core.handle(Tick(), 2.9) == []
    assert core.handle(Tick(), 3.0) == ask
    core.handle(ResultCame("b", 1, 101, b"d"), 3.5)
    assert core.handle(Tick(), 4.4) == []
    assert core.handle(Tick(), 4.5) == [Ask("b", (0,), ())]


def test_what_is_missing_and_for_whom_it_waits_is_told() -> None:
    core = Direct("a", plan_of("abc", (1, 1, 1)))
    core.handle(Begin(), 0.0)
    assert (core.missing, core.waiting_for) == (5, ("b", "c"))
    core.handle(ResultCame("b", 1, 1, b"d"), 0.0)
    core.handle(PartCame("b", 0, 100), 0.0)
    assert (core.missing, core.waiting_for) == (3, ("c",))


def test_a_completed_attempt_still_serves_others_and_takes_nothing_more() -> None:
    table = Table("ab", 2)
    table.begin()
    table.run()
    core = table.cores["a"]
    assert core.handle(Asked("b", (1,), (0,)), 9.0) == [SendPart("b", 1), SendResult("b", 0, 101)]
    assert core.handle(Asked("stranger", (1,), (0,)), 9.0) == []
    assert core.handle(PartCame("b", 0, 5), 9.0) == core.handle(Tick(), 9.0) == []


def test_an_impossible_event_raises_with_the_history() -> None:
    with pytest.raises(ProtocolBug, match="PartCame"):
        Direct("a", plan_of("ab", (1, 1))).handle(PartCame("b", 0, 1), 0.0)
