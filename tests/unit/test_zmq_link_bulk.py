"""Bulk over ZeroMQ: lanes come up, break and come back without a deadlock, and what is said about them is checked."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import zmq

from wantrain.errors import ConfigError, WireError
from wantrain.transport import zmq_lanes
from wantrain.transport.auth import Identity
from wantrain.transport.lanes import FIRST_STEP
from wantrain.transport.link import Connected, Dropped, LinkEvent, LinkStats, Received
from wantrain.transport.pacing import HEADROOM
from wantrain.transport.tcp_info import TcpInfo
from wantrain.transport.transfer import MAX_WINDOW_BYTES
from wantrain.transport.wire import Message, encode
from wantrain.transport.zmq_bulk import BULK_PER_POLL_BYTES, MAX_UNREAD_BYTES
from wantrain.transport.zmq_lanes import LaneSet
from wantrain.transport.zmq_link import ZmqLink, wait

RUN = b"run-id-8"
DEADLINE_S = 20.0
A, B = Identity.create(), Identity.create()
NAMES = {A.curve_public: "a", B.curve_public: "b"}


class Pair:
    """Two peers, each listening; a dials b unless told otherwise."""

    def __init__(self, **limits: float) -> None:
        self.a, self.b = self.link(A, **limits), self.link(B)
        self.a.connect("b", self.b.address, B.curve_public)
        self.until(lambda events: Connected("b") in events)

    @staticmethod
    def link(who: Identity, bind: str = "127.0.0.1:0", **limits: float) -> ZmqLink:
        key = (who.curve_public, who.curve_secret)
        if "max_upload_bytes_per_s" in limits:
            return ZmqLink(
                RUN, bind=bind, key=key, admit=NAMES.get, max_upload_bytes_per_s=limits["max_upload_bytes_per_s"]
            )
        return ZmqLink(RUN, bind=bind, key=key, admit=NAMES.get)

    def until(self, condition: Callable[[list[LinkEvent]], bool]) -> list[LinkEvent]:
        """Poll both until their events so far meet the condition."""
        events: list[LinkEvent] = []
        deadline = time.monotonic() + DEADLINE_S
        while not condition(events):
            assert time.monotonic() < deadline, f"nothing but {events[-5:]}"
            for link in (self.a, self.b):
                events += link.poll(0.002)
        return events

    def move(self, sender: ZmqLink, to: str, count: int, size: int = 256 << 10) -> list[int]:
        """Send numbered messages one after the other; the numbers that arrive."""
        left = list(range(count))

        def step(events: list[LinkEvent]) -> bool:
            while left and sender.send_bulk(to, Message("Part", {"n": left[0]}, (bytes(size),))):
                left.pop(0)
            return not left and sum(isinstance(event, Received) for event in events) >= count

        return sorted(event.message.body["n"] for event in self.until(step) if isinstance(event, Received))

    def hello(self) -> None:
        """Let b know a way back to a."""
        assert self.a.send("b", Message("Hello"))
        self.until(lambda events: any(isinstance(event, Received) for event in events))

    def close(self) -> None:
        self.a.close()
        self.b.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def lanes_of(link: ZmqLink, peer: str) -> LaneSet:
    """The set that a link has dialled."""
    return link._bulk.table.dialled[peer]


def stats(link: ZmqLink, peer: str) -> LinkStats:
    return link.stats().get(peer, LinkStats())


def break_lane(link: ZmqLink, peer: str) -> None:
    """End one lane as the network would, behind the link's back."""
    lanes = lanes_of(link, peer)
    lane = next(iter(lanes.lanes.values()))
    link._bulk.table.lose(lanes, lane, time.monotonic())


def dropped(events: list[LinkEvent]) -> list[Dropped]:
    return [event for event in events if isinstance(event, Dropped)]


def test_nothing_but_control_connections_before_there_is_bulk(pair: Pair) -> None:
    pair.hello()
    assert stats(pair.a, "b").lanes == stats(pair.b, "a").lanes == 0
    pair.move(pair.a, "b", 1)
    assert stats(pair.a, "b").lanes == stats(pair.b, "a").lanes == 1


def test_lanes_are_used_both_ways_and_each_peer_prefers_its_own(pair: Pair) -> None:
    pair.hello()
    assert pair.move(pair.b, "a", 40) == list(range(40))  # over the lane that a dialled when b asked for it
    assert pair.b._bulk.table.dialled == {}
    pair.b.connect("a", pair.a.address, A.curve_public)
    pair.until(lambda events: Connected("a") in events)
    assert pair.move(pair.a, "b", 40) == list(range(40))
    pair.until(lambda _: not pair.b.send_bulk("a", Message("N", {"n": 0})) or stats(pair.b, "a").lanes == 1)
    pair.until(lambda _: bool(lanes_of(pair.b, "a").usable()))
    assert pair.b._bulk.table.current("a") is lanes_of(pair.b, "a")
    assert pair.move(pair.b, "a", 40)[-40:] == list(range(40))


def test_more_lanes_share_the_messages(pair: Pair) -> None:
    pair.move(pair.a, "b", 1)
    lanes_of(pair.a, "b").wanted = 4
    pair.until(lambda _: stats(pair.a, "b").lanes == 4 and stats(pair.b, "a").lanes == 4)
    assert pair.move(pair.a, "b", 100, 64 << 10) == list(range(100))
    taken = dict(lanes_of(pair.a, "b").credit._sent)
    assert len(taken) == 4
    assert min(taken.values()) > 0
    pair.hello()
    assert pair.move(pair.b, "a", 100, 64 << 10) == list(range(100))


def test_a_burst_over_a_distant_path_gets_more_lanes_though_nothing_had_to_wait(pair: Pair) -> None:
    pair.move(pair.a, "b", 1)
    lanes, meter = lanes_of(pair.a, "b"), pair.a._bulk.table.meter("b")
    for lane in lanes.lanes.values():
        lane.ends = None  # so that the kernel does not correct what is said here
    meter.rtt_s, meter.rate_bytes_per_s = 0.1, 30e6
    assert all(pair.a.send_bulk("b", Message("Part", {}, (bytes(256 << 10),))) for _ in range(30))
    assert not lanes.busy
    pair.until(lambda _: stats(pair.a, "b").lanes == FIRST_STEP)


def test_lanes_over_a_distant_path_are_paced_once_it_carries_no_more(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.move(pair.a, "b", 1)
    lanes = lanes_of(pair.a, "b")
    lanes.wanted = 2
    pair.until(lambda _: stats(pair.a, "b").lanes == 2 and all(lane.ends for lane in lanes.lanes.values()))
    seen, limits = [TcpInfo(0.0001, 0, 0, 5_000_000, "bbr", 0)], []
    monkeypatch.setattr(zmq_lanes, "tcp_info", lambda *_: seen[0])
    monkeypatch.setattr(zmq_lanes, "limit_pace", lambda *said: limits.append(said[2]))
    for rtt_s, expected in ((0.0001, []), (0.1, [int(HEADROOM * 10_000_000)] * 2)):
        for _ in range(10):
            seen[0] = replace(seen[0], rtt_s=rtt_s, sent_segments=seen[0].sent_segments + 1000)
            lanes.measure(pair.a._bulk.table.meter("b"), time.monotonic())
        assert limits == expected


def test_bbr_that_has_fallen_far_below_what_the_path_carries_begins_again_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.hello()
    pair.move(pair.a, "b", 1)
    lanes = lanes_of(pair.a, "b")
    path, restarted, seen = 12_500_000, [], [TcpInfo(0.1, 0, 0, 0, "bbr", 0)]
    monkeypatch.setattr(zmq_lanes, "tcp_info", lambda *_: seen[0])
    monkeypatch.setattr(zmq_lanes, "restart_congestion", lambda *told: restarted.append(told[2]) or "bbr")
    counts = []
    for said in (path // 30, path, path, path, path, path // 2, path // 30, path // 30, 0, path // 10, path, path // 9):
        sent = seen[0].sent_segments + 1000
        seen[0] = replace(seen[0], sent_segments=sent, rate_bytes_per_s=said, path_bytes_per_s=said)
        lanes.measure(pair.a._bulk.table.meter("b"), time.monotonic())
        counts.append(len(restarted))
    assert counts == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2]
    assert set(restarted) == {"bbr"}


def test_the_accepting_side_asks_for_lanes(pair: Pair) -> None:
    pair.hello()
    pair.move(pair.b, "a", 1)
    accepted = pair.b._bulk.table.accepted["a"][0]
    pair.b._bulk.table._hailed_at.clear()
    pair.b._bulk.table.hail("a", accepted.control, 3, time.monotonic())
    pair.until(lambda _: stats(pair.b, "a").lanes == 3)


@pytest.mark.parametrize("sender", ["a", "b"])
def test_a_lane_that_breaks_is_replaced_and_what_was_under_way_is_forgotten(pair: Pair, sender: str) -> None:
    pair.hello()
    link, to = (pair.a, "b") if sender == "a" else (pair.b, "a")
    pair.move(link, to, 1)
    for _ in range(3):
        while link.send_bulk(to, Message("Part", {"n": -1}, (bytes(1 << 20),))):
            pass  # until the window is full
        break_lane(pair.a, "b")
        left = list(range(12))  # three windows

        def step(events: list[LinkEvent], left: list[int] = left) -> bool:
            while left and link.send_bulk(to, Message("Part", {"n": left[0]}, (bytes(1 << 20),))):
                left.pop(0)
            return any(isinstance(event, Received) and event.message.body["n"] == 11 for event in events)

        pair.until(step)
    pair.until(lambda _: stats(link, to).in_flight_bytes == 0)


def test_a_lost_acknowledgement_is_asked_for(pair: Pair) -> None:
    pair.move(pair.a, "b", 1)
    (lanes,) = pair.b._bulk.table.accepted["a"]
    silence = Message("_ack", {"s": lanes.identity, "a": [], "k": 0})
    lanes.receipt = lambda answer_to=0: silence  # type: ignore[method-assign]
    while pair.a.send_bulk("b", Message("Part", {"n": 0}, (bytes(1 << 20),))):
        pass
    pair.until(lambda events: sum(isinstance(event, Received) for event in events) >= 3)
    assert stats(pair.a, "b").in_flight_bytes > 0
    del lanes.receipt
    pair.until(lambda _: stats(pair.a, "b").in_flight_bytes == 0)


def test_bulk_goes_on_after_either_side_was_restarted(pair: Pair) -> None:
    pair.hello()
    pair.move(pair.a, "b", 10, 1 << 20)
    pair.move(pair.b, "a", 10, 1 << 20)
    while pair.b.send_bulk("a", Message("Lost", {}, (bytes(1 << 20),))):
        pass
    pair.a.close()  # the one that dialled
    pair.a = pair.link(A)
    pair.a.connect("b", pair.b.address, B.curve_public)
    pair.until(lambda events: Connected("b") in events)
    pair.hello()
    assert pair.move(pair.b, "a", 20, 1 << 20) == list(range(20))
    while pair.a.send_bulk("b", Message("Lost", {}, (bytes(1 << 20),))):
        pass
    address = pair.b.address
    pair.b.close()
    pair.b = pair.link(B, address)
    pair.until(lambda events: Connected("b") in events)
    assert pair.move(pair.a, "b", 20, 1 << 20) == list(range(20))


def test_disconnect_and_connect_again_starts_afresh(pair: Pair) -> None:
    for _ in range(3):
        assert pair.move(pair.a, "b", 10) == list(range(10))
        pair.a.disconnect("b")
        assert not pair.a.send_bulk("b", Message("Part"))
        pair.a.connect("b", pair.b.address, B.curve_public)
        pair.until(lambda events: Connected("b") in events)


def test_one_poll_hands_out_a_bounded_number_of_bytes(pair: Pair) -> None:
    pair.move(pair.a, "b", 1)
    pair.a._bulk.table.meter("b").rate_bytes_per_s = 1e11  # a window of 64 MiB
    sent, most = 0, 0
    while pair.a.send_bulk("b", Message("Part", {}, (bytes(4 << 20),))):
        sent += 1
    assert sent * (4 << 20) <= MAX_WINDOW_BYTES
    arrived = 0
    deadline = time.monotonic() + DEADLINE_S
    while arrived < sent:
        assert time.monotonic() < deadline
        wait([pair.b], 1.0)
        batch = [event for event in pair.b.poll(0) if isinstance(event, Received)]
        arrived += len(batch)
        most = max(most, len(batch) * (4 << 20))
    assert most <= BULK_PER_POLL_BYTES


def test_a_limit_on_upload_counts_control_but_never_holds_it_back() -> None:
    pair = Pair(max_upload_bytes_per_s=100_000.0)
    pair.move(pair.a, "b", 1, 60_000)
    assert pair.a.bulk_bytes("b") == 64 << 10
    for _ in range(10):
        assert pair.a.send("b", Message("Control", {}, (bytes(20_000),)))
    assert not pair.a.send_bulk("b", Message("Part", {}, (bytes(1),)))
    pair.until(lambda events: sum(isinstance(event, Received) for event in events) == 10)
    pair.close()


def test_a_probe_measures_a_path_of_which_nothing_is_known_and_nobody_sees_it(pair: Pair) -> None:
    assert pair.a.probe("b")
    events = pair.until(lambda _: stats(pair.a, "b").rate_bytes_per_s > 0 and stats(pair.a, "b").rtt_s > 0)
    pair.until(lambda _: not pair.a._bulk._probes)
    assert not events
    assert not pair.a.probe("b"), "known now"
    assert stats(pair.b, "a").messages_received == stats(pair.b, "a").dropped == 0
    assert stats(pair.a, "b").messages_sent == 0


def test_a_peer_that_only_dials_out_can_be_probed(pair: Pair) -> None:
    pair.until(lambda _: "a" in pair.b.ways())
    assert pair.b.probe("a")
    pair.until(lambda _: stats(pair.b, "a").rate_bytes_per_s > 0)


def test_kinds_of_the_link_itself_cannot_be_sent(pair: Pair) -> None:
    for send in (pair.a.send, pair.a.send_bulk):
        with pytest.raises(WireError, match="underscore"):
            send("b", Message("_ack"))


# ---- what others may say


@pytest.fixture
def raw(pair: Pair) -> Iterator[zmq.Socket[bytes]]:
    """A plain socket of an admitted peer."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.curve_serverkey = B.curve_public
    dealer.curve_publickey, dealer.curve_secretkey = A.curve_public, A.curve_secret
    dealer.connect(f"tcp://{pair.b.address}")
    yield dealer
    context.destroy(linger=0)


S = b"set-id-8"
MALFORMED = [
    Message("_lane", {"s": S}),
    Message("_lane", {"s": S, "n": -1}),
    Message("_lane", {"s": S, "n": True}),
    Message("_lane", {"s": b"short", "n": 1}),
    Message("_lane", {"s": "set-id-8", "n": 1}),
    Message("_lane", {"s": S, "n": 1, "x": 1}),
    Message("_lane", {"s": S, "n": 1}, (b"buffer",)),
    Message("_lanes", {"s": S, "l": 1}),
    Message("_lanes", {"s": S, "l": list(range(17))}),
    Message("_lanes", {"s": S, "l": ["1"]}),
    Message("_ack", {"s": S, "a": [[0]], "k": 0}),
    Message("_ack", {"s": S, "a": [[0, -1]], "k": 0}),
    Message("_ack", {"s": S, "a": [[0, 1.0]], "k": 0}),
    Message("_ack", {"s": S, "a": [0], "k": 0}),
    Message("_ack", {"s": S, "a": [[0, 1]] * 33, "k": 0}),
    Message("_ack", {"s": S, "a": []}),
    Message("_ask", {"s": S, "k": 0}),
    Message("_want", {"n": 1}),  # only the accepting side asks
    Message("_probe", {}),  # only on a lane
    Message("_other", {}),
    Message("_", {}),
]


@pytest.mark.parametrize("message", MALFORMED, ids=lambda message: f"{message.kind} {message.body}"[:60])
def test_malformed_internal_messages_are_dropped_and_counted(
    pair: Pair, raw: "zmq.Socket[bytes]", message: Message
) -> None:
    raw.send_multipart(encode(message, RUN))
    events = pair.until(lambda events: bool(dropped(events)))
    assert [type(event) for event in events] == [Dropped]
    assert stats(pair.b, "a").dropped == 1
    assert len(pair.b._routes.get("a", ())) <= 1, "no way is learnt from what is dropped"


def test_an_acknowledgement_of_more_than_was_sent_is_dropped_and_changes_nothing(pair: Pair) -> None:
    pair.hello()
    pair.move(pair.b, "a", 1)
    accepted = pair.b._bulk.table.accepted["a"][0]
    number = next(iter(accepted.lanes))
    lie = Message("_ack", {"s": accepted.identity, "a": [[number, 1 << 40]], "k": 0})
    assert pair.a._tell("b", b"", lie)
    events = pair.until(lambda events: bool(dropped(events)))
    assert "acknowledged" in dropped(events)[0].reason
    assert pair.move(pair.b, "a", 10) == list(range(10))


def test_lanes_of_a_liar_are_bounded(pair: Pair, raw: "zmq.Socket[bytes]") -> None:
    for number in range(40):
        raw.send_multipart(encode(Message("_lanes", {"s": os.urandom(8), "l": [number]}), RUN))
    assert pair.a.send("b", Message("Hello"))
    pair.until(lambda events: any(isinstance(event, Received) for event in events))
    pair.until(lambda _: len(pair.b._bulk.table.accepted.get("a", [])) == 4)
    assert not pair.b.send_bulk("a", Message("Part"))


def test_internal_messages_on_a_lane_and_a_second_hello_are_dropped(pair: Pair, raw: "zmq.Socket[bytes]") -> None:
    for message in (Message("_lane", {"s": S, "n": 0}), Message("_lane", {"s": S, "n": 0}), Message("_want", {"n": 1})):
        raw.send_multipart(encode(message, RUN))
    events = pair.until(lambda events: bool(dropped(events)) and stats(pair.b, "a").dropped == 2)
    assert all("on a bulk connection" in event.reason for event in dropped(events))


def test_a_sender_that_heeds_no_window_is_cut_short_and_its_bytes_do_not_pile_up(
    pair: Pair, raw: "zmq.Socket[bytes]"
) -> None:
    raw.send_multipart(encode(Message("_lane", {"s": S, "n": 0}), RUN))
    buffer = bytes(16 << 20)
    frames = encode(Message("Flood", {}, (buffer,)), RUN)
    most = 0
    deadline = time.monotonic() + DEADLINE_S
    seen: list[Dropped] = []
    while not seen:
        assert time.monotonic() < deadline
        if raw.poll(0, zmq.POLLOUT):
            raw.send_multipart(frames, copy=False)
        # A user that never gets round to its bulk: take what is on the sockets, hand out nothing.
        pair.b._sockets.serve(0.001, 256, lambda: False)
        most = max(most, pair.b._bulk._inbox_bytes)
        seen = [w.event for w in pair.b._bulk._inbox if isinstance(w.event, Dropped)]
    assert "beyond" in seen[0].reason
    assert most <= MAX_UNREAD_BYTES + len(buffer) + 1000


# ---- without encryption


def test_plain_links_are_for_loopback_and_without_keys() -> None:
    for bind in ("*:0", "0.0.0.0:0", "192.0.2.1:0", "localhost:0"):
        with pytest.raises(ConfigError, match="without encryption"):
            ZmqLink(RUN, bind=bind, plain=True)
    with pytest.raises(ConfigError, match="plain link with keys"):
        ZmqLink(RUN, plain=True, key=(A.curve_public, A.curve_secret))
    with pytest.raises(ConfigError, match="name"):
        ZmqLink(RUN, name="a")
    with pytest.raises(ConfigError, match="name"):
        ZmqLink(RUN, plain=True, name="a\n")
    link = ZmqLink(RUN, plain=True, name="a")
    for address, key in (("192.0.2.1:80", b""), ("example.org:80", b""), ("127.0.0.1:80", B.curve_public)):
        with pytest.raises(ConfigError, match="without encryption"):
            link.connect("b", address, key)
    link.close()


def test_an_encrypted_link_hears_nothing_from_a_plain_one(pair: Pair) -> None:
    plain = ZmqLink(RUN, plain=True, name="a")
    plain.connect("b", pair.b.address, b"")
    events: list[LinkEvent] = []
    for number in range(20):
        pair.a.send("b", Message("N", {"n": number}))
        events += plain.poll(0.005)
        plain.send("b", Message("Plain"))
        pair.until(lambda events: any(isinstance(event, Received) for event in events))
    assert Connected("b") not in events
    plain.close()


@pytest.mark.parametrize("limit", [0.0, -1.0, float("inf"), float("nan")])
def test_limits_that_cannot_be_kept_are_refused(limit: float) -> None:
    with pytest.raises(ConfigError, match="limit on upload"):
        ZmqLink(RUN, max_upload_per_peer_bytes_per_s=limit)


def test_hanging_up_at_any_moment_leaves_no_lane_behind() -> None:
    pair = Pair()
    pair.move(pair.a, "b", 1)
    before = len(os.listdir("/proc/self/fd"))
    for turn in range(60):
        pair.a.disconnect("b")
        pair.a.connect("b", pair.b.address, B.curve_public)
        lanes_wanted = 1 + turn % 4
        for _ in range(turn % 9):
            if pair.a.send_bulk("b", Message("Part", {}, (bytes(100_000),))):
                lanes_of(pair.a, "b").wanted = lanes_wanted
            pair.a.poll(0.002)
            pair.b.poll(0.002)
    pair.a.disconnect("b")
    deadline = time.monotonic() + DEADLINE_S
    while (left := len(os.listdir("/proc/self/fd"))) > before + 8:
        assert time.monotonic() < deadline, f"{left - before} files are still open"
        pair.a.poll(0.01)
        pair.b.poll(0.01)
    pair.close()
