"""Plain TCP sockets as a contestant: the same bytes between the same peers, all at once; what the wire can do.

There is nothing to wait for, to encode or to sum: a real all-reduce can come close, not faster. One thread per peer,
non-blocking sockets, big pieces. Each variant has connections of its own: a number for every pair of peers, and the
congestion control that is asked for.
"""

import contextlib
import mmap
import selectors
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from wantrain.bench.worker import Json, Setup, wait_until
from wantrain.errors import ConfigError, UnreachableError, WantrainError

PIECE_BYTES = 1 << 20
HELLO = struct.Struct("<II")
"""Who dials, and for which variant."""


@dataclass(slots=True)
class _Stream:
    """One connection in one all-reduce: what is left in each direction."""

    socket: socket.socket
    to_send: int = 0
    to_receive: int = 0
    sent: int = 0
    received: int = 0


class Raw:
    """See `Contestant`."""

    serves = False

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._listener = socket.create_server((setup.host, 0), backlog=256)
        self._connections: dict[str, list[tuple[int, socket.socket]]] = {}
        """By variant: the peer at the other end, and the connection."""
        self._moved = {(int(a), int(b)): int(size_bytes) for a, b, size_bytes in setup.traffic}
        me = setup.index
        out = max((size for (a, _), size in self._moved.items() if a == me), default=0)
        came = max((size for (_, b), size in self._moved.items() if b == me), default=0)
        self._source = memoryview(mmap.mmap(-1, max(out, 1)))
        self._target = memoryview(mmap.mmap(-1, max(came, 1)))
        self._source[:] = bytes(len(self._source))
        self._streams: list[_Stream] = []

    def listen(self) -> Json:
        return {"address": list(self._listener.getsockname())}

    def meet(self, roster: list[Json]) -> None:
        setup, me = self._setup, self._setup.index
        pairs = {(min(pair), max(pair)) for pair in self._moved}
        for number, variant in enumerate(setup.variants):
            made = self._connections[variant["name"]] = []
            for a, b in sorted(pairs):
                for _ in range(variant["streams"] if a == me else 0):
                    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                    self._prepare(connection, variant["congestion"])
                    connection.connect(tuple(roster[b]["address"]))
                    connection.sendall(HELLO.pack(me, number))
                    made.append((b, connection))
        expected = sum(v["streams"] for v in setup.variants) * sum(b == me for _, b in pairs)
        self._listener.settimeout(setup.timeout_s)
        for _ in range(expected):
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                raise UnreachableError(f"not all peers dialled in {setup.timeout_s:g} s") from None
            source, number = HELLO.unpack(_exactly(connection, HELLO.size))
            variant = setup.variants[number]
            self._prepare(connection, variant["congestion"])
            self._connections[variant["name"]].append((source, connection))
        for made in self._connections.values():
            for _, connection in made:
                connection.setblocking(False)

    def prepare(self, number: int, variant: str, watch: bool) -> None:
        me = self._setup.index
        connections = self._connections[variant]
        count = max(1, next(v["streams"] for v in self._setup.variants if v["name"] == variant))
        at: dict[int, int] = {}
        self._streams = []
        for other, connection in connections:
            k = at[other] = at.get(other, -1) + 1
            shares = [
                size * (k + 1) // count - size * k // count
                for size in (self._moved.get((me, other), 0), self._moved.get((other, me), 0))
            ]
            self._streams.append(_Stream(connection, *shares))

    def run(self, at: float) -> Json:
        deadline = at + self._setup.timeout_s
        first_at: float | None = None
        wait_until(at)
        with selectors.DefaultSelector() as selector:
            left = 0
            for stream in self._streams:
                if wanted := _wanted(stream):
                    selector.register(stream.socket, wanted, stream)
                    left += 1
            while left:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready and time.monotonic() >= deadline:
                    raise WantrainError(f"the wire needs longer than {self._setup.timeout_s:g} s")
                for key, events in ready:
                    stream = key.data
                    if events & selectors.EVENT_READ:
                        first_at = first_at or time.monotonic()
                        self._receive(stream)
                    if events & selectors.EVENT_WRITE:
                        self._send(stream)
                    wanted = _wanted(stream)
                    if not wanted:
                        selector.unregister(stream.socket)
                        left -= 1
                    elif wanted != key.events:
                        selector.modify(stream.socket, wanted, stream)
        return {"end": time.monotonic(), "first_byte_s": None if first_at is None else first_at - at}

    def wait(self, seconds: float) -> None:
        pass

    def verify(self, full: bool) -> Json:
        return {"sent_bytes": sum(stream.sent for stream in self._streams)}

    def close(self) -> None:
        for made in self._connections.values():
            for _, connection in made:
                connection.close()
        self._listener.close()

    def _send(self, stream: _Stream) -> None:
        start = stream.sent
        with contextlib.suppress(BlockingIOError):
            stream.sent += stream.socket.send(self._source[start : min(start + PIECE_BYTES, stream.to_send)])

    def _receive(self, stream: _Stream) -> None:
        start = stream.received
        with contextlib.suppress(BlockingIOError):
            stop = min(start + PIECE_BYTES, stream.to_receive)
            came = stream.socket.recv_into(self._target[start:stop])
            if not came:
                raise UnreachableError("a connection of the raw sockets was closed in the middle")
            stream.received += came

    @staticmethod
    def _prepare(connection: socket.socket, congestion: str) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not congestion:
            return
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        except (OSError, AttributeError) as error:
            raise ConfigError(f"congestion control {congestion} cannot be had: {error}", hint="leave it out") from error


def available_congestion() -> list[str]:
    """Congestion controls that a connection may ask for here; none where the system does not say."""
    return _setting("tcp_allowed_congestion_control").split()


def default_congestion() -> str:
    """What a connection has that does not ask; "" where the system does not say."""
    return _setting("tcp_congestion_control").strip()


def _setting(name: str) -> str:
    try:
        return Path("/proc/sys/net/ipv4", name).read_text(encoding="ascii")
    except OSError:
        return ""


def _wanted(stream: _Stream) -> int:
    wants = selectors.EVENT_READ if stream.received < stream.to_receive else 0
    return wants | (selectors.EVENT_WRITE if stream.sent < stream.to_send else 0)


def _exactly(connection: socket.socket, size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes:
        piece = connection.recv(size_bytes - len(data))
        if not piece:
            raise UnreachableError("a connection of the raw sockets was closed at once")
        data += piece
    return data
