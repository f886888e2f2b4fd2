"""What a participant wants done; the shell does it, in order."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from wantrain.peers.messages import (
    Attached,
    CommitRecord,
    Leased,
    Manifest,
    Owed,
    Part,
    Record,
    Result,
    SyncId,
    UpdateChunk,
)
from wantrain.transport.collective import Payload


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a small record to the coordinator or a peer; it may get lost."""

    to: str
    record: Record


@dataclass(frozen=True, slots=True)
class SendContribution:
    """Encode a chunk of the staged contribution (the same bytes each time) and send it as a Part."""

    to: str
    sync: SyncId
    chunk: int


@dataclass(frozen=True, slots=True)
class SendPayload:
    """Send encoded bytes as they are."""

    to: str
    record: Part | Result | UpdateChunk | Owed
    """Of one chunk."""
    payload: Payload


@dataclass(frozen=True, slots=True)
class SendState:
    """Send a chunk of the state as it is when it is sent, with the log number it then has."""

    to: str
    chunk: int


@dataclass(frozen=True, slots=True)
class StoreState:
    """Put a fetched chunk into the state."""

    chunk: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class ReduceChunk:
    """Weighted sum of decoded payloads in this order (None: the staged contribution), divided, encoded.

    `final`: it is a chunk of the update, else a part. Comes back as Reduced, or ReduceFailed if it does not encode.
    """

    sync: SyncId
    chunk: int
    inputs: tuple[tuple[float, Payload | None], ...]
    divisor: float
    final: bool


@dataclass(frozen=True, slots=True)
class Apply:
    """Run the outer update on the state, without the chunks in `skip`, and append it to the update log."""

    record: CommitRecord
    payloads: tuple[Payload, ...]
    skip: frozenset[int]


@dataclass(frozen=True, slots=True)
class OpenModel:
    """Make room for the state of a model."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class UseStage:
    """What the trainer staged last for this stream is the contribution from now on, until the next UseStage."""

    stream: str
    floor: int = 0
    """Attempts up to this number had earlier contributions."""


@dataclass(frozen=True, slots=True)
class UseCodec:
    """Contributions of this stream are written and read in this codec from now on, until the next UseCodec."""

    stream: str
    codec: str


@dataclass(frozen=True, slots=True)
class Settle:
    """A sync of the stream is committed; `taken`: with the contribution in use, whose error is the residual now."""

    stream: str
    taken: bool


@dataclass(frozen=True, slots=True)
class ForgetResiduals:
    """What was kept of earlier contributions belongs to a history that is over."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Send a peer what is kept of earlier contributions; comes back as HandedOver."""

    to: str


@dataclass(frozen=True, slots=True)
class Grant:
    """Fill the stream's regions for the trainer and tell it; fields as in the message Granted."""

    stream: str
    kind: str
    serial: int
    index: int
    global_step: int
    pace_s: float = 0.0
    share: float = 1.0
    """What of the mean its contribution will be, if it is answered before that is known."""


@dataclass(frozen=True, slots=True)
class GrantAgain:
    """Repeat to the trainer what a former daemon has granted: its regions are as they were left."""

    stream: str


@dataclass(frozen=True, slots=True)
class NotePlace:
    """All that follows for the trainer from the commit log up to this line has been granted: note it down."""

    number: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class NoteReach:
    """What follows for the trainer from the commit log up to this line is granted from now on: note it down."""

    number: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class TellTrainer:
    """Answer the trainer's Attach; the shell fills in segment and streams."""

    record: Attached


@dataclass(frozen=True, slots=True)
class PassOn:
    """Give the trainer the coordinator's answer to what it asked."""

    record: Leased


@dataclass(frozen=True, slots=True)
class RefuseTrainer:
    """Turn the trainer away: it cannot take part as it is."""

    code: str
    reason: str
    hint: str


@dataclass(frozen=True, slots=True)
class BeginSave:
    """Save the state at hand, which stays as it is until StateCaptured comes back; then StateSaved, or SaveFailed.

    `genesis` is chain[0]; `extra` is JSON for the manifest, "" for nothing.
    """

    number: int
    chain: bytes
    genesis: bytes
    indices: dict[str, int]
    extra: str


@dataclass(frozen=True, slots=True)
class DropSave:
    """The state that is being saved is not the run's."""


@dataclass(frozen=True, slots=True)
class LoadSaved:
    """Take over the state that was saved at log number `number`; comes back as SavedLoaded or SavedUnusable."""

    number: int


@dataclass(frozen=True, slots=True)
class LoadInitial:
    """Take over the state that the run is to begin with; comes back as GenesisReady or InitialUnusable."""


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to a peer; an empty address means that it dials us."""

    peer: str
    address: str
    curve_key: bytes


@dataclass(frozen=True, slots=True)
class HangUp:
    """Drop the connection to a peer that left the roster."""

    peer: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the peer's event log."""

    event: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exit:
    """End the peer process, after what was sent has left."""

    code: int
    reason: str
    hint: str


Effect: TypeAlias = (
    Tell | SendContribution | SendPayload | SendState | StoreState | ReduceChunk | Apply | OpenModel | UseStage
    | UseCodec | Settle | ForgetResiduals | HandOver | Grant | GrantAgain | NotePlace | NoteReach | TellTrainer | PassOn
    | RefuseTrainer | BeginSave | DropSave | LoadSaved | LoadInitial | Dial | HangUp | Note | Exit
)  # fmt: skip
