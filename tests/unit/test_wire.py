"""The wire format: golden vectors, round trips, and that nothing but a valid message comes through."""

import json
import struct
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wantrain.errors import WireError
from wantrain.peers.messages import unpack
from wantrain.transport import wire
from wantrain.transport.wire import Message, decode, encode

RUN = bytes(range(8))
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "wire.json").read_text())


def header(**changes: Any) -> bytes:
    fields = {"v": 4, "r": RUN, "k": "Part", "b": {"chunk": 1}, "n": []} | changes
    return bytes(msgpack.packb({key: value for key, value in fields.items() if value is not ...}))


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda vector: vector["name"])
def test_golden_bytes_stay_what_they_are(vector: dict[str, Any]) -> None:
    frames = [bytes.fromhex(frame) for frame in vector["frames"]]
    message = Message(vector["kind"], vector["body"], tuple(frames[1:]))
    assert encode(message, bytes.fromhex(vector["run"])) == frames
    assert decode(frames, bytes.fromhex(vector["run"])) == message


@pytest.mark.scenario(13)
@pytest.mark.scenario(21)
@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=lambda vector: vector["name"])
def test_golden_rejections_name_the_reason(vector: dict[str, Any]) -> None:
    with pytest.raises(WireError, match=vector["reason"]):
        decode([bytes.fromhex(frame) for frame in vector["frames"]], RUN)


def test_buffers_are_handed_out_without_a_copy() -> None:
    buffer = bytearray(100)
    frames = encode(Message("Part", {}, (memoryview(buffer),)), RUN)
    buffer[7] = 1
    assert bytes(decode(frames, RUN).buffers[0])[7] == 1


def test_buffers_of_any_element_type_count_in_bytes() -> None:
    floats = memoryview(bytearray(32)).cast("f")
    message = Message("Part", {}, (floats,))
    assert wire.size_bytes(floats) == 32
    assert decode(encode(message, RUN), RUN) == message == Message("Part", {}, (bytes(32),))
    assert message != Message("Part", {}, (bytes(31),))


@pytest.mark.scenario(13)
@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "no frames"),
        ([header()] + [b""] * 65, "more than 64 buffers"),
        ([header()] + [b""] * 10_000, "more than 64 buffers"),
        ([bytes(wire.MAX_HEADER_BYTES + 1)], "header of 1048577 bytes"),
        ([header(), bytes(wire.MAX_BUFFER_BYTES + 1)], "buffer of 16777217 bytes"),
        ([b""], "truncated"),
        ([header()[:-3]], "truncated"),
        ([header() + b"\x00"], "trailing bytes"),
        ([b"\xc1"], "0xc1 is not allowed"),
        ([header(b={"t": msgpack.Timestamp(1)})], "0xd6 is not allowed"),
        ([header(b={"t": msgpack.ExtType(5, b"abc")})], "0xc7 is not allowed"),
        ([b"\xa2\xff\xfe"], "bad msgpack"),
        ([msgpack.packb([1, 2])], "header is not a map"),
        ([header(v=...)], "no protocol version"),
        ([header(v=True)], "no protocol version"),
        ([header(v=1)], "protocol 1, here 4"),
        ([header(v=1, extra=1)], "protocol 1, here 4"),
        ([header(extra=1)], "missing or surplus"),
        ([header(b=...)], "missing or surplus"),
        ([header(k=b"Part")], "wrong type"),
        ([header(r="text")], "wrong type"),
        ([header(n=None)], "wrong type"),
        ([header(b=[1])], "wrong type"),
        ([header(r=bytes(8))], "run 0000000000000000, here 0001020304050607"),
        ([header(k="x" * 65)], "kind of 65 characters"),
        ([header(b={1: 2})], "bad msgpack"),
        ([header(b={b"x": 2})], "body key is not a string"),
        ([header(n=[3]), b"ab"], "sizes differ"),
        ([header(n=[2])], "sizes differ"),
        ([header(), b"ab"], "sizes differ"),
        ([header(n=[True]), b"a"], "sizes differ"),
    ],
)
def test_invalid_frames_raise_wire_error_with_a_reason(frames: list[bytes], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        decode(frames, RUN)


def nest(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_nesting_is_allowed_to_the_limit_and_no_deeper() -> None:
    message = Message("Part", {"x": nest(wire.MAX_DEPTH)})
    assert decode(encode(message, RUN), RUN) == message
    too_deep = {"x": nest(wire.MAX_DEPTH + 1)}
    with pytest.raises(WireError, match="nested deeper than 8"):
        decode([header(b=too_deep)], RUN)
    with pytest.raises(WireError, match="nested deeper than 8"):  # our own mistakes are looked for in long headers
        encode(Message("Part", too_deep | {"pad": bytes(wire.OWN_UNSCANNED_BYTES)}), RUN)
    with pytest.raises(WireError, match="nested deeper than 8"):
        decode([b"\x91" * wire.MAX_HEADER_BYTES], RUN)


@pytest.mark.scenario(13)
def test_claimed_lengths_are_not_believed_before_the_bytes_are_there() -> None:
    for bomb in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdd\x00\x01\x00\x00" * 99,
    ):
        with pytest.raises(WireError, match="truncated"):
            decode([bomb], RUN)
    with pytest.raises(WireError, match="more than 262144 values"):
        decode([msgpack.packb([0] * (wire.MAX_ITEMS + 1))], RUN)


def test_what_the_receiver_would_drop_is_refused_by_the_sender() -> None:
    for message, reason in [
        (Message("Part", {"x": object()}), "cannot be packed"),
        (Message("Part", {"x": 2**64}), "cannot be packed"),
        (Message("Part", {"x": bytes(wire.MAX_HEADER_BYTES)}), "header of"),
        (Message("Part", {}, (b"",) * 65), "more than 64"),
        (Message("Part", {}, (bytes(wire.MAX_BUFFER_BYTES + 1),)), "buffer of"),
    ]:
        with pytest.raises(WireError, match=reason):
            encode(message, RUN)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
bodies = st.dictionaries(st.text(max_size=10), values, max_size=5)


@given(st.text(max_size=16), bodies, st.lists(st.binary(max_size=50), max_size=4))
def test_every_plain_message_survives_the_round_trip(kind: str, body: dict[str, Any], buffers: list[bytes]) -> None:
    message = Message(kind, body, tuple(buffers))
    try:
        frames = encode(message, RUN)
    except WireError:
        assume(False)  # nested too deep
    assert decode(frames, RUN) == message


def check_only_wire_errors(frames: list[bytes]) -> None:
    try:
        message = decode(frames, RUN)
    except WireError:
        return
    try:
        unpack(message)
    except WireError:
        return


@pytest.mark.scenario(13)
@given(st.lists(st.binary(max_size=200), max_size=4))
def test_arbitrary_frames_raise_only_wire_error(frames: list[bytes]) -> None:
    check_only_wire_errors(frames)


@pytest.mark.scenario(13)
@given(st.sampled_from(VECTORS["valid"]), st.data())
def test_damaged_messages_raise_only_wire_error(vector: dict[str, Any], data: st.DataObject) -> None:
    packed = bytearray.fromhex(vector["frames"][0])
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(packed)))
    check_only_wire_errors([bytes(packed), *map(bytes.fromhex, vector["frames"][1:])])
    check_only_wire_errors([bytes(packed[:cut])])


@given(st.sampled_from(["Part", "Report", "View", "Commit", "Attached", "Enroll"]), bodies)
def test_arbitrary_bodies_raise_only_wire_error(kind: str, body: dict[str, Any]) -> None:
    check_only_wire_errors([header(k=kind, b=body)])


def test_the_structure_walk_agrees_with_the_unpacker_on_every_first_byte() -> None:
    for first in range(256):
        tail = struct.pack(">B", first) + bytes(8)
        accepted = []
        for size in range(1, 10):
            try:
                wire._scan(tail[:size])
                accepted.append(size)
            except WireError:
                continue
        expected = []
        for size in range(1, 10):
            try:
                msgpack.unpackb(tail[:size], raw=True, strict_map_key=False, ext_hook=lambda code, data: 1 / 0)
                expected.append(size)
            except (ValueError, ZeroDivisionError, msgpack.UnpackException, TypeError):
                continue
        # Fixed str and list of zeros are the same for both; a map with equal keys is one value for both, too.
        assert accepted == expected, hex(first)
