"""The link over ZeroMQ: CURVE over TCP between hosts, ipc within one; control here, bulk on lanes of its own."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq

from wantrain.errors import ConfigError, WireError
from wantrain.transport.address import endpoint_of, is_loopback
from wantrain.transport.link import Connected, Disconnected, Done, Dropped, LinkEvent, LinkStats, Received
from wantrain.transport.transfer import UploadLimits
from wantrain.transport.wire import RUN_BYTES, Buffer, Message, decode, encode, size_bytes
from wantrain.transport.zmq_bulk import Bulk
from wantrain.transport.zmq_lanes import Kind
from wantrain.transport.zmq_listener import MAX_NAME_CHARS, Listener
from wantrain.transport.zmq_sockets import (
    FAILURES,
    HIGH_WATER,
    REDIAL_FIRST_S,
    REDIAL_LAST_S,
    Dialled,
    KeyPair,
    Socket,
    Sockets,
    Target,
)

MAX_EVENTS = 256
MAX_ROUTES = 4
"""Connections of one peer that are remembered as ways back to it."""

_RELEASE_CHECK_S = 0.005
_ROUTE_CHECK_S = 5.0
"""How often connections that others have dialled are tried: only a send shows that one is gone."""
_HERE = Message(Kind.HERE)


@dataclass(slots=True, eq=False)
class _Dial:
    """A connection that we dial, and dial again."""

    peer: str
    target: Target
    token: bytes
    dialled: Dialled | None = None
    up: bool = False
    redial_at: float = 0.0
    back_off_s: float = REDIAL_FIRST_S


class ZmqLink:
    """One endpoint: an optional listening socket and any number of dialled connections; see `Link`.

    Nothing happens outside `poll`, not even the admission of those who dial us, so it must be called often. A message
    that was queued on a connection is lost when the connection is; the sender sees Disconnected if it dialled.

    Control goes over one connection, bulk over 1 to 16 more to the same port (lanes), which whoever dialled dials
    as they are needed; the other side sends its bulk back on them if it has none of its own.

    Args:
        run: id of the run, 8 bytes.
        bind: where to listen, "host:port" (host "*" for all, port 0 for any free one) or "ipc://path"; None: nowhere.
        key: our CURVE (public, secret) key pair; may be missing only where there is nothing but ipc.
        admit: gives the name of the holder of a CURVE public key, or None to turn it away. Nobody is admitted over
            TCP without it. Over ipc everybody who may open the file is, as `LOCAL`.
        max_upload_bytes_per_s: limit on all that is sent; control messages count and are never held back.
        max_upload_per_peer_bytes_per_s: limit on what is sent to each peer.
        plain: for measurements on one machine only: TCP WITHOUT ENCRYPTION, AND NOBODY IS AUTHENTICATED. Any process of
            this machine may connect under any name. Only literal loopback addresses are taken (127.0.0.0/8, ::1).
        name: with `plain`, who we say we are to those whom we dial.

    Raises:
        ConfigError: an address, key, limit or name that cannot be used.
        AddressInUseError: another process listens there.
    """

    def __init__(
        self,
        run: bytes,
        *,
        bind: str | None = None,
        key: KeyPair | None = None,
        admit: Callable[[bytes], str | None] | None = None,
        max_upload_bytes_per_s: float | None = None,
        max_upload_per_peer_bytes_per_s: float | None = None,
        plain: bool = False,
        name: str = "",
    ) -> None:
        if len(run) != RUN_BYTES:
            raise ConfigError(f"the run id has {len(run)} bytes, not {RUN_BYTES}")
        for limit in (max_upload_bytes_per_s, max_upload_per_peer_bytes_per_s):
            if limit is not None and not 0 < limit < math.inf:
                raise ConfigError(f"a limit on upload of {limit} bytes/s", hint="give a number above 0, or no limit")
        if plain and (key is not None or admit is not None):
            raise ConfigError(
                "a plain link with keys or an admission rule", hint="leave out either these or plain=True"
            )
        if (name and not plain) or len(name) > MAX_NAME_CHARS or not name.isprintable():
            raise ConfigError(
                f"{name[:80]!r} cannot be the name of this link",
                hint=f"only a plain link has one, of at most {MAX_NAME_CHARS} printable characters",
            )
        self._run = run
        self._encoded: tuple[Message, list[Buffer]] | None = None
        """The last message without buffers and its frames: some go to many peers, one after another."""
        self._key = key
        self._plain = plain
        self._name = name
        self._sockets = Sockets()
        self._dials: dict[str, _Dial] = {}
        self._tokens: dict[bytes, _Dial] = {}
        self._routes: dict[str, list[bytes]] = {}
        self._routes_checked_at = 0.0
        self._stats: dict[str, LinkStats] = {}
        self._events: list[LinkEvent] = []
        self._limits = UploadLimits(max_upload_bytes_per_s, max_upload_per_peer_bytes_per_s)
        self._bulk = Bulk(run, self._sockets, self._tell, self._stats, self._limits)
        self._listener: Listener | None = None
        self.address = ""
        """Where we listen, with the real port; "" if nowhere."""
        self.port = 0
        """The TCP port that we listen on; 0 if none."""
        if bind is not None:
            try:
                self._listen(bind, admit)
            except BaseException:
                self.close()
                raise

    def connect(self, peer: str, address: str, server_key: bytes, *, client_key: KeyPair | None = None) -> None:
        target = Target(address, server_key, client_key or self._key, self._name)
        old = self._dials.get(peer)
        if old is not None:
            if old.target == target:
                return
            self.disconnect(peer)
        endpoint_of(address)
        if not address.startswith("ipc://"):
            self._check_encryption(target)
        dial = _Dial(peer, target, b"d" + self._sockets.number().to_bytes(8, "big"))
        self._dials[peer] = self._tokens[dial.token] = dial
        try:
            self._dial(dial)
        except ConfigError:
            self.disconnect(peer)
            raise

    def disconnect(self, peer: str) -> None:
        dial = self._dials.pop(peer, None)
        if dial is not None:
            del self._tokens[dial.token]
            self._bulk.forget(peer)
            self._hang_up(dial)

    def send(self, peer: str, message: Message, done: Done | None = None) -> bool:
        return self._count(peer, frames := self._encode(message), self._send(peer, b"", frames, done))

    def reply(self, connection: bytes, message: Message, done: Done | None = None) -> bool:
        frames = self._encode(message)
        dial = self._tokens.get(connection)
        if dial is not None:
            return self._count(dial.peer, frames, self._send(dial.peer, connection, frames, done))
        if not connection.startswith(b"r"):
            return False
        _, source = _split(connection)
        return self._count(source, frames, self._send(source, connection, frames, done))

    def send_bulk(self, peer: str, message: Message, done: Done | None = None) -> bool:
        self._refuse_internal(message)
        return self._bulk.send(peer, message, done)

    def bulk_bytes(self, peer: str) -> int:
        return self._bulk.bulk_bytes(peer)

    def probe(self, peer: str) -> bool:
        return self._bulk.probe(peer)

    def ways(self) -> dict[str, str]:
        self._check_routes(time.monotonic())
        found = {dial.peer: "out" for dial in self._dials.values() if dial.up}
        for source, routes in self._routes.items():
            if routes:
                found[source] = "both" if source in found else "in"
        return found

    def poll(self, timeout_s: float) -> list[LinkEvent]:
        deadline = time.monotonic() + timeout_s
        while True:
            released = self._sockets.release()
            now = time.monotonic()
            wait_s = min(deadline - now, self._redial(now), self._bulk.keep(now))
            for reason in self._sockets.guard.check(now):
                self._drop("", reason)
            if self._sockets.holding:
                wait_s = min(wait_s, _RELEASE_CHECK_S)
            if released or self._bulk.waiting or self._events:
                wait_s = 0.0
            self._sockets.serve(wait_s, MAX_EVENTS, self._bulk.enough)
            self._bulk.hand_out(self._events, MAX_EVENTS - len(self._events))
            freed = self._bulk.table.freed()
            if self._events or released or freed or time.monotonic() >= deadline:
                events, self._events = self._events, []
                return events

    def stats(self) -> dict[str, LinkStats]:
        self._bulk.fill()
        return self._stats

    def close(self, linger_s: float = 0.0) -> None:
        for dial in self._dials.values():
            if dial.dialled is not None:
                dial.dialled.stop_monitoring()
        self._bulk.close()
        self._dials.clear()
        self._tokens.clear()
        self._routes.clear()
        if self._listener is not None:
            self._listener.release_path()
            self._listener.stop_monitoring()
            self._listener = None
        self._sockets.close(linger_s)

    # ---- listening

    def _listen(self, bind: str, admit: Callable[[bytes], str | None] | None) -> None:
        endpoint_of(bind)
        if not bind.startswith("ipc://"):
            if self._plain and not is_loopback(bind):
                raise ConfigError(
                    f"cannot listen at {bind} without encryption", hint="a plain link needs 127.0.0.1 or [::1]"
                )
            if not self._plain and self._key is None:
                raise ConfigError(f"cannot listen at {bind} without encryption: our CURVE key is missing")
        listener = self._listener = Listener(
            self._sockets, bind, self._key, admit, self._take_routed, lambda reason: self._drop("", reason)
        )
        self.address, self.port = listener.address, listener.port
        self._bulk.listen(listener.socket, listener.port)

    def _take_routed(self, router: Socket) -> bool:
        frames = self._sockets.receive(router)
        if not frames or self._listener is None:
            return False
        route = frames[0].bytes
        if self._bulk.take_routed(route, frames[1:]):
            return True
        source = self._listener.source_of(frames)
        if not source:
            self._drop("", "message from nobody")
            return True
        connection = b"r" + bytes([len(route)]) + route + source.encode()  # a route has up to 255 bytes
        message = self._accept(source, connection, route, frames[1:])
        if message is not None and message.kind != Kind.LANE:
            routes = self._routes.setdefault(source, [])
            if route not in routes:
                routes.append(route)
                del routes[:-MAX_ROUTES]
        return True

    def _check_routes(self, now: float) -> None:
        """Forget accepted connections that are gone."""
        if now - self._routes_checked_at < _ROUTE_CHECK_S:
            return
        self._routes_checked_at = now
        frames = encode(_HERE, self._run)
        for source, routes in list(self._routes.items()):
            routes[:] = [route for route in routes if self._send_routed(source, route, frames, None) is not None]
            if not routes:
                del self._routes[source]

    # ---- dialling

    def _check_encryption(self, target: Target) -> None:
        if self._plain:
            if target.server_key or target.client_key is not None or not is_loopback(target.address) or not self._name:
                raise ConfigError(
                    f"cannot dial {target.address} without encryption under the name {self._name!r}",
                    hint="a plain link needs a name, no keys, and 127.0.0.1 or [::1] to dial",
                )
        elif len(target.server_key) != 32 or target.client_key is None:
            raise ConfigError(
                f"cannot dial {target.address} without encryption: a server key of {len(target.server_key)} bytes (32 "
                f"are needed), our own key is {'missing' if target.client_key is None else 'there'}",
                hint="give the CURVE keys of both sides; only ipc:// goes without",
            )

    def _dial(self, dial: _Dial) -> None:
        dial.dialled = Dialled(
            self._sockets,
            dial.target,
            lambda socket: self._take_dialled(dial, socket),
            lambda event, _: self._monitored(dial, event),
        )

    def _hang_up(self, dial: _Dial) -> None:
        dial.up = False
        if dial.dialled is not None:
            dial.dialled.hang_up()
            dial.dialled = None

    def _redial(self, now: float) -> float:
        """Dial again what failed and is due; seconds until the next is."""
        wait_s = math.inf
        for dial in self._dials.values():
            if dial.dialled is None and dial.redial_at <= now:
                try:
                    self._dial(dial)
                except ConfigError as error:  # it was good once: a name may not be known for the moment
                    self._back_off(dial, now)
                    self._events.append(Disconnected(dial.peer, error.message))
            elif dial.dialled is None:
                wait_s = min(wait_s, dial.redial_at - now)
        return wait_s

    def _back_off(self, dial: _Dial, now: float) -> None:
        dial.redial_at = now + dial.back_off_s
        dial.back_off_s = min(2 * dial.back_off_s, REDIAL_LAST_S)

    def _take_dialled(self, dial: _Dial, socket: Socket) -> bool:
        frames = self._sockets.receive(socket)
        if frames:
            self._accept(dial.peer, dial.token, b"", frames)
        return bool(frames)

    def _monitored(self, dial: _Dial, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            assert dial.dialled is not None
            dial.dialled.notice()
            dial.up, dial.back_off_s = True, REDIAL_FIRST_S
            self._tell(dial.peer, dial.token, _HERE)
            self._bulk.table.control_up(dial.peer, dial.target, dial.token)
            self._events.append(Connected(dial.peer))
        elif event in FAILURES:
            # libzmq would stop for good after a refusal, and try without back-off after other failures.
            self._hang_up(dial)
            self._bulk.table.control_down(dial.peer)
            self._back_off(dial, time.monotonic())
            self._events.append(Disconnected(dial.peer, FAILURES[event]))
        elif event == zmq.EVENT_DISCONNECTED and dial.up:
            # It is announced beside the messages: what waits of them, at most a full queue, came before it.
            for _ in range(HIGH_WATER):
                if dial.dialled is None or not self._take_dialled(dial, dial.dialled.socket):
                    break
            dial.up = False
            self._bulk.table.control_down(dial.peer)
            self._events.append(Disconnected(dial.peer, "connection lost"))

    # ---- both

    def _accept(self, source: str, connection: bytes, route: bytes, frames: Sequence[zmq.Frame]) -> Message | None:
        """Take a message that came in on a control connection, or the first one of a lane; None if it was dropped."""
        buffers = [frame.buffer for frame in frames]
        try:
            message = decode(buffers, self._run)
            if message.kind.startswith("_"):
                self._bulk.table.said(source, connection, route, message, frames[0])
                return message
        except WireError as error:
            self._drop(source, error.message, connection)
            return None
        counted = self._stats.setdefault(source, LinkStats())
        counted.messages_received += 1
        counted.bytes_received += sum(map(size_bytes, buffers))
        self._events.append(Received(source, connection, message))
        return message

    def _drop(self, source: str, reason: str, connection: bytes = b"") -> None:
        self._stats.setdefault(source, LinkStats()).dropped += 1
        self._events.append(Dropped(source, reason, connection))

    def _refuse_internal(self, message: Message) -> None:
        if message.kind.startswith("_"):
            raise WireError(f"{message.kind}: kinds with an underscore are the link's own")

    def _encode(self, message: Message) -> list[Buffer]:
        self._refuse_internal(message)
        if message.buffers:
            return encode(message, self._run)
        if self._encoded is None or self._encoded[0] is not message:
            self._encoded = (message, encode(message, self._run))
        return self._encoded[1]

    def _tell(self, peer: str, connection: bytes, message: Message) -> bool | None:
        return self._send(peer, connection, encode(message, self._run), None)

    def _send(self, peer: str, connection: bytes, frames: Sequence[Buffer], done: Done | None) -> bool | None:
        """Send on a control connection, on the best one to the peer if that is b""; None if it is gone."""
        if connection.startswith(b"r"):
            return self._send_routed(peer, _split(connection)[0], frames, done)
        dial = self._tokens.get(connection) if connection else self._dials.get(peer)
        if dial is not None and dial.up and dial.dialled is not None:
            sent = self._sockets.send(dial.dialled.socket, dial, frames, done)
            return self._spend(peer, frames, sent)
        if connection:
            return None
        routes = self._routes.get(peer, [])
        while routes:
            sent_routed = self._send_routed(peer, routes[-1], frames, done)
            if sent_routed is not None:
                return sent_routed
            routes.pop()
        self._routes.pop(peer, None)
        return None

    def _send_routed(self, peer: str, route: bytes, frames: Sequence[Buffer], done: Done | None) -> bool | None:
        """None if that connection is gone."""
        if self._listener is None:
            return None
        try:
            sent = self._sockets.send(self._listener.socket, route, [route, *frames], done)
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return None
            raise
        return self._spend(peer, frames, sent)

    def _spend(self, peer: str, frames: Sequence[Buffer], sent: bool) -> bool:
        if sent:
            self._limits.spend(peer, sum(map(size_bytes, frames)), time.monotonic())
        return sent

    def _count(self, peer: str, frames: Sequence[Buffer], sent: bool | None) -> bool:
        if sent:
            counted = self._stats.setdefault(peer, LinkStats())
            counted.messages_sent += 1
            counted.bytes_sent += sum(map(size_bytes, frames))
        return bool(sent)


def _split(connection: bytes) -> tuple[bytes, str]:
    """Route and source of an accepted connection."""
    return connection[2 : 2 + connection[1]], connection[2 + connection[1] :].decode()


def wait(links: Sequence[ZmqLink], timeout_s: float) -> None:
    """Wait up to timeout_s seconds until there is something to `poll` on one of several links of this thread."""
    if not any(link._bulk.waiting or link._events for link in links):
        polled = [entry for link in links for entry in link._sockets.polled]
        zmq.zmq_poll(polled, math.ceil(timeout_s * 1000))
