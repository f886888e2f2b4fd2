"""The direct all-reduce as a pure core: every contributor sends each shard to its owner, owners send the sums to all.

Two hops and exactly two quantizations. The core decides what is sent, asked for again and reduced; the bytes themselves
(`payload`) are opaque here. One `Direct` is one attempt of one sync on one peer; an abort drops the object.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from wantrain.errors import ProtocolBug
from wantrain.transport.digest import update_digest

Payload: TypeAlias = Any
"""Encoded bytes of one chunk, or whatever stands for them in a simulation."""

ASK_AFTER_S = 1.0
"""Silence after which missing chunks are asked for again; doubles with every vain ask. TCP loses nothing while it
lives, so only a broken connection makes this matter."""
ASK_AT_MOST = 1024
"""Chunks in one ask, far under the limit of the message."""


# ---- events


@dataclass(frozen=True, slots=True)
class Begin:
    """START has come; the input is staged."""


@dataclass(frozen=True, slots=True)
class PartCame:
    """`source` contributed `payload`, already checked, to a chunk."""

    source: str
    chunk: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class ResultCame:
    """`source` sent the sum of a chunk; `digest` is of the bytes as they came."""

    source: str
    chunk: int
    payload: Payload
    digest: bytes


@dataclass(frozen=True, slots=True)
class ChunkReduced:
    """The Reduce of a chunk is done."""

    chunk: int
    payload: Payload
    digest: bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """`source` misses parts of our contribution, or results that we own."""

    source: str
    parts: Sequence[int]
    results: Sequence[int]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


DirectEvent = Begin | PartCame | ResultCame | ChunkReduced | Asked | Tick


# ---- effects


@dataclass(frozen=True, slots=True)
class SendPart:
    """Encode the chunk of our own input and send it to its owner."""

    to: str
    chunk: int


@dataclass(frozen=True, slots=True)
class Reduce:
    """Sum weight * decoded payload in this order, divide by the sum of weights, encode. None is our own input."""

    chunk: int
    inputs: tuple[tuple[float, Payload | None], ...]


@dataclass(frozen=True, slots=True)
class SendResult:
    """Send the encoded sum of a chunk that we own, verbatim."""

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


DirectEffect = SendPart | Reduce | SendResult | Ask | Complete


class Phase(Enum):
    NEW = "new"
    MOVING = "moving"
    COMPLETE = "complete"


class Direct:
    """One attempt of a direct all-reduce.

    Args:
        me: this peer, one of contributors or receivers.
        contributors: whose inputs are summed, in the order of the sum.
        weights: of the contributors, positive.
        receivers: who only gets the result.
        shards: consecutive chunks that each contributor owns; their sum is the number of chunks.
    """

    def __init__(
        self,
        me: str,
        contributors: Sequence[str],
        weights: Sequence[float],
        receivers: Sequence[str],
        shards: Sequence[int],
    ) -> None:
        self.me = me
        self.contributors = tuple(contributors)
        self.phase = Phase.NEW
        self._weights = dict(zip(contributors, weights, strict=True))
        self._everybody = (*contributors, *receivers)
        self._owner = [peer for peer, count in zip(contributors, shards, strict=True) for _ in range(count)]
        self._shards = {peer: [c for c, owner in enumerate(self._owner) if owner == peer] for peer in contributors}
        self._mine = self._shards.get(me, [])
        self._parts: dict[int, dict[str, Payload]] = {chunk: {} for chunk in self._mine}
        self._reducing: set[int] = set()
        self._results: dict[int, tuple[Payload, bytes]] = {}
        self._last_progress = 0.0
        self._ask_after_s = ASK_AFTER_S
        self._history: deque[object] = deque(maxlen=20)

    def handle(self, event: DirectEvent, now: float) -> list[DirectEffect]:
        """React to an event at time `now` in seconds.

        Raises:
            ProtocolBug: the event is impossible in this phase.
        """
        self._history.append((self.phase, type(event).__name__))
        action = _TABLE.get((self.phase, type(event)))
        if action is None:
            raise ProtocolBug(f"{type(event).__name__} in phase {self.phase}: {list(self._history)}")
        effects: list[DirectEffect] = action(self, event, now)
        return effects

    @property
    def missing(self) -> int:
        """Chunks that still have to come in: parts for our shard and results of the others'."""
        return len(self._owner) - len(self._results) + sum(len(self._absent(c)) for c in self._mine)

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Peers from whom something is missing, in contributor order."""
        wanted = {self._owner[c] for c in range(len(self._owner)) if c not in self._results}
        for chunk in self._mine:
            wanted.update(self._absent(chunk))
        return tuple(peer for peer in self.contributors if peer in wanted and peer != self.me)

    def _absent(self, chunk: int) -> list[str]:
        if chunk in self._reducing:
            return []
        return [peer for peer in self.contributors if peer != self.me and peer not in self._parts[chunk]]

    def _begin(self, event: Begin, now: float) -> list[DirectEffect]:
        self.phase = Phase.MOVING
        self._last_progress = now
        effects: list[DirectEffect] = []
        if self.me in self._weights:
            # Start with the next owner and take one chunk of each in turn: no owner gets everybody's bytes at once.
            turn = self.contributors.index(self.me) + 1
            owners = [*self.contributors[turn:], *self.contributors[: turn - 1]]
            for k in range(max(map(len, self._shards.values()), default=0)):
                effects += [SendPart(owner, self._shards[owner][k]) for owner in owners if k < len(self._shards[owner])]
        for chunk in self._mine:
            effects += self._reduce_if_full(chunk)
        return effects + self._complete_if_full()

    def _part(self, event: PartCame, now: float) -> list[DirectEffect]:
        parts = self._parts.get(event.chunk)
        if parts is None or event.source not in self._weights or event.source in (*parts, self.me):
            return []
        if event.chunk in self._reducing:
            return []
        self._progress(now)
        parts[event.source] = event.payload
        return self._reduce_if_full(event.chunk)

    def _reduce_if_full(self, chunk: int) -> list[DirectEffect]:
        if self._absent(chunk) or chunk in self._reducing:
            return []
        self._reducing.add(chunk)
        parts, self._parts[chunk] = self._parts[chunk], {}
        return [Reduce(chunk, tuple((self._weights[peer], parts.get(peer)) for peer in self.contributors))]

    def _reduced(self, event: ChunkReduced, now: float) -> list[DirectEffect]:
        self._progress(now)
        self._results[event.chunk] = (event.payload, event.digest)
        effects: list[DirectEffect] = [
            SendResult(peer, event.chunk, event.payload) for peer in self._everybody if peer != self.me
        ]
        return effects + self._complete_if_full()

    def _result(self, event: ResultCame, now: float) -> list[DirectEffect]:
        known = event.chunk < len(self._owner)
        if not known or self._owner[event.chunk] != event.source or event.chunk in self._results:
            return []
        self._progress(now)
        self._results[event.chunk] = (event.payload, event.digest)
        return self._complete_if_full()

    def _complete_if_full(self) -> list[DirectEffect]:
        if len(self._results) < len(self._owner):
            return []
        self.phase = Phase.COMPLETE
        in_order = [self._results[chunk] for chunk in range(len(self._owner))]
        return [Complete(tuple(p for p, _ in in_order), update_digest(d for _, d in in_order))]

    def _asked(self, event: Asked, now: float) -> list[DirectEffect]:
        effects: list[DirectEffect] = []
        if self.me in self._weights:
            owned = set(self._shards.get(event.source, ()))
            effects += [SendPart(event.source, chunk) for chunk in event.parts if chunk in owned]
        if event.source in self._everybody:
            mine = set(self._mine)
            effects += [
                SendResult(event.source, chunk, self._results[chunk][0])
                for chunk in event.results
                if chunk in mine and chunk in self._results
            ]
        return effects

    def _tick(self, event: Tick, now: float) -> list[DirectEffect]:
        if now - self._last_progress < self._ask_after_s:
            return []
        self._last_progress = now
        self._ask_after_s *= 2
        asks: list[DirectEffect] = []
        for peer in self.waiting_for:
            parts = [chunk for chunk in self._mine if peer in self._absent(chunk)]
            results = [chunk for chunk in self._shards[peer] if chunk not in self._results]
            asks.append(Ask(peer, tuple(parts[:ASK_AT_MOST]), tuple(results[:ASK_AT_MOST])))
        return asks

    def _progress(self, now: float) -> None:
        self._last_progress = now
        self._ask_after_s = ASK_AFTER_S

    def _inert(self, event: DirectEvent, now: float) -> list[DirectEffect]:
        return []


_TABLE: dict[tuple[Phase, type], Any] = {
    (Phase.NEW, Begin): Direct._begin,
    (Phase.MOVING, PartCame): Direct._part,
    (Phase.MOVING, ResultCame): Direct._result,
    (Phase.MOVING, ChunkReduced): Direct._reduced,
    (Phase.MOVING, Asked): Direct._asked,
    (Phase.MOVING, Tick): Direct._tick,
    (Phase.COMPLETE, PartCame): Direct._inert,
    (Phase.COMPLETE, ResultCame): Direct._inert,
    (Phase.COMPLETE, Asked): Direct._asked,
    (Phase.COMPLETE, Tick): Direct._inert,
}
