"""Sets of lanes: the bulk connections that one side of a pair dials, as both see them, and what is said about them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wantrain.errors import WireError
from wantrain.transport.lanes import LOSSY, MAX_LANES, SEGMENT_BYTES
from wantrain.transport.pacing import Pacing
from wantrain.transport.tcp_info import (
    BBR,
    Ends,
    TcpInfo,
    ends_of,
    limit_pace,
    restart_congestion,
    tcp_info,
    use_congestion,
)
from wantrain.transport.transfer import LOCAL_RTT_S, Credit, Meter, Receipts
from wantrain.transport.wire import Message
from wantrain.transport.zmq_sockets import REDIAL_FIRST_S, REDIAL_LAST_S, Dialled, Target

LOCAL = "local"
"""Source of everything that comes over ipc: whoever may open the socket's file."""
SET_BYTES = 8
MAX_LANE_NUMBER = 1 << 31
MAX_KNOWN_LANES = 2 * MAX_LANES
"""Lanes of one set that the accepting side keeps: those in use, and as many of whose end it has not heard yet."""
ONE_HOST_RTT_S = 0.0005
"""Within one host the kernel sends segments again, too, when the receiver is behind: that is no lossy path."""
SETTLED_S = 15.0
"""After this time a lane must be up, and known at the other side."""


class Kind:
    """Kinds of message that a link keeps from its user."""

    LANES = "_lanes"
    """On the dialled control connection: set s, numbers l of all lanes that the dialler has in it."""
    ACK = "_ack"
    """On a control connection: set s, list a of [lane, bytes taken since it was opened]; k of the question, or 0."""
    ASK = "_ask"
    """On a control connection: say again what was taken off all lanes of set s; k comes back."""
    WANT = "_want"
    """To the dialler, on the control connection: n lanes, please."""
    LANE = "_lane"
    """First message on a lane: set s, number n."""
    PROBE = "_probe"
    """On a lane: bytes to measure with, of no other use."""
    HERE = "_here"
    """On a control connection that has just come up: this is a way back to who dialled; and from time to time."""


@dataclass(slots=True, eq=False)
class Lane:
    """One bulk connection: dialled by us, or accepted and named by its route."""

    number: int
    born: float
    dialled: Dialled | None = None
    route: bytes = b""
    up: bool = False
    descriptor: int = -1
    ends: Ends | None = None
    asked_for_bbr: bool = False
    seen: TcpInfo | None = None
    limit_bytes_per_s: int | None = None
    """How fast it may send, as the kernel was told."""
    at_speed: bool = False
    """Its congestion control has taken the path for what it is, and has not fallen far below that since."""


class LaneSet:
    """Lanes between us and a peer, what is under way on them, and what has come in.

    Args:
        identity: what both sides call it, 8 bytes that the dialler draws.
        peer: who is at the other end.
        target: whom to dial; None if the peer dials us.
    """

    def __init__(self, identity: bytes, peer: str, target: Target | None) -> None:
        self.identity = identity
        self.peer = peer
        self.target = target
        self.control = b""
        """The connection for what is said about the set: the dialler's token, or a route; b"" while there is none."""
        self.lanes: dict[int, Lane] = {}
        self.listed: frozenset[int] = frozenset()
        """Of an accepted set: the lanes that the dialler says it has."""
        self.credit = Credit()
        self.receipts = Receipts()
        self.waiting_bytes = 0
        """Received, and not handed to the user yet."""
        self.faulted = False
        """The user has not been handed the event of a dropped message yet."""
        self.wanted = 0
        self.next_number = 0
        self.redial_at = 0.0
        self.back_off_s = REDIAL_FIRST_S
        self.unannounced = False
        self.asked = 0
        self.asked_at = 0.0
        self.progress_at = 0.0
        self.sampled_at = 0.0
        self.grown_at = 0.0
        self.busy = False
        """Something had to wait since the number of lanes was last looked at."""
        self.burst_bytes = 0
        """The most that was under way at once since then."""
        self.congestion = ""
        self._pacing = Pacing()

    @property
    def ipc(self) -> bool:
        """Whether it stays within this machine, by a path: then there is no round trip to speak of."""
        return self.target.address.startswith("ipc://") if self.target is not None else self.peer == LOCAL

    def usable(self) -> list[Lane]:
        """Lanes that bulk can be sent on, that with the least under way first."""
        lanes = [
            lane for lane in self.lanes.values() if lane.up and (self.target is not None or lane.number in self.listed)
        ]
        if len(lanes) > 1:
            lanes.sort(key=lambda lane: self.credit.on_lane(lane.number))
        return lanes

    def add(self, lane: Lane) -> None:
        """A new connection."""
        self.lanes[lane.number] = lane
        self.credit.open(lane.number)
        self.receipts.open(lane.number)

    def remove(self, lane: Lane, now: float) -> None:
        """A connection is gone, with what was under way on it; dial again later."""
        if self.lanes.get(lane.number) is not lane:
            return
        del self.lanes[lane.number]
        self.credit.close(lane.number)
        self.receipts.close(lane.number)
        if lane.dialled is not None:
            lane.dialled.hang_up()
            self.unannounced = True
            self.redial_at = now + self.back_off_s
            self.back_off_s = min(2 * self.back_off_s, REDIAL_LAST_S)

    def measure(self, meter: Meter, now: float) -> None:
        """Read from the kernel what it knows of the connections, and ask for bbr where distance or loss is seen."""
        self.sampled_at = now
        infos: list[TcpInfo] = []
        sent = resent = 0
        for lane in self.lanes.values():
            info = None if lane.ends is None else tcp_info(lane.descriptor, lane.ends)
            if info is None or lane.ends is None:
                lane.ends = None
                continue
            infos.append(info)
            if lane.seen is not None:
                sent += max(0, info.sent_segments - lane.seen.sent_segments)
                resent += max(0, info.resent_segments - lane.seen.resent_segments)
            lane.seen = info
            self.congestion = info.congestion
            if not lane.asked_for_bbr and (
                info.rtt_s > LOCAL_RTT_S or (info.rtt_s > ONE_HOST_RTT_S and meter.loss >= LOSSY)
            ):
                lane.asked_for_bbr = True
                self.congestion = use_congestion(lane.descriptor, lane.ends, BBR) or info.congestion
        if infos:
            meter.rtt_s = min(info.rtt_s for info in infos)  # a windowed minimum: the kernel forgets old ones
            if meter.rtt_s > LOCAL_RTT_S:
                self._limit_pace(sum(info.rate_bytes_per_s for info in infos), sent * SEGMENT_BYTES)
                self._restart_fallen(len(infos))
        if sent:
            meter.segments(sent, resent, now)

    def _limit_pace(self, rate_bytes_per_s: int, sent_bytes: int) -> None:
        limit = self._pacing.sample(rate_bytes_per_s, sent_bytes)
        for lane in self.lanes.values():
            if lane.ends is not None and lane.limit_bytes_per_s != limit:
                lane.limit_bytes_per_s = limit
                limit_pace(lane.descriptor, lane.ends, limit)

    def _restart_fallen(self, lanes: int) -> None:
        for lane in self.lanes.values():
            if lane.ends is None or lane.seen is None or lane.seen.path_bytes_per_s == 0:
                continue
            was = lane.at_speed
            lane.at_speed = self._pacing.at_speed(lane.seen.path_bytes_per_s, lanes, was=was)
            if was and not lane.at_speed:
                self.congestion = restart_congestion(lane.descriptor, lane.ends, lane.seen.congestion)

    # ---- what is said about it

    def listing(self) -> Message:
        return Message(Kind.LANES, {"s": self.identity, "l": list(self.lanes)})

    def hello(self, lane: Lane) -> Message:
        return Message(Kind.LANE, {"s": self.identity, "n": lane.number})

    def receipt(self, answer_to: int = 0) -> Message:
        return Message(
            Kind.ACK, {"s": self.identity, "a": self.receipts.totals(untold_only=answer_to == 0), "k": answer_to}
        )

    def question(self, now: float) -> Message:
        self.asked, self.asked_at = self.asked + 1, now
        return Message(Kind.ASK, {"s": self.identity, "k": self.asked})


def identify(lane: Lane, descriptor: int, port: int, *, accepted: bool) -> None:
    """Remember by which number the kernel knows a lane, if that is TCP to this port (of ours, if it was accepted)."""
    ends = ends_of(descriptor)
    if ends is not None:
        address = ends[0] if accepted else ends[1]
        if isinstance(address, tuple) and address[1] == port:
            lane.descriptor, lane.ends = descriptor, ends


# ---- reading what the other side says: nothing but exactly these fields


def read_set(body: Mapping[str, Any], *fields: str) -> bytes:
    """The set that an internal message is about.

    Raises:
        WireError: it has other fields than `s` and these, or names no set.
    """
    if set(body) != {"s", *fields} or type(body["s"]) is not bytes or len(body["s"]) != SET_BYTES:
        raise WireError("internal message with missing or surplus fields")
    return body["s"]


def read_number(value: object, least: int, most: int) -> int:
    """A whole number within bounds.

    Raises:
        WireError: it is not.
    """
    if type(value) is not int or not least <= value <= most:
        raise WireError(f"internal message: not a number from {least} to {most}")
    return value


def read_listing(body: Mapping[str, Any]) -> frozenset[int]:
    """The lanes of a set, as its dialler says.

    Raises:
        WireError: it does not say that.
    """
    numbers = body["l"]
    if type(numbers) is not list or len(numbers) > MAX_LANES:
        raise WireError(f"internal message: not a list of at most {MAX_LANES} lanes")
    return frozenset(read_number(number, 0, MAX_LANE_NUMBER) for number in numbers)


def read_receipt(body: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Lanes, and what was taken off each.

    Raises:
        WireError: it does not say that.
    """
    entries = body["a"]
    if type(entries) is not list or len(entries) > MAX_KNOWN_LANES:
        raise WireError(f"internal message: not a list of at most {MAX_KNOWN_LANES} lanes")
    read: list[tuple[int, int]] = []
    for entry in entries:
        if type(entry) is not list or len(entry) != 2:
            raise WireError("internal message: not a lane and its bytes")
        read.append((read_number(entry[0], 0, MAX_LANE_NUMBER), read_number(entry[1], 0, 1 << 62)))
    return read
