"""What can happen to the coordinator, and what it wants done; its shell does it, in order."""

from dataclasses import dataclass, field
from typing import Any

from wantrain.peers.messages import CommitRecord, Record, TensorSpec

# ---- events


@dataclass(frozen=True, slots=True)
class FromPeer:
    """A message from an admitted peer; `curve_key` is the key that the link authenticated."""

    peer: str
    record: Record
    curve_key: bytes = b""


@dataclass(frozen=True, slots=True)
class SaveWanted:
    """The owner wants the state of the run on disk now."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The oldest Persist is durable."""


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """The oldest Persist could not be written; nothing of it was."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


CoordinatorEvent = FromPeer | SaveWanted | Stored | StoreFailed | Tick


# ---- effects


@dataclass(frozen=True, slots=True)
class Send:
    """Send a record to a peer; it may get lost."""

    to: str
    record: Record


@dataclass(frozen=True, slots=True)
class PersistGenesis:
    """Write the run's model and initial state, and with them the rows of the data leases that it begins with."""

    manifest: tuple[TensorSpec, ...]
    state_digest: bytes
    chain: bytes
    leases: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PersistDropGenesis:
    """Forget an initial state that nobody holds any more and nothing was committed on."""


@dataclass(frozen=True, slots=True)
class PersistCommit:
    """Append a line to the commit log, and change rows of the data leases with it."""

    record: CommitRecord
    leases: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PersistRewind:
    """Abandon the lines after `after`: everybody who held them is gone. Rows of the data leases change with it."""

    after: int
    reason: str
    leases: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PersistLeases:
    """Change rows of the data leases; None takes one away."""

    rows: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class PersistView:
    """Write a view."""

    number: int
    members: tuple[str, ...]


Persist = PersistGenesis | PersistDropGenesis | PersistCommit | PersistRewind | PersistView | PersistLeases


@dataclass(frozen=True, slots=True)
class Announce:
    """Something for the event log and for people."""

    event: str
    details: dict[str, Any] = field(default_factory=dict)


CoordinatorEffect = Send | Persist | Announce
