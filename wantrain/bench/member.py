"""One peer of a benchmark: engine, topology core, outbox and link of a real peer, without a run around them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from wantrain.bench import inputs
from wantrain.errors import ProtocolBug, WantrainError
from wantrain.optimizers.stream import Stream
from wantrain.peers.effects import SendContribution, SendPayload
from wantrain.peers.engine import Engine
from wantrain.peers.messages import Part, Record, Result, SyncId, TensorSpec, WantParts, pack, unpack
from wantrain.peers.outbox import Outbox
from wantrain.transport.collective import (
    Ask,
    Asked,
    Begin,
    ChunkReduced,
    Collective,
    Complete,
    Effect,
    Event,
    ForwardPart,
    PartCame,
    Payload,
    Plan,
    Reduce,
    ResultCame,
    SendPart,
    SendResult,
    Tick,
)
from wantrain.transport.link import Done, Link, LinkEvent, Received
from wantrain.transport.topologies import collective

STREAM = "bench"
TICK_S = 0.1
BACKLOG_WAIT_S = 0.002
"""As the daemon has it: how long a poll lasts while something waits for room on a connection."""


@dataclass(slots=True)
class Spent:
    """Processor seconds of this thread by what it did; `loop` is the whole of its work.

    The clock of a thread takes microseconds to read, so it is read only where that is asked for.
    """

    wanted: bool = False
    by_name: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        if not self.wanted:
            yield
            return
        began = time.thread_time()
        try:
            yield
        finally:
            self.by_name[name] = self.by_name.get(name, 0.0) + time.thread_time() - began


class Member:
    """A peer named `me` among those of `plan`; nothing moves outside `begin` and `step`.

    Args:
        me: its name, one of the plan's contributors.
        plan: of every all-reduce.
        topology: direct, ring or pair.
        stream: codecs of both ways; its merge rule is `mean`, its name STREAM.
        elements: length of the vector.
        link: to all others under their names.
        segment: path for the memory that a trainer would share with this peer.

    Raises:
        ConfigError: an unknown codec or topology.
        WantrainError: not enough shared memory.
    """

    def __init__(
        self, me: str, plan: Plan, topology: str, stream: Stream, elements: int, link: Link, segment: Path
    ) -> None:
        self.me = me
        self.plan = plan
        self.link = link
        self.spent = Spent()
        self.engine = Engine((TensorSpec("vector", (elements,), "float32"),), (stream,))
        self.shared = self.engine.open_segment(segment)
        self.first_byte_at: float | None = None
        """When the first tensor bytes of this all-reduce came, on the monotonic clock."""
        self.digest = b""
        """Of the outcome, once it is applied."""
        self._topology = topology
        self._core: Collective | None = None
        self._sync = SyncId(STREAM, 0, 0)
        self._early: list[Received] = []
        self._begun = False
        self._ticked_at = 0.0
        core = SimpleNamespace(
            moving=lambda sync: sync == self._sync,
            codec=lambda _: "",
            complete=False,
            facts=SimpleNamespace(me=me),
            members={},
        )
        self._outbox = Outbox(cast(Any, core), self)

    def close(self) -> None:
        """Remove the shared memory; the link is its maker's."""
        self.engine.close()

    # ---- one all-reduce

    def prepare(self, number: int, peer: int, *, watch: bool = False) -> None:
        """Stage the vector of `peer` for all-reduce `number`, and forget the one before; `watch` fills `spent`.

        Raises:
            ProtocolBug: a number that is not above the last one.
        """
        if number <= self._sync.index:
            raise ProtocolBug(f"all-reduce {number} after {self._sync.index}")
        self.shared.given(STREAM).zero_()
        self.engine.phi(STREAM).zero_()
        # A peer contributes phi - theta, so this trainer's weights are the vector with the other sign.
        inputs.fill(self.shared.out(STREAM), peer, -1.0)
        self.engine.stage(STREAM)
        self.engine.use_stage(STREAM)
        self.spent = Spent(watch)
        self.first_byte_at, self.digest, self._begun = None, b"", False
        self._core = collective(self._topology, self.me, self.plan)
        self._sync = SyncId(STREAM, number, 1)
        # A peer that was told to start sooner may have sent something for this one already.
        self._early = [event for event in self._early if self._sync_of(event) == self._sync]

    def begin(self) -> None:
        """Start; what others have sent already is taken in."""
        self._begun = True
        with self.spent.on("loop"):
            self._feed(Begin())
            early, self._early = self._early, []
            for event in early:
                self._take(event)
            self._pump()

    def step(self, timeout_s: float) -> None:
        """Take in what has come, waiting up to timeout_s seconds for something, and send what there is room for.

        Raises:
            WantrainError: bytes were refused, or do not encode: nothing of that may happen here.
        """
        with self.spent.on("poll"):
            if self._outbox.moved:
                timeout_s = 0.0
            elif self._outbox.backlog:
                timeout_s = min(timeout_s, BACKLOG_WAIT_S)
            events = self.link.poll(timeout_s)
        with self.spent.on("loop"):
            for event in events:
                self._take(event)
                self._pump()
            now = time.monotonic()
            if self._begun and now - self._ticked_at >= TICK_S:
                self._ticked_at = now
                self._outbox.tidy(time.monotonic())
                self._feed(Tick())
            self._pump()

    @property
    def idle(self) -> bool:
        """Whether nothing is left to send."""
        return not self._outbox.backlog

    def settle(self) -> None:
        """The outcome is committed: what was left over by the codec waits for the next one."""
        self.engine.settle(STREAM, True)

    @property
    def result(self) -> Any:
        """fp32[elements]: the mean as every peer has it, times -1 (phi was 0, and mean subtracts)."""
        return self.engine.phi(STREAM)

    # ---- what comes in

    @staticmethod
    def _sync_of(event: Received) -> SyncId | None:
        record = unpack(event.message)
        return record.sync if isinstance(record, (Part, Result, WantParts)) else None

    def _take(self, event: LinkEvent) -> None:
        if not isinstance(event, Received):
            return
        record = unpack(event.message)
        if not isinstance(record, (Part, Result, WantParts)):
            return
        if record.sync != self._sync or not self._begun:
            if record.sync.index >= self._sync.index:
                self._early.append(event)
            return
        if isinstance(record, WantParts):
            self._feed(Asked(event.source, record.parts, record.results))
            return
        if self.first_byte_at is None:
            self.first_byte_at = time.monotonic()
        for chunk, payload in zip(record.chunks, event.message.buffers, strict=True):
            self._take_chunk(event.source, record, chunk, payload)

    def _take_chunk(self, source: str, record: Part | Result, chunk: int, payload: Payload) -> None:
        part = isinstance(record, Part)
        with self.spent.on("check"):
            flaw = self.engine.check(STREAM, chunk, payload, part=part)
        if flaw is not None:
            raise WantrainError(f"{source} sent chunk {chunk} of {self._sync}, refused: {flaw}")
        self._feed(
            PartCame(source, chunk, payload) if part else ResultCame(source, chunk, payload, self._digest(payload))
        )

    def _digest(self, payload: Payload) -> bytes:
        with self.spent.on("digest"):
            return self.engine.digest(payload)

    # ---- what is to be done

    def _feed(self, event: Event) -> None:
        assert self._core is not None
        events = [event]
        while events:
            for effect in self._core.handle(events.pop(0), time.monotonic()):
                events += self._perform(effect)

    def _perform(self, effect: Effect) -> list[Event]:
        match effect:
            case SendPart(to, chunk):
                self._outbox.add(SendContribution(to, self._sync, chunk), time.monotonic())
            case ForwardPart(to, chunk, payload):
                self._outbox.add(SendPayload(to, Part(self._sync, (chunk,)), payload), time.monotonic())
            case SendResult(to, chunk, payload):
                self._outbox.add(SendPayload(to, Result(self._sync, (chunk,)), payload), time.monotonic())
            case Reduce(chunk, terms, divisor, final):
                with self.spent.on("reduce"):
                    payload = self.engine.reduce(STREAM, chunk, terms, divisor, final)
                return [ChunkReduced(chunk, payload, self._digest(payload) if final else b"")]
            case Ask(to, parts, results):
                self.link.send(to, pack(WantParts(self._sync, parts, results)))
            case Complete(payloads, digest):
                with self.spent.on("apply"):
                    self.engine.apply(STREAM, payloads)
                self.digest = digest
        return []

    def _pump(self) -> None:
        if failures := self._outbox.pump(self, time.monotonic()):
            raise WantrainError(f"a contribution does not encode: {failures[0].reason}")

    # ---- the outbox's source of bytes, and its way out

    def part(self, stream: str, chunk: int) -> Payload:
        with self.spent.on("encode"):
            return self.engine.part(stream, chunk)

    def read_state(self, k: int) -> Payload:
        return self.engine.read_state(k)

    def release(self, payload: Payload) -> None:
        self.engine.release(payload)

    def size_bytes(self, payload: Payload) -> int:
        return self.engine.size_bytes(payload)

    def send_bulk(self, to: str, record: Record, payloads: tuple[Payload, ...], done: Done | None = None) -> bool:
        with self.spent.on("send"):
            return self.link.send_bulk(to, pack(record, *payloads), done)

    def clears_s(self, to: str) -> float:
        return 0.0

    def bulk_bytes(self, to: str) -> int:
        return self.link.bulk_bytes(to)
