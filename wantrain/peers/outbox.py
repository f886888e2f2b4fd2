"""What a peer has to send in bulk, by receiver; bytes are made when the connection can take them, in long messages.

What a sync waits for goes before what is served to those who catch up.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from wantrain.errors import CodecError, ProtocolBug
from wantrain.peers.effects import SendContribution, SendPayload, SendState
from wantrain.peers.events import ReduceFailed
from wantrain.peers.messages import Owed, Part, Record, Result, StateChunk, SyncId, UpdateChunk
from wantrain.peers.participant import Participant
from wantrain.transport.collective import Payload
from wantrain.transport.link import Done
from wantrain.transport.wire import MAX_BUFFERS

MAX_SERVED = 256
"""Chunks of state and updates that wait for one slow connection; a peer that needs more of them asks again."""

SERVED_EVERY_S = 1.0
"""While a sync is sent, at most one message with state or updates leaves in this time: enough to be let in by."""
REPEAT_AFTER_S = 2.0
"""A chunk that was asked for again is not sent before, and not while it may still be on its way: TCP loses nothing
while it lives, it may just be slow."""
REPEAT_CEILING_S = 60.0
OUTSIDE_S = 10.0
"""How long somebody who is not in the view is served."""

Item: TypeAlias = SendContribution | SendPayload | SendState
_Key: TypeAlias = tuple[str, type, SyncId | int, int]
"""A chunk that is sent to somebody: receiver, kind of record, sync or log number (0 for the state), chunk."""


class Source(Protocol):
    """Where the bytes come from; see `wantrain.peers.engine.Engine`."""

    def part(self, stream: str, chunk: int) -> Payload: ...
    def read_state(self, k: int) -> Payload: ...
    def release(self, payload: Payload) -> None: ...
    def size_bytes(self, payload: Payload) -> int: ...


class Way(Protocol):
    """Where they go; see `wantrain.peers.peer.Surroundings`."""

    def send_bulk(self, to: str, record: Record, payloads: tuple[Payload, ...], done: Done | None = None) -> bool: ...
    def bulk_bytes(self, to: str) -> int: ...
    def clears_s(self, to: str) -> float: ...


@dataclass(slots=True)
class _Message:
    """A message that is made and not sent yet."""

    record: Part | Result | StateChunk | UpdateChunk | Owed
    payloads: tuple[Payload, ...]
    done: Done | None


class Outbox:
    """Queues of chunks to send, one for each receiver.

    Args:
        core: says what is of no use any more.
        way: the link.
    """

    def __init__(self, core: Participant, way: Way) -> None:
        self._core = core
        self._way = way
        self._queues: dict[str, deque[Item]] = {}
        """What syncs, and peers that leave, have to send, by receiver."""
        self._served: dict[str, deque[Item]] = {}
        """State and updates for those who catch up."""
        self._made: dict[tuple[str, bool], _Message] = {}
        """By receiver, and whether it is served."""
        self._served_at = 0.0
        self._outside: dict[str, float] = {}
        """Since when somebody is served who is not in the view."""
        """When something was served last, or a sync began to be sent."""
        self._syncing = False
        self.moved = False
        """Whether the last `pump` has sent something, so that the next one may, too."""
        self._failures: list[ReduceFailed] = []
        self._added: dict[_Key, float] = {}
        """When each chunk was queued or left, whichever is later."""
        self._queued: set[_Key] = set()

    @property
    def backlog(self) -> int:
        """Chunks and messages that wait for a connection."""
        return sum(len(queue) for queues in (self._queues, self._served) for queue in queues.values()) + len(self._made)

    def add(self, item: Item, now: float) -> None:
        """Queue a chunk, unless the very same waits or has just left."""
        key = _key(item)
        served = isinstance(item, SendState) or (isinstance(item, SendPayload) and isinstance(item.record, UpdateChunk))
        if key is not None:
            added_at = self._added.get(key)
            if key in self._queued or (
                added_at is not None and now - added_at < self._repeat_s(item.to, served=served)
            ):
                return
        queue = (self._served if served else self._queues).setdefault(item.to, deque())
        if served and len(queue) >= MAX_SERVED:
            return
        queue.append(item)
        if key is not None:
            self._added[key] = now
            self._queued.add(key)

    def _repeat_s(self, to: str, *, served: bool) -> float:
        # Who is served may want a chunk of the state anew, in vain the one that it has.
        return min((0.0 if served else REPEAT_AFTER_S) + 2 * self._way.clears_s(to), REPEAT_CEILING_S)

    def drop(self, to: str) -> None:
        """Forget what is queued for a receiver, and what was sent to it."""
        self._queues.pop(to, None)
        self._served.pop(to, None)
        self._queued = {key for key in self._queued if key[0] != to}
        self._discard(to, served=False)
        self._discard(to, served=True)
        self.lost(to)

    def lost(self, to: str) -> None:
        """What was sent to a receiver may not have come: it can be asked for again at once."""
        self._added = {key: at for key, at in self._added.items() if key[0] != to}

    def tidy(self, now: float) -> None:
        """Forget when chunks of attempts left that are over, and chunks that were served long ago."""
        # Who asks may have seen a newer view. But if none comes with it, nothing else would ever take this back.
        outside = self._served.keys() - self._core.members.keys()
        self._outside = {to: self._outside.get(to, now) for to in outside}
        for to in [to for to, since in self._outside.items() if now - since >= OUTSIDE_S]:
            self.drop(to)
        if not self._added and not self._queued:
            return
        over = {
            sync for sync in {key[2] for key in self._added} if isinstance(sync, SyncId) and not self._core.moving(sync)
        }
        self._added = {
            key: at
            for key, at in self._added.items()
            if (key[2] not in over if isinstance(key[2], SyncId) else now - at < REPEAT_CEILING_S)
        }
        self._queued = {key for key in self._queued if key[2] not in over}

    def pump(self, source: Source, now: float) -> list[ReduceFailed]:
        """Send at most one message to each receiver whose connection can take it.

        Not more at a time: what comes in meanwhile is worked on between two messages, so that sums leave early.

        Returns:
            Contributions that do not encode.
        """
        if not self._made and not any(self._queues.values()) and not any(self._served.values()):
            self._syncing = self.moved = False
            return []
        self.moved = self._pump(self._queues, source, now)
        if not any(self._queues.values()) and all(served for _, served in self._made):
            self._syncing = False
            self.moved |= self._pump(self._served, source, now)
        else:
            if not self._syncing:
                self._syncing, self._served_at = True, now
            if now - self._served_at >= SERVED_EVERY_S and self._pump(self._served, source, now, most=1):
                self._served_at, self.moved = now, True
        failures, self._failures = self._failures, []
        return failures

    def _pump(self, queues: dict[str, deque[Item]], source: Source, now: float, *, most: int | None = None) -> bool:
        """Send a message to each receiver, to `most` of them; whether any was sent, so that there may be more."""
        count, served = 0, queues is self._served
        for to in list(queues):
            if (queues[to] or (to, served) in self._made) and count != most:
                count += self._send_next(to, source, now, served=served)
        if len(queues) > 1:  # another receiver is the first next time
            first = next(iter(queues))
            queues[first] = queues.pop(first)
        return count > 0

    def _send_next(self, to: str, source: Source, now: float, *, served: bool) -> bool:
        made = self._made.get((to, served))
        if made is not None and not self._of_use(made.record):
            self._discard(to, served=served)
            made = None
        made = made or (self._serve(to, source) if served else self._make(to, source))
        if made is None:
            return False
        self._made[to, served] = made
        if not self._way.send_bulk(to, made.record, made.payloads, made.done):
            return False
        del self._made[to, served]
        for key in _keys(to, made.record):
            self._added[key] = now
            self._queued.discard(key)
        return True

    def _discard(self, to: str, *, served: bool) -> None:
        made = self._made.pop((to, served), None)
        if made is None:
            return
        self._queued.difference_update(_keys(to, made.record))
        if made.done is not None:
            made.done()

    def _of_use(self, record: object) -> bool:
        match record:
            case Part(sync, _) | Result(sync, _):
                return self._core.moving(sync)
            case StateChunk():
                return self._core.complete
            case _:
                return True

    # ---- making messages

    def _make(self, to: str, source: Source) -> _Message | None:
        queue = self._queues[to]
        while queue:
            item = queue.popleft()
            match item:
                case SendContribution(_, sync, _) | SendPayload(_, Part(sync) | Result(sync), _):
                    if self._core.moving(sync) and (message := self._of_chunks(to, item, sync, source)) is not None:
                        return message
                    self._forget(item)
                case SendPayload(_, record, payload):
                    return _Message(record, (payload,), None)
                case _:
                    raise ProtocolBug(f"{item} in the queue of syncs")
        return None

    def _serve(self, to: str, source: Source) -> _Message | None:
        queue = self._served[to]
        while queue:
            item = queue.popleft()
            match item:
                case SendState(_, chunk) if self._core.complete:
                    state = source.read_state(chunk)
                    stamp = StateChunk(chunk, self._core.applied, self._core.chain)
                    return _Message(stamp, (state,), _releases(source, [state]))
                case SendPayload(_, record, payload):
                    return _Message(record, (payload,), None)
                case _:
                    self._forget(item)
        return None

    def _forget(self, item: Item) -> None:
        key = _key(item)
        if key is not None:
            self._queued.discard(key)

    def _of_chunks(self, to: str, first: Item, sync: SyncId, source: Source) -> _Message | None:
        """As many chunks of the same kind as are queued one after another and fit; None if they do not encode."""
        queue, limit_bytes = self._queues[to], self._way.bulk_bytes(to)
        item: Item | None = first
        kind: type[Part] | type[Result] | None = None
        chunks: list[int] = []
        payloads: list[Payload] = []
        own: list[Payload] = []
        size_bytes = 0
        while item is not None:
            match item:
                case SendContribution(_, _, chunk):
                    try:
                        payload = source.part(sync.stream, chunk)
                    except CodecError as error:
                        self._failures.append(ReduceFailed(sync, error.message, (self._core.facts.me,)))
                        break
                    own.append(payload)
                    kind = Part
                case SendPayload(_, Part(_, (chunk,)) | Result(_, (chunk,)) as record, payload):
                    kind = type(record)
                case _:
                    break
            chunks.append(chunk)
            payloads.append(payload)
            size_bytes += source.size_bytes(payload)
            following = queue[0] if queue else None
            fits = len(chunks) < MAX_BUFFERS and size_bytes * (len(chunks) + 1) / len(chunks) <= limit_bytes
            item = queue.popleft() if following is not None and fits and _kind(following) == (kind, sync) else None
        if kind is None or not chunks:
            return None
        made = Result(sync, tuple(chunks)) if kind is Result else Part(sync, tuple(chunks), self._core.codec(sync))
        return _Message(made, tuple(payloads), _releases(source, own) if own else None)


def _key(item: Item) -> _Key | None:
    """What identifies a chunk that is sent to somebody; None for what may be sent any number of times."""
    match item:
        case SendContribution(to, sync, chunk):
            return to, Part, sync, chunk
        case SendPayload(to, Part(sync, (chunk,)) | Result(sync, (chunk,)) as record, _):
            return to, type(record), sync, chunk
        case SendPayload(to, UpdateChunk(number, chunk), _):
            return to, UpdateChunk, number, chunk
        case SendState(to, chunk):
            return to, StateChunk, 0, chunk
        case _:
            return None


def _keys(to: str, record: Record) -> list[_Key]:
    """Of all chunks in a message."""
    match record:
        case Part(sync, chunks) | Result(sync, chunks):
            return [(to, type(record), sync, chunk) for chunk in chunks]
        case UpdateChunk(number, chunk):
            return [(to, UpdateChunk, number, chunk)]
        case StateChunk(chunk):
            return [(to, StateChunk, 0, chunk)]
        case _:
            return []


def _kind(item: Item) -> tuple[type, SyncId] | None:
    """What message a chunk can travel in."""
    match item:
        case SendContribution(_, sync, _):
            return Part, sync
        case SendPayload(_, Part(sync) | Result(sync) as record, _):
            return type(record), sync
        case _:
            return None


def _releases(source: Source, payloads: list[Payload]) -> Callable[[], None]:
    def done() -> None:
        for payload in payloads:
            source.release(payload)

    return done
