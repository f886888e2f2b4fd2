"""The attempts that a peer takes part in: START and ABORT, parts and sums, one running attempt per stream; a pure core.

A part of `participant.py`, which alone calls it. Whatever comes for another attempt than the one that runs changes
nothing, and an attempt that was given up is never taken up again: its parts may come from another contribution.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from wantrain.peers.effects import Effect, Note, ReduceChunk, SendContribution, SendPayload, Tell, UseCodec
from wantrain.peers.events import Flawed, FromPeer, Reduced, ReduceFailed
from wantrain.peers.messages import CommitRecord, Part, Result, Start, SyncId, WantParts
from wantrain.transport import collective as co
from wantrain.transport.collective import Collective, Payload, Plan
from wantrain.transport.topologies import collective

MAX_WHY_CHARS = 256
MAX_EARLY = 128
"""Messages with tensor bytes kept when they overtake their START; more are dropped and asked for again."""


@dataclass(slots=True)
class Attempt:
    """One attempt of one sync on this peer."""

    start: Start
    core: Collective
    begun_at: float
    done: co.Complete | None = None
    failed: tuple[str, ...] | None = None
    """Set when it cannot be completed here; names those to blame, if that is known."""
    why: str = ""

    @property
    def sync(self) -> SyncId:
        return self.start.sync


@dataclass(slots=True)
class Attempts:
    """The running attempts of a peer.

    Args:
        me: this peer.
        indices: last applied sync of every stream; the participant's own, only read here.
        gossip: streams whose syncs are not of all peers, so that their indices may leave some out.
    """

    me: str
    indices: Mapping[str, int]
    gossip: frozenset[str] = frozenset()
    running: dict[str, Attempt] = field(default_factory=dict)
    _over: dict[str, int] = field(default_factory=dict)
    """Per stream: attempts up to this number are over for this peer."""
    _early: list[FromPeer] = field(default_factory=list)

    def of(self, sync: SyncId) -> Attempt | None:
        """The running attempt, if it is this very one and has not failed: then nothing more is sent for it."""
        attempt = self.running.get(sync.stream)
        return attempt if attempt is not None and attempt.sync == sync and attempt.failed is None else None

    def accepts(self, sync: SyncId) -> bool:
        """Whether parts and sums of it are of use, now or soon."""
        attempt = self.of(sync)
        return attempt.done is None if attempt is not None else self._is_early(sync)

    def is_new(self, start: Start) -> bool:
        """Whether a START is for the sync that comes next, and for a later attempt than any seen here."""
        return self._is_next(start.sync) and start.sync.attempt > self.latest(start.sync.stream)

    def _is_next(self, sync: SyncId) -> bool:
        last = self.indices.get(sync.stream)
        return last is not None and (last + 1 == sync.index or (sync.stream in self.gossip and sync.index > last))

    def latest(self, stream: str) -> int:
        """The latest attempt of the stream that was seen here; 0 if none."""
        running = self.running.get(stream)
        return max(self._over.get(stream, 0), running.sync.attempt if running is not None else 0)

    def begin(self, start: Start, now: float) -> list[Effect]:
        """Begin an attempt in place of an older one of the stream. What has overtaken its START is taken in."""
        plan = Plan(start.contributors, start.weights, start.receivers, start.shards)
        core = collective(start.topology, self.me, plan)
        attempt = self.running[start.sync.stream] = Attempt(start, core, now)
        about = {"sync": str(start.sync), "topology": start.topology, "contributors": len(start.contributors)}
        effects: list[Effect] = [Note("start", {**about, "codec": start.codec} if start.codec else about)]
        effects += [UseCodec(start.sync.stream, start.codec)] if start.codec else []
        effects += self._move(attempt, co.Begin(), now)
        early, self._early = self._early, []
        for event in early:
            effects += self.came(event, now)
        return effects

    def abort(self, sync: SyncId) -> list[Effect]:
        """The attempt, and every older one of its stream, is over."""
        self._end(sync.stream, sync.attempt)
        attempt = self.running.get(sync.stream)
        if attempt is None or attempt.sync.attempt > sync.attempt:
            return []
        del self.running[sync.stream]
        return [Note("abort", {"sync": str(attempt.sync)})]

    def close(self, stream: str) -> None:
        """The stream's sync is committed."""
        attempt = self.running.pop(stream, None)
        if attempt is not None:
            self._end(stream, attempt.sync.attempt)

    def give_up(self) -> None:
        """Leave all attempts: the state at hand, or what is staged, is not what they were begun with."""
        for stream in list(self.running):
            self.close(stream)
        self._early = []

    def _end(self, stream: str, attempt: int) -> None:
        self._over[stream] = max(self._over.get(stream, 0), attempt)

    def update_of(self, record: CommitRecord) -> tuple[Payload, ...] | None:
        """The committed update, if an attempt has brought these very bytes here."""
        attempt = self.running.get(record.sync.stream)
        if attempt is None or attempt.done is None or attempt.sync.index != record.sync.index:
            return None
        return attempt.done.payloads if attempt.done.digest == record.digest else None

    # ---- what comes

    def came(self, event: FromPeer, now: float) -> list[Effect]:
        """A Part or Result of one chunk with its bytes, or a WantParts."""
        match event.record:
            case Part(sync, (chunk,), codec):
                if (running := self.of(sync)) is not None and codec != (agreed := running.start.codec):
                    return self.flawed(Flawed(event.source, sync, f"Part: in {codec!r} where {agreed!r} was agreed on"))
                moved: co.Event = co.PartCame(event.source, chunk, event.payload)
            case Result(sync, (chunk,)):
                moved = co.ResultCame(event.source, chunk, event.payload, event.digest)
            case WantParts(sync, parts, results):
                attempt = self.of(sync)
                return [] if attempt is None else self._move(attempt, co.Asked(event.source, parts, results), now)
            case _:
                return []
        attempt = self.of(sync)
        if attempt is not None:
            return self._move(attempt, moved, now)
        if self._is_early(sync):
            self._early.append(event)
        return []

    def _is_early(self, sync: SyncId) -> bool:
        if len(self._early) >= MAX_EARLY or not self._is_next(sync):
            return False
        running = self.running.get(sync.stream)
        return sync.attempt > max(self._over.get(sync.stream, 0), running.sync.attempt if running is not None else 0)

    def reduced(self, event: Reduced, now: float) -> list[Effect]:
        """The shell has summed a chunk."""
        attempt = self.of(event.sync)
        if attempt is None:
            return []
        return self._move(attempt, co.ChunkReduced(event.chunk, event.payload, event.digest), now)

    def reduce_failed(self, event: ReduceFailed) -> list[Effect]:
        """The shell cannot encode a chunk; the next report says so, and the coordinator aborts."""
        attempt = self.of(event.sync)
        if attempt is None:
            return []
        attempt.failed, attempt.why = event.blamed, event.reason[:MAX_WHY_CHARS]
        return [Note("reduce-failed", {"sync": str(event.sync), "reason": event.reason})]

    def flawed(self, event: Flawed) -> list[Effect]:
        """A contributor has sent what cannot be used: it will not get better by asking again."""
        attempt = self.of(event.sync)
        if attempt is not None and attempt.done is None and event.source in attempt.start.contributors:
            attempt.failed, attempt.why = (event.source,), event.reason[:MAX_WHY_CHARS]
        return []

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        return [effect for a in self.running.values() if a.failed is None for effect in self._move(a, co.Tick(), now)]

    def _move(self, attempt: Attempt, event: co.Event, now: float) -> list[Effect]:
        sync = attempt.sync
        effects: list[Effect] = []
        for effect in attempt.core.handle(event, now):
            match effect:
                case co.SendPart(to, chunk):
                    effects.append(SendContribution(to, sync, chunk))
                case co.ForwardPart(to, chunk, payload):
                    effects.append(SendPayload(to, Part(sync, (chunk,), attempt.start.codec), payload))
                case co.SendResult(to, chunk, payload):
                    effects.append(SendPayload(to, Result(sync, (chunk,)), payload))
                case co.Reduce(chunk, inputs, divisor, final):
                    effects.append(ReduceChunk(sync, chunk, inputs, divisor, final))
                case co.Ask(to, parts, results):
                    effects.append(Tell(to, WantParts(sync, parts, results)))
                case co.Complete():
                    attempt.done = effect
        return effects
