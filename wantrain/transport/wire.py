"""The frames of a message: a msgpack header and the raw buffers beside it; pure, trusts nothing from the network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgpack

from wantrain.errors import WireError

PROTOCOL_VERSION = 4
RUN_BYTES = 8
MAX_BUFFERS = 64
MAX_FRAMES = 1 + MAX_BUFFERS
MAX_HEADER_BYTES = 1 << 20
MAX_BUFFER_BYTES = 16 << 20
MAX_KIND_CHARS = 64
MAX_DEPTH = 8
"""Levels of lists and maps inside the body; the deepest record has 4."""
MAX_ITEMS = 1 << 18
"""Values in one header: bounds the memory that many tiny values take as Python objects."""

Buffer: TypeAlias = "bytes | bytearray | memoryview[Any]"

OWN_UNSCANNED_BYTES = 4096
"""Headers of our own up to this size cannot have too many values, and records are not nested deeply."""

_FIELDS = {"v", "r", "k", "b", "n"}


def size_bytes(buffer: Buffer) -> int:
    """Length of a buffer in bytes, whatever its element type."""
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """A kind, a body of plain values (None, bool, int, float, str, bytes, list, map), and buffers that are not copied.

    Two messages are equal if kind, body and the bytes of the buffers are.
    """

    kind: str
    body: dict[str, Any] = field(default_factory=dict)
    buffers: tuple[Buffer, ...] = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return (
            (self.kind, self.body, len(self.buffers)) == (other.kind, other.body, len(other.buffers))
            and all(_flat(a) == _flat(b) for a, b in zip(self.buffers, other.buffers, strict=True))
        )  # fmt: skip

    __hash__ = None  # type: ignore[assignment]


def encode(message: Message, run: bytes) -> list[Buffer]:
    """The frames of a message: the header, then the buffers as they are.

    Args:
        message: what to send.
        run: id of the run, 8 bytes.

    Raises:
        WireError: the receiver would drop it (too long, too deep, not plain values); our own mistake.
    """
    sizes = [size_bytes(buffer) for buffer in message.buffers]
    header = {"v": PROTOCOL_VERSION, "r": run, "k": message.kind, "b": message.body, "n": sizes}
    try:
        packed: bytes = msgpack.packb(header)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"{message.kind} cannot be packed: {error}") from error
    _check_sizes(len(packed), sizes)
    if len(packed) > OWN_UNSCANNED_BYTES:
        _scan(packed)
    return [packed, *message.buffers]


def decode(frames: Sequence[Buffer], run: bytes) -> Message:
    """The message in frames from the network; its buffers are the frames themselves, not copies.

    Args:
        frames: as they came in, the header first.
        run: id of our run, 8 bytes.

    Raises:
        WireError: anything but a valid message of this protocol version and run.
    """
    if not frames:
        raise WireError("no frames")
    sizes = [size_bytes(frame) for frame in frames[1 : MAX_FRAMES + 1]]
    _check_sizes(size_bytes(frames[0]), sizes)
    packed = bytes(frames[0])
    _scan(packed)
    try:
        header = msgpack.unpackb(packed, raw=False, strict_map_key=True)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(f"bad msgpack: {type(error).__name__}") from None
    if not isinstance(header, dict):
        raise WireError("header is not a map")
    version = header.get("v")
    if type(version) is not int:
        raise WireError("header names no protocol version")
    if version != PROTOCOL_VERSION:
        raise WireError(f"protocol {version}, here {PROTOCOL_VERSION}")
    if set(header) != _FIELDS:
        raise WireError("header has missing or surplus fields")
    kind, body = header["k"], header["b"]
    if (
        type(header["r"]) is not bytes
        or type(kind) is not str
        or type(body) is not dict
        or type(header["n"]) is not list
    ):
        raise WireError("header field of the wrong type")
    if header["r"] != run:
        raise WireError(f"run {header['r'][:RUN_BYTES].hex()}, here {run.hex()}")
    if len(kind) > MAX_KIND_CHARS:
        raise WireError(f"kind of {len(kind)} characters, at most {MAX_KIND_CHARS}")
    if any(type(key) is not str for key in body):
        raise WireError("body key is not a string")
    if any(type(size) is not int for size in header["n"]) or header["n"] != sizes:
        raise WireError("buffer sizes differ from the header's")
    return Message(kind, body, tuple(frames[1:]))


def _flat(buffer: Buffer) -> memoryview:
    return memoryview(buffer).cast("B")


def _check_sizes(header_bytes: int, sizes: Sequence[int]) -> None:
    if len(sizes) > MAX_BUFFERS:
        raise WireError(f"more than {MAX_BUFFERS} buffers")
    if header_bytes > MAX_HEADER_BYTES:
        raise WireError(f"header of {header_bytes} bytes, at most {MAX_HEADER_BYTES}")
    if sizes and max(sizes) > MAX_BUFFER_BYTES:
        raise WireError(f"buffer of {max(sizes)} bytes, at most {MAX_BUFFER_BYTES}")


# What follows the first byte of a value (https://github.com/msgpack/msgpack/blob/master/spec.md): bytes to skip, bytes
# that hold a length, whether that length counts bytes (1), list items (2) or map pairs (3), and a length known already.
# None: ext types and the never used 0xc1, which no message of ours has.
def _shape(first: int) -> tuple[int, int, int, int] | None:
    if first <= 0x7F or first >= 0xE0 or first in (0xC0, 0xC2, 0xC3):  # small integers, nil, false, true
        return 0, 0, 1, 0
    if first <= 0x8F:
        return 0, 0, 3, first & 0x0F
    if first <= 0x9F:
        return 0, 0, 2, first & 0x0F
    if first <= 0xBF:
        return first & 0x1F, 0, 1, 0
    if first in (0xC4, 0xC5, 0xC6):  # bin
        return 0, 1 << (first - 0xC4), 1, 0
    if first in (0xCA, 0xCB):  # float
        return 4 << (first - 0xCA), 0, 1, 0
    if 0xCC <= first <= 0xCF:  # unsigned
        return 1 << (first - 0xCC), 0, 1, 0
    if 0xD0 <= first <= 0xD3:  # signed
        return 1 << (first - 0xD0), 0, 1, 0
    if first in (0xD9, 0xDA, 0xDB):  # str
        return 0, 1 << (first - 0xD9), 1, 0
    if first in (0xDC, 0xDD):
        return 0, 2 << (first - 0xDC), 2, 0
    if first in (0xDE, 0xDF):
        return 0, 2 << (first - 0xDE), 3, 0
    return None


_SHAPES = [_shape(first) for first in range(256)]


def _scan(packed: bytes) -> None:
    """Walk the msgpack structure before anything is allocated for it: depth, number of values, lengths, one value only.

    The unpacker alone would reserve memory for every claimed length, down to 1024 levels.
    """
    at, end, items = 0, len(packed), 0
    left = [1]  # values still to come, by level
    while left:
        if left[-1] == 0:
            left.pop()
            continue
        left[-1] -= 1
        items += 1
        if at >= end:
            raise WireError("bad msgpack: truncated")
        shape = _SHAPES[packed[at]]
        if shape is None:
            raise WireError(f"bad msgpack: type 0x{packed[at]:02x} is not allowed")
        skip, length_bytes, counts, length = shape
        at += 1
        if length_bytes:
            length = int.from_bytes(packed[at : at + length_bytes], "big")
            at += length_bytes
        if counts == 1:
            at += skip + length
        else:
            if len(left) > MAX_DEPTH + 2:  # the value itself, the header map, the body
                raise WireError(f"nested deeper than {MAX_DEPTH} levels")
            left.append(length * (counts - 1))
        if items > MAX_ITEMS or left[-1] > end - at:  # a value takes a byte or more
            raise WireError("bad msgpack: truncated" if items <= MAX_ITEMS else f"more than {MAX_ITEMS} values")
    if at != end:
        raise WireError("bad msgpack: truncated" if at > end else "trailing bytes after the header")
