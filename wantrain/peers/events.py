"""What can happen to a peer: messages, what its trainer does, what its shell has finished, and time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from wantrain.peers.inheritance import Held
from wantrain.peers.messages import Drawn, LinkReport, Manifest, Record, SyncId, WantLease
from wantrain.transport.collective import Payload


@dataclass(frozen=True, slots=True)
class FromPeer:
    """A message from the coordinator ("coordinator") or another peer.

    Tensor bytes come as an opaque payload that the shell has checked against codec and size, with their digest. A Part
    or Result of several chunks comes as several events, of one chunk each.
    """

    source: str
    record: Record
    payload: Payload = None
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class CoordinatorLink:
    """The connection to the coordinator came up or broke."""

    up: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PeerLink:
    """The connection dialled to a peer came up or broke."""

    peer: str
    up: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TrainerStarting:
    """The training process was started and has not attached yet."""


@dataclass(frozen=True, slots=True)
class TrainerAttached:
    """A trainer presented its model; `boot` is random per trainer process."""

    boot: bytes
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class TrainerResumed:
    """A trainer that has outlived its daemon came back, with what it shared with that one."""

    boot: bytes
    manifest: Manifest
    held: Held
    received: Mapping[str, int]
    """Per stream: the Granted messages that it has received."""
    indices: Mapping[str, int]
    """Per stream: the sync that it has adopted last."""
    reader: bytes = b""
    """The reader of leases that it is."""


@dataclass(frozen=True, slots=True)
class GenesisReady:
    """The trainer's initial weights are the state at hand now; digest of that state."""

    state_digest: bytes


@dataclass(frozen=True, slots=True)
class Staged:
    """The trainer's contribution to a stream lies ready: the difference to what it last took over, or its gradient.

    `norm` is its L2 norm; `finite` is False if NaN or Inf is in it. `serial` is the trainer's own count.
    """

    boot: bytes
    stream: str
    serial: int
    step: int
    weight: float
    norm: float
    finite: bool
    drawn: Drawn = field(default_factory=Drawn)
    """What of the trainer's leases is in it."""
    steps: int = 0
    """Inner steps in it since the stream was staged before."""


@dataclass(frozen=True, slots=True)
class LeaseWanted:
    """The trainer asks for samples."""

    want: WantLease


@dataclass(frozen=True, slots=True)
class TrainerGone:
    """The trainer's process ended; `finished` if it took its leave first."""

    finished: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """The trainer's pace and the links': seconds until it is expected to contribute again (-1 unknown), numbers for
    status, what was measured on the way to each peer, all peers to whom a connection is up (None: unknown), and the
    seconds that an inner step takes (0 unknown)."""

    eta_s: float
    stats: dict[str, float] = field(default_factory=dict)
    paths: dict[str, LinkReport] = field(default_factory=dict)
    reached: frozenset[str] | None = None
    step_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Reduced:
    """A ReduceChunk is done."""

    sync: SyncId
    chunk: int
    payload: Payload
    digest: bytes


@dataclass(frozen=True, slots=True)
class ReduceFailed:
    """A chunk of the contribution, or of the sum, does not encode; `blamed` is whose fault it is, if that is known."""

    sync: SyncId
    reason: str
    blamed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Flawed:
    """What a peer has sent for an attempt cannot be used, for this reason; nothing of it was."""

    source: str
    sync: SyncId
    reason: str


@dataclass(frozen=True, slots=True)
class StateDigested:
    """The digest of the state at log number `number` was computed, from those of its chunks."""

    number: int
    digest: bytes
    chunks: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class StateCaptured:
    """All of the state at log number `number` is written, though not durable; digests of its chunks."""

    number: int
    chunks: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class StateSaved:
    """The state at log number `number` is on disk."""

    number: int


@dataclass(frozen=True, slots=True)
class SaveFailed:
    """The state at log number `number` cannot be saved."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class SavedLoaded:
    """The state at hand is the one that was saved at log number `number`; digests of its chunks."""

    number: int
    chunks: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SavedUnusable:
    """What was saved at log number `number` cannot be used."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class InitialUnusable:
    """The state that the run was to begin with cannot be used."""

    reason: str


@dataclass(frozen=True, slots=True)
class LeaveRequested:
    """The user or the trainer wants this peer to leave gracefully."""

    reason: str


@dataclass(frozen=True, slots=True)
class HandedOver:
    """A HandOver is done: it has left, or there was nothing."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event: TypeAlias = (
    FromPeer | CoordinatorLink | PeerLink | TrainerStarting | TrainerAttached | TrainerResumed | GenesisReady | Staged
    | TrainerGone | LeaseWanted | Progress | Reduced | ReduceFailed | Flawed | StateDigested | StateCaptured
    | StateSaved | SaveFailed | SavedLoaded | SavedUnusable | InitialUnusable | LeaveRequested | HandedOver | Tick
)  # fmt: skip
