"""The records: every kind survives the wire, and what is missing, surplus, mistyped or out of range is refused."""

from dataclasses import MISSING, FrozenInstanceError, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from wantrain.errors import WireError
from wantrain.peers import messages as m
from wantrain.transport.wire import Message, decode, encode

RUN = b"run-id-8"
DIGEST = b"d" * 32
SYNC = m.SyncId("all", 3, 1)
MANIFEST = (m.TensorSpec("weight", (3, 4), "float32"), m.TensorSpec("bias", (), "bfloat16"))


def sample(wanted: Any) -> Any:
    """A value of an annotated type that its limits allow; lists and maps have something in them."""
    if isinstance(wanted, type) and is_dataclass(wanted):
        return wanted(**{name: sample(hint) for name, hint in get_type_hints(wanted, include_extras=True).items()})
    limits: dict[str, Any] = {}
    while get_origin(wanted) is Annotated:
        wanted, *notes = get_args(wanted)
        for limit in (limit for note in notes for limit in note.metadata):
            limits |= {name: getattr(limit, name) for name in ("min_length", "pattern") if hasattr(limit, name)}
    if get_origin(wanted) is tuple:
        return (sample(get_args(wanted)[0]),) * 2
    if get_origin(wanted) is dict:
        key, value = get_args(wanted)
        return {sample(key): [1, {"x": 2.5}] if value is Any else sample(value)}
    if "pattern" in limits:
        return str(limits["pattern"]).strip("^$()").split("|")[0]
    filled = {str: "größe", bytes: b"x" * limits.get("min_length", 3), int: 7, float: 1.5, bool: True}
    return filled[wanted]


RECORDS: list[m.Record] = [sample(kind) for kind in m.Record.__args__]
NAMES = [type(record).__name__ for record in RECORDS]


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
        if entry.default is MISSING and entry.default_factory is MISSING:
            with pytest.raises(WireError, match=entry.name):
                m.unpack(Message(type(record).__name__, {k: v for k, v in body.items() if k != entry.name}))


def test_surplus_fields_of_nested_records_are_refused() -> None:
    for record, path in [
        (RECORDS[NAMES.index("Report")], ("syncs", 0)),
        (m.Genesis(MANIFEST, DIGEST), ("manifest", 1)),
        (m.Part(SYNC, (7,)), ("sync",)),
        (RECORDS[NAMES.index("View")], ("members", 0)),
        (RECORDS[NAMES.index("Commit")], ("records", 0, "sync")),
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
        ("Leave", {"boot": b"bootboot", "reason": b"bytes"}),
        ("Leave", {"boot": b"bootboot", "reason": "x" * 4097}),
        ("Leave", {"boot": b"short", "reason": "done"}),
        ("Enrolled", {"peer": ""}),
        ("Genesis", {"manifest": [], "state_digest": b"d" * 31}),
        ("Genesis", {"manifest": [], "state_digest": "d" * 32}),
        ("Genesis", {"manifest": [{"name": "w", "shape": [-1], "dtype": "float32"}], "state_digest": DIGEST}),
        ("Genesis", {"manifest": {"name": "w"}, "state_digest": DIGEST}),
        ("Log", {"values": {"loss": float("nan")}}),
        ("Log", {"values": {"loss": float("inf")}}),
        ("Log", {"values": {"loss": "1.5"}}),
        ("Describe", {"config": "x" * (m.MAX_CONFIG + 1)}),
        ("Describe", {"config": "{}", "absent": ["x"] * 9}),
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
