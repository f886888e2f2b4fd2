"""All lanes of one link: dialled as they are wanted, accepted as they are announced, given up when they are dead."""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import inf

import zmq

from wantrain.errors import ConfigError, WireError
from wantrain.transport.lanes import MAX_LANES, lanes_wanted
from wantrain.transport.transfer import Meter
from wantrain.transport.wire import Message, encode
from wantrain.transport.zmq_guard import descriptor_of
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
from wantrain.transport.zmq_sockets import FAILURES, REDIAL_FIRST_S, Dialled, Socket, Sockets, Target

MAX_SETS = 4
"""Sets of one peer that are remembered; all but the newest are rarely alive."""
ASK_S = 1.0
"""How often to ask again for anything."""

_HOUSEKEEPING_S = 0.01
_SAMPLE_S = 0.2
_GROW_S = 0.3

Tell = Callable[[str, bytes, Message], bool | None]
"""Sends an internal message to a peer on a control connection, on any if that is b"".

False if it cannot go now, None if there is no such connection any more.
"""


class LaneTable:
    """The sets of lanes of one link, and what was measured of each peer.

    Args:
        run: id of the run.
        sockets: the link's.
        tell: sends internal control messages.
        on_message: takes one message off a lane that we dialled; False if there was none.
    """

    def __init__(
        self, run: bytes, sockets: Sockets, tell: Tell, on_message: Callable[[LaneSet, Lane, Socket], bool]
    ) -> None:
        self._run = run
        self._sockets = sockets
        self._tell = tell
        self._on_message = on_message
        self.dialled: dict[str, LaneSet] = {}
        self.accepted: dict[str, list[LaneSet]] = {}
        self.routes: dict[bytes, tuple[LaneSet, Lane]] = {}
        self.settled = True
        """Whether nothing is under way, and all lanes that are wanted are there."""
        self.port = 0
        """Where the link listens."""
        self._meters: dict[str, Meter] = {}
        self._hailed_at: dict[str, float] = {}
        self._kept_at = 0.0
        self._freed = False

    # ---- which to use

    def current(self, peer: str) -> LaneSet | None:
        """Lanes that can be used now: those we dialled, else those of the newest set that the peer dialled."""
        dialled = self.dialled.get(peer)
        if dialled is not None and dialled.control and dialled.usable():
            return dialled
        for lanes in reversed(self.accepted.get(peer, ())):
            if lanes.control and lanes.usable():
                return lanes
        return None

    def way(self, peer: str, now: float) -> LaneSet | None:
        """The lanes to use; dials some, or asks for some, if there are none."""
        dialled = self.dialled.get(peer)
        if dialled is not None and dialled.control and not dialled.wanted:
            dialled.wanted = 1
            self._dial(dialled, now)
        found = self.current(peer)
        if found is None and (dialled is None or not dialled.control):
            self.hail(peer, b"", 1, now)
        return found

    def coming(self, peer: str, now: float) -> bool:
        """Whether there is no way to a peer now, but one is being made."""
        dialled = self.dialled.get(peer)
        return (dialled is not None and bool(dialled.control)) or now - self._hailed_at.get(peer, -inf) <= ASK_S

    def hail(self, peer: str, control: bytes, lanes: int, now: float) -> None:
        """Ask the peer to dial so many lanes."""
        if now - self._hailed_at.get(peer, -inf) > ASK_S and self._tell(
            peer, control, Message(Kind.WANT, {"n": lanes})
        ):
            self._hailed_at[peer] = now

    def say(self, lanes: LaneSet, message: Message) -> bool:
        """Send what is to be said about a set where it is listened to."""
        told = self._tell(lanes.peer, lanes.control, message) if lanes.control else False
        if told is None:
            lanes.control = b""  # until the dialler lists its lanes on another one
        return bool(told)

    def alive(self, lanes: LaneSet) -> bool:
        """Whether a set has not been given up."""
        return self.dialled.get(lanes.peer) is lanes or lanes in self.accepted.get(lanes.peer, ())

    def meter(self, peer: str) -> Meter:
        """What was measured of a peer."""
        meter = self._meters.get(peer)
        if meter is None:
            meter = self._meters[peer] = Meter()
        return meter

    def freed(self) -> bool:
        """Whether something was acknowledged since the last call: what had to wait may go now."""
        freed, self._freed = self._freed, False
        return freed

    # ---- what is said about them

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
                    self.lose(lanes, lane, now)
            case Kind.WANT, False:
                if set(body) != {"n"}:
                    raise WireError("internal message with missing or surplus fields")
                wanted = read_number(body["n"], 1, MAX_LANES)
                if (found := self.dialled.get(source)) is not None:
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
            case Kind.HERE, _:
                if body:
                    raise WireError("internal message with surplus fields")
            case _:
                raise WireError(f"{message.kind} is no internal message here")

    def _find(self, source: str, identity: bytes, route: bytes) -> LaneSet | None:
        sets = self.accepted.get(source, []) if route else [s for s in [self.dialled.get(source)] if s is not None]
        return next((lanes for lanes in sets if lanes.identity == identity), None)

    def _acked(self, lanes: LaneSet, totals: Sequence[tuple[int, int]], answer_to: int, now: float) -> None:
        meter, new_bytes = self.meter(lanes.peer), 0
        for number, total_bytes in totals:
            new_bytes += lanes.credit.acked(number, total_bytes)
        if new_bytes:
            lanes.progress_at = now
            meter.acked(new_bytes, now, idle=lanes.credit.in_flight_bytes == 0)
            self._freed = True
        if answer_to and answer_to == lanes.asked:
            if not lanes.ipc and not any(lane.ends for lane in lanes.lanes.values()):
                meter.round_trip(now - lanes.asked_at)
            known = {number for number, _ in totals}
            for lane in list(lanes.lanes.values()):  # half open: only we still hold it for a connection
                if lane.up and lane.number not in known and now - lane.born > SETTLED_S:
                    self.lose(lanes, lane, now)

    # ---- accepted

    def _accepted_set(self, source: str, identity: bytes) -> LaneSet:
        sets = self.accepted.setdefault(source, [])
        for lanes in sets:
            if lanes.identity == identity:
                return lanes
        sets.append(LaneSet(identity, source, None))
        while len(sets) > MAX_SETS:
            old = sets.pop(0)
            for lane in old.lanes.values():
                self.routes.pop(lane.route, None)
        return sets[-1]

    def _add_accepted(
        self, source: str, identity: bytes, number: int, route: bytes, frame: zmq.Frame, now: float
    ) -> None:
        lanes = self._accepted_set(source, identity)
        if number in lanes.lanes or len(lanes.lanes) >= MAX_KNOWN_LANES:
            raise WireError(f"lane {number} is there already, or too many are")
        lane = Lane(number, now, route=route, up=True)
        lanes.add(lane)
        self.routes[route] = lanes, lane
        identify(lane, descriptor_of(frame), self.port, accepted=True)
        lanes.measure(self.meter(source), now)

    # ---- dialled

    def control_up(self, peer: str, target: Target, connection: bytes) -> None:
        """The connection that we dialled to a peer is up (again)."""
        lanes = self.dialled.get(peer)
        if lanes is None:
            lanes = self.dialled[peer] = LaneSet(os.urandom(SET_BYTES), peer, target)
        lanes.control, lanes.unannounced = connection, bool(lanes.wanted)
        self._announce(lanes)

    def control_down(self, peer: str) -> None:
        """The connection that we dialled is gone for now."""
        if (lanes := self.dialled.get(peer)) is not None:
            lanes.control = b""

    def forget(self, peer: str) -> None:
        """We dial this peer no more."""
        lanes = self.dialled.pop(peer, None)
        if lanes is not None:
            for lane in lanes.lanes.values():
                if lane.dialled is not None:
                    lane.dialled.hang_up()
            self.meter(peer).interrupted()

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
                    partial(self._on_message, lanes, lane),
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
        if lanes.unannounced and self.say(lanes, lanes.listing()):
            lanes.unannounced = False

    def _monitored(self, lanes: LaneSet, lane: Lane, event: int, value: int) -> None:
        now = time.monotonic()
        if event == zmq.EVENT_CONNECTED:
            assert lanes.target is not None
            if not lanes.ipc:
                identify(lane, value, int(lanes.target.address.rpartition(":")[2]), accepted=False)
                lanes.measure(self.meter(lanes.peer), now)
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            assert lane.dialled is not None
            lane.dialled.notice()
            lane.up = self._sockets.send(lane.dialled.socket, lane.dialled, encode(lanes.hello(lane), self._run), None)
            lanes.back_off_s = REDIAL_FIRST_S
            self._freed = lane.up
        elif event in FAILURES or event in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED):
            self.lose(lanes, lane, now)

    def lose(self, lanes: LaneSet, lane: Lane, now: float) -> None:
        """A connection is gone, with what was under way on it."""
        lanes.remove(lane, now)
        self.routes.pop(lane.route, None)
        if lanes.credit.in_flight_bytes == 0:
            self.meter(lanes.peer).interrupted()
        self._freed = True
        self._announce(lanes)

    # ---- from time to time

    def all(self) -> list[LaneSet]:
        """All sets."""
        return [*self.dialled.values(), *(lanes for sets in self.accepted.values() for lanes in sets)]

    def keep(self, now: float) -> None:
        """Dial, ask and measure as is due."""
        if now < self._kept_at + _HOUSEKEEPING_S:
            return
        self._kept_at = now
        for lanes in list(self.dialled.values()):
            for lane in [lane for lane in lanes.lanes.values() if not lane.up and now - lane.born > SETTLED_S]:
                self.lose(lanes, lane, now)
            self._dial(lanes, now)
            self._announce(lanes)
        everyone = self.all()
        for lanes in everyone:
            self._look_after(lanes, now)
        self.settled = not any(lanes.credit.in_flight_bytes or len(lanes.lanes) < lanes.wanted for lanes in everyone)

    def close(self) -> None:
        """Stop the monitors of all lanes; the sockets themselves are closed with the link's."""
        for lanes in self.dialled.values():
            for lane in lanes.lanes.values():
                if lane.dialled is not None:
                    lane.dialled.stop_monitoring()
        self.dialled.clear()
        self.accepted.clear()
        self.routes.clear()

    def _look_after(self, lanes: LaneSet, now: float) -> None:
        meter, in_flight = self.meter(lanes.peer), lanes.credit.in_flight_bytes
        if not lanes.lanes or not lanes.control:
            return
        stuck = in_flight > 0 and now - lanes.progress_at >= max(ASK_S, 4 * meter.rtt_s)
        if (stuck or (meter.rtt_s == 0 and not lanes.ipc)) and now - lanes.asked_at >= ASK_S:
            self.say(lanes, lanes.question(now))
            if stuck and lanes.target is None:  # its dialler may be gone without a word, and back as another process
                self.hail(lanes.peer, b"", 1, now)
        if (in_flight or lanes.busy) and now - lanes.sampled_at >= _SAMPLE_S:
            lanes.measure(meter, now)
        usable, due = len(lanes.usable()), now - lanes.grown_at >= max(_GROW_S, 3 * meter.rtt_s)
        if (lanes.busy or lanes.burst_bytes) and usable and usable >= lanes.wanted and due:
            seen = (meter.rate_bytes_per_s, meter.rtt_s, meter.loss, lanes.congestion)
            wanted = lanes_wanted(*seen, usable, busy=lanes.busy, burst_bytes=lanes.burst_bytes)
            lanes.busy, lanes.burst_bytes, lanes.grown_at = False, 0, now
            if wanted > usable and lanes.target is not None:
                lanes.wanted = wanted
                self._dial(lanes, now)
            elif wanted > usable:
                self.hail(lanes.peer, lanes.control, wanted, now)
