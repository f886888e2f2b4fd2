"""What a peer has to send in bulk, by receiver; bytes are made when the connection can take them, in long messages."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from wantrain.errors import CodecError
from wantrain.peers.effects import SendContribution, SendPayload, SendState
from wantrain.peers.events import ReduceFailed
from wantrain.peers.messages import Owed, Part, Record, Result, StateChunk, SyncId, UpdateChunk
from wantrain.peers.participant import Participant
from wantrain.transport.collective import Payload
from wantrain.transport.link import Done
from wantrain.transport.wire import MAX_BUFFERS

MAX_SERVED = 256
"""Chunks of state and updates that wait for one slow connection; a peer that needs more of them asks again."""

REPEAT_AFTER_S = 2.0
"""A chunk that was asked for again is not sent again before: TCP loses nothing while it lives, it may just be slow."""

Item: TypeAlias = SendContribution | SendPayload | SendState


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
        self._made: dict[str, _Message] = {}
        self.moved = False
        """Whether the last `pump` has sent something, so that the next one may, too."""
        self._failures: list[ReduceFailed] = []
        self._added: dict[tuple[str, type, SyncId, int], float] = {}
        """When each chunk of the attempts that run was queued or left, whichever is later."""

    @property
    def backlog(self) -> int:
        """Chunks and messages that wait for a connection."""
        return sum(map(len, self._queues.values())) + len(self._made)

    def waits(self, to: str) -> bool:
        """Whether anything waits for this receiver."""
        return bool(self._queues.get(to)) or to in self._made

    def add(self, item: Item, now: float) -> None:
        """Queue a chunk, unless the very same waits or has just left."""
        key = _key(item)
        if key is not None:
            if now - self._added.get(key, -REPEAT_AFTER_S) < REPEAT_AFTER_S:
                return
            self._added[key] = now
        queue = self._queues.setdefault(item.to, deque())
        served = isinstance(item, SendState) or (isinstance(item, SendPayload) and isinstance(item.record, UpdateChunk))
        if not served or len(queue) < MAX_SERVED:
            queue.append(item)

    def drop(self, to: str) -> None:
        """Forget what is queued for a receiver, and what was sent to it."""
        self._queues.pop(to, None)
        self._discard(to)
        self.lost(to)

    def lost(self, to: str) -> None:
        """What was sent to a receiver may not have come: it can be asked for again at once."""
        self._added = {key: at for key, at in self._added.items() if key[0] != to}

    def tidy(self) -> None:
        """Forget when chunks of attempts left that are over."""
        self._added = {key: at for key, at in self._added.items() if self._core.moving(key[2])}

    def pump(self, source: Source, now: float) -> list[ReduceFailed]:
        """Send at most one message to each receiver whose connection can take it.

        Not more at a time: what comes in meanwhile is worked on between two messages, so that sums leave early.

        Returns:
            Contributions that do not encode.
        """
        sent = [self._send_next(to, source, now) for to in self._queues if self.waits(to)]
        self.moved = any(sent)
        if len(self._queues) > 1:  # another receiver is the first next time
            first = next(iter(self._queues))
            self._queues[first] = self._queues.pop(first)
        failures, self._failures = self._failures, []
        return failures

    def _send_next(self, to: str, source: Source, now: float) -> bool:
        """Whether a message was sent, so that there may be more to send."""
        made = self._made.get(to)
        if made is not None and not self._of_use(made.record):
            self._discard(to)
            made = None
        made = made or self._make(to, source)
        if made is None:
            return False
        if self._way.send_bulk(to, made.record, made.payloads, made.done):
            self._made.pop(to, None)
            if isinstance(made.record, Part | Result):
                for chunk in made.record.chunks:
                    self._added[to, type(made.record), made.record.sync, chunk] = now
            return True
        self._made[to] = made
        return False

    def _discard(self, to: str) -> None:
        made = self._made.pop(to, None)
        if made is not None and made.done is not None:
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
                case SendPayload(_, record, payload):
                    return _Message(record, (payload,), None)
                case SendState(_, chunk):
                    if self._core.complete:
                        state = source.read_state(chunk)
                        stamp = StateChunk(chunk, self._core.applied, self._core.chain)
                        return _Message(stamp, (state,), _releases(source, [state]))
        return None

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
        return _Message(kind(sync, tuple(chunks)), tuple(payloads), _releases(source, own) if own else None)


def _key(item: Item) -> tuple[str, type, SyncId, int] | None:
    """What identifies a chunk of an attempt that is sent to somebody."""
    match item:
        case SendContribution(to, sync, chunk):
            return to, Part, sync, chunk
        case SendPayload(to, Part(sync, (chunk,)) | Result(sync, (chunk,)) as record, _):
            return to, type(record), sync, chunk
        case _:
            return None


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
