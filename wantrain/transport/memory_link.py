"""A link within one process, for simulations and tests: same rules as the real one, no sockets, no waiting."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count

from wantrain.errors import WireError
from wantrain.transport.link import Connected, Disconnected, Done, Dropped, LinkEvent, LinkStats, Received
from wantrain.transport.wire import Buffer, Message, decode, encode, size_bytes

HIGH_WATER = 64
MAX_EVENTS = 256
BULK_BYTES = 1 << 20
BULK_WINDOW_BYTES = 4 << 20
"""Bulk bytes that a peer may have left unread until no more are sent, as over sockets."""


class MemoryHub:
    """The network that links of one process share; `connect` finds a link by the name of its peer.

    Args:
        high_water: messages that may wait on one connection in one direction.
        now: a clock, in seconds.
        delay_s: how long a message is on its way, by that clock.
        rate_bytes_per_s: at which a link sends bulk messages, one after another, whoever they are for; short ones go
            beside them.
        told: called with the name of a link for which something has been sent, or whose connection was cut, and in how
            many seconds it is there.
    """

    def __init__(
        self,
        high_water: int = HIGH_WATER,
        *,
        now: Callable[[], float] = float,
        delay_s: float = 0.0,
        rate_bytes_per_s: float = math.inf,
        told: Callable[[str, float], object] = lambda name, in_s: None,
    ) -> None:
        self.high_water = high_water
        self.now = now
        self.delay_s = delay_s
        self.rate_bytes_per_s = rate_bytes_per_s
        self.told = told
        self.links: dict[str, MemoryLink] = {}
        self.numbers = count()


class _Queue:
    """Encoded messages on their way in one direction; bulk waits apart, so that nothing waits behind it."""

    def __init__(self) -> None:
        self.control: deque[tuple[float, list[bytes]]] = deque()
        """When each message arrives, and its frames."""
        self.bulk: deque[tuple[float, list[bytes]]] = deque()
        self.bulk_bytes = 0

    def room(self, size_bytes: int) -> bool:
        """Whether the window has room for a bulk message, or nothing is under way."""
        return not self.bulk or self.bulk_bytes + size_bytes <= BULK_WINDOW_BYTES


class _Connection:
    """A dialled connection, with one queue of encoded messages for each end."""

    def __init__(self, number: int, client: "MemoryLink", server: "MemoryLink") -> None:
        self.token = number.to_bytes(8, "big")
        self.client, self.server = client, server
        self.to_client, self.to_server = _Queue(), _Queue()

    def end(self, link: "MemoryLink") -> "tuple[str, _Queue, _Queue]":
        """Who is at the other end, what came in from there, what goes there."""
        if link is self.client:
            return self.server.me, self.to_client, self.to_server
        return self.client.me, self.to_server, self.to_client


class MemoryLink:
    """One endpoint named `me` on a hub; see `Link`. Addresses and keys are ignored, `poll` returns at once.

    Buffers are copied, and every message goes through the wire format. Closing a link and making another of the same
    name is a restart.
    """

    def __init__(self, hub: MemoryHub, me: str, run: bytes = bytes(8)) -> None:
        self.me = me
        self._hub = hub
        self._run = run
        self._dialled: dict[str, _Connection | None] = {}
        self._routes: dict[str, _Connection] = {}
        self._connections: dict[bytes, _Connection] = {}
        self._stats: dict[str, LinkStats] = {}
        self._done: list[Done] = []
        self._free_at = 0.0
        """When all bulk messages that it has sent are on their way."""
        hub.links[me] = self

    def connect(
        self, peer: str, address: str, server_key: bytes, *, client_key: tuple[bytes, bytes] | None = None
    ) -> None:
        self._dialled.setdefault(peer, None)

    def disconnect(self, peer: str) -> None:
        connection = self._dialled.pop(peer, None)
        if connection is not None:
            self._cut(connection)

    def send(self, peer: str, message: Message, done: Done | None = None) -> bool:
        connection = self._dialled.get(peer) or self._routes.get(peer)
        return connection is not None and self._put(connection, message, done)

    def send_bulk(self, peer: str, message: Message, done: Done | None = None) -> bool:
        connection = self._dialled.get(peer) or self._routes.get(peer)
        return connection is not None and self._put(connection, message, done, bulk=True)

    def bulk_bytes(self, peer: str) -> int:
        return BULK_BYTES

    def probe(self, peer: str) -> bool:
        return False  # there is no distance to measure

    def reply(self, connection: bytes, message: Message, done: Done | None = None) -> bool:
        found = self._connections.get(connection)
        return found is not None and self._put(found, message, done)

    def ways(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for connection in self._connections.values():
            peer, way = (connection.server.me, "out") if connection.client is self else (connection.client.me, "in")
            found[peer] = way if found.get(peer, way) == way else "both"
        return found

    def poll(self, timeout_s: float) -> list[LinkEvent]:
        released, self._done = self._done, []
        for done in released:
            done()
        events: list[LinkEvent] = []
        for peer, connection in self._dialled.items():
            if connection is not None and connection.token not in self._connections:
                self._dialled[peer] = None
                events.append(Disconnected(peer, "connection lost"))
            elif connection is None and peer in self._hub.links:
                server = self._hub.links[peer]
                new = _Connection(next(self._hub.numbers), self, server)
                self._dialled[peer] = self._connections[new.token] = server._connections[new.token] = new
                if server._run == self._run:
                    server._routes[self.me] = new
                events.append(Connected(peer))
        now = self._hub.now()
        waiting = deque(self._connections.values())
        while waiting and len(events) < MAX_EVENTS:
            connection = waiting.popleft()
            source, incoming, _ = connection.end(self)
            if incoming.control and incoming.control[0][0] <= now:
                events.append(self._receive(connection, source, incoming.control.popleft()[1]))
                waiting.append(connection)
        waiting = deque(self._connections.values())
        while waiting and len(events) < MAX_EVENTS:
            connection = waiting.popleft()
            source, incoming, _ = connection.end(self)
            if incoming.bulk and incoming.bulk[0][0] <= now:
                frames = incoming.bulk.popleft()[1]
                incoming.bulk_bytes -= _total(frames)
                events.append(self._receive(connection, source, frames))
                waiting.append(connection)
        return events

    def stats(self) -> dict[str, LinkStats]:
        for counted in self._stats.values():
            counted.in_flight_bytes = 0
        for connection in self._connections.values():
            peer, _, outgoing = connection.end(self)
            self._stats.setdefault(peer, LinkStats()).in_flight_bytes += outgoing.bulk_bytes
        return self._stats

    def close(self, linger_s: float = 0.0) -> None:
        for connection in list(self._connections.values()):
            self._cut(connection)
        if self._hub.links.get(self.me) is self:
            del self._hub.links[self.me]
        released, self._done = self._done, []
        for done in released:
            done()

    def _put(self, connection: _Connection, message: Message, done: Done | None, *, bulk: bool = False) -> bool:
        peer, _, outgoing = connection.end(self)
        frames = encode(message, self._run)
        if connection.token not in self._connections:
            return False
        now = self._hub.now()
        arrives = now + self._hub.delay_s
        if bulk:
            if not outgoing.room(_total(frames)):
                return False
            if math.isfinite(self._hub.rate_bytes_per_s):
                self._free_at = max(now, self._free_at) + _total(frames) / self._hub.rate_bytes_per_s
                arrives = self._free_at + self._hub.delay_s
            outgoing.bulk.append((arrives, [bytes(frame) for frame in frames]))
            outgoing.bulk_bytes += _total(frames)
        elif len(outgoing.control) < self._hub.high_water:
            outgoing.control.append((arrives, [bytes(frame) for frame in frames]))
        else:
            return False
        counted = self._stats.setdefault(peer, LinkStats())
        if math.isfinite(self._hub.rate_bytes_per_s):
            counted.rate_bytes_per_s, counted.rtt_s = self._hub.rate_bytes_per_s, 2 * self._hub.delay_s
        counted.messages_sent += 1
        counted.bytes_sent += _total(frames)
        if done is not None:
            self._done.append(done)
        self._hub.told(peer, arrives - now)
        return True

    def _receive(self, connection: _Connection, source: str, frames: list[bytes]) -> LinkEvent:
        counted = self._stats.setdefault(source, LinkStats())
        try:
            message = decode(frames, self._run)
        except WireError as error:
            counted.dropped += 1
            return Dropped(source, error.message, connection.token)
        counted.messages_received += 1
        counted.bytes_received += _total(frames)
        return Received(source, connection.token, message)

    def _cut(self, connection: _Connection) -> None:
        for link in (connection.client, connection.server):
            link._connections.pop(connection.token, None)
            for source in [source for source, route in link._routes.items() if route is connection]:
                del link._routes[source]
            if link is not self:
                self._hub.told(link.me, self._hub.delay_s)


def _total(frames: Sequence[Buffer]) -> int:
    return sum(map(size_bytes, frames))
