"""What every topology of an all-reduce shares: its plan, what can happen to it, and what it wants done; pure.

A topology is a core with one mutator. One instance is one attempt of one sync on one peer; an abort drops the object.
It decides what is sent, asked for again and summed; the bytes themselves (`payload`) are opaque here. The table of
topologies is in `topologies.py`.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeAlias

from wantrain.errors import ProtocolBug
from wantrain.transport.digest import update_digest

Payload: TypeAlias = Any
"""Encoded bytes of one chunk, or whatever stands for them in a simulation."""

ASK_AFTER_S = 1.0
"""Silence after which missing chunks are asked for again; doubles with every vain ask. TCP loses nothing while it
lives, so only a broken connection makes this matter."""
ASK_AT_MOST = 1024
"""Chunks in one ask, far under the limit of the message."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Who does what in one attempt; equal on every peer in it."""

    contributors: tuple[str, ...]
    """Whose inputs are summed; their order is the order of the sum (direct) or of the ring."""
    weights: tuple[float, ...]
    """Of the contributors, in their order; positive."""
    receivers: tuple[str, ...]
    """Who only gets the result."""
    shards: tuple[int, ...]
    """Consecutive chunks that each contributor owns, in contributor order; their sum is the number of chunks."""
    seed: int = 0
    """From what the view and the sync have in common; only a random matching looks at it."""


# ---- events


@dataclass(frozen=True, slots=True)
class Begin:
    """START has come; the input is staged."""


@dataclass(frozen=True, slots=True)
class PartCame:
    """`source` sent its input to a chunk, or a sum with it in it; `payload` is already checked."""

    source: str
    chunk: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class ResultCame:
    """`source` sent the mean of a chunk; `digest` is of the bytes as they came."""

    source: str
    chunk: int
    payload: Payload
    digest: bytes


@dataclass(frozen=True, slots=True)
class ChunkReduced:
    """The Reduce of a chunk is done; `digest` is b"" unless it was final."""

    chunk: int
    payload: Payload
    digest: bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """`source` misses parts, or results."""

    source: str
    parts: Sequence[int]
    results: Sequence[int]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event: TypeAlias = Begin | PartCame | ResultCame | ChunkReduced | Asked | Tick


# ---- effects


@dataclass(frozen=True, slots=True)
class SendPart:
    """Encode the chunk of our own input (unweighted; the same bytes each time) and send it as a part."""

    to: str
    chunk: int


@dataclass(frozen=True, slots=True)
class ForwardPart:
    """Send an encoded partial sum as a part, verbatim."""

    to: str
    chunk: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class Reduce:
    """Sum weight * decoded payload in this order in fp32, divide by `divisor`, encode. None is our own input.

    `final`: the outcome is a chunk of the update (written in the codec of the way down, and digested); else it is a
    part (codec of the way up).
    """

    chunk: int
    inputs: tuple[tuple[float, Payload | None], ...]
    divisor: float
    final: bool = True


@dataclass(frozen=True, slots=True)
class SendResult:
    """Send an encoded chunk of the update, verbatim."""

    to: str
    chunk: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a peer again for chunks that have not come."""

    to: str
    parts: tuple[int, ...]
    results: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Complete:
    """All chunks of the update are here."""

    payloads: tuple[Payload, ...]
    digest: bytes


Effect: TypeAlias = SendPart | ForwardPart | Reduce | SendResult | Ask | Complete


class Collective(Protocol):
    """One attempt of an all-reduce on one peer, made from (me, plan)."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        """React to an event at time `now` in seconds.

        Raises:
            ProtocolBug: the event is impossible in this phase.
        """

    @property
    def missing(self) -> int:
        """Chunks that still have to come in: parts that are summed here, and results."""

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Peers from whom something is missing, in contributor order."""


# ---- what direct and ring have in common


class _Phase(Enum):
    NEW = "new"
    MOVING = "moving"
    COMPLETE = "complete"


class AllReduce(ABC):
    """Phases, results that are here, and when to ask again; a topology says who sends what to whom.

    Args:
        me: this peer, one of the plan's contributors or receivers.
        plan: what all do.
    """

    def __init__(self, me: str, plan: Plan) -> None:
        self._me = me
        self._contributors = plan.contributors
        self._weights = dict(zip(plan.contributors, plan.weights, strict=True))
        self._divisor = sum(plan.weights)
        shards = zip(plan.contributors, plan.shards, strict=True)
        self._owner = [peer for peer, count in shards for _ in range(count)]
        self._results: dict[int, Payload] = {}
        self._digests: dict[int, bytes] = {}
        self._phase = _Phase.NEW
        self._last_progress = 0.0
        self._ask_after_s = ASK_AFTER_S
        self._history: deque[tuple[str, str]] = deque(maxlen=20)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """React to an event at time `now` in seconds.

        Raises:
            ProtocolBug: the event is impossible in this phase.
        """
        self._history.append((self._phase.value, type(event).__name__))
        match self._phase, event:
            case _Phase.NEW, Begin():
                self._phase = _Phase.MOVING
                self._progress(now)
                effects = self._begin()
            case _Phase.MOVING, PartCame() as part:
                effects = self._part(part, now)
            case _Phase.MOVING, ResultCame() as result:
                effects = self._result(result, now)
            case _Phase.MOVING, ChunkReduced() as reduced:
                self._progress(now)
                effects = self._reduced(reduced)
            case _Phase.MOVING, Tick():
                effects = self._tick(now)
            case _Phase.MOVING | _Phase.COMPLETE, Asked() as asked:
                effects = self._asked(asked)
            case _Phase.COMPLETE, PartCame() | ResultCame() | Tick():
                effects = []
            case _:
                raise ProtocolBug(f"{type(event).__name__} in phase {self._phase.value}: {list(self._history)}")
        if self._phase is _Phase.MOVING and len(self._results) == len(self._owner):
            self._phase = _Phase.COMPLETE
            in_order = range(len(self._owner))
            digest = update_digest(self._digests[chunk] for chunk in in_order)
            effects.append(Complete(tuple(self._results[chunk] for chunk in in_order), digest))
        return effects

    @abstractmethod
    def _begin(self) -> list[Effect]:
        """The first sends."""

    @abstractmethod
    def _part(self, event: PartCame, now: float) -> list[Effect]:
        """Take in a part if it belongs here and is the first of its kind."""

    @abstractmethod
    def _result(self, event: ResultCame, now: float) -> list[Effect]:
        """Take in a result if it belongs here and is the first of its kind."""

    @abstractmethod
    def _reduced(self, event: ChunkReduced) -> list[Effect]:
        """Send what a Reduce gave."""

    @abstractmethod
    def _asked(self, event: Asked) -> list[Effect]:
        """Send again what `source` may have from us and we have."""

    @abstractmethod
    def _asks(self) -> list[Ask]:
        """What is missing, from whom."""

    def _keep(self, chunk: int, payload: Payload, digest: bytes) -> None:
        """A chunk of the update is here."""
        self._results[chunk] = payload
        self._digests[chunk] = digest

    def _progress(self, now: float) -> None:
        self._last_progress = now
        self._ask_after_s = ASK_AFTER_S

    def _tick(self, now: float) -> list[Effect]:
        if now - self._last_progress < self._ask_after_s:
            return []
        self._last_progress = now
        self._ask_after_s *= 2
        return list(self._asks())
