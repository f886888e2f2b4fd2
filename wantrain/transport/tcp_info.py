"""What the kernel knows of a TCP connection that libzmq holds, and that connection's congestion control."""

import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeAlias

BBR = "bbr"
_ANY_KERNELS = "reno"
"""Every kernel has it, and allows it to everyone."""

_INFO_BYTES = 168
# Offsets in struct tcp_info of Linux (include/uapi/linux/tcp.h), which only ever grows.
_RTT_US, _TOTAL_RETRANS, _BYTES_RECEIVED, _MIN_RTT_US, _DATA_SEGS_OUT, _DELIVERY_RATE = 68, 100, 128, 148, 156, 160
_UNKNOWN_US = 0xFFFFFFFF
_TCP_INFO, _TCP_CC_INFO = 11, 26
# include/uapi/linux/tcp.h; the second of bbr begins with the estimate in bytes/s (struct tcp_bbr_info of inet_diag.h).
_SO_MAX_PACING_RATE, _NO_LIMIT = 47, 0xFFFFFFFF
# include/uapi/asm-generic/socket.h; bytes/s.

Ends: TypeAlias = tuple[object, object]
"""Local and remote address of a connection: tells whether a file descriptor still is that connection."""


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """State of one connection.

    Attributes:
        rtt_s: least round trip that was seen.
        sent_segments: segments with data that were sent since it was opened.
        resent_segments: those of them that were sent again.
        rate_bytes_per_s: at which the kernel has seen bytes arrive last; 0 if it has not.
        congestion: congestion control in use, as the kernel names it.
        path_bytes_per_s: what bbr takes the path for; 0 if it has not measured, or another control is in use.
    """

    rtt_s: float
    sent_segments: int
    resent_segments: int
    rate_bytes_per_s: int
    congestion: str
    path_bytes_per_s: int


def ends_of(descriptor: int) -> Ends | None:
    """The addresses of a connection; None if the descriptor is no TCP connection (any more)."""
    with _borrowed(descriptor, None) as connection:
        try:
            return None if connection is None else (connection.getsockname(), connection.getpeername())
        except OSError:
            return None


def tcp_info(descriptor: int, ends: Ends) -> TcpInfo | None:
    """State of the connection with these addresses; None if it is another one or nobody can tell."""
    with _borrowed(descriptor, ends) as connection:
        raw = _read(connection, _TCP_INFO, _INFO_BYTES)
        if connection is None or raw is None:
            return None
        smoothed, resent, least, sent = (
            struct.unpack_from("=I", raw, offset)[0]
            for offset in (_RTT_US, _TOTAL_RETRANS, _MIN_RTT_US, _DATA_SEGS_OUT)
        )
        rate = int(struct.unpack_from("=Q", raw, _DELIVERY_RATE)[0])
        rtt_s = (smoothed if least == _UNKNOWN_US else least) / 1e6
        name = _congestion(connection)
        return TcpInfo(rtt_s, sent, resent, rate, name, _path_bytes_per_s(connection, name))


def _path_bytes_per_s(connection: socket.socket, congestion: str) -> int:
    raw = _read(connection, _TCP_CC_INFO, 8) if congestion.startswith(BBR) else None
    return 0 if raw is None else int(struct.unpack_from("=Q", raw)[0])


def received_bytes(descriptor: int, ends: Ends) -> int | None:
    """Bytes that the connection with these addresses has received since it was opened; None if nobody can tell."""
    with _borrowed(descriptor, ends) as connection:
        raw = _read(connection, _TCP_INFO, _INFO_BYTES)
        return None if raw is None else int(struct.unpack_from("=Q", raw, _BYTES_RECEIVED)[0])


def shut(descriptor: int, ends: Ends) -> None:
    """End the connection with these addresses, both ways; who holds it sees that at its next use."""
    with _borrowed(descriptor, ends) as connection, suppress(OSError):
        if connection is not None:
            connection.shutdown(socket.SHUT_RDWR)


def _read(connection: socket.socket | None, option: int, least_bytes: int) -> bytes | None:
    if sys.platform != "linux" or connection is None:
        return None
    try:
        raw = connection.getsockopt(socket.IPPROTO_TCP, option, _INFO_BYTES)
    except OSError:
        return None
    return raw if len(raw) >= least_bytes else None


def use_congestion(descriptor: int, ends: Ends, name: str) -> str:
    """Ask for a congestion control for one connection.

    Returns:
        The one in use now: the kernel may not have the other, or not allow it; "" if it does not say.
    """
    if sys.platform != "linux":
        return ""
    with _borrowed(descriptor, ends) as connection:
        if connection is None:
            return ""
        with suppress(OSError):  # what is in use is read back
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        return _congestion(connection)


def restart_congestion(descriptor: int, ends: Ends, name: str) -> str:
    """Let the congestion control of one connection forget what it has measured, and begin again.

    Returns:
        The one in use now; "" if the kernel does not say.
    """
    use_congestion(descriptor, ends, _ANY_KERNELS)
    return use_congestion(descriptor, ends, name)


def limit_pace(descriptor: int, ends: Ends, rate_bytes_per_s: int | None) -> None:
    """Let the connection with these addresses send no faster than that; None: as fast as the kernel likes."""
    if sys.platform == "linux":
        with _borrowed(descriptor, ends) as connection:
            if connection is not None:
                with suppress(OSError):  # a kernel that does not pace
                    limit = _NO_LIMIT if rate_bytes_per_s is None else min(rate_bytes_per_s, _NO_LIMIT - 1)
                    connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("=I", limit))


def _congestion(connection: socket.socket) -> str:
    if sys.platform != "linux":
        return ""
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).split(b"\0")[0].decode()
    except (OSError, ValueError):
        return ""


@contextmanager
def _borrowed(descriptor: int, ends: Ends | None) -> Iterator[socket.socket | None]:
    """A connection of libzmq for the length of one call, or None if the number stands for something else by now.

    Checked on a duplicate, so that it cannot become something else between the check and the use.
    """
    try:
        copy = os.dup(descriptor)
    except OSError:
        yield None
        return
    try:
        connection = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        yield None
        return
    with connection:
        try:
            same = (
                connection.type == socket.SOCK_STREAM
                and connection.family in (socket.AF_INET, socket.AF_INET6)
                and ends in (None, (connection.getsockname(), connection.getpeername()))
                and bool(connection.getpeername())
            )
        except OSError:
            same = False
        yield connection if same else None
