"""Every kind of socket against frames of all kinds from somebody who is admitted: dropped, counted, nothing ends."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wantrain.transport import zmq_guard
from wantrain.transport.auth import Identity
from wantrain.transport.link import Connected, Dropped, LinkEvent, Received
from wantrain.transport.wire import MAX_FRAMES, PROTOCOL_VERSION, Message, encode
from wantrain.transport.zmq_lanes import LOCAL
from wantrain.transport.zmq_link import ZmqLink
from wantrain.transport.zmq_sockets import MAX_READ_FRAMES

RUN = b"run-id-8"
DEADLINE_S = 20.0
US, LIAR = Identity.create(), Identity.create()
Frames = list[bytes]
pytestmark = pytest.mark.scenario(13)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Victim:
    """A link of ours, and a raw socket of somebody admitted that can send it anything."""

    def __init__(self, kind: str, folder: str) -> None:
        self.source = LOCAL if kind == "ipc" else "liar"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._way: Frames = []
        self._marks = 0
        self.events: list[LinkEvent] = []
        key = (US.curve_public, US.curve_secret)
        if kind == "dialled":  # we dial the liar
            self.link = ZmqLink(RUN, key=key)
            self.raw = self._context.socket(zmq.ROUTER)
            self._encrypt(server=True)
            port = self.raw.bind_to_random_port("tcp://127.0.0.1")
            self.link.connect("liar", f"127.0.0.1:{port}", LIAR.curve_public)
            self.until(lambda: Connected("liar") in self.events)
            assert self.link.send("liar", Message("Hello"))
            self.until(lambda: bool(self.raw.poll(0)))
            self._way = [self.raw.recv_multipart()[0]]
            return
        bind = f"ipc://{folder}/socket" if kind == "ipc" else "127.0.0.1:0"
        self.link = ZmqLink(RUN, bind=bind, key=key, admit={LIAR.curve_public: "liar"}.get)
        self.raw = self._context.socket(zmq.DEALER)
        if kind != "ipc":
            self._encrypt(server=False)
        self.raw.connect(bind if kind == "ipc" else f"tcp://{self.link.address}")
        if kind == "lane":
            self.raw.send_multipart(encode(Message("_lane", {"s": b"set-id-8", "n": 0}), RUN))

    def _encrypt(self, *, server: bool) -> None:
        self.raw.setsockopt(zmq.CURVE_PUBLICKEY, LIAR.curve_public)
        self.raw.setsockopt(zmq.CURVE_SECRETKEY, LIAR.curve_secret)
        self.raw.setsockopt(*((zmq.CURVE_SERVER, 1) if server else (zmq.CURVE_SERVERKEY, US.curve_public)))

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"nothing but {self.events[-3:]}"
            self.events += self.link.poll(0.002)

    @property
    def dropped(self) -> int:
        return sum(counted.dropped for counted in self.link.stats().values())

    def send(self, frames: Frames) -> None:
        self.raw.send_multipart(self._way + frames, copy=False)

    def take(self, *messages: Frames) -> list[LinkEvent]:
        """Send messages and then a good one; what the link hands out until that comes, which it must."""
        self._marks += 1
        self.events = []
        mark = Message("Mark", {"n": self._marks})
        for frames in (*messages, [bytes(frame) for frame in encode(mark, RUN)]):
            self.send(frames)
        self.until(lambda: any(isinstance(e, Received) and e.message == mark for e in self.events))
        return self.events[:-1]

    def close(self) -> None:
        self._context.destroy(linger=0)
        self.link.close()


@pytest.fixture(scope="module", params=["control", "lane", "dialled", "ipc"])
def victim(request: pytest.FixtureRequest) -> Iterator[Victim]:
    with tempfile.TemporaryDirectory() as folder:
        made = Victim(request.param, folder)
        yield made
        made.close()


@pytest.fixture
def listener() -> Iterator[Victim]:
    made = Victim("control", "")
    yield made
    made.close()


# ---- what is sent

plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9)
plain |= st.binary(max_size=9)
values = st.recursive(plain, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=3), v, max_size=3))
KINDS = ["Part", "Report", "Hello", "_lane", "_lanes", "_ack", "_ask", "_want", "_probe", "_", "", "x" * 65]
S = st.sampled_from([b"set-id-8", b"other-id", b"", 1])
NUMBERS = st.sampled_from([0, 1, -1, 2**31, 2**63, 1.5, None, "1"])
RECEIPT = st.lists(st.lists(NUMBERS, max_size=3), max_size=4)
bodies = st.dictionaries(st.text(max_size=3), values, max_size=3) | st.fixed_dictionaries(
    {"s": S}, optional={"n": NUMBERS, "k": NUMBERS, "l": st.lists(NUMBERS, max_size=20), "a": RECEIPT}
)
headers = st.fixed_dictionaries(
    {
        "v": st.sampled_from([PROTOCOL_VERSION] * 8 + [0, 2, 99, "3", None]),
        "r": st.sampled_from([RUN] * 8 + [b"otherrun", b"", 0]),
        "k": st.sampled_from(KINDS),
        "b": bodies,
        "n": st.just([]) | st.lists(NUMBERS, max_size=3),
    },
    optional={"x": values},
)
BOMBS = [
    b"\x91" * 100_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\x7f\xff\xff\xff" * 50,
    b"\xc6\xff\xff\xff\xff",
    b"\x81\xa1v\xdb\xff\xff\xff\xf0",
    bytes(2 << 20),
]


@st.composite
def messages(draw: st.DrawFn) -> Frames:
    """Garbage, headers that are nearly right, good ones that were damaged, bombs; with any number of buffers."""
    kind = draw(st.sampled_from(["garbage", "header", "header", "damaged", "bomb"]))
    if kind == "garbage":
        return draw(st.lists(st.binary(max_size=60), min_size=1, max_size=5))
    if kind == "bomb":
        return [draw(st.sampled_from(BOMBS))]
    header: dict[str, Any] = draw(headers)
    packed = bytearray(msgpack.packb(header))
    if kind == "damaged":
        packed[draw(st.integers(0, len(packed) - 1))] = draw(st.integers(0, 255))
        packed = packed[: draw(st.integers(0, len(packed)))]
    buffers = draw(st.lists(st.binary(max_size=9), max_size=3)) * draw(st.sampled_from([1, 1, 1, 40]))
    return [bytes(packed), *buffers]


@pytest.mark.scenario(13)
@given(st.lists(messages(), min_size=1, max_size=5))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_whatever_comes_in_is_handed_out_whole_or_dropped_and_counted(victim: Victim, sent: list[Frames]) -> None:
    before, known = victim.dropped, victim.link.stats().get(victim.source)
    received = known.messages_received if known is not None else 0
    for event in victim.take(*sent):
        assert isinstance(event, Received | Dropped), event
        assert event.source == victim.source
        assert isinstance(event, Dropped) or not event.message.kind.startswith("_")
    new = victim.link.stats()[victim.source].messages_received - received - 1 + victim.dropped - before
    assert new <= len(sent)  # what is left was internal, and taken


@pytest.mark.scenario(13)
def test_hostile_messages_by_the_ten_thousands_take_no_memory(victim: Victim) -> None:
    junk = [[b"\xc1" * 100], [b"\x91" * 5000], [b""] * 3, encode(Message("_ack", {"s": b"set-id-8"}), RUN)]
    junk += [[msgpack.packb({"v": 4, "r": b"otherrun", "k": "Part", "b": {}, "n": [9]}), b"012345678"]]
    sent = [[bytes(frame) for frame in frames] for frames in junk] * 100
    victim.take(*sent)
    before, dropped = resident_bytes(), victim.dropped
    for _ in range(50):
        victim.take(*sent)
    assert victim.dropped - dropped == 50 * len(sent)
    assert resident_bytes() - before < 32 << 20


# ---- one message that is too much


@pytest.mark.scenario(13)
@pytest.mark.parametrize("count", [MAX_FRAMES + 1, MAX_READ_FRAMES - 5])
def test_a_message_of_too_many_frames_is_one_that_is_dropped(listener: Victim, count: int) -> None:
    events = listener.take([b""] * count)
    assert [event.reason for event in events if isinstance(event, Dropped)] == ["more than 64 buffers"]


@pytest.mark.scenario(13)
def test_of_a_message_without_measure_little_is_read_at_once_and_its_sender_is_disconnected(listener: Victim) -> None:
    listener.take()
    listener.send([b"x"] * (10 * MAX_READ_FRAMES))
    listener.until(lambda: any(isinstance(event, Dropped) for event in listener.events))
    listener.take()  # it has dialled again: nothing of the rest was taken for a message
    assert listener.dropped == 1


@pytest.mark.scenario(13)
def test_a_message_that_does_not_end_is_not_kept(listener: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """libzmq itself would hold all of it: this one has 1 GB."""
    monkeypatch.setattr(zmq_guard, "MAX_HELD_BYTES", 32 << 20)
    listener.take()
    before = most = resident_bytes()
    listener.send([bytes(16 << 20)] * 64)
    while not any(isinstance(event, Dropped) for event in listener.events):
        listener.until(lambda: True)
        listener.events += listener.link.poll(0.01)
        most = max(most, resident_bytes())
    (drop,) = [event for event in listener.events if isinstance(event, Dropped)]
    assert "bytes of no message" in drop.reason
    assert most - before < 400 << 20
