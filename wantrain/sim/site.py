"""One site of a simulated run: the peer as its daemon runs it, on links in memory and a virtual clock."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from wantrain import __version__
from wantrain.config import RunSpec
from wantrain.errors import CheckpointError, RefusedError
from wantrain.optimizers.stream import lead
from wantrain.peers.effects import BeginSave
from wantrain.peers.engine import Engine
from wantrain.peers.events import Progress
from wantrain.peers.inheritance import Held
from wantrain.peers.messages import (
    COORDINATOR,
    Describe,
    Granted,
    Hello,
    LinkReport,
    Manifest,
    Part,
    Record,
    Refused,
    Result,
    pack,
    unpack,
)
from wantrain.peers.participant import Participant, PeerFacts
from wantrain.peers.peer import Peer
from wantrain.peers.saved_state import SavedState
from wantrain.peers.saver import Writing
from wantrain.peers.shared_memory import LOCAL_RUN
from wantrain.sim.churn import Kill
from wantrain.sim.timeline import Timeline
from wantrain.trainer_shell import DAEMON
from wantrain.transport.codec import CODECS
from wantrain.transport.collective import Payload
from wantrain.transport.link import Connected, Disconnected, Done, Received
from wantrain.transport.memory_link import MemoryHub, MemoryLink
from wantrain.transport.wire import PROTOCOL_VERSION, size_bytes

TICK_S = 0.5
"""Half a heartbeat. All that a sync needs happens at once; a tick only notices what does not happen."""
AGAIN_S = 0.001
"""Pause while a connection is full."""
MEMORY = "memory:0"
"""The address of everybody."""
HIGH_WATER = 1 << 20


@dataclass(frozen=True, slots=True)
class Kept:
    """What a site has kept of the run's state: its place in the history, and phi and outer state by stream."""

    state: SavedState
    tensors: Mapping[str, Mapping[str, Tensor]]


@dataclass(slots=True)
class Sent:
    """Bytes that a peer has sent to other peers, tensor values only."""

    sync_bytes: int = 0
    """Contributions and means, as their codecs write them."""
    served_bytes: int = 0
    """The state, updates and what a peer owes, for others that join or take over."""


@dataclass(slots=True)
class Site:
    """A peer without its processes; the `Surroundings` of its shell.

    Args:
        name: of the peer.
        timeline: virtual time.
        hub: where all peers and the coordinator are linked.
        spec: the run's.
        folder: for the memory shared with the trainer.
        kept: what an earlier process of this peer has left.
        on_note: hears of everything that happens, after it has.
        on_failure: gets what must end the run.
    """

    name: str
    timeline: Timeline
    hub: MemoryHub
    spec: RunSpec
    folder: Path
    kept: Kept | None
    on_note: Callable[["Site", str, dict[str, Any]], None]
    on_failure: Callable[[BaseException], None]
    alive: bool = True
    left: bool = False
    """Whether it has taken its leave, or was told to."""
    doom: Kill | None = None
    """The sync during which it dies, when others wait for its bytes."""
    killed: Callable[[], None] = lambda: None
    """What happens then."""
    sent: Sent = field(default_factory=Sent)
    manifest: Manifest = ()
    engine: Engine | None = None
    peer: Peer = field(init=False)
    link: MemoryLink = field(init=False)
    local: MemoryHub = field(init=False)
    """Where the trainer is linked to it."""
    _trainer_link: MemoryLink = field(init=False)
    _connection: bytes = b""
    _to_trainer: deque[Record] = field(default_factory=deque)
    _segments: int = 0
    _work_at_s: set[float] = field(default_factory=set)
    """Times for which a look at the links is planned."""

    def start(self, trainer_told: Callable[[], object]) -> None:
        """Begin; `trainer_told` is called when something has come for the trainer."""
        spec = self.spec
        self.link = MemoryLink(self.hub, self.name, spec.run)
        self.local = MemoryHub(HIGH_WATER, told=lambda name, _: self.soon() if name == DAEMON else trainer_told())
        self._trainer_link = MemoryLink(self.local, DAEMON, LOCAL_RUN)
        boot = self.name.encode().rjust(8, b"-")[-8:]
        hello = Hello(PROTOCOL_VERSION, __version__, spec.digest, self.name, boot, MEMORY, tuple(sorted(CODECS)))
        facts = PeerFacts(
            me=self.name,
            run=spec.run,
            hello=hello,
            streams=spec.streams,
            heartbeat_s=spec.liveness.heartbeat_s,
            keep_bytes=spec.log.keep_mb * 2**20,
            keep_updates=spec.log.keep_updates,
            saved=() if self.kept is None else (self.kept.state,),
        )
        self.peer = Peer(Participant(facts), self, self)
        self.link.connect(COORDINATOR, MEMORY, b"")
        self.peer.trainer_starting(self.timeline.now())
        self._tick()

    def soon(self, delay_s: float = 0.0) -> None:
        """Something will have come in by then."""
        at_s = self.timeline.now() + delay_s
        if at_s not in self._work_at_s and self.alive:
            self._work_at_s.add(at_s)
            self.timeline.after(delay_s, self._work)

    def die(self) -> None:
        """Be gone, without a word."""
        self.alive = False
        self.link.close()
        self._trainer_link.close()

    def close(self) -> None:
        """Let go of the memory shared with the trainer."""
        if self.engine is not None:
            self.engine.close()

    # ---- what happens

    def _work(self) -> None:
        if not self.alive:
            return
        now, peer = self.timeline.now(), self.peer
        self._work_at_s = {at_s for at_s in self._work_at_s if at_s > now}
        for event in self.link.poll(0.0):
            match event:
                case Received(source, _, message):
                    peer.receive(source, unpack(message), message.buffers, now)
                case Connected(other):
                    peer.link_changed(other, True, "", now)
                case Disconnected(other, reason):
                    peer.link_changed(other, False, reason, now)
            if not self.alive:
                return
        for event in self._trainer_link.poll(0.0):
            if isinstance(event, Received):
                self._connection = event.connection
                peer.from_trainer(unpack(event.message), now)
        self._pump(now)

    def _pump(self, now: float) -> None:
        while self.alive and self.peer.pump(now):
            pass
        while self.alive and self.peer.core.held_back and self.peer.save_step(now):
            pass
        while self.alive and self.peer.common_step():
            pass
        if self.alive and self.peer.backlog:
            self.timeline.after(AGAIN_S, self._work)

    def _tick(self) -> None:
        if not self.alive:
            return
        now = self.timeline.now()
        self._work()
        self.peer.handle(self._progress(), now)
        self.peer.tick(now)
        while self.alive and self.peer.idle_work(now):
            pass
        if self.alive:
            self._pump(now)
            self.timeline.after(TICK_S, self._tick)

    def _progress(self) -> Progress:
        segment = self.engine.segment if self.engine is not None else None
        steps_left, step_s, own_steps = segment.progress() if segment is not None else (0, 0.0, 0)
        stats = dict(self.peer.values) | {"step": float(own_steps)}
        eta_s = steps_left * step_s if step_s > 0 else -1.0
        ways = self.link.ways()
        measured = {peer: known for peer, known in self.link.stats().items() if peer in self.peer.core.members}
        paths = {
            peer: LinkReport(known.rate_bytes_per_s, known.rtt_s, 0.0, 1, "", ways.get(peer, ""))
            for peer, known in measured.items()
            if known.rate_bytes_per_s
        }
        return Progress(eta_s, stats, paths, frozenset(ways), max(step_s, 0.0))

    @property
    def current(self) -> bool:
        """Whether the state at hand is one of the run's."""
        return self.engine is not None and self.peer.core.complete

    def settled(self, number: int) -> bool:
        """Whether it has applied the commit log up to this line, and nothing that its trainer gave is undecided."""
        return self.peer.core.applied >= number and not self.peer.core.in_flight

    def trainer_again(self) -> None:
        """The trainer has ended without a word, and is started again."""
        self.peer.trainer_gone(self.timeline.now())
        self.peer.trainer_starting(self.timeline.now())

    # ---- Surroundings

    def send(self, to: str, record: Record) -> bool:
        return self.link.send(to, pack(record))

    def send_bulk(self, to: str, record: Record, payloads: tuple[Payload, ...], done: Done | None = None) -> bool:
        syncs = isinstance(record, Part | Result)
        if isinstance(record, Part | Result) and self._dies_at(record):
            self.doom = None
            self.killed()
        if not self.link.send_bulk(to, pack(record, *payloads), done):
            return False
        count = sum(map(size_bytes, payloads))
        self.sent.sync_bytes += count if syncs else 0
        self.sent.served_bytes += 0 if syncs else count
        return True

    def _dies_at(self, record: Part | Result) -> bool:
        if self.doom is None or record.sync.index < self.doom.sync:
            return False
        first = lead(self.spec.streams)
        return record.sync.stream == (self.doom.stream or (first.name if first is not None else ""))

    def bulk_bytes(self, to: str) -> int:
        return self.link.bulk_bytes(to)

    def clears_s(self, to: str) -> float:
        return 0.0

    def under_way(self) -> bool:
        return any(known.in_flight_bytes for known in self.link.stats().values())

    def dial(self, peer: str, address: str, curve_key: bytes) -> None:
        self.link.connect(peer, address, curve_key)
        self.timeline.after(0.0, self._work)

    def hang_up(self, peer: str) -> None:
        self.link.disconnect(peer)

    def open_model(self, manifest: Manifest) -> Engine:
        self.close()
        self.manifest, self.engine = manifest, Engine(manifest, self.spec.streams)
        return self.engine

    def open_segment(self, tensors: Any) -> str:
        self._segments += 1
        path = self.folder / f"{self.name}-{self._segments}"
        tensors.open_segment(path)
        return str(path)

    def open_common(self, tensors: Any) -> tuple[str, dict[str, int]]:
        self._segments += 1
        path = self.folder / f"{self.name}-phi-{self._segments}"
        return str(path), tensors.open_common(path)

    def resume_segment(self, tensors: Any, path: str) -> Held | None:
        return None  # trainer and daemon live and die together here

    def tell_trainer(self, record: Record) -> None:
        if self._trainer_link.reply(self._connection, pack(record)):
            segment = self.engine.segment if self.engine is not None else None
            if isinstance(record, Granted) and segment is not None:
                segment.bump()

    def trainer_refused(self, refusal: Refused) -> None:
        pass  # the trainer raises it

    def note(self, event: str, details: dict[str, Any]) -> None:
        self.on_note(self, event, details)

    def exit(self, code: int, reason: str, hint: str) -> None:
        self.left = True
        if code:
            self.on_failure(RefusedError(f"{self.name}: {reason}", hint=hint))
        self.timeline.after(TICK_S, self.die)

    # ---- what it keeps (see `wantrain.peers.saver.Disk`)

    def begin(self, mark: BeginSave, model: Manifest, described: Describe | None) -> Writing:
        raise CheckpointError("a simulated run is saved at its end only")

    def load(self, number: int, tensors: Any) -> tuple[bytes, ...]:
        """Take over what was kept."""
        assert self.kept is not None
        for stream, slots in tensors.vectors().items():
            for slot, values in slots.items():
                values.copy_(self.kept.tensors[stream][slot])
        return tuple(tensors.digest_steps())

    def load_initial(self, tensors: Any, model: Manifest) -> bytes:
        raise CheckpointError("a simulated run begins with the weights of a worker")

    def keep(self, genesis: bytes) -> Kept | None:
        """The state at hand, to go on with in a later run; None if it is none."""
        engine, core = self.engine, self.peer.core
        if engine is None or not core.complete:
            return None
        # What a file would have beside it (sizes, digests, time) is of no use in memory, and is left out.
        state = SavedState.model_construct(
            number=core.applied, chain=core.chain, genesis=genesis, indices=core.indices, model=self.manifest
        )
        vectors = engine.vectors().items()
        return Kept(state, {stream: {slot: t.clone() for slot, t in slots.items()} for stream, slots in vectors})
