"""A limit to what one TCP connection may make libzmq hold before our user has it; who exceeds it is disconnected.

libzmq bounds each frame and the number of waiting messages, but not the number of frames of one message: whoever is
admitted could send a message that never ends, and libzmq would keep all of it. The kernel counts the bytes that a
connection has received; what is more than was handed out, by more than anybody needs, is such a message.
"""

from collections import deque
from dataclasses import dataclass

import zmq

from wantrain.transport.tcp_info import Ends, ends_of, received_bytes, shut
from wantrain.transport.transfer import MAX_WINDOW_BYTES

MAX_HELD_BYTES = 3 * MAX_WINDOW_BYTES
"""What a connection may have under way: a window, one that its sender takes for lost, and as much again for what is
encrypted, in libzmq's and in the kernel's buffers."""
FRAME_BYTES = 64
"""More than encryption and framing add to a frame."""
IDLE_BYTES_PER_S = 1 << 10
"""More than libzmq's own heartbeats come to."""
CHECK_S = 0.05
CHECKED_AT_ONCE = 64
"""Connections that are looked at in one go: some 10 microseconds each."""


@dataclass(slots=True)
class _Watched:
    ends: Ends
    since: float
    delivered_bytes: int = 0


class Guard:
    """Compares for every TCP connection of a link what has come in with what was handed out."""

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}
        self._turn: deque[int] = deque()
        self._checked_at = 0.0

    def opened(self, descriptor: int, now: float) -> None:
        """A connection is there; anything but TCP is not watched."""
        ends = ends_of(descriptor)
        known = self._watched.get(descriptor)
        if ends is None or (known is not None and known.ends == ends):
            return
        if known is None:
            self._turn.append(descriptor)
        self._watched[descriptor] = _Watched(ends, now)

    def closed(self, descriptor: int) -> None:
        """A connection is gone."""
        if self._watched.pop(descriptor, None) is not None:
            self._turn.remove(descriptor)

    def delivered(self, descriptor: int, frames: int, total_bytes: int, now: float) -> None:
        """So many frames with so many bytes in all were taken off a connection."""
        if descriptor not in self._watched:
            self.opened(descriptor, now)
        watched = self._watched.get(descriptor)
        if watched is not None:
            watched.delivered_bytes += total_bytes + frames * FRAME_BYTES

    def cut(self, descriptor: int) -> str:
        """Disconnect; where the connection came from, "" if it is gone already."""
        watched = self._watched.get(descriptor)
        if watched is None:
            return ""
        self.closed(descriptor)
        shut(descriptor, watched.ends)
        return _name(watched.ends)

    def check(self, now: float) -> list[str]:
        """Disconnect who has sent too much that is no message yet; what to say about each."""
        if now < self._checked_at + CHECK_S:
            return []
        self._checked_at = now
        reasons = []
        for _ in range(min(CHECKED_AT_ONCE, len(self._turn))):
            descriptor = self._turn[0]
            self._turn.rotate(-1)
            watched = self._watched[descriptor]
            received = received_bytes(descriptor, watched.ends)
            if received is None:
                self.closed(descriptor)
                continue
            held = received - watched.delivered_bytes - (now - watched.since) * IDLE_BYTES_PER_S
            if held > MAX_HELD_BYTES:
                where = self.cut(descriptor)
                reasons.append(f"{where} disconnected: {held:.0f} bytes of no message, at most {MAX_HELD_BYTES}")
        return reasons


def descriptor_of(frame: zmq.Frame) -> int:
    """Number of the connection that a frame came in on, as the operating system counts; -1 if libzmq does not say."""
    try:
        return int(frame.get(zmq.SRCFD))
    except (ValueError, zmq.ZMQError):
        return -1


def _name(ends: Ends) -> str:
    address = ends[1]
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
