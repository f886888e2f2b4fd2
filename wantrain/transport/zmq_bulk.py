"""Bulk messages of a link over ZeroMQ: what may go on its lanes now, what came in on them, and probes."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import zmq

from wantrain.errors import WireError
from wantrain.transport.link import Done, Dropped, LinkEvent, LinkStats, Received
from wantrain.transport.transfer import MAX_WINDOW_BYTES, UploadLimits
from wantrain.transport.wire import Buffer, Message, decode, encode, size_bytes
from wantrain.transport.zmq_lane_table import LaneTable, Tell
from wantrain.transport.zmq_lanes import Kind, Lane, LaneSet
from wantrain.transport.zmq_sockets import Socket, Sockets

BULK_PER_POLL_BYTES = 16 << 20
"""Bulk that one poll hands out at most, so that its user looks at control messages in between."""
PROMPT_BYTES = 64 << 10
"""Taken bytes that are acknowledged at once; fewer, when nothing more is there."""
MAX_UNREAD_BYTES = 2 * MAX_WINDOW_BYTES
"""A set with more than this waiting for our user has sent more than it may: a window, and one it takes for lost."""
ENTRY_BYTES = 4 << 10
"""What a waiting message costs beside its bytes: many tiny ones are bounded like few large ones."""
PROBE_BYTES, PROBE_MESSAGES, PROBE_FIRST, PROBE_S = 64 << 10, 16, 4, 0.5
"""A probe: at most so many messages for so long, of which some go at once and one more for each that arrived."""

_BUSY_CHECK_S = 0.05
_PROBE_CHECK_S = 0.002
_PROBE_PATIENCE_S = 10.0


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

    @property
    def held_bytes(self) -> int:
        """What it costs to keep it."""
        return self.bytes + ENTRY_BYTES


class Bulk:
    """The bulk side of one link.

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
        self._stats = stats
        self._limits = limits
        self.table = LaneTable(run, sockets, tell, self._take_dialled)
        self._inbox: deque[_Waiting] = deque()
        self._inbox_bytes = 0
        self._owing: set[LaneSet] = set()
        self._probes: dict[str, _Probe] = {}
        self._router: Socket | None = None

    # ---- sending

    def send(self, peer: str, message: Message, done: Done | None) -> bool:
        """See `Link.send_bulk`."""
        now = time.monotonic()
        lanes = self.table.way(peer, now)
        if lanes is None:
            return False
        meter = self.table.meter(peer)
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
        lanes = self.table.current(peer)
        up = 1 if lanes is None else len(lanes.lanes)
        return self.table.meter(peer).bulk_bytes(up, self._limits.least_bytes_per_s)

    def probe(self, peer: str) -> bool:
        """See `Link.probe`."""
        if self.table.meter(peer).rate_bytes_per_s > 0 or peer in self._probes:
            return peer in self._probes
        now = time.monotonic()
        lanes = self.table.way(peer, now)
        if lanes is None:
            if not self.table.coming(peer, now):
                return False
        elif lanes.credit.in_flight_bytes:
            return False
        self._probes[peer] = _Probe(now)
        return True

    def forget(self, peer: str) -> None:
        """We dial this peer no more."""
        self._probes.pop(peer, None)
        self.table.forget(peer)

    def _put(self, lanes: LaneSet, frames: Sequence[Buffer], done: Done | None, now: float) -> bool:
        """Send on the lane with the least under way that takes it."""
        for lane in lanes.usable():
            try:
                if lane.dialled is not None:
                    sent = self._sockets.send(lane.dialled.socket, lane.dialled, frames, done)
                else:
                    assert self._router is not None
                    sent = self._sockets.send(self._router, lane.route, [lane.route, *frames], done)
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                self.table.lose(lanes, lane, now)
                continue
            if sent:
                total_bytes = _total(frames)
                if lanes.credit.in_flight_bytes == 0:
                    lanes.progress_at = now
                lanes.credit.sent(lane.number, total_bytes)
                lanes.burst_bytes = max(lanes.burst_bytes, lanes.credit.in_flight_bytes)
                self._limits.spend(lanes.peer, total_bytes, now)
                self.table.meter(lanes.peer).sent(now)
                return True
        return False

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
        found = self.table.routes.get(route)
        if found is not None:
            self._take(*found, frames)
        return found is not None

    def listen(self, router: Socket, port: int) -> None:
        """Where lanes are accepted."""
        self._router, self.table.port = router, port

    def _take(self, lanes: LaneSet, lane: Lane, frames: Sequence[zmq.Frame]) -> None:
        buffers = [frame.buffer for frame in frames]
        total_bytes = sum(map(size_bytes, buffers))
        if lanes.waiting_bytes >= MAX_UNREAD_BYTES:
            self._drop(lanes, lane, total_bytes, f"more than {MAX_UNREAD_BYTES} bytes beyond what was acknowledged")
            return
        try:
            message = decode(buffers, self._run)
            if message.kind == Kind.PROBE:
                self._taken(lanes, lane.number, total_bytes)
                return
            if message.kind.startswith("_"):
                raise WireError(f"{message.kind} on a bulk connection")
        except WireError as error:
            self._drop(lanes, lane, total_bytes, error.message)
            return
        counted = self._stats.setdefault(lanes.peer, LinkStats())
        counted.messages_received += 1
        counted.bytes_received += total_bytes
        self._keep_waiting(_Waiting(lanes, lane.number, total_bytes, Received(lanes.peer, lanes.control, message)))

    def _drop(self, lanes: LaneSet, lane: Lane, total_bytes: int, reason: str) -> None:
        self._stats.setdefault(lanes.peer, LinkStats()).dropped += 1
        self._taken(lanes, lane.number, total_bytes)
        if not lanes.faulted:  # one event for all that is dropped until the user has seen it
            lanes.faulted = True
            self._keep_waiting(_Waiting(lanes, lane.number, 0, Dropped(lanes.peer, reason, lanes.control)))

    def _keep_waiting(self, entry: _Waiting) -> None:
        self._inbox.append(entry)
        self._inbox_bytes += entry.held_bytes
        entry.lanes.waiting_bytes += entry.held_bytes

    def hand_out(self, events: list[LinkEvent], room: int) -> None:
        """Add what came in to the events: at most `room` of them and `BULK_PER_POLL_BYTES`; acknowledge it."""
        left_bytes = BULK_PER_POLL_BYTES
        while self._inbox and room > 0 and left_bytes > 0:
            entry = self._inbox.popleft()
            events.append(entry.event)
            room -= 1
            left_bytes -= entry.bytes
            self._inbox_bytes -= entry.held_bytes
            entry.lanes.waiting_bytes -= entry.held_bytes
            if isinstance(entry.event, Dropped):
                entry.lanes.faulted = False
            self._taken(entry.lanes, entry.lane, entry.bytes)
        for lanes in list(self._owing):
            if lanes.receipts.untold_bytes < PROMPT_BYTES and self._inbox:
                continue
            if not lanes.receipts.untold_bytes or not self.table.alive(lanes):
                self._owing.discard(lanes)
            elif self.table.say(lanes, lanes.receipt()):
                lanes.receipts.told()
                self._owing.discard(lanes)

    def _taken(self, lanes: LaneSet, lane: int, taken_bytes: int) -> None:
        if taken_bytes:
            lanes.receipts.taken(lane, taken_bytes)
            self._owing.add(lanes)

    def _take_dialled(self, lanes: LaneSet, lane: Lane, socket: Socket) -> bool:
        frames = self._sockets.receive(socket)
        if frames:
            self._take(lanes, lane, frames)
        return bool(frames)

    # ---- from time to time

    def keep(self, now: float) -> float:
        """Dial, ask, measure and probe as is due; how long nothing of this will be, in seconds."""
        if self._probes:
            self._pump_probes(now)
        self.table.keep(now)
        return _PROBE_CHECK_S if self._probes else inf if self.table.settled and not self._owing else _BUSY_CHECK_S

    def _pump_probes(self, now: float) -> None:
        for peer, probe in list(self._probes.items()):
            lanes = self.table.way(peer, now)
            if lanes is None:
                if now - probe.asked_at > _PROBE_PATIENCE_S:
                    del self._probes[peer]
                continue
            in_flight = lanes.credit.in_flight_bytes
            if not probe.started_at:
                if in_flight or self.table.meter(peer).rate_bytes_per_s > 0:
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

    def fill(self) -> None:
        """Write what was measured into the counters."""
        limit = self._limits.least_bytes_per_s or inf
        for peer in self.table.dialled.keys() | self.table.accepted.keys():
            meter, lanes = self.table.meter(peer), self.table.current(peer)
            if lanes is None and peer not in self._stats:
                continue
            counted = self._stats.setdefault(peer, LinkStats())
            counted.rate_bytes_per_s = min(meter.rate_bytes_per_s, limit)
            counted.rtt_s, counted.loss = meter.rtt_s, meter.loss
            counted.lanes = 0 if lanes is None else len(lanes.usable())
            counted.congestion = counted.congestion if lanes is None else lanes.congestion
            counted.in_flight_bytes = 0 if lanes is None else lanes.credit.in_flight_bytes

    def close(self) -> None:
        """Let go of everything; the sockets themselves are closed with the link's."""
        self.table.close()
        self._inbox.clear()
        self._inbox_bytes = 0
        self._owing.clear()
        self._probes.clear()
        self._router = None


_ZEROS = bytes(PROBE_BYTES)


def _total(frames: Sequence[Buffer]) -> int:
    return sum(map(size_bytes, frames))
