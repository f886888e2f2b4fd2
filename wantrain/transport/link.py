"""What a link is: messages to and from authenticated peers, polled by one thread, with bounded queues."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from wantrain.transport.wire import Message


@dataclass(frozen=True, slots=True)
class Received:
    """A valid message. `source` is who the link authenticated, never what the message claims.

    `connection` names the very connection it came in on; `reply` answers there even if `source` has another one.
    """

    source: str
    connection: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection that we dialled to `peer` is up and both sides are authenticated."""

    peer: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection that we dialled to `peer` is gone (or was refused); the link dials again itself, with back-off.

    What came in on it was handed out before, or is lost: whoever asks anew from here on gets no old answer.
    """

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """Bytes that were not a valid message were dropped; `source` is "" where nobody was authenticated.

    `connection` names the one they came in on, for a `reply`; b"" if there is none.
    """

    source: str
    reason: str
    connection: bytes = b""


LinkEvent = Received | Connected | Disconnected | Dropped


@dataclass(slots=True)
class LinkStats:
    """Counters of one peer since the link was made, and what was measured on the way to it.

    Bytes are of frames as handed to or by the link.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    dropped: int = 0
    rate_bytes_per_s: float = 0.0
    """What bulk messages to this peer have been seen to reach while the link was busy; 0 if unknown."""
    rtt_s: float = 0.0
    """Round trip of an idle link (the least seen lately); 0 if unknown."""
    loss: float = 0.0
    """Share of TCP segments sent again, lately."""
    lanes: int = 0
    """Bulk connections in use."""
    congestion: str = ""
    """Congestion control of the bulk connections, as the kernel names it; "" if unknown."""
    in_flight_bytes: int = 0
    """Bulk bytes that were sent and not yet taken off the link by the peer."""


Done: TypeAlias = Callable[[], None]


class Link(Protocol):
    """One endpoint. Not thread-safe: one thread sends and polls."""

    def connect(
        self, peer: str, address: str, server_key: bytes, *, client_key: tuple[bytes, bytes] | None = None
    ) -> None:
        """Dial `peer` at "host:port" (or "ipc://path") and keep dialling; again with other arguments replaces it.

        Args:
            peer: name under which to send, and `Received.source` of what comes back.
            address: where to dial.
            server_key: CURVE public key (32 bytes) that the other side must prove to have; b"" for ipc.
            client_key: CURVE (public, secret) key pair to use instead of the link's own, as for an invite.

        Raises:
            ConfigError: an address or key that cannot be used.
        """

    def disconnect(self, peer: str) -> None:
        """Drop the connection dialled to `peer`, and what is still queued on it; there is no Disconnected event."""

    def send(self, peer: str, message: Message, done: Done | None = None) -> bool:
        """Queue a message without copying its buffers, which must stay unchanged until `done` is called.

        A peer that we have not dialled can be reached once it has sent something on a connection of its own.

        Args:
            peer: the name given to `connect`, or a `Received.source`.
            message: what to send.
            done: called once, from a later `poll` or from `close`, when the link has let go of the buffers: they were
                sent, or dropped with the connection. Never called if False is returned.

        Returns:
            False, with nothing queued, if the queue to `peer` is full or there is no way to reach it now.

        Raises:
            WireError: the message is over a limit of the wire format; our own mistake.
        """

    def reply(self, connection: bytes, message: Message, done: Done | None = None) -> bool:
        """Like `send`, to the connection that a message came in on."""

    def send_bulk(self, peer: str, message: Message, done: Done | None = None) -> bool:
        """Like `send`, for tensor bytes: on connections of their own, so that no `send` waits behind them.

        Messages of one peer may overtake each other. They are held back by what the peer has not taken off its link yet
        (its window) and by the limits on upload.

        Returns:
            False, with nothing queued, if there is no room in the window, the limit forbids it now, or there is no way.
        """

    def bulk_bytes(self, peer: str) -> int:
        """How many tensor bytes one bulk message to this peer had best have now: 64 KiB to 4 MiB."""

    def probe(self, peer: str) -> bool:
        """Measure rate and round trip with a short burst if nothing is known of a peer; False if no need or way."""

    def ways(self) -> dict[str, str]:
        """By peer that can be reached now: "out" over the connection that we dialled, "in" over one of its, or "both".

        A peer that dials shows itself at once, also if it has nothing to say yet.
        """

    def poll(self, timeout_s: float) -> list[LinkEvent]:
        """Events that are there, waiting up to timeout_s seconds for the first; at most a bounded number."""

    def stats(self) -> dict[str, LinkStats]:
        """Counters by peer; those of nobody in particular under ""."""

    def close(self, linger_s: float = 0.0) -> None:
        """Close all sockets, giving queued messages up to linger_s seconds to leave."""
