"""The link over ZeroMQ: CURVE over TCP between hosts, ipc within one; the only module that imports zmq."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import zmq
from zmq.utils.monitor import parse_monitor_message

from wantrain.errors import AddressInUseError, ConfigError, WireError
from wantrain.transport.address import endpoint_of, refuse_taken_path
from wantrain.transport.link import Connected, Disconnected, Done, Dropped, LinkEvent, LinkStats, Received
from wantrain.transport.wire import MAX_BUFFER_BYTES, MAX_FRAMES, RUN_BYTES, Buffer, Message, decode, encode, size_bytes

HIGH_WATER = 64
"""Messages that may wait on one connection in one direction: with the usual 1 MiB chunks some 64 MiB."""
MAX_EVENTS = 256
ZERO_COPY_BYTES = 16 << 10
"""Smaller buffers are copied: that is cheaper than keeping track of them."""
MAX_ROUTES = 4
"""Connections of one peer that are remembered as ways back to it."""
LOCAL = "local"
"""Source of everything that comes over ipc: whoever may open the socket's file."""


_IO_THREADS = 2
_RELEASE_CHECK_S = 0.005
_REDIAL_FIRST_S, _REDIAL_LAST_S = 0.1, 5.0
_OPTIONS = {
    zmq.LINGER: 0,
    zmq.SNDHWM: HIGH_WATER,
    zmq.RCVHWM: HIGH_WATER,
    zmq.MAXMSGSIZE: MAX_BUFFER_BYTES + 1024,  # CURVE adds some bytes to each frame
    zmq.RECONNECT_IVL: int(_REDIAL_FIRST_S * 1000),
    zmq.RECONNECT_IVL_MAX: int(_REDIAL_LAST_S * 1000),
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
_FAILURES: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "refused: key not admitted",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "handshake failed: the other side has another key, or is no peer of ours",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "handshake failed: the other side does not speak our protocol",
}
_MONITORED: int = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
for _failure in _FAILURES:
    _MONITORED |= _failure

KeyPair = tuple[bytes, bytes]
_Socket = zmq.Socket[bytes]
_Handler = Callable[[list[LinkEvent]], bool]
"""Takes one message off a socket, adds events; False if there was none."""


@dataclass(slots=True, eq=False)
class _Dial:
    """A connection that we dial, and dial again."""

    peer: str
    address: str
    server_key: bytes
    client_key: KeyPair | None
    token: bytes
    socket: _Socket | None = None
    monitor: _Socket | None = None
    up: bool = False
    redial_at: float = 0.0
    back_off_s: float = _REDIAL_FIRST_S


class ZmqLink:
    """One endpoint: an optional listening socket and any number of dialled connections; see `Link`.

    Nothing happens outside `poll`, not even the admission of those who dial us, so it must be called often. A message
    that was queued on a connection is lost when the connection is; the sender sees Disconnected if it dialled.

    Args:
        run: id of the run, 8 bytes.
        bind: where to listen, "host:port" (host "*" for all, port 0 for any free one) or "ipc://path"; None: nowhere.
        key: our CURVE (public, secret) key pair; may be missing only where there is nothing but ipc.
        admit: gives the name of the holder of a CURVE public key, or None to turn it away. Nobody is admitted over
            TCP without it. Over ipc everybody who may open the file is, as `LOCAL`.

    Raises:
        ConfigError: an address or key that cannot be used.
        AddressInUseError: another process listens there.
    """

    def __init__(
        self,
        run: bytes,
        *,
        bind: str | None = None,
        key: KeyPair | None = None,
        admit: Callable[[bytes], str | None] | None = None,
    ) -> None:
        if len(run) != RUN_BYTES:
            raise ConfigError(f"the run id has {len(run)} bytes, not {RUN_BYTES}")
        self._run = run
        self._key = key
        self._admit = admit
        self._context = zmq.Context(io_threads=_IO_THREADS)
        self._context.linger = 0
        self._poller = zmq.Poller()
        self._handlers: dict[_Socket, _Handler] = {}
        self._dials: dict[str, _Dial] = {}
        self._tokens: dict[bytes, _Dial] = {}
        self._routes: dict[str, list[bytes]] = {}
        self._stats: dict[str, LinkStats] = {}
        self._leaving: list[tuple[list[zmq.MessageTracker], Done]] = []
        self._numbers = count()
        self._turn = 0
        self._router: _Socket | None = None
        self._ipc = bind is not None and bind.startswith("ipc://")
        self._bound_path: Path | None = None
        self.address = ""
        """Where we listen, with the real port; "" if nowhere."""
        if bind is not None:
            try:
                self._listen(bind)
            except BaseException:
                self.close()
                raise

    @property
    def port(self) -> int:
        """The TCP port that we listen on; 0 if none."""
        return 0 if self._ipc or not self.address else int(self.address.rpartition(":")[2])

    def connect(self, peer: str, address: str, server_key: bytes, *, client_key: KeyPair | None = None) -> None:
        client_key = client_key or self._key
        old = self._dials.get(peer)
        if old is not None:
            if (old.address, old.server_key, old.client_key) == (address, server_key, client_key):
                return
            self.disconnect(peer)
        endpoint_of(address)
        if not address.startswith("ipc://") and (len(server_key) != 32 or client_key is None):
            raise ConfigError(
                f"cannot dial {address} without encryption: a server key of {len(server_key)} bytes (32 are needed), "
                f"our own key is {'missing' if client_key is None else 'there'}",
                hint="give the CURVE keys of both sides; only ipc:// goes without",
            )
        dial = _Dial(peer, address, server_key, client_key, b"d" + next(self._numbers).to_bytes(8, "big"))
        self._dials[peer] = self._tokens[dial.token] = dial
        self._dial(dial)

    def disconnect(self, peer: str) -> None:
        dial = self._dials.pop(peer, None)
        if dial is not None:
            del self._tokens[dial.token]
            self._hang_up(dial)

    def send(self, peer: str, message: Message, done: Done | None = None) -> bool:
        frames = encode(message, self._run)
        dial = self._dials.get(peer)
        if dial is not None and dial.up:
            return self._send_dialled(dial, frames, done)
        routes = self._routes.get(peer, [])
        while routes:
            sent = self._send_routed(peer, routes[-1], frames, done)
            if sent is not None:
                return sent
            routes.pop()
        self._routes.pop(peer, None)
        return False

    def reply(self, connection: bytes, message: Message, done: Done | None = None) -> bool:
        frames = encode(message, self._run)
        if connection.startswith(b"d"):
            dial = self._tokens.get(connection)
            return dial is not None and dial.up and self._send_dialled(dial, frames, done)
        route, source = connection[2 : 2 + connection[1]], connection[2 + connection[1] :]
        return bool(self._send_routed(source.decode(), route, frames, done))

    def poll(self, timeout_s: float) -> list[LinkEvent]:
        deadline = time.monotonic() + timeout_s
        events: list[LinkEvent] = []
        while True:
            released = self._release()
            wait_s = min([0.0 if released else deadline - time.monotonic(), self._redial()])
            if self._leaving:
                wait_s = min(wait_s, _RELEASE_CHECK_S)
            ready = deque(socket for socket, _ in self._poller.poll(max(0, math.ceil(wait_s * 1000))))
            self._turn += 1
            ready.rotate(-self._turn)  # so that the first socket is not always served first
            for _ in range(MAX_EVENTS):
                if not ready:
                    break
                handler = self._handlers.get(ready[0])
                if handler is not None and handler(events):
                    ready.rotate(-1)
                else:
                    ready.popleft()
            if events or released or time.monotonic() >= deadline:
                return events

    def stats(self) -> dict[str, LinkStats]:
        return self._stats

    def close(self, linger_s: float = 0.0) -> None:
        for dial in self._dials.values():
            _stop_monitoring(dial)
        self._handlers.clear()
        self._dials.clear()
        self._tokens.clear()
        self._routes.clear()
        self._router = None
        if self._bound_path is not None:  # libzmq leaves it there; gone before the socket, it cannot be a successor's
            self._bound_path.unlink(missing_ok=True)
            self._bound_path = None
        self._context.destroy(linger=math.ceil(linger_s * 1000))
        leaving, self._leaving = self._leaving, []
        for _, done in leaving:
            done()

    # ---- listening

    def _listen(self, bind: str) -> None:
        endpoint = endpoint_of(bind)
        router = self._router = self._socket(zmq.ROUTER, bind)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if self._ipc:
            refuse_taken_path(bind.removeprefix("ipc://"))
        else:
            if self._key is None:
                raise ConfigError(f"cannot listen at {bind} without encryption: our CURVE key is missing")
            zap = self._socket(zmq.REP, bind)
            zap.bind("inproc://zeromq.zap.01")
            self._watch(zap, lambda events: self._take_zap(zap, events))
            router.setsockopt(zmq.ZAP_DOMAIN, b"wantrain")
            router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
            router.setsockopt(zmq.CURVE_SERVER, 1)
            router.setsockopt(zmq.CURVE_PUBLICKEY, self._key[0])
            router.setsockopt(zmq.CURVE_SECRETKEY, self._key[1])
        try:
            router.bind(endpoint)
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                raise AddressInUseError(
                    f"{bind} is taken by another process", hint="stop it, or choose another port (0 takes any free one)"
                ) from error
            raise ConfigError(
                f"cannot listen at {bind}: {error.strerror}", hint="use an address of this host"
            ) from error
        self.address = router.getsockopt_string(zmq.LAST_ENDPOINT).removeprefix("tcp://")
        if self._ipc:
            self._bound_path = Path(bind.removeprefix("ipc://"))
            self._bound_path.chmod(0o600)
        self._watch(router, lambda events: self._take_routed(router, events))

    def _take_zap(self, zap: _Socket, events: list[LinkEvent]) -> bool:
        """Answer one question of the listening socket, https://rfc.zeromq.org/spec/27."""
        try:
            version, request, _, host, _, mechanism, *credentials = zap.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        name = None
        if mechanism == b"CURVE" and self._admit is not None:
            name = self._admit(credentials[0])
        if name is None:
            key = credentials[0].hex()[:16] if credentials else ""
            self._drop(events, "", f"key {key}… from {host.decode(errors='replace')} is not admitted")
            answer = [b"400", b"not admitted", b""]
        else:
            answer = [b"200", b"", name.encode()]
        zap.send_multipart([version, request, *answer, b""], zmq.NOBLOCK)
        return True

    def _take_routed(self, router: _Socket, events: list[LinkEvent]) -> bool:
        frames = _receive(router)
        if not frames:
            return False
        source = LOCAL
        if not self._ipc:
            try:
                source = str(frames[-1].get("User-Id"))
            except (ValueError, zmq.ZMQError):  # no ZAP, no name: must not happen
                self._drop(events, "", "message from nobody")
                return True
        route = frames[0].bytes
        connection = b"r" + bytes([len(route)]) + route + source.encode()  # a route has up to 255 bytes
        if self._accept(events, source, connection, frames[1:]):
            routes = self._routes.setdefault(source, [])
            if route not in routes:
                routes.append(route)
                del routes[:-MAX_ROUTES]
        return True

    def _send_routed(self, source: str, route: bytes, frames: Sequence[Buffer], done: Done | None) -> bool | None:
        """None if that connection is gone."""
        if self._router is None:
            return None
        try:
            return self._send(self._router, source, [route, *frames], done)
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return None
            raise

    # ---- dialling

    def _dial(self, dial: _Dial) -> None:
        dial.socket = socket = self._socket(zmq.DEALER, dial.address)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # queue nothing for who is not there
        if not dial.address.startswith("ipc://"):
            assert dial.client_key is not None
            socket.setsockopt(zmq.CURVE_SERVERKEY, dial.server_key)
            socket.setsockopt(zmq.CURVE_PUBLICKEY, dial.client_key[0])
            socket.setsockopt(zmq.CURVE_SECRETKEY, dial.client_key[1])
        # Not get_monitor_socket: its addresses are used again while the old one is still in use.
        where = f"inproc://monitor-{next(self._numbers)}"
        socket.monitor(where, _MONITORED)
        dial.monitor = monitor = self._socket(zmq.PAIR, dial.address)
        monitor.setsockopt(zmq.RCVHWM, 0)  # a full one would block libzmq's own thread
        monitor.connect(where)
        self._watch(monitor, lambda events: self._take_monitored(dial, monitor, events))
        self._watch(socket, lambda events: self._take_dialled(dial, socket, events))
        try:
            socket.connect(endpoint_of(dial.address))
        except zmq.ZMQError as error:
            self.disconnect(dial.peer)
            raise ConfigError(f"cannot dial {dial.address}: {error.strerror}", hint="check the address") from error

    def _hang_up(self, dial: _Dial) -> None:
        dial.up = False
        _stop_monitoring(dial)
        for socket in (dial.socket, dial.monitor):
            if socket is not None:
                self._poller.unregister(socket)
                del self._handlers[socket]
                socket.close(linger=0)
        dial.socket = dial.monitor = None

    def _redial(self) -> float:
        """Dial again what failed and is due; seconds until the next is."""
        now, wait_s = time.monotonic(), math.inf
        for dial in self._dials.values():
            if dial.socket is None and dial.redial_at <= now:
                self._dial(dial)
            elif dial.socket is None:
                wait_s = min(wait_s, dial.redial_at - now)
        return wait_s

    def _take_dialled(self, dial: _Dial, socket: _Socket, events: list[LinkEvent]) -> bool:
        frames = _receive(socket)
        if frames:
            self._accept(events, dial.peer, dial.token, frames)
        return bool(frames)

    def _take_monitored(self, dial: _Dial, monitor: _Socket, events: list[LinkEvent]) -> bool:
        try:
            event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))["event"]
        except zmq.Again:
            return False
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            assert dial.socket is not None
            dial.socket.getsockopt(zmq.EVENTS)  # makes the socket take notice of the connection: a send works now
            dial.up, dial.back_off_s = True, _REDIAL_FIRST_S
            events.append(Connected(dial.peer))
        elif event in _FAILURES:
            # libzmq would stop for good after a refusal, and try without back-off after other failures.
            self._hang_up(dial)
            dial.redial_at = time.monotonic() + dial.back_off_s
            dial.back_off_s = min(2 * dial.back_off_s, _REDIAL_LAST_S)
            events.append(Disconnected(dial.peer, _FAILURES[event]))
        elif event == zmq.EVENT_DISCONNECTED and dial.up:
            dial.up = False
            events.append(Disconnected(dial.peer, "connection lost"))
        return True

    def _send_dialled(self, dial: _Dial, frames: Sequence[Buffer], done: Done | None) -> bool:
        assert dial.socket is not None
        return self._send(dial.socket, dial.peer, frames, done)

    # ---- both

    def _socket(self, kind: int, address: str) -> _Socket:
        socket = self._context.socket(kind)
        socket.copy_threshold = ZERO_COPY_BYTES
        for option, value in _OPTIONS.items():
            socket.setsockopt(option, value)
        if address.startswith("["):
            socket.setsockopt(zmq.IPV6, 1)
        return socket

    def _watch(self, socket: _Socket, handler: _Handler) -> None:
        self._handlers[socket] = handler
        self._poller.register(socket, zmq.POLLIN)

    def _accept(self, events: list[LinkEvent], source: str, connection: bytes, frames: Sequence[zmq.Frame]) -> bool:
        buffers = [frame.buffer for frame in frames]
        try:
            message = decode(buffers, self._run)
        except WireError as error:
            self._drop(events, source, error.message, connection)
            return False
        counted = self._stats.setdefault(source, LinkStats())
        counted.messages_received += 1
        counted.bytes_received += sum(map(size_bytes, buffers))
        events.append(Received(source, connection, message))
        return True

    def _drop(self, events: list[LinkEvent], source: str, reason: str, connection: bytes = b"") -> None:
        self._stats.setdefault(source, LinkStats()).dropped += 1
        events.append(Dropped(source, reason, connection))

    def _send(self, socket: _Socket, peer: str, frames: Sequence[Buffer], done: Done | None) -> bool:
        trackers: list[zmq.MessageTracker] = []
        last = len(frames) - 1
        for at, frame in enumerate(frames):
            flags = zmq.NOBLOCK | (zmq.SNDMORE if at < last else 0)
            try:
                tracker = socket.send(frame, flags, copy=False, track=done is not None)
            except zmq.Again:
                # Only the first part finds a queue full; a connection lost later swallows the rest without an error.
                assert at == 0
                return False
            if tracker is not None:
                trackers.append(tracker)
        if done is not None:
            self._leaving.append((trackers, done))
        counted = self._stats.setdefault(peer, LinkStats())
        counted.messages_sent += 1
        counted.bytes_sent += sum(map(size_bytes, frames)) - (size_bytes(frames[0]) if socket is self._router else 0)
        return True

    def _release(self) -> bool:
        """Call `done` for what has left; whether there was any."""
        if not self._leaving:
            return False
        entries, self._leaving = self._leaving, []
        left = []
        for trackers, done in entries:
            if all(tracker.done for tracker in trackers):
                left.append(done)
            else:
                self._leaving.append((trackers, done))
        for done in left:
            done()
        return bool(left)


def _stop_monitoring(dial: _Dial) -> None:
    """End the events of a socket while somebody still takes them.

    libzmq sends them from its own thread, and closes sockets there, later: an event for a monitor that is gone would
    block that thread, and with it every connection of this process, for ever.
    """
    if dial.socket is not None and not dial.socket.closed:
        dial.socket.monitor(None, 0)


def _receive(socket: _Socket) -> list[zmq.Frame]:
    """The frames of one message, [] if there is none; of too many frames those that show that they are too many."""
    frames: list[zmq.Frame] = []
    try:
        while True:
            frame = socket.recv(zmq.NOBLOCK, copy=False)
            if len(frames) < MAX_FRAMES + 2:  # one for the route, one too many
                frames.append(frame)
            if not frame.more:
                return frames
    except zmq.Again:
        return []


def wait(links: Sequence[ZmqLink], timeout_s: float) -> None:
    """Wait up to timeout_s seconds until there is something to `poll` on one of several links of this thread."""
    poller = zmq.Poller()
    for link in links:
        for socket in link._handlers:
            poller.register(socket, zmq.POLLIN)
    poller.poll(math.ceil(timeout_s * 1000))
