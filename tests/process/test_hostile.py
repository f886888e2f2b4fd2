"""Members that contribute what cannot be used, or attack every socket: named and left out, and the run goes on."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgpack
import pytest
import zmq

from tests.conftest import Measured
from tests.process.harness import Event, Run
from wantrain.peers.admission import COORDINATOR, Admission
from wantrain.peers.messages import (
    Abort,
    Attach,
    Commit,
    CommitRecord,
    Genesis,
    NotHeld,
    Owed,
    Part,
    Record,
    Refetch,
    Report,
    Result,
    Start,
    StateChunk,
    SyncId,
    TensorSpec,
    UpdateChunk,
    View,
    WantParts,
    WantState,
    WantUpdate,
    pack,
    unpack,
)
from wantrain.peers.place import Place, open_place
from wantrain.transport.auth import Invite
from wantrain.transport.link import Received
from wantrain.transport.wire import Message, encode
from wantrain.transport.zmq_link import ZmqLink

LIAR = """
import pathlib, sys
import torch
from wantrain.peers.engine import Engine
from wantrain.transport.codec import codec
lie = pathlib.Path({path!r})
honest_part, honest_stage = Engine.part, Engine.stage

def told():
    return lie.read_text() if lie.exists() else ""

def part(self, stream, chunk):
    payload = honest_part(self, stream, chunk)
    return {{"nan": b"\\xff" * len(payload), "short": bytes(payload)[:-1]}}.get(told(), payload)

def stage(self, stream, note):
    factor = {{"huge": 1e9, "zeros": 0.0}}.get(told())
    if factor is not None:
        out, given = self.segment.out(stream), self.segment.given(stream)
        out.copy_(given - factor * (given - out))
    return honest_stage(self, stream, note)

Engine.part, Engine.stage = part, stage
"""
MOST_GROWN_BYTES = 300 << 20


@pytest.mark.scenario(14)
def test_who_contributes_what_cannot_be_used_is_named_and_left_out_and_comes_back(new_run: Callable[..., Run]) -> None:
    run = new_run()
    lie = run.folder / "lie"
    wide = ("--hidden", "12000")  # chunks for everybody to own, so that some of carl's parts go to others
    run.peer("anna", trainer=wide)
    run.peer("bert", trainer=wide)
    run.peer("carl", trainer=wide, prepare=LIAR.format(path=str(lie)))
    run.until_commits(2, "anna", "bert", "carl")
    for what, words in {
        "nan": "NaN",
        "short": "bytes where",
        "huge": "times the median",
        "zeros": "all zeros",
    }.items():
        known = len(run.events("coordinator", "rejected"))
        lie.write_text(what)

        def found(words: str = words, known: int = known) -> list[Event]:
            return [event for event in run.events("coordinator", "rejected")[known:] if words in event["reason"]]

        rejected = run.until(found, f"the coordinator says that carl contributes {what}")
        assert {event["name"] for event in rejected} == {"carl"}, what
        lie.unlink()
        run.until_commits(2, "anna", "bert")
        run.until_commits(1, "anna", "bert", "carl")
    (carl,) = [peer for peer in run.status()["peers"] if peer["name"] == "carl"]
    assert carl["rejected"]["times"] >= 2
    assert carl["rejected"]["reason"].startswith("Part: ")
    run.assert_parity("anna", "bert", "carl")
    run.stop("anna", "bert", "carl")


# ---- a member that speaks for itself

SYNC = SyncId("param", 10**6, 10**12)
DIGEST = b"d" * 32
RECORDS: list[tuple[Record, int]] = [
    (Part(SYNC, (0,)), 1),
    (Part(SYNC, (2**62,)), 1),
    (Result(SYNC, (0, 1)), 1),
    (WantParts(SYNC, tuple(range(4096)), (2**62,)), 0),
    (WantState(tuple(range(4096))), 0),
    (WantUpdate(2**62, tuple(range(4096))), 0),
    (StateChunk(0, 2**62, DIGEST), 1),
    (UpdateChunk(1, 0), 1),
    (Owed("param", 0, 2**62), 1),
    (Owed("param", 0, 1), 1),
    (NotHeld(-1, -1), 0),
    (Abort(SYNC, "because I say so"), 0),
    (Refetch(0, DIGEST, "because I say so"), 0),
    (Start(SYNC, 1, ("nobody",), (1.0,), (), (1,)), 0),
    (Commit((CommitRecord(2**62, SYNC, ("nobody",), (1.0,), DIGEST, DIGEST),), 2**62), 0),
    (View(2**62, ()), 0),
    (Genesis((TensorSpec("w", (2**62,), "float32"),), DIGEST), 0),
    (Attach((), 1, b"8" * 8), 0),
]
"""Records with their number of buffers: valid, and of no use or not for a member to send."""


class Mallory:
    """Somebody with an invite and a key of its own, who speaks the protocol as it likes."""

    def __init__(self, run: Run, place: Place, bind: ZmqLink) -> None:
        self.run, self.place, self.link = run, place, bind
        self.invite = Invite.parse(run.invite)
        self.admission = Admission(bind, self.invite, place, "", lambda event: None)
        self.admission.run(60.0)
        self.sequence = 0
        self.view = View(0, ())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._behave)
        self._thread.start()

    def _behave(self) -> None:
        """Be a newcomer that never gets ready, so that the others keep admitting it."""
        while not self._stop.is_set():
            for event in self.link.poll(0.2):
                if isinstance(event, Received) and isinstance(record := unpack(event.message), View):
                    self.view = record
            self.sequence += 1
            report = Report(
                self.admission.hello.boot, self.sequence, -1, b"", -1, b"", "none", (), {"nobody": "x"}, -1.0, "", {},
                revision=2**60,
            )  # fmt: skip
            self.link.send(COORDINATOR, pack(report))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    @contextmanager
    def raw(self, address: str, server_key: bytes) -> Iterator["zmq.Socket[bytes]"]:
        """A bare socket with its key."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = context.socket(zmq.DEALER)
        if server_key:
            socket.setsockopt(zmq.CURVE_PUBLICKEY, self.place.identity.curve_public)
            socket.setsockopt(zmq.CURVE_SECRETKEY, self.place.identity.curve_secret)
            socket.setsockopt(zmq.CURVE_SERVERKEY, server_key)
        socket.setsockopt(zmq.SNDTIMEO, 5_000)
        socket.connect(address if address.startswith("ipc:") else f"tcp://{address}")
        try:
            yield socket
        finally:
            context.destroy(linger=0)

    def attack(self, address: str, server_key: bytes, run_id: bytes, *, lane: bool) -> None:
        """All that is not allowed, many times over, on one connection."""
        with self.raw(address, server_key) as socket:
            if lane:
                socket.send_multipart(encode(Message("_lane", {"s": b"set-id-8", "n": 7}), run_id))
            for turn in range(40):
                for frames in itertools.chain(garbage(run_id, turn), valid(run_id)):
                    try:
                        socket.send_multipart(frames, copy=False)
                    except zmq.Again:  # nobody reads any more: cut off
                        return


def garbage(run_id: bytes, turn: int) -> Iterator[list[bytes]]:
    header = {"v": 4, "r": run_id, "k": "Part", "b": {}, "n": []}
    yield [b""] * 3
    yield [b"\xc1" * 1000]
    yield [os.urandom(200), os.urandom(5000)]
    for changes in ({"v": 2}, {"r": b"otherrun"}, {"k": "Nonsense"}, {"b": {"sync": 1}}, {"n": [5]}, {"k": "_x"}):
        yield [msgpack.packb(header | changes)]
    yield [b"\x91" * 100_000]
    yield [b"\xdd\xff\xff\xff\xff"]
    yield [b"\xc6\xff\xff\xff\xff"]
    yield [msgpack.packb(header)[: turn % 40]]
    yield [msgpack.packb(header)] + [b"x"] * 70
    yield [bytes(2 << 20)]
    for internal in (
        Message("_ack", {"s": b"set-id-8", "a": [[7, 2**62], [99, 1]], "k": turn}),
        Message("_ask", {"s": b"set-id-8", "k": 1 + turn}),
        Message("_lanes", {"s": os.urandom(8), "l": [turn, 2**31]}),
        Message("_want", {"n": 16}),
        Message("_lane", {"s": b"set-id-8", "n": 7}),
    ):
        yield [bytes(frame) for frame in encode(internal, run_id)]


def valid(run_id: bytes) -> Iterator[list[bytes]]:
    for record, buffers in RECORDS:
        yield [bytes(frame) for frame in encode(pack(record, *[b"\xff" * 5000] * buffers), run_id)]


def _memory(run: Run, name: str) -> int:
    """What a peer's daemon has resident now."""
    return int(Path(f"/proc/{run.pid(name)}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.scenario(13)
def test_an_admitted_member_that_attacks_every_socket_ends_and_bends_nothing(
    new_run: Callable[..., Run], measured: Measured
) -> None:
    run = new_run()
    run.peer("anna")
    run.peer("bert")
    run.until_commits(3, "anna", "bert")
    with ExitStack() as closing:
        invite = Invite.parse(run.invite)
        place = closing.enter_context(open_place(invite.run, run.folder / "mallory", "mallory"))
        link = ZmqLink(invite.run, key=(place.identity.curve_public, place.identity.curve_secret))
        closing.callback(link.close)
        mallory = Mallory(run, place, link)
        closing.callback(mallory.close)
        run.until(lambda: len([m for m in mallory.view.members if m.current]) == 2, "mallory sees the others")
        before = {name: _memory(run, name) for name in ("anna", "bert", "coordinator")}
        targets = [(member.address, member.curve_key) for member in mallory.view.members if member.current]
        for address, key in [*targets, (run.address, invite.server_key)]:
            for lane in (False, True):
                mallory.attack(address, key, invite.run, lane=lane)
        run.until_commits(3, "anna", "bert")
        trainer = run.events("anna", "attached")[-1]["pid"]
        environment = Path(f"/proc/{trainer}/environ").read_bytes().split(b"\0")
        ipc = next(line for line in environment if line.startswith(b"WANTRAIN_DAEMON=")).partition(b"=")[2].decode()
        with mallory.raw(ipc, b"") as socket:
            for frames in [frames for turn in range(20) for frames in garbage(b"local-0\0", turn)]:
                socket.send_multipart(frames)
            run.until(lambda: "trainer" in {e["peer"] for e in run.events("anna", "dropped")}, "anna drops it")
        run.until_commits(3, "anna", "bert")
        for name in ("anna", "bert"):
            assert place.identity.peer in {event["peer"] for event in run.events(name, "dropped")}, name
            assert len(run.events(name, "dropped")) < 200, "a flood fills no log"
        assert place.identity.peer in {event["peer"] for event in run.events("coordinator", "dropped")}
        grown = {name: _memory(run, name) - size for name, size in before.items()}
        assert max(grown.values()) < MOST_GROWN_BYTES, grown
        measured(13, "memory that the attacked process with the most growth gained", max(grown.values()) / 1e6, "MB")
        document = run.status()
        assert document["coordinator"]["dropped"] > 100
        assert all(p["stats"]["dropped"] > 100 for p in document["peers"] if p["name"] in ("anna", "bert"))
    assert not [e for e in run.events("coordinator", "lost") if e["name"] in ("anna", "bert")]
    run.assert_parity("anna", "bert")
    run.stop("anna", "bert")
