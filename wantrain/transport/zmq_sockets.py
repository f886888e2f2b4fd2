"""Sockets of ZeroMQ as the link uses them: options, encryption, dialling with a monitor, admission, zero-copy sends."""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import count

import zmq
from zmq.utils.monitor import parse_monitor_message

from wantrain.errors import ConfigError
from wantrain.transport.address import endpoint_of
from wantrain.transport.link import Done
from wantrain.transport.wire import MAX_BUFFER_BYTES, MAX_FRAMES, Buffer, size_bytes
from wantrain.transport.zmq_guard import Guard, descriptor_of

HIGH_WATER = 64
"""Messages that may wait on one connection in one direction: with the usual 1 MiB chunks some 64 MiB."""
ZERO_COPY_BYTES = 16 << 10
"""Smaller buffers are copied: that is cheaper than keeping track of them."""
PLAIN_ROUTE_BYTES = 9
"""What stands before the name in the routing id of a connection without encryption."""
REDIAL_FIRST_S, REDIAL_LAST_S = 0.1, 5.0
MAX_READ_FRAMES = 4096
"""Frames of one message that are read at once; of a longer one the rest is thrown away later, in as many turns."""

_IO_THREADS = 2
_OPTIONS = {
    zmq.LINGER: 0,
    zmq.SNDHWM: HIGH_WATER,
    zmq.RCVHWM: HIGH_WATER,
    zmq.MAXMSGSIZE: MAX_BUFFER_BYTES + 1024,  # CURVE adds some bytes to each frame
    zmq.RECONNECT_IVL: int(REDIAL_FIRST_S * 1000),
    zmq.RECONNECT_IVL_MAX: int(REDIAL_LAST_S * 1000),
    zmq.HANDSHAKE_IVL: 10_000,
    # A 16 MiB frame takes 27 s at 5 Mbit/s, and no heartbeat passes it: these only clear away what is dead.
    zmq.HEARTBEAT_IVL: 5_000,
    zmq.HEARTBEAT_TIMEOUT: 30_000,
    zmq.HEARTBEAT_TTL: 60_000,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 30,
    zmq.TCP_KEEPALIVE_INTVL: 10,
    zmq.TCP_KEEPALIVE_CNT: 3,
}
_CONTROL_OPTIONS = {
    # Nothing long stands in the way of a heartbeat here: a path on which packets vanish is to be noticed soon, as syncs
    # are led around it then. A lane and its control connection share that path, so this one speaks for both.
    zmq.HEARTBEAT_IVL: 2_000,
    zmq.HEARTBEAT_TIMEOUT: 10_000,
    zmq.HEARTBEAT_TTL: 20_000,
    # The kernel alone would let more and more time pass between its tries, up to minutes after the path is back.
    zmq.CONNECT_TIMEOUT: 3_000,
}
FAILURES: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "refused: key not admitted",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "handshake failed: the other side has another key, or is no peer of ours",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "handshake failed: the other side does not speak our protocol",
}
_MONITORED: int = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
for _failure in FAILURES:
    _MONITORED |= _failure

KeyPair = tuple[bytes, bytes]
Socket = zmq.Socket[bytes]
Handler = Callable[[], bool]
"""Takes one message off a socket; False if there was none."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to dial and with what.

    Attributes:
        server_key: CURVE key that the other side must have; b"" without encryption.
        client_key: our CURVE (public, secret) keys; None without encryption.
        name: without encryption, who we say we are; "" otherwise.
    """

    address: str
    server_key: bytes
    client_key: KeyPair | None
    name: str = ""


class Sockets:
    """The sockets of one link: how they are made, which of them are polled, and which buffers they still hold."""

    def __init__(self) -> None:
        self._context = zmq.Context(io_threads=_IO_THREADS)
        self._context.linger = 0
        self.guard = Guard()
        self._skipping: set[Socket] = set()
        """Where the rest of a message with too many frames is still to be thrown away."""
        self._poller = zmq.Poller()
        self._handlers: dict[Socket, tuple[Handler, bool]] = {}
        self._leaving: dict[Hashable, deque[tuple[list[zmq.MessageTracker], Done]]] = {}
        self._numbers = count()
        self._turn = 0

    @property
    def polled(self) -> list[tuple[Socket, int]]:
        """What to wait for, as `zmq.zmq_poll` takes it."""
        return self._poller.sockets

    @property
    def holding(self) -> bool:
        """Whether some `done` has not been called yet."""
        return bool(self._leaving)

    def number(self) -> int:
        """A number that nothing else in this link has."""
        return next(self._numbers)

    def make(self, kind: int, address: str) -> Socket:
        """A socket with our options, not connected."""
        socket: Socket = self._context.socket(kind)
        socket.copy_threshold = ZERO_COPY_BYTES
        for option, value in _OPTIONS.items():
            socket.setsockopt(option, value)
        if address.startswith("["):
            socket.setsockopt(zmq.IPV6, 1)
        return socket

    def watch(self, socket: Socket, handler: Handler, *, bulk: bool = False) -> None:
        """Have the handler called when there is something on the socket; for bulk after all others."""
        self._handlers[socket] = handler, bulk
        self._poller.register(socket, zmq.POLLIN)

    def discard(self, socket: Socket) -> None:
        """Close a socket and drop what is queued on it."""
        self._poller.unregister(socket)
        del self._handlers[socket]
        self._skipping.discard(socket)
        socket.close(linger=0)

    def monitor(self, socket: Socket, events: int, address: str, on_event: Callable[[int, int], None]) -> Socket:
        """Have the handler called with each of these events of a socket and its value; returns what they come on."""
        # Not get_monitor_socket: its addresses are used again while the old one is still in use.
        where = f"inproc://monitor-{self.number()}"
        socket.monitor(where, events)
        monitor = self.make(zmq.PAIR, address)
        monitor.setsockopt(zmq.RCVHWM, 0)  # a full one would block libzmq's own thread
        monitor.connect(where)

        def take() -> bool:
            try:
                event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return False
            kind, value = int(event["event"]), int(event["value"])
            if kind in (zmq.EVENT_CONNECTED, zmq.EVENT_ACCEPTED):
                self.guard.opened(value, time.monotonic())
            elif kind == zmq.EVENT_DISCONNECTED:
                self.guard.closed(value)
            on_event(kind, value)
            return True

        self.watch(monitor, take)
        return monitor

    def receive(self, socket: Socket) -> list[zmq.Frame]:
        """The frames of one message, [] if there is none; of too many those that show that they are too many."""
        frames: list[zmq.Frame] = []
        total_bytes = 0
        skipping = socket in self._skipping
        for read in range(1, MAX_READ_FRAMES + 1):
            try:
                frame = socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return []
            total_bytes += len(frame)
            if not skipping and len(frames) < MAX_FRAMES + 2:  # one for the route, one too many
                frames.append(frame)
            if not frame.more:
                self._skipping.discard(socket)
                self.guard.delivered(descriptor_of(frame), read, total_bytes, time.monotonic())
                return frames
        if not skipping:
            self.guard.cut(descriptor_of(frame))
            self._skipping.add(socket)
        return frames

    def serve(self, wait_s: float, messages: int, enough: Callable[[], bool]) -> None:
        """Wait until something is there and have it handled, in turn, so that no socket is always the first.

        Args:
            wait_s: how long to wait, in seconds.
            messages: how many to take at most, of bulk sockets and of all others each.
            enough: when to take no more from bulk sockets.
        """
        ready = self._poller.poll(max(0, math.ceil(wait_s * 1000)))
        self._turn += 1
        for bulk in (False, True):
            turn = deque(
                socket for socket, _ in ready if socket in self._handlers and self._handlers[socket][1] is bulk
            )
            turn.rotate(-self._turn)
            for _ in range(messages):
                if not turn or (bulk and enough()):
                    break
                found = self._handlers.get(turn[0])
                if found is not None and found[0]():
                    turn.rotate(-1)
                else:
                    turn.popleft()

    def send(self, socket: Socket, way: Hashable, frames: Sequence[Buffer], done: Done | None) -> bool:
        """Queue a message; False if the queue is full.

        Args:
            socket: where.
            way: names the queue: messages leave one and the same queue in order.
            frames: the message; those of `ZERO_COPY_BYTES` and more are not copied.
            done: called by `release` when they are let go.

        Raises:
            zmq.ZMQError: EHOSTUNREACH, if a ROUTER has no such connection any more.
        """
        trackers: list[zmq.MessageTracker] = []
        last = len(frames) - 1
        for at, frame in enumerate(frames):
            flags = zmq.NOBLOCK | (zmq.SNDMORE if at < last else 0)
            try:
                if size_bytes(frame) < ZERO_COPY_BYTES:
                    socket.send(frame, flags)
                    continue
                tracker = socket.send(frame, flags, copy=False, track=done is not None)
            except zmq.Again:
                # Only the first part finds a queue full; a connection lost later swallows the rest without an error.
                assert at == 0
                return False
            if tracker is not None and not tracker.done:
                trackers.append(tracker)
        if done is not None:
            self._leaving.setdefault(way, deque()).append((trackers, done))
        return True

    def release(self) -> bool:
        """Call `done` for what has left; whether there was any."""
        left: list[Done] = []
        for way, queue in list(self._leaving.items()):
            while queue and all(tracker.done for tracker in queue[0][0]):
                left.append(queue.popleft()[1])
            if not queue:
                del self._leaving[way]
        for done in left:
            done()
        return bool(left)

    def close(self, linger_s: float) -> None:
        """Close everything; queued messages get up to linger_s seconds to leave."""
        self._handlers.clear()
        self._context.destroy(linger=math.ceil(linger_s * 1000))
        leaving, self._leaving = self._leaving, {}
        for queue in leaving.values():
            for _, done in queue:
                done()


class Dialled:
    """A DEALER with one connection that we dial, and its monitor.

    Args:
        sockets: makes them.
        target: whom to dial.
        on_message: takes one message off the socket; False if there was none.
        on_event: is told what the monitor says: event, and its value.
        lane: for bulk: dial once only, as whoever dials again has to say again what the connection is for.

    Raises:
        ConfigError: an address that cannot be dialled.
    """

    def __init__(
        self,
        sockets: Sockets,
        target: Target,
        on_message: Callable[[Socket], bool],
        on_event: Callable[[int, int], None],
        *,
        lane: bool = False,
    ) -> None:
        self._sockets = sockets
        self.socket = socket = sockets.make(zmq.DEALER, target.address)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # queue nothing for who is not there
        if target.client_key is not None and target.server_key:
            socket.setsockopt(zmq.CURVE_SERVERKEY, target.server_key)
            socket.setsockopt(zmq.CURVE_PUBLICKEY, target.client_key[0])
            socket.setsockopt(zmq.CURVE_SECRETKEY, target.client_key[1])
        elif target.name:
            # A number that nobody else has, and the name, for `Listener.source_of`.
            socket.setsockopt(zmq.ROUTING_ID, b"n" + os.urandom(PLAIN_ROUTE_BYTES - 1) + target.name.encode())
        if lane:
            socket.setsockopt(zmq.RECONNECT_IVL, -1)
            socket.setsockopt(zmq.CONNECT_TIMEOUT, 10_000)
        else:
            for option, value in _CONTROL_OPTIONS.items():
                socket.setsockopt(option, value)
        self._monitor = sockets.monitor(socket, _MONITORED, target.address, on_event)
        sockets.watch(socket, lambda: on_message(socket), bulk=lane)
        try:
            socket.connect(endpoint_of(target.address))
        except zmq.ZMQError as error:
            self.hang_up()
            raise ConfigError(f"cannot dial {target.address}: {error.strerror}", hint="check the address") from error

    def notice(self) -> None:
        """Make the socket take notice of a connection that the monitor has announced: a send works after this."""
        self.socket.getsockopt(zmq.EVENTS)

    def stop_monitoring(self) -> None:
        """End the events of the socket while somebody still takes them.

        libzmq sends them from its own thread, and closes sockets there, later: an event for a monitor that is gone
        would block that thread, and with it every connection of this process, for ever.
        """
        if not self.socket.closed:
            self.socket.monitor(None, 0)

    def hang_up(self) -> None:
        """Close the connection and drop what is queued on it."""
        self.stop_monitoring()
        for socket in (self.socket, self._monitor):
            self._sockets.discard(socket)
