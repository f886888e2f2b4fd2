"""The records: every kind survives the wire, and what is missing, surplus, mistyped or out of range is refused."""

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from wantrain.errors import WireError
from wantrain.peers import messages as m
from wantrain.transport.wire import Message, decode, encode

RUN = b"run-id-8"
DIGEST, KEY, PROOF, BOOT = b"d" * 32, b"k" * 32, b"p" * 64, b"boot-id8"
SYNC = m.SyncId("all", 3, 1)
MANIFEST = (m.TensorSpec("weight", (3, 4), "float32"), m.TensorSpec("bias", (), "bfloat16"))

RECORDS: list[m.Record] = [
    m.Enroll(b"invite", KEY, KEY, "alice", PROOF),
    m.Hello(1, "0.1.0", b"", "alice", BOOT, "host:1234", ("int8", "fp32")),
    m.Report(
        boot=BOOT,
        sequence=9,
        log_number=-1,
        chain=b"",
        state_number=-1,
        state_digest=b"",
        trainer="training",
        syncs=(
            m.SyncReport("all", 3, "ready", 2.5, 0.125),
            m.SyncReport("all", 2, "done", digest=DIGEST, waiting_for=("b",)),
        ),
        suspects={"peer-b": "silent for 4 s"},
        eta_s=-1.0,
        waiting="",
        stats={"loss": 2.5, "step": 100},
    ),
    m.Genesis(MANIFEST, DIGEST),
    m.WantRecords(5),
    m.Leave("Ctrl-C"),
    m.WantStatus(),
    m.Enrolled("0123456789abcdef"),
    m.Refused("expired", "the invite ended at noon", "ask for a new one"),
    m.Welcome("0123456789abcdef", "[run]\nname = 'größe'", -1, b"", MANIFEST),
    m.WantHello(),
    m.WantGenesis(),
    m.View(4, (m.Member("p1", "alice", "host:1", KEY, True), m.Member("p2", "bob", "", KEY, False))),
    m.Start(SYNC, 4, ("p1", "p2"), (1.0, 2.0), ("p3",), (3, 0)),
    m.Commit((m.CommitRecord(1, SYNC, ("p1",), (1.0,), DIGEST, DIGEST),), 1),
    m.Abort(SYNC, "p2 is lost"),
    m.Refetch("digest differs"),
    m.Status("{}"),
    m.Part(SYNC, 7),
    m.Result(SYNC, 7),
    m.WantParts(SYNC, (1, 2), ()),
    m.WantState((0, 1)),
    m.StateChunk(1, 2),
    m.WantUpdate(2, (0,)),
    m.UpdateChunk(2, 0),
    m.NotHeld(-1),
    m.Attach(MANIFEST, 1234, BOOT),
    m.Attached("p1", "alice", "/segment", ({"name": "all", "every": 100, "merge_options": [["lr", 0.7]]},), True),
    m.GenesisWritten(),
    m.Contribute("all", 1, 100, 2048),
    m.Granted("all", "merge", 1, 3, 300),
    m.Waiting("for p2"),
    m.Log({"loss": 1.5}),
    m.Detach("done"),
    m.Detached(),
]  # fmt: skip
NAMES = [type(record).__name__ for record in RECORDS]


def test_the_list_above_has_every_kind_once() -> None:
    assert sorted(NAMES) == sorted(kind.__name__ for kind in m.Record.__args__)


@pytest.mark.parametrize("record", RECORDS, ids=NAMES)
def test_every_record_survives_the_wire(record: m.Record) -> None:
    message = decode(encode(m.pack(record, b"tensor bytes"), RUN), RUN)
    assert m.unpack(message) == record
    assert message.buffers == (b"tensor bytes",)


@pytest.mark.parametrize("record", RECORDS, ids=NAMES)
def test_surplus_and_missing_fields_are_refused(record: m.Record) -> None:
    body = m.pack(record).body
    with pytest.raises(WireError, match="surplus"):
        m.unpack(Message(type(record).__name__, body | {"surplus": 1}))
    for entry in fields(record):
        if entry.name in ("hint", "manifest") and not isinstance(record, (m.Genesis, m.Attach)):
            continue  # the two fields with a default
        with pytest.raises(WireError, match=entry.name):
            m.unpack(Message(type(record).__name__, {k: v for k, v in body.items() if k != entry.name}))


def test_surplus_fields_of_nested_records_are_refused() -> None:
    for record, path in [
        (RECORDS[2], ("syncs", 0)),
        (m.Genesis(MANIFEST, DIGEST), ("manifest", 1)),
        (m.Part(SYNC, 7), ("sync",)),
        (m.View(4, (m.Member("p1", "alice", "host:1", KEY, True),)), ("members", 0)),
        (m.Commit((m.CommitRecord(1, SYNC, ("p1",), (1.0,), DIGEST, DIGEST),), 1), ("records", 0, "sync")),
    ]:
        message = m.pack(record)
        inner: Any = message.body
        for step in path:
            inner = inner[step]
        inner["surplus"] = 1
        with pytest.raises(WireError, match="surplus"):
            m.unpack(message)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("Nonsense", {}),
        ("SyncId", {"stream": "all", "index": 1, "attempt": 1}),  # only a part of records
        ("WantRecords", {"first": -1}),
        ("WantRecords", {"first": "1"}),
        ("WantRecords", {"first": 1.0}),
        ("WantRecords", {"first": True}),
        ("WantRecords", {"first": 2**63}),
        ("Leave", {"reason": b"bytes"}),
        ("Leave", {"reason": "x" * 4097}),
        ("Enrolled", {"peer": ""}),
        ("Genesis", {"manifest": [], "state_digest": b"d" * 31}),
        ("Genesis", {"manifest": [], "state_digest": "d" * 32}),
        ("Genesis", {"manifest": [{"name": "w", "shape": [-1], "dtype": "float32"}], "state_digest": DIGEST}),
        ("Genesis", {"manifest": {"name": "w"}, "state_digest": DIGEST}),
        ("Log", {"values": {"loss": float("nan")}}),
        ("Log", {"values": {"loss": float("inf")}}),
        ("Log", {"values": {"loss": "1.5"}}),
        ("Granted", {"stream": "all", "kind": "other", "serial": 1, "index": 1, "global_step": 1}),
        ("WantState", {"chunks": [0] * 4097}),
        ("Part", {"sync": {"stream": "all", "index": 3}, "chunk": 7}),
        ("Part", {"sync": None, "chunk": 7}),
    ],
)
def test_wrong_types_and_values_out_of_range_are_refused(kind: str, body: dict[str, Any]) -> None:
    with pytest.raises(WireError, match=kind):
        m.unpack(Message(kind, body))


def test_weights_must_be_positive_and_finite() -> None:
    body = m.pack(RECORDS[NAMES.index("Start")]).body
    for weight in (0.0, -1.0, float("nan"), float("inf"), 1e16):
        with pytest.raises(WireError, match="weights"):
            m.unpack(Message("Start", body | {"weights": [weight]}))


def test_records_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        SYNC.index = 4  # type: ignore[misc]
