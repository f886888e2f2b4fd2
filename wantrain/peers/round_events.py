"""What happens to the syncs of one stream, and what `Round` wants done about it."""

from dataclasses import dataclass, field

from wantrain.peers.messages import Abort, Drawn, Start, SyncId, SyncReport

# ---- events


@dataclass(frozen=True, slots=True)
class Reported:
    """A current peer's line about this stream, from its report."""

    peer: str
    sync: SyncReport


@dataclass(frozen=True, slots=True)
class Absent:
    """A peer has reported and had no line about this stream: it holds nothing for it."""

    peer: str


@dataclass(frozen=True, slots=True)
class Cast:
    """Who is there now: the `live` peers of the view in order.

    `abreast` are those at the head of the log; `expected` maps those that train to the time when they are expected to
    be ready (absolute, seconds), or None if unknown; `chasing` maps those that catch up without gaining on the run to
    how many commits they are behind; nobody can pass an update on from or to those who are `cut_off`.
    """

    view: int
    live: tuple[str, ...]
    abreast: frozenset[str]
    expected: dict[str, float | None]
    chasing: dict[str, int] = field(default_factory=dict)
    cut_off: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Seen:
    """What a Cast says of one peer has changed; `trains`: it is among the expected."""

    peer: str
    abreast: bool
    trains: bool
    expected_at: float | None


@dataclass(frozen=True, slots=True)
class Persisted:
    """The commit of this attempt is durable."""

    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


RoundEvent = Reported | Absent | Cast | Seen | Persisted | Tick


# ---- effects


@dataclass(frozen=True, slots=True)
class Tell:
    """Send START or ABORT to a peer."""

    to: str
    record: Start | Abort


@dataclass(frozen=True, slots=True)
class Persist:
    """Write the commit of this attempt to the log, then come back with Persisted."""

    start: Start
    digest: bytes
    gather_s: float
    move_s: float
    predicted_s: float
    """What move_s was expected to be; 0 if unknown."""
    plan: str
    """Why the bytes went the way they did."""
    drawn: dict[str, Drawn]
    """By contributor: what of its leases is in its contribution."""
    steps: int
    """Inner steps in the longest contribution."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The commit is durable: announce it to all."""


@dataclass(frozen=True, slots=True)
class Aborted:
    """An attempt ended without a trace; `dropped` are not part of the next one."""

    sync: SyncId
    reason: str
    dropped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """A receiver did not get the update in time; the sync goes on without it and it fetches the update later."""

    sync: SyncId
    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """A contribution cannot be used and is not in the sync; `by` found it out, "" for the coordinator itself.

    `diverged`: its norm is far beyond the others'.
    """

    sync: str
    peer: str
    by: str
    reason: str
    diverged: bool = False


RoundEffect = Tell | Persist | Committed | Aborted | LeftBehind | Rejected
