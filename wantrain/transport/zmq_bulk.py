"""The bulk side of a link over ZeroMQ: which lanes there are, what may go on them now, and what came in on them."""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

import zmq

from wantrain.errors import ConfigError, WireError
from wantrain.transport.lanes import MAX_LANES, lanes_wanted
from wantrain.transport.link import Done, Dropped, LinkEvent, LinkStats, Received
from wantrain.transport.transfer import MAX_WINDOW_BYTES, Meter, UploadLimits
from wantrain.transport.wire import Buffer, Message, decode, encode, size_bytes
from wantrain.transport.zmq_lanes import (
    MAX_KNOWN_LANES,
    MAX_LANE_NUMBER,
    SET_BYTES,
    SETTLED_S,
    Kind,
    Lane,
    LaneSet,
    identify,
    read_listing,
    read_number,
    read_receipt,
    read_set,
)
from wantrain.transport.zmq_sockets import FAILURES, REDIAL_FIRST_S, Dialled, Socket, Sockets, Target, receive

BULK_PER_POLL_BYTES = 16 << 20
"""Bulk that one poll hands out at most, so that its user looks at control messages in between."""
PROMPT_BYTES = 64 << 10
"""Taken bytes that are acknowledged at once; fewer, when nothing more is there."""
MAX_UNREAD_BYTES = 2 * MAX_WINDOW_BYTES
"""A set with more than this waiting for our user has sent more than it may: a window, and one it takes for lost."""
MAX_SETS = 4
"""Sets of one peer that are remembered; all but the newest are rarely alive."""
PROBE_BYTES, PROBE_MESSAGES, PROBE_FIRST, PROBE_S = 64 << 10, 16, 4, 0.5
"""A probe: at most so many messages for so long, of which some go at once and one more for each that arrived."""

_HOUSEKEEPING_S = 0.01
_BUSY_CHECK_S = 0.05
_SAMPLE_S = 0.2
_ASK_S = 1.0
_GROW_S = 0.3
_PROBE_PATIENCE_S = 10.0

Tell = Callable[[str, bytes, Message], bool]
"""Sends an internal message to a peer on a control connection, on any if that is b""; False if it cannot go now."""


@dataclass(slots=True)
class _Probe:
    asked_at: float
    started_at: float = 0.0
    sent_bytes: int = 0


@dataclass(slots=True)
class _Waiting:
    """A message that came in and has not been handed to the user."""

    lanes: LaneSet
    lane: int
    bytes: int
    event: Received | Dropped


class Bulk:
    """All lanes of one link.

    Args:
        run: id of the run.
        sockets: the link's.
        tell: sends internal control messages.
        stats: the link's counters by peer.
        limits: on upload; the control side spends from it, too.
    """

    def __init__(
        self, run: bytes, sockets: Sockets, tell: Tell, stats: dict[str, LinkStats], limits: UploadLimits
    ) -> None:
        self._run = run
        self._sockets = sockets
        self._tell = tell
        self._stats = stats
        self._limits = limits
        self._dialled: dict[str, LaneSet] = {}
        self._accepted: dict[str, list[LaneSet]] = {}
        self._routes: dict[bytes, tuple[LaneSet, Lane]] = {}
        self._meters: dict[str, Meter] = {}
        self._inbox: deque[_Waiting] = deque()
        self._inbox_bytes = 0
        self._owing: set[LaneSet] = set()
        self._probes: dict[str, _Probe] = {}
        self._hailed_at: dict[str, float] = {}
        self._kept_at = 0.0
        self._freed = False
        self._settled = True
        self.router: Socket | None = None
        self.port = 0

    # ---- sending

    def send(self, peer: str, message: Message, done: Done | None) -> bool:
        """See `Link.send_bulk`."""
        now = time.monotonic()
        lanes = self._way(peer, now)
        if lanes is None:
            return False
        meter = self._meter(peer)
        payload_bytes = sum(map(size_bytes, message.buffers))
        if lanes.credit.room(payload_bytes, meter.window_bytes) and self._limits.ready(peer, now):
            frames = encode(message, self._run)
            if self._put(lanes, frames, done, now):
                counted = self._stats.setdefault(peer, LinkStats())
                counted.messages_sent += 1
                counted.bytes_sent += _total(frames)
                return True
        meter.held_back = lanes.busy = True
        return False

    def bulk_bytes(self, peer: str) -> int:
        """See `Link.bulk_bytes`."""
        lanes = self._current(peer)
        up = 1 if lanes is None else len(lanes.lanes)
        return self._meter(peer).bulk_bytes(up, self._limits.least_bytes_per_s)

    def probe(self, peer: str) -> bool:
        """See `Link.probe`."""
        if self._meter(peer).rate_bytes_per_s > 0 or peer in self._probes:
            return peer in self._probes
        now = time.monotonic()
        lanes = self._way(peer, now)
        if lanes is None:
            dialled = self._dialled.get(peer)
            if (dialled is None or not dialled.control) and now - self._hailed_at.get(peer, -inf) > _ASK_S:
                return False
        elif lanes.credit.in_flight_bytes:
            return False
        self._probes[peer] = _Probe(now)
        return True

    def _put(self, lanes: LaneSet, frames: Sequence[Buffer], done: Done | None, now: float) -> bool:
        """Send on the lane with the least under way that takes it."""
        for lane in lanes.usable():
            try:
                if lane.dialled is not None:
                    sent = self._sockets.send(lane.dialled.socket, lane.dialled, frames, done)
                else:
                    assert self.router is not None
                    sent = self._sockets.send(self.router, lane.route, [lane.route, *frames], done)
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                self._lose(lanes, lane, now)
                continue
            if sent:
                total_bytes = _total(frames)
                if lanes.credit.in_flight_bytes == 0:
                    lanes.progress_at = now
                lanes.credit.sent(lane.number, total_bytes)
                self._limits.spend(lanes.peer, total_bytes, now)
                self._meter(lanes.peer).sent(now)
                return True
        return False

    def _current(self, peer: str) -> LaneSet | None:
        """Lanes that can be used now: those we dialled, else those of the newest set that the peer dialled."""
        dialled = self._dialled.get(peer)
        if dialled is not None and dialled.control and dialled.usable():
            return dialled
        for lanes in reversed(self._accepted.get(peer, ())):
            if lanes.control and lanes.usable():
                return lanes
        return None

    def _way(self, peer: str, now: float) -> LaneSet | None:
        """The lanes to use; dials some, or asks for some, if there are none."""
        dialled = self._dialled.get(peer)
        if dialled is not None and dialled.control and not dialled.wanted:
            dialled.wanted = 1
            self._dial(dialled, now)
        found = self._current(peer)
        if found is None and (dialled is None or not dialled.control):
            self._hail(peer, b"", 1, now)
        return found

    def _hail(self, peer: str, control: bytes, lanes: int, now: float) -> None:
        """Ask the peer to dial so many lanes."""
        if now - self._hailed_at.get(peer, -inf) > _ASK_S and self._tell(
            peer, control, Message(Kind.WANT, {"n": lanes})
        ):
            self._hailed_at[peer] = now

    # ---- what comes in

    @property
    def waiting(self) -> bool:
        """Whether there is something to hand out without looking at any socket."""
        return bool(self._inbox)

    def enough(self) -> bool:
        """Whether there is as much as one poll hands out."""
        return self._inbox_bytes >= BULK_PER_POLL_BYTES

    def take_routed(self, route: bytes, frames: Sequence[zmq.Frame]) -> bool:
        """Take a message that came in on the listening socket; False if its connection is no lane."""
        found = self._routes.get(route)
        if found is not None:
            self._take(*found, frames)
        return found is not None

    def _take(self, lanes: LaneSet, lane: Lane, frames: Sequence[zmq.Frame]) -> None:
        buffers = [frame.buffer for frame in frames]
        total_bytes = sum(map(size_bytes, buffers))
        event: Received | Dropped
        try:
            if lanes.waiting_bytes >= MAX_UNREAD_BYTES:
                raise WireError(f"more than {MAX_UNREAD_BYTES} bytes beyond what was acknowledged")
            message = decode(buffers, self._run)
            if message.kind == Kind.PROBE:
                self._taken(lanes, lane.number, total_bytes)
                return
            if message.kind.startswith("_"):
                raise WireError(f"{message.kind} on a bulk connection")
            event = Received(lanes.peer, lanes.control, message)
        except WireError as error:
            event = Dropped(lanes.peer, error.message, lanes.control)
            buffers.clear()
        counted = self._stats.setdefault(lanes.peer, LinkStats())
        if isinstance(event, Received):
            counted.messages_received += 1
            counted.bytes_received += total_bytes
        else:
            counted.dropped += 1
        held_bytes = total_bytes if isinstance(event, Received) else 0
        lanes.waiting_bytes += held_bytes
        self._inbox_bytes += held_bytes
        if not held_bytes:
            self._taken(lanes, lane.number, total_bytes)
        self._inbox.append(_Waiting(lanes, lane.number, held_bytes, event))

    def hand_out(self, events: list[LinkEvent], room: int) -> None:
        """Add what came in to the events: at most `room` of them and `BULK_PER_POLL_BYTES`; acknowledge it."""
        left_bytes = BULK_PER_POLL_BYTES
        while self._inbox and room > 0 and left_bytes > 0:
            entry = self._inbox.popleft()
            events.append(entry.event)
            room -= 1
            left_bytes -= entry.bytes
            self._inbox_bytes -= entry.bytes
            entry.lanes.waiting_bytes -= entry.bytes
            self._taken(entry.lanes, entry.lane, entry.bytes)
        for lanes in list(self._owing):
            if lanes.receipts.untold_bytes < PROMPT_BYTES and self._inbox:
                continue
            if not lanes.receipts.untold_bytes or not self._alive(lanes):
                self._owing.discard(lanes)
            elif lanes.control and self._tell(lanes.peer, lanes.control, lanes.receipt()):
                lanes.receipts.told()
                self._owing.discard(lanes)

    def _taken(self, lanes: LaneSet, lane: int, taken_bytes: int) -> None:
        if taken_bytes:
            lanes.receipts.taken(lane, taken_bytes)
            self._owing.add(lanes)

    def _alive(self, lanes: LaneSet) -> bool:
        return self._dialled.get(lanes.peer) is lanes or lanes in self._accepted.get(lanes.peer, ())

    # ---- what is said about lanes

    def said(self, source: str, connection: bytes, route: bytes, message: Message, frame: zmq.Frame) -> None:
        """Take an internal message that did not come in on a lane.

        Args:
            source: who sent it.
            connection: the connection it came in on.
            route: that connection's route if it was accepted, b"" if we dialled it.
            message: what it says.
            frame: any frame of it.

        Raises:
            WireError: it is malformed, or says what cannot be.
        """
        now, body = time.monotonic(), message.body
        if message.buffers:
            raise WireError("internal message with buffers")
        match message.kind, bool(route):
            case Kind.LANE, True:
                identity = read_set(body, "n")
                self._add_accepted(source, identity, read_number(body["n"], 0, MAX_LANE_NUMBER), route, frame, now)
            case Kind.LANES, True:
                identity, listed = read_set(body, "l"), read_listing(body)
                lanes = self._accepted_set(source, identity)
                lanes.control, lanes.listed = connection, listed
                for lane in [lane for lane in lanes.lanes.values() if lane.number not in listed and lane.up]:
                    self._lose(lanes, lane, now)
            case Kind.WANT, False:
                if set(body) != {"n"}:
                    raise WireError("internal message with missing or surplus fields")
                wanted = read_number(body["n"], 1, MAX_LANES)
                if (found := self._dialled.get(source)) is not None:
                    found.wanted = max(found.wanted, wanted)
                    self._dial(found, now)
            case Kind.ASK, _:
                identity, question = read_set(body, "k"), read_number(body["k"], 1, MAX_LANE_NUMBER)
                if (found := self._find(source, identity, route)) is not None:
                    self._tell(source, connection, found.receipt(question))
            case Kind.ACK, _:
                identity, answer_to = read_set(body, "a", "k"), read_number(body["k"], 0, MAX_LANE_NUMBER)
                totals = read_receipt(body)
                if (found := self._find(source, identity, route)) is not None:
                    self._acked(found, totals, answer_to, now)
            case _:
                raise WireError(f"{message.kind} is no internal message here")

    def _find(self, source: str, identity: bytes, route: bytes) -> LaneSet | None:
        sets = self._accepted.get(source, []) if route else [s for s in [self._dialled.get(source)] if s is not None]
        return next((lanes for lanes in sets if lanes.identity == identity), None)

    def _acked(self, lanes: LaneSet, totals: Sequence[tuple[int, int]], answer_to: int, now: float) -> None:
        meter, new_bytes = self._meter(lanes.peer), 0
        for number, total_bytes in totals:
            new_bytes += lanes.credit.acked(number, total_bytes)
        if new_bytes:
            lanes.progress_at = now
            meter.acked(new_bytes, now, idle=lanes.credit.in_flight_bytes == 0)
            self._freed = True
        if answer_to and answer_to == lanes.asked:
            if not any(lane.ends for lane in lanes.lanes.values()):
                meter.round_trip(now - lanes.asked_at)
            known = {number for number, _ in totals}
            for lane in list(lanes.lanes.values()):  # half open: only we still hold it for a connection
                if lane.up and lane.number not in known and now - lane.born > SETTLED_S:
                    self._lose(lanes, lane, now)

    def freed(self) -> bool:
        """Whether something was acknowledged since the last call: what had to wait may go now."""
        freed, self._freed = self._freed, False
        return freed

    # ---- accepted lanes

    def _accepted_set(self, source: str, identity: bytes) -> LaneSet:
        sets = self._accepted.setdefault(source, [])
        for lanes in sets:
            if lanes.identity == identity:
                return lanes
        sets.append(LaneSet(identity, source, None))
        while len(sets) > MAX_SETS:
            old = sets.pop(0)
            for lane in old.lanes.values():
                self._routes.pop(lane.route, None)
        return sets[-1]

    def _add_accepted(
        self, source: str, identity: bytes, number: int, route: bytes, frame: zmq.Frame, now: float
    ) -> None:
        lanes = self._accepted_set(source, identity)
        if number in lanes.lanes or len(lanes.lanes) >= MAX_KNOWN_LANES:
            raise WireError(f"lane {number} is there already, or too many are")
        lane = Lane(number, now, route=route, up=True)
        lanes.add(lane)
        self._routes[route] = lanes, lane
        identify(lane, _descriptor(frame), self.port, accepted=True)
        lanes.measure(self._meter(source), now)

    # ---- lanes that we dial

    def control_up(self, peer: str, target: Target, connection: bytes) -> None:
        """The connection that we dialled to a peer is up (again)."""
        lanes = self._dialled.get(peer)
        if lanes is None:
            lanes = self._dialled[peer] = LaneSet(os.urandom(SET_BYTES), peer, target)
        lanes.control, lanes.unannounced = connection, bool(lanes.wanted)
        self._announce(lanes)

    def control_down(self, peer: str) -> None:
        """The connection that we dialled is gone for now."""
        if (lanes := self._dialled.get(peer)) is not None:
            lanes.control = b""

    def forget(self, peer: str) -> None:
        """We dial this peer no more."""
        lanes = self._dialled.pop(peer, None)
        self._probes.pop(peer, None)
        if lanes is not None:
            for lane in lanes.lanes.values():
                if lane.dialled is not None:
                    lane.dialled.hang_up()
            self._meter(peer).interrupted()

    def _dial(self, lanes: LaneSet, now: float) -> None:
        if lanes.target is None or now < lanes.redial_at or not lanes.control:
            return
        while len(lanes.lanes) < lanes.wanted:
            lane = Lane(lanes.next_number, now)
            lanes.next_number += 1
            try:
                lane.dialled = Dialled(
                    self._sockets,
                    lanes.target,
                    partial(self._take_dialled, lanes, lane),
                    partial(self._monitored, lanes, lane),
                    lane=True,
                )
            except ConfigError:  # the address was good once: its name may not be known for the moment
                lanes.redial_at = now + 1.0
                return
            lanes.add(lane)
            lanes.unannounced = True
        self._announce(lanes)

    def _announce(self, lanes: LaneSet) -> None:
        if lanes.unannounced and lanes.control and self._tell(lanes.peer, lanes.control, lanes.listing()):
            lanes.unannounced = False

    def _take_dialled(self, lanes: LaneSet, lane: Lane, socket: Socket) -> bool:
        frames = receive(socket)
        if frames:
            self._take(lanes, lane, frames)
        return bool(frames)

    def _monitored(self, lanes: LaneSet, lane: Lane, event: int, value: int) -> None:
        now = time.monotonic()
        if event == zmq.EVENT_CONNECTED:
            assert lanes.target is not None
            if not lanes.target.address.startswith("ipc://"):
                identify(lane, value, int(lanes.target.address.rpartition(":")[2]), accepted=False)
                lanes.measure(self._meter(lanes.peer), now)
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            assert lane.dialled is not None
            lane.dialled.notice()
            lane.up = self._sockets.send(lane.dialled.socket, lane.dialled, encode(lanes.hello(lane), self._run), None)
            lanes.back_off_s = REDIAL_FIRST_S
            self._freed = lane.up
        elif event in FAILURES or event in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED):
            self._lose(lanes, lane, now)

    def _lose(self, lanes: LaneSet, lane: Lane, now: float) -> None:
        lanes.remove(lane, now)
        self._routes.pop(lane.route, None)
        if lanes.credit.in_flight_bytes == 0:
            self._meter(lanes.peer).interrupted()
        self._freed = True
        self._announce(lanes)

    # ---- from time to time

    def keep(self, now: float) -> float:
        """Dial, ask, measure and probe as is due; how long nothing of this will be, in seconds."""
        if self._probes:
            self._pump_probes(now)
        if now >= self._kept_at + _HOUSEKEEPING_S:
            self._kept_at = now
            for lanes in list(self._dialled.values()):
                for lane in [lane for lane in lanes.lanes.values() if not lane.up and now - lane.born > SETTLED_S]:
                    self._lose(lanes, lane, now)
                self._dial(lanes, now)
                self._announce(lanes)
            for lanes in self._all():
                self._look_after(lanes, now)
            self._settled = not self._owing and not any(
                lanes.credit.in_flight_bytes or len(lanes.lanes) < lanes.wanted for lanes in self._all()
            )
        return 0.002 if self._probes else inf if self._settled else _BUSY_CHECK_S

    def _all(self) -> list[LaneSet]:
        return [*self._dialled.values(), *(lanes for sets in self._accepted.values() for lanes in sets)]

    def _look_after(self, lanes: LaneSet, now: float) -> None:
        meter, in_flight = self._meter(lanes.peer), lanes.credit.in_flight_bytes
        if not lanes.lanes or not lanes.control:
            return
        stuck = in_flight > 0 and now - lanes.progress_at >= max(_ASK_S, 4 * meter.rtt_s)
        if (stuck or meter.rtt_s == 0) and now - lanes.asked_at >= _ASK_S:
            self._tell(lanes.peer, lanes.control, lanes.question(now))
        if (in_flight or lanes.busy) and now - lanes.sampled_at >= _SAMPLE_S:
            lanes.measure(meter, now)
        usable = len(lanes.usable())
        if lanes.busy and usable and usable >= lanes.wanted and now - lanes.grown_at >= max(_GROW_S, 5 * meter.rtt_s):
            wanted = lanes_wanted(
                meter.rate_bytes_per_s, meter.rtt_s, meter.loss, lanes.congestion, usable, busy=lanes.busy
            )
            lanes.busy, lanes.grown_at = False, now
            if wanted > usable and lanes.target is not None:
                lanes.wanted = wanted
                self._dial(lanes, now)
            elif wanted > usable:
                self._hail(lanes.peer, lanes.control, wanted, now)

    def _pump_probes(self, now: float) -> None:
        for peer, probe in list(self._probes.items()):
            lanes = self._way(peer, now)
            if lanes is None:
                if now - probe.asked_at > _PROBE_PATIENCE_S:
                    del self._probes[peer]
                continue
            in_flight = lanes.credit.in_flight_bytes
            if not probe.started_at:
                if in_flight or self._meter(peer).rate_bytes_per_s > 0:
                    del self._probes[peer]
                    continue
                probe.started_at = now
            over = now - probe.started_at > PROBE_S or probe.sent_bytes >= PROBE_MESSAGES * PROBE_BYTES
            if over:
                if in_flight == 0 or now - probe.started_at > PROBE_S:
                    del self._probes[peer]
                continue
            frames = encode(Message(Kind.PROBE, {}, (_ZEROS,)), self._run)
            may_bytes = PROBE_FIRST * PROBE_BYTES + max(0, probe.sent_bytes - in_flight)
            while (
                in_flight + PROBE_BYTES <= may_bytes
                and probe.sent_bytes < PROBE_MESSAGES * PROBE_BYTES
                and self._limits.ready(peer, now)
                and self._put(lanes, frames, None, now)
            ):
                probe.sent_bytes += PROBE_BYTES
                in_flight = lanes.credit.in_flight_bytes

    # ---- what is known

    def _meter(self, peer: str) -> Meter:
        meter = self._meters.get(peer)
        if meter is None:
            meter = self._meters[peer] = Meter()
        return meter

    def fill(self) -> None:
        """Write what was measured into the counters."""
        limit = self._limits.least_bytes_per_s or inf
        for peer in self._dialled.keys() | self._accepted.keys():
            meter, lanes = self._meter(peer), self._current(peer)
            if lanes is None and peer not in self._stats:
                continue
            counted = self._stats.setdefault(peer, LinkStats())
            counted.rate_bytes_per_s = min(meter.rate_bytes_per_s, limit)
            counted.rtt_s, counted.loss = meter.rtt_s, meter.loss
            counted.lanes = 0 if lanes is None else len(lanes.usable())
            counted.congestion = counted.congestion if lanes is None else lanes.congestion
            counted.in_flight_bytes = 0 if lanes is None else lanes.credit.in_flight_bytes

    def close(self) -> None:
        """Stop the monitors of all lanes; the sockets themselves are closed with the link's."""
        for lanes in self._dialled.values():
            for lane in lanes.lanes.values():
                if lane.dialled is not None:
                    lane.dialled.stop_monitoring()
        self._dialled.clear()
        self._accepted.clear()
        self._routes.clear()
        self._inbox.clear()
        self._owing.clear()
        self._probes.clear()
        self._inbox_bytes = 0
        self.router = None


_ZEROS = bytes(PROBE_BYTES)


def _descriptor(frame: zmq.Frame) -> int:
    """Number of the connection that a frame came in on, as the operating system counts; -1 if libzmq does not say."""
    try:
        return int(frame.get(zmq.SRCFD))
    except (ValueError, zmq.ZMQError):
        return -1


def _total(frames: Sequence[Buffer]) -> int:
    return sum(map(size_bytes, frames))
