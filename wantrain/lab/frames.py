"""IPv4 packets as the kernel hands them over a TUN device with offloads: bursts of TCP segments under one header.

The kernel leaves the cutting of a large TCP write to the device, which here is the lab: one frame stands for up to 45
packets of 1500 bytes. That keeps the frame rate low while loss and queues work on packets of the usual size. The
layout is `struct virtio_net_hdr` (linux/virtio_net.h), then IPv4 (RFC 791), then TCP (RFC 9293).
"""

import struct
from typing import NamedTuple

PREFIX = struct.Struct("=BBHHHH")
"""flags, kind of burst, bytes of headers, payload bytes per segment, where to sum from, where the sum goes."""
PREFIX_BYTES = PREFIX.size
LARGEST_BYTES = PREFIX_BYTES + 65535

BURST_TCP4 = 1
"""Kind of burst: TCP over IPv4."""

_IP_BYTES = 20
_LENGTH = struct.Struct("!HH")  # total length and id, at byte 2 of the IP header
_SEQUENCE = struct.Struct("!I")  # at byte 4 of the TCP header
_FIN_PSH = 0x09
_CWR = 0x80


class Burst(NamedTuple):
    """A frame's packets: `each_bytes` long on the wire but for the last; `total_bytes` together."""

    frame: bytes
    destination: bytes
    packets: int
    each_bytes: int
    total_bytes: int
    header_bytes: int


def burst(frame: bytes) -> Burst | None:
    """What a frame holds; None for anything but an IPv4 packet or a burst of TCP over IPv4."""
    if len(frame) < PREFIX_BYTES + _IP_BYTES or frame[PREFIX_BYTES] >> 4 != 4:
        return None
    _, kind, _, payload_bytes, _, _ = PREFIX.unpack_from(frame)
    size_bytes = len(frame) - PREFIX_BYTES
    destination = frame[PREFIX_BYTES + 16 : PREFIX_BYTES + 20]
    if kind == 0:
        return Burst(frame, destination, 1, size_bytes, size_bytes, size_bytes)
    ip_bytes = (frame[PREFIX_BYTES] & 15) * 4
    if kind != BURST_TCP4 or payload_bytes == 0 or size_bytes < ip_bytes + 20:
        return None
    header_bytes = ip_bytes + (frame[PREFIX_BYTES + ip_bytes + 12] >> 4) * 4
    count = max(1, -(-(size_bytes - header_bytes) // payload_bytes))
    total_bytes = size_bytes + (count - 1) * header_bytes
    return Burst(frame, destination, count, header_bytes + payload_bytes, total_bytes, header_bytes)


def cut(whole: Burst, first: int, last: int) -> bytes:
    """The frame with packets [first, last) of a burst, as if these alone had been sent.

    The TCP checksum stays the unfinished one that came from the sender: the flag for it is in the prefix, and the
    receiving kernel does not look at it.
    """
    if (first, last) == (0, whole.packets):
        return whole.frame
    flags, kind, header, payload_bytes, start, offset = PREFIX.unpack_from(whole.frame)
    body = PREFIX_BYTES + whole.header_bytes
    payload = whole.frame[body + first * payload_bytes : body + last * payload_bytes]
    head = bytearray(whole.frame[:body])
    alone = last - first == 1
    PREFIX.pack_into(head, 0, flags, 0 if alone else kind, header, 0 if alone else payload_bytes, start, offset)

    ip = PREFIX_BYTES
    tcp = ip + (head[ip] & 15) * 4
    _, identity = _LENGTH.unpack_from(head, ip + 2)
    _LENGTH.pack_into(head, ip + 2, whole.header_bytes + len(payload), (identity + first) & 0xFFFF)
    struct.pack_into("!H", head, ip + 10, 0)
    struct.pack_into("!H", head, ip + 10, ip_checksum(head[ip:tcp]))

    (sequence,) = _SEQUENCE.unpack_from(head, tcp + 4)
    _SEQUENCE.pack_into(head, tcp + 4, (sequence + first * payload_bytes) & 0xFFFFFFFF)
    if last < whole.packets:
        head[tcp + 13] &= ~_FIN_PSH
    if first > 0:
        head[tcp + 13] &= ~_CWR
    return bytes(head) + payload


def ip_checksum(header: bytes | bytearray) -> int:
    """The Internet checksum of an IPv4 header whose checksum field is zero (RFC 1071); 0 if it is filled in rightly."""
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total
