"""A whole run in one process on virtual time: coordinator, peers and trainers, with the real cores and the real shell.

What is simulated is only what surrounds them: network, disks, processes that crash, and the trainers' arithmetic.
"""

import hashlib
import math
import random
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.sim.checkers import Checkers
from tests.sim.coverage import Reached
from tests.sim.data import DataChecker, SimReader
from tests.sim.disk import SimDisk
from tests.sim.network import Clocks, Network, Trace, Weather
from tests.sim.symbols import PartOf, Regions, SumOf, SymbolicTensors, Violation, Weights
from wantrain.optimizers.stream import Stream
from wantrain.peers import coordinator as co
from wantrain.peers.codec_choice import codecs_of
from wantrain.peers.coordinator import Coordinator, History, RunFacts
from wantrain.peers.departure import HEIR_PATIENCE_S, LEAVE_PATIENCE_S, RETURN_PATIENCE_S
from wantrain.peers.effects import Apply, Effect
from wantrain.peers.events import Event, Progress
from wantrain.peers.inheritance import Held
from wantrain.peers.memory_store import MemoryStore
from wantrain.peers.messages import (
    Attach,
    Attached,
    Common,
    Contribute,
    Detach,
    GenesisWritten,
    Granted,
    Hello,
    Leased,
    LinkReport,
    Manifest,
    MayLeave,
    Part,
    Record,
    Refused,
    Result,
    Start,
    StateChunk,
    TensorSpec,
    UpdateChunk,
    Waiting,
    WantCommon,
)
from wantrain.peers.participant import COORDINATOR, Participant, PeerFacts
from wantrain.peers.peer import Peer
from wantrain.peers.timing import Policy
from wantrain.peers.trainer import (
    Adopt,
    AfterStep,
    BeforeStep,
    Stage,
    TrainerCore,
    TrainerEffect,
    Wait,
    WaitedLongEnough,
)
from wantrain.transport.codec.names import AUTO_CODECS
from wantrain.transport.link import Done
from wantrain.transport.wire import PROTOCOL_VERSION

RUN = b"sim-run!"
TICK_S = 0.5
SAYS_WHY_AFTER_S = 3.0
SILENT_TICKS = 8
DEAF_TICKS = 10
"""A connection that nothing passes, be it one way, counts as broken after so many ticks."""
LOOK_TICKS = 4
"""After so many ticks a trainer asks for the common weights, and a chunk of them is copied."""
DRY_S = 0.1
"""How often a trainer looks for samples when it has none."""
MANIFEST: Manifest = (TensorSpec("weight", (16384, 2), "float32"), TensorSpec("bias", (100,), "float32"))
"""Three chunks."""
POLICY = Policy(
    quorum=0.5,
    grace_floor_s=0.5,
    grace_ceiling_s=3.0,
    deadline_floor_s=3.0,
    deadline_ceiling_s=30.0,
    heartbeat_s=0.8,
    suspect_floor_s=2.5,
    suspect_ceiling_s=5.0,
)


class Crash(Exception):  # noqa: N818 - what it says is meant
    """The process is dead from here on."""


class StateIsGone(Exception):  # noqa: N818 - no error
    """The last who had the run's state has left, as it could not wait any longer: the run is over."""


@dataclass(slots=True)
class Disk(MemoryStore):
    """What the coordinator has written, and what is wrong with its disk."""

    room: int | None = None
    """How many more writes it has room for, if it is to be full after them."""
    slow_s: float = 0.0
    """How long a write takes."""


class SimCoordinator:
    """The coordinator's process."""

    core_class = Coordinator

    def __init__(self, world: "World") -> None:
        self.world = world
        self.disk = Disk()
        self.core: Coordinator | None = None
        self.life = 0
        self.crash_after: int | None = None

    def start(self) -> None:
        """Start from what is on disk."""
        self.life += 1
        history = self.history()
        facts = RunFacts(RUN, "", b"spec", self.world.streams, "0", POLICY, self.world.save_every)
        self.core = self.core_class(facts, history)
        self.world.reached.watch_coordinator(self.core)
        self.world.net.on(COORDINATOR, TICK_S, lambda life=self.life: self._tick(life))
        for peer in self.world.peers.values():
            peer.coordinator_link(up=True, within_s=self.world.redial_s)

    def history(self) -> History:
        """What a new process finds on the disk."""
        return self.disk.begin()

    def die(self) -> None:
        """Crash; what is on disk stays."""
        self.core = None
        self.life += 1
        self.crash_after = None
        self.world.net.frozen.pop(COORDINATOR, None)
        for peer in self.world.peers.values():
            peer.coordinator_link(up=False)

    def receive(self, source: str, record: Record) -> None:
        """A message has come."""
        if self.core is not None:
            known = self.core.membership.peers.get(source)
            process = b"" if known is None else known.hello.boot
            self.world.data.heard(record, process, self.core.epoch, self.world.clocks.of(COORDINATOR))
            self.handle(co.FromPeer(source, record, b"k" * 32))

    def handle(self, event: co.CoordinatorEvent) -> None:
        """Run the core and do its effects, in order; a crash can come before any of them."""
        assert self.core is not None
        events = deque([event])
        try:
            while events:
                for effect in self.core.handle(events.popleft(), self.world.clocks.of(COORDINATOR)):
                    self._count_down()
                    answer = self._perform(effect)
                    if answer is not None:
                        events.append(answer)
        except Crash:
            if self.world.trace.on:
                self.world.trace.add(self.world.net.now, COORDINATOR, "CRASH")
            self.die()

    def _count_down(self) -> None:
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after < 0:
                raise Crash

    def _perform(self, effect: co.CoordinatorEffect) -> co.CoordinatorEvent | None:
        world = self.world
        match effect:
            case co.Send(to, record):
                peer = world.peers.get(to)
                if isinstance(record, Start) and record.codec:
                    # Any codec may follow any other: measurements rarely make the real choice change its mind.
                    record = replace(record, codec=tuple(AUTO_CODECS)[record.sync.attempt % len(AUTO_CODECS)])
                if peer is not None:
                    if isinstance(record, MayLeave):
                        peer.may_leave[record.revision] = record.number, world.staying()
                    if world.trace.on and not isinstance(record, Waiting):
                        world.trace.add(world.net.now, COORDINATOR, f"-> {to}: {short(record)}")
                    if peer.linked:
                        world.net.carry(COORDINATOR, to, lambda: peer.receive(COORDINATOR, record, ()))
                return None
            case co.Announce(event, details):
                if world.trace.on:
                    world.trace.add(world.net.now, COORDINATOR, f"{event} {details}")
                if event in ("joined", "lost", "left"):
                    world.somebody_changed()
                return None
        if not self.disk.slow_s:
            return self._write(effect)
        # Either it is on the disk soon and the coordinator hears of it late, or it gets there late.
        answer = self._write(effect) if world.rng.random() < 0.5 else None
        world.net.on(COORDINATOR, self.disk.slow_s, lambda life=self.life: self._written(life, effect, answer))
        return None

    def _written(self, life: int, effect: co.Persist, answer: co.CoordinatorEvent | None) -> None:
        if life == self.life and self.core is not None:
            self.handle(answer or self._write(effect))

    def _write(self, effect: co.Persist) -> co.CoordinatorEvent:
        world, disk = self.world, self.disk
        if disk.room is not None:
            if disk.room <= 0:
                return co.StoreFailed("disk full")
            disk.room -= 1
        disk.write(effect)
        match effect:
            case co.PersistCommit(record):
                world.committed_at = world.net.now
                world.checkers.committed(record)
            case co.PersistRewind(after):
                world.checkers.rewound(after)
                world.no_rewind_in_vain(after)
        return co.Stored()

    def _tick(self, life: int) -> None:
        if life == self.life and self.core is not None:
            self.handle(co.Tick())
            self.world.net.on(COORDINATOR, TICK_S, lambda: self._tick(life))


def short(record: Record) -> str:
    """A record in a few words."""
    text = re.sub(
        r"b'[^']*'|b\"[^\"]*\"", lambda found: "#" + hashlib.md5(found[0].encode()).hexdigest()[:4], repr(record)
    )
    return text if len(text) < 240 else text[:240] + "…"


class CheckedTensors(SymbolicTensors):
    """Symbolic tensors that show the checkers what they use."""

    def __init__(self, peer: "SimPeer", manifest: Manifest, streams: tuple[Stream, ...]) -> None:
        super().__init__(f"{peer.name}/{peer.boot}", manifest, streams)
        self._peer = peer

    def part(self, stream: str, chunk: int) -> PartOf:
        self._show(stream)
        return super().part(stream, chunk)

    def reduce(
        self,
        stream: str,
        chunk: int,
        inputs: Sequence[tuple[float, PartOf | SumOf | None]],
        divisor: float,
        final: bool,
    ) -> SumOf:
        if any(payload is None for _, payload in inputs):
            self._show(stream)
        return super().reduce(stream, chunk, inputs, divisor, final)

    def instant(self) -> None:
        self._peer.instant()

    def _show(self, stream: str) -> None:
        core = self._peer.shell.core
        # A peer that forgets its state, or drops a contribution that does not encode, gets another one in its stead.
        history = (core.chain, stream, core.indices[stream] + 1, self._peer.discards)
        self._peer.world.checkers.contributes(self.who, history, self._staged[stream])


class CheckedPeer(Peer):
    """The real shell; the checkers look at what it applied and at the state that came out."""

    seen: tuple[bytes, int] | None = None
    """History and count of changes of the state that was checked last."""

    def _perform(self, effect: Effect, now: float) -> None:
        super()._perform(effect, now)
        if isinstance(effect, Apply):
            around = self._around
            assert isinstance(around, SimPeer)
            around.world.checkers.applied(around.name, effect.record, effect.payloads)

    def handle(self, event: Event, now: float) -> None:
        super().handle(event, now)
        tensors, recovery = self.tensors, self.core._recovery
        if tensors is not None and recovery.complete and (seen := (recovery.chain, tensors.changes)) != self.seen:
            self.seen = seen
            if not tensors.tainted:
                self._around.world.checkers.state(self._around.name, recovery.chain, tensors)


class SimPeer:
    """A peer daemon's process, its machine's network, and the trainer beside it; the shell's `Surroundings`."""

    core_class: type[Participant] = Participant
    shell_class: type[Peer] = CheckedPeer
    tensors_class: type[CheckedTensors] = CheckedTensors

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.boot = 0
        self.shell: Peer = None  # type: ignore[assignment]
        self.tensors: CheckedTensors | None = None
        self.trainer: SimTrainer | None = None
        self.alive = False
        self.gone_for_good = False
        self.leaving = False
        self.may_leave: dict[int, tuple[int, frozenset[str]]] = {}
        """By revision, each MayLeave that was sent to it on this connection: the number, and who stayed then."""
        self.told = -1
        """The revision of the newest that has come."""
        self.crash_after: int | None = None
        self.instants: int | None = None
        """After so many more writes to the memory shared with the trainer the daemon crashes."""
        self.spares_trainer = False
        """Whether only the daemon crashes."""
        self.segments: dict[str, Regions | None] = {}
        """The memory shared with trainers, by path; None: it is gone, whoever has mapped it."""
        self.dialled: set[str] = set()
        self.discards = 0
        self.ticks = self.looks = 0
        self._silent = 0
        """Ticks in which its trainer waited and it could not say why."""
        self.lies_to = 0
        self._redials_at = 0.0
        """Bits of the machines to which it sends garbage; odd: and one buffer too few."""
        self.slowness = 1.0
        """How many times longer the trainer's steps take."""
        self.lies = False
        """Whether it gives false bytes to those who catch up."""
        self.disk = SimDisk(self)
        self.message_bytes = world.rng.choice([100, 250, 10**6])
        """How many chunks of 100 bytes go into one message."""
        self.keep_updates = world.rng.choice([2, 4, 256])
        self.outbound = world.rng.random() < world.outbound
        """Whether it can only dial out: no message passes between two of those."""
        self.paths: dict[str, LinkReport] = {}
        self._progress: Progress | None = None
        """What the daemon was last told of links."""
        self._deaf: dict[str, int] = {}
        """Ticks in which nothing could pass between here and a peer."""

    @property
    def now(self) -> float:
        """What its clock shows."""
        return self.world.clocks.of(self.name)

    # ---- life

    def come_back(self) -> None:
        """Start again after it has left."""
        if self.gone_for_good and not self.alive:
            self.gone_for_good = False
            self.start()

    def start(self) -> None:
        """Start the daemon with what is on its disk, and its trainer, unless that has outlived the former daemon."""
        if self.alive:
            return
        self.boot += 1
        self.alive = True
        self.leaving = False
        self.world.somebody_changed()
        self.dialled = set()
        boot = f"{self.name}:{self.boot:03}".encode()[-8:].rjust(8, b"-")
        address = "" if self.outbound else "host:1"
        codecs = tuple(sorted(codecs_of(self.world.streams)))
        hello = Hello(PROTOCOL_VERSION, "0", b"spec", self.name, boot, address, codecs)
        facts = PeerFacts(
            self.name, RUN, hello, self.world.streams, POLICY.heartbeat_s, 10**9, self.keep_updates,
            saved=self.disk.found, saves_at_end=self.world.save_every > 0,
        )  # fmt: skip
        self.tensors = self._progress = None
        core = self.core_class(facts)
        self.world.reached.watch_participant(core)
        self.shell = self.shell_class(core, self, self.disk)
        self._tick(self.boot)
        if self.world.coordinator.core is not None:
            self.coordinator_link(up=True)
        for other in self.world.peers.values():
            if self.name in other.dialled and other.alive:
                self.world.net.on(other.name, 0.05, lambda o=other, b=other.boot: o.link(b, self.name, up=True))
        if self.trainer is not None and self.trainer.alive:
            self.run(lambda: self.shell.trainer_starting(self.now))
            self.trainer.daemon_back()
        else:
            self.trainer = self.new_trainer()
            self.trainer.start()

    def new_trainer(self) -> "SimTrainer":
        """A training process that is not started yet."""
        return SimTrainer(self)

    def instant(self) -> None:
        """An instant between two writes to the shared memory."""
        if self.instants is not None:
            self.instants -= 1
            if self.instants < 0 and self.world.may_crash(self):
                raise Crash

    def die(self, *, seen: bool, spare: bool = False) -> None:
        """Crash, daemon and trainer, or only the daemon; `seen`: the machine lives and closes the connections."""
        if not self.alive:
            return
        if self.world.trace.on:
            self.world.trace.add(self.world.net.now, self.name, f"CRASH seen={seen} spare={spare}")
        self.world.somebody_changed()
        self.world.crashed_at = self.world.net.now
        self.alive = False
        self.crash_after = self.instants = None
        self.spares_trainer = False
        if self.trainer is not None and spare:
            self.trainer.daemon_lost()
        elif self.trainer is not None:
            self.trainer.die()
        if not spare:
            self.world.net.frozen.pop(self.name, None)
        if seen:
            for other in self.world.peers.values():
                if self.name in other.dialled and other.alive:
                    delay_s = self.world.rng.uniform(0.001, 0.1)
                    self.world.net.on(other.name, delay_s, lambda o=other, b=other.boot: o.link(b, self.name, up=False))

    def run(self, action: Callable[[], None]) -> None:
        """Run something on this process; it may be its last."""
        try:
            action()
            while self.shell.moved and self.shell.pump(self.now):
                pass
        except Crash:
            self.die(seen=self.world.rng.random() < 0.7, spare=self.spares_trainer)

    def _tick(self, boot: int) -> None:
        if not self.alive or boot != self.boot:
            return
        now = self.now

        def tick() -> None:
            if self.world.rng.random() < 0.05:
                self.paths = self._paths()
            step_s = self.trainer.pace_s if self.trainer is not None else 0.0
            progress = Progress(-1.0, {}, self.paths, self._reached(), step_s)
            if progress != self._progress:
                self._progress = progress
                self.shell.handle(progress, now)
            self.shell.tick(now)
            # A state is saved in the middle of other things, a few steps at a time.
            while self.shell.idle_work(now) and (self.world.rng.random() < 0.8 or not self.shell.core.saving):
                pass
            self._looks()
            self._says_why(now)

        self.run(tick)
        self.world.net.on(self.name, TICK_S * self.world.rng.uniform(0.8, 1.2), lambda: self._tick(boot))

    def _looks(self) -> None:
        """Its trainer asks for the common weights again and again; a chunk is copied now and then."""
        self.ticks += 1
        if self.ticks % LOOK_TICKS == 0 and self.trainer is not None and self.trainer.trains and not self.world.gossip:
            self.shell.from_trainer(WantCommon(self.looks), self.now)
            self.shell.common_step()

    def _says_why(self, now: float) -> None:
        """Guarantee 4: a peer whose trainer waits knows for what."""
        trainer = self.trainer
        if trainer is None or trainer.pause_s < SAYS_WHY_AFTER_S or self.shell.core.waiting(now):
            self._silent = 0
            return
        self._silent += 1
        if self._silent > SILENT_TICKS:
            raise Violation(f"the trainer of {self.name} waits for {trainer.pause_s:.1f} s and nobody says why")

    def _paths(self) -> dict[str, LinkReport]:
        """Measurements that may say anything: no plan that is made from them may be wrong, only slow."""
        rng = self.world.rng
        others = [name for name in self.world.peers if name != self.name and rng.random() < 0.8]
        return {
            name: LinkReport(10 ** rng.uniform(3, 10), rng.choice([0.0, 0.02, 0.3]), 0.0, 1, "bbr") for name in others
        }

    def _reached(self) -> frozenset[str]:
        """To whom a connection is up; now and then one is missing for a moment."""
        world, mine = self.world, self.name
        reached = [name for name, peer in world.peers.items() if peer.alive and world.meet(mine, name)]
        if world.net.cut or self._deaf:
            self._listen(reached)
            reached = [name for name in reached if self._deaf.get(name, 0) < DEAF_TICKS]
        if world.flicker:
            reached = [name for name in reached if world.rng.random() >= world.flicker]
        return frozenset(reached)

    def _listen(self, reached: list[str]) -> None:
        """Notice connections that are dead, and those that are not any more."""
        cut, mine = self.world.net.cut, self.name
        deaf = {name: self._deaf.get(name, 0) + 1 for name in reached if {(mine, name), (name, mine)} & cut}
        broken = [name for name, ticks in deaf.items() if ticks == DEAF_TICKS]
        again = [name for name, ticks in self._deaf.items() if ticks >= DEAF_TICKS and name not in deaf]
        self._deaf = deaf
        for name in (name for name in broken + again if name in self.dialled):
            self.world.net.on(mine, 0.0, lambda b=self.boot, n=name: self.link(b, n, up=n in again))

    @property
    def linked(self) -> bool:
        """Whether there is a connection to the coordinator, or will be within a moment."""
        return self.world.net.now >= self._redials_at

    def coordinator_link(self, *, up: bool, within_s: float = 0.0) -> None:
        """The connection to the coordinator comes up or breaks, a little later; `within_s`: up to so much later."""
        self._redials_at = self.world.net.now + (self.world.rng.uniform(0.0, within_s) if within_s else 0.0)
        if self.alive:
            delay_s = self.world.rng.uniform(0.01, 0.3) + self._redials_at - self.world.net.now
            self.world.net.on(self.name, delay_s, lambda b=self.boot: self.link(b, COORDINATOR, up=up))

    def link(self, boot: int, peer: str, *, up: bool) -> None:
        """A connection came up or broke."""
        if self.alive and boot == self.boot:
            if peer == COORDINATOR:
                self.may_leave.clear()
            self.run(lambda: self.shell.link_changed(peer, up, "" if up else "connection closed", self.now))

    def receive(self, source: str, record: Record, payloads: Sequence[Any]) -> None:
        """A message has come."""
        if self.alive:
            if isinstance(record, MayLeave):
                self.told = max(self.told, record.revision)
            self.run(lambda: self.shell.receive(source, record, payloads, self.now))

    # ---- Surroundings

    def clears_s(self, to: str) -> float:
        return 0.0

    def bulk_bytes(self, to: str) -> int:
        return self.message_bytes

    def under_way(self) -> bool:
        return False

    def send_bulk(self, to: str, record: Record, payloads: tuple[Any, ...], done: Done | None = None) -> bool:
        if not self.send(to, record, self._lie(record, payloads) if self.lies else payloads):
            return False
        if done is not None:
            done()
        return True

    def _lie(self, record: Record, payloads: tuple[Any, ...]) -> tuple[Any, ...]:
        if isinstance(record, UpdateChunk):
            return tuple(replace(payload, inputs=payload.inputs * 2) for payload in payloads)
        if isinstance(record, StateChunk):
            self.world.somebody_lied()
            return tuple("!" + payload for payload in payloads)
        return payloads

    def send(self, to: str, record: Record, payloads: tuple[Any, ...] = ()) -> bool:
        world = self.world
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after < 0 and world.may_crash(self):
                raise Crash
        if world.rng.random() < world.refuse_send:
            return False
        if to == COORDINATOR and not self.linked:
            return False
        if to == COORDINATOR:
            world.net.carry(self.name, to, lambda: world.coordinator.receive(self.name, record))
            return True
        target = world.peers.get(to)
        if target is None or not world.meet(self.name, to):
            return False
        if self.lies_to >> int(to[1:]) & 1 and isinstance(record, Part | Result):
            payloads = ("garbage",) * (len(payloads) - (self.lies_to & 1))
        world.net.carry(self.name, to, lambda: target.receive(self.name, record, payloads))
        return True

    def dial(self, peer: str, address: str, curve_key: bytes) -> None:
        if not address:
            return
        self.dialled.add(peer)
        if peer in self.world.peers and self.world.peers[peer].alive:
            self.world.net.on(self.name, 0.05, lambda b=self.boot: self.link(b, peer, up=True))

    def hang_up(self, peer: str) -> None:
        self.dialled.discard(peer)

    def open_model(self, manifest: Manifest) -> CheckedTensors:
        self.tensors = self.tensors_class(self, manifest, self.world.streams)
        return self.tensors

    def open_segment(self, tensors: Any) -> str:
        path = f"segment-{len(self.segments)}"
        self.segments[path] = tensors.open_segment()
        return path

    def resume_segment(self, tensors: Any, path: str) -> Held | None:
        regions = self.segments[path]
        return None if regions is None else tensors.resume_segment(regions)

    def open_common(self, tensors: Any) -> tuple[str, dict[str, int]]:
        return "common", tensors.open_common()

    def _shown(self, record: Common) -> None:
        """What is handed out is phi at one log number, all of it."""
        assert self.tensors is not None
        phi = {name: [c.lstrip("!") for c in self.tensors.phi[name]] for name in self.tensors.shown}  # a bit may flip
        shown = {name: [chunk.lstrip("!") for chunk in chunks] for name, chunks in self.tensors.shown.items()}
        if shown != phi or record.number != self.shell.core.applied or not self.shell.core.complete:
            raise Violation(f"{self.name} shows {shown} as of {record.number}, phi is {phi}")
        self.looks += 1

    def tell_trainer(self, record: Record) -> None:
        if isinstance(record, Common):
            self._shown(record)
            return
        trainer, boot = self.trainer, self.boot
        if trainer is not None:
            self.world.net.on(self.name, 0.0005, lambda: trainer.receive(boot, record))

    def trainer_refused(self, refusal: Refused) -> None:
        pass

    def note(self, event: str, details: dict[str, Any]) -> None:
        if self.world.gossip and event in ("snapshot", "loaded"):
            self.world.checkers.enters(self.name, details["number"], max(self.shell.core.indices.values()))
        if event == "behind":
            self.world.somebody_changed()
        self.discards += event in ("refetch", "repair", "start-over", "contribution-dropped")
        if self.world.trace.on:
            self.world.trace.add(self.world.net.now, self.name, f"{event} {details}")

    def exit(self, code: int, reason: str, hint: str) -> None:
        if self.world.trace.on:
            self.world.trace.add(self.world.net.now, self.name, f"exit {code}: {reason}")
        if code:
            raise Violation(f"{self.name} was turned away: {reason}")
        self.world.no_bequest_is_lost(self)
        self.world.somebody_changed()
        self.gone_for_good = True
        self.alive = False
        if self.trainer is not None:
            self.trainer.die()


class SimTrainer:
    """A training process: the real schedule, symbolic weights."""

    def __init__(self, peer: SimPeer) -> None:
        self.peer = peer
        self.world = peer.world
        self.alive = False
        self.restarts = 0
        """How often it had to start over from phi: the run's history it had built on was lost."""
        self.core = TrainerCore(self.world.streams)
        self.theta: dict[str, Weights] = {}
        self.made: set[int] = set()
        self.boot = b""
        self.regions: Regions | None = None
        self.started = False
        self.phase = "between"
        """Where in the loop it is: between steps, before or after an inner step."""
        self.flaw = ""
        """What is wrong with what it computes: nan, part (does not encode) or sum (its sums do not)."""
        self.step_s = peer.world.rng.choice([0.05, 0.1, 0.1, 0.1, 0.3])
        self.gradient: frozenset[int] = frozenset()
        self.longest_pause_s = 0.0
        self._paused_at: float | None = None
        self.segment_path = ""
        self.offers: dict[str, Contribute] = {}
        self.away = False
        """Whether its daemon has crashed, and no other has answered since."""
        self.alone = False
        """Whether it has waited for one long enough."""
        self.left = False
        """Whether it has taken its leave: its loop is over, and it takes no grant any more."""
        self.resumed = 0
        """How often another daemon went on from where it stood."""
        self._cut_off = 0
        """The last process of the daemon whose end has taken a message with it."""
        self._waits = 0
        self._lead = next(s.name for s in self.world.streams if s.state == "param")
        self.reader = SimReader(self.world.data)
        self._pending: set[str] = {s.name for s in self.world.streams if s.held}

    def start(self) -> None:
        """Start the process; it attaches after a while."""
        self.alive = True
        self.boot = self.world.rng.randbytes(8)
        self.peer.run(lambda: self.peer.shell.trainer_starting(self.peer.now))
        self._tell(self.world.rng.uniform(0.1, 2.0), Attach(self.manifest, 1, self.boot))

    manifest = MANIFEST

    def daemon_lost(self) -> None:
        """Its daemon has crashed: it trains on."""
        self.away = True
        if self.peer.leaving:  # it has nobody to take its leave of
            self.die()
        self._later(self.world.rng.choice([0.2, 3.0]), self._goes_on_alone)

    def _goes_on_alone(self) -> None:
        if self.away:
            self.alone = True
            self._go_on()

    def daemon_back(self) -> None:
        """Another daemon was started in its place."""
        self._later(self.world.rng.uniform(0.1, 2.0), self._attach_again)

    def _attach_again(self) -> None:
        if not self.away or not self.peer.alive:
            return
        if self.started:
            where = (self.segment_path, self.core.received, self.core.indices, self.reader.drawn.reader)
            self._tell(0.0005, Attach(self.manifest, 1, self.boot, *where))
        else:
            self._start_over()
            self.boot = self.world.rng.randbytes(8)
            self.away = self.alone = False
            self._tell(0.0005, Attach(self.manifest, 1, self.boot))
        self._later(1.0, self._attach_again)

    def _start_over(self) -> None:
        self.core = TrainerCore(self.world.streams)
        self.segment_path, self.offers, self.regions = "", {}, None
        self._pending = {s.name for s in self.world.streams if s.held}
        self.phase = "between"

    def die(self) -> None:
        """End the process."""
        self.alive = False

    def crash(self) -> None:
        """The process ends and the daemon starts another one."""
        if not self.alive:
            return
        if self.world.trace.on:
            self.world.trace.add(self.world.net.now, self.peer.name, "trainer CRASH")
        self.die()
        peer = self.peer
        if not peer.alive:
            return
        peer.run(lambda: peer.shell.trainer_gone(peer.now))
        if peer.alive:
            peer.trainer = peer.new_trainer()
            peer.trainer.start()

    @property
    def trains(self) -> bool:
        """Whether its loop is under way: it has been given the run's state, and has not taken its leave."""
        return self.started and not self.left

    @property
    def pause_s(self) -> float:
        """For how long it has been waiting for grants now."""
        return 0.0 if self._paused_at is None else self.world.net.now - self._paused_at

    def leave(self) -> None:
        """swarm.leave()."""
        self.peer.leaving = self.left = True
        self._tell(0.0, Detach("done"))

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        def run() -> None:
            if self.alive and self.peer.trainer is self:
                action()

        self.world.net.on(self.peer.name, delay_s, run)

    def _tell(self, delay_s: float, record: Record) -> None:
        boot = self.peer.boot

        def arrive() -> None:
            if self.peer.alive and self.peer.boot == boot:
                self.peer.run(lambda: self.peer.shell.from_trainer(record, self.peer.now))

        self._later(delay_s, arrive)

    def receive(self, boot: int, record: Record) -> None:
        """A message from the daemon; one that has crashed meanwhile may have sent it just before."""
        if not self.alive or self.peer.trainer is not self or boot != self.peer.boot:
            return
        if boot == self._cut_off or (not self.peer.alive and self.world.rng.random() < 0.5):
            self._cut_off = boot  # and with it all that was sent after it
            return
        match record:
            case Attached():
                self._attached(record)
            case Granted() if not self.left:
                if record.kind == "start" and record.stream == self._lead:
                    self.reader.restart(within_a_step=self.phase == "before")
                self._do(self.core.handle(record))
                if record.kind == "start":
                    self._pending.discard(record.stream)
                    if not self._pending and not self.started:
                        self.started = True
                        self._go_on()  # if it starts over, what it waited for before is over
                        self._next_step()
                        return
                if self.started:
                    self._go_on()
            case Leased():
                self.reader.answered(record, self.peer.now)
            case Refused():
                self.crash()

    def _attached(self, record: Attached) -> None:
        # What a daemon said just before its end is read, then the end of the connection: it is away again at once.
        lost = not self.peer.alive
        if self.started and self.away:
            if record.segment == self.segment_path:
                self.resumed += 1
                self.away, self.alone = lost, False
                for name in self.core.outstanding:
                    self._tell(0.0005, self.offers[name])
            else:  # the new daemon cannot go on from here
                self.restarts += 1
                self.away, self.alone, self.started = lost, False, False
                self._start_over()
            if self.left:  # the former daemon, or the connection to this one, may have taken that with it
                self._tell(0.001, Detach("done"))
        assert self.peer.tensors is not None
        self.segment_path = record.segment
        self._map(self.peer.tensors)
        if record.genesis:
            for name in self._pending or (s.name for s in self.world.streams if s.held):
                self._write_initial(name)
            self._tell(0.001, GenesisWritten())

    @property
    def pace_s(self) -> float:
        """Virtual seconds that an inner step takes."""
        return self.step_s * self.peer.slowness

    def _next_step(self) -> None:
        self.phase = "between"
        self._later(self.pace_s * self.world.rng.uniform(0.8, 1.3), self._step)

    def _step(self) -> None:
        if not self.trains or self.world.trainers_stopped:
            return
        step = self.world.new_step()
        drawn = self.reader.draw(step, self.peer.now)
        if (question := self.reader.question(self.peer.now)) is not None:
            self._tell(0.0, question)
        if not drawn:
            self._later(DRY_S, self._step)
            return
        self.gradient = frozenset([step])
        self.phase = "before"
        self._do(self.core.handle(BeforeStep(0.01)))
        self._go_on()

    def _go_on(self) -> None:
        """Go on with the loop, as far as nothing has to be waited for."""
        waiting = self.core.waiting
        if waiting and self.alone:
            self._do(self.core.handle(WaitedLongEnough()))
            waiting = self.core.waiting
        if not waiting:
            self.longest_pause_s = max(self.longest_pause_s, self.pause_s)
            self._paused_at = None
        elif self._paused_at is None:
            self._paused_at = self.world.net.now
        if waiting:
            self._waits += 1
            if self.world.wait_ceiling_s is not None:
                self._later(self.world.wait_ceiling_s, lambda n=self._waits: self._give_up(n))
        elif self.phase == "before":
            self.phase = "after"
            if not self.world.gradients:
                self.made |= self.gradient
                self._learn()
            self.reader.supply.stepped()
            self._do(self.core.handle(AfterStep(self.pace_s, self.pace_s)))
            self._go_on()
        elif self.phase == "after":
            self._next_step()

    def _give_up(self, waits: int) -> None:
        if self.core.waiting and self._waits == waits:
            self._do(self.core.handle(WaitedLongEnough()))
            self._go_on()

    def _do(self, effects: list[TrainerEffect]) -> None:
        assert self.regions is not None or not effects
        for effect in effects:
            match effect:
                case Stage(stream, serial, granted):
                    self._write(stream)
                    made = (serial, self.core.step, 1, granted, self.reader.drawn, self.core.made(stream))
                    self.offers[stream] = Contribute(stream, *made)
                    if not self.away:
                        self._tell(self.world.rng.choice([0.0005, 0.02]), self.offers[stream])
                case Adopt(stream, kind, stepped):
                    self._adopt(stream, kind, stepped=stepped)
                case Wait():
                    pass

    # ---- its arithmetic

    def _map(self, tensors: CheckedTensors) -> None:
        self.regions = tensors.regions

    def _write_initial(self, stream: str) -> None:
        assert self.regions is not None
        self.regions.out[stream] = "nan" if self.flaw == "nan" else ("init", self.boot)

    def _learn(self) -> None:
        self.theta = {name: replace(t, steps=t.steps | self.gradient) for name, t in self.theta.items()}

    def _write(self, stream: str) -> None:
        assert self.regions is not None
        if not next(s.held for s in self.world.streams if s.name == stream):
            self.regions.out[stream] = self.gradient
        elif self.flaw == "nan":
            self.regions.out[stream] = "nan"
        else:
            self.regions.out[stream] = replace(self.theta[stream], flaw=self.flaw)

    def _adopt(self, stream: str, kind: str, *, stepped: bool) -> None:
        assert self.regions is not None
        if not next(s.held for s in self.world.streams if s.name == stream):
            return
        given, out = self.regions.given[stream], self.regions.out.get(stream)
        late = next(s.late for s in self.world.streams if s.name == stream)
        theta = self.theta.get(stream)
        if kind == "start" or theta is None:
            self.restarts += theta is not None
            self.theta[stream] = Weights(given, frozenset())
            return
        if theta.base != out.base:
            raise Violation(f"{self.peer.name}: its weights and the reference handed over have different bases")
        dropped = theta.steps if kind == "move" and late == "adopt" else out.steps
        self.theta[stream] = Weights(given, theta.steps - dropped)


class World:
    """Everything in one simulated run."""

    coordinator_class = SimCoordinator
    peer_class = SimPeer

    def __init__(
        self, rng: random.Random, streams: tuple[Stream, ...], weather: Weather, *, watched: bool = False
    ) -> None:
        self.rng = rng
        self.streams = streams
        self.gradients = any(not stream.held for stream in streams)
        self.net = Network(rng, weather)
        self.clocks = Clocks(self.net)
        self.calm = False
        """Whether the last fault is over."""
        self.trace = Trace()
        self.reached = Reached(on=watched)
        self.gossip = any(stream.gossip for stream in streams)
        self.checkers = Checkers(gossip=self.gossip)
        self.data = DataChecker(rng.choice([60, 400]), POLICY.suspect_ceiling_s)
        self.peers: dict[str, SimPeer] = {}
        self.refuse_send = 0.0
        self.outbound = 0.0
        """Share of peers that can only dial out."""
        self.flicker = 0.0
        self.redial_s = 0.0
        """Chance that a peer takes a connection for broken, at any tick."""
        self.wait_ceiling_s: float | None = None
        self.trainers_stopped = False
        self.doubtful = False
        """Whether a state was copied, or somebody went, while one was false somewhere: a copy of it has a vote too."""
        self.named = 0
        self._steps = 0
        self.save_every = rng.choice([0, 2, 7, 30])
        """Commits between two saved states."""
        self.committed_at = 0.0
        self.crashed_at = -math.inf
        """When a peer crashed last."""
        self.coordinator = self.coordinator_class(self)
        self.coordinator.start()

    def somebody_changed(self) -> None:
        """A peer comes or goes, or gives up its state for a copy of others'."""
        self.doubtful = self.doubtful or any(p.tensors is not None and p.tensors.tainted for p in self.peers.values())

    def connection(self, one: str, other: str, *, up: bool) -> None:
        """The connection between two nodes breaks or comes up, and both ends that dialled see it."""
        for here, there in ((one, other), (other, one)):
            peer = self.peers.get(here)
            if peer is not None and peer.alive and (there == COORDINATOR or there in peer.dialled):
                self.net.on(here, 0.05, lambda p=peer, b=peer.boot, t=there: p.link(b, t, up=up))

    def somebody_lied(self) -> None:
        """A peer gives a false chunk of the state. With fewer than three who are right nobody can tell who is."""
        clean = [p for p in self.holders() if p.tensors is not None and not p.tensors.tainted]
        self.doubtful = self.doubtful or len(clean) < 3

    def new_name(self) -> str:
        """A name for a machine that nobody else has."""
        self.named += 1
        return f"p{self.named - 1}"

    def new_step(self) -> int:
        """A number for an inner step that nobody else has."""
        self._steps += 1
        return self._steps

    def join(self, name: str) -> SimPeer:
        """A new machine takes part."""
        peer = self.peers[name] = self.peer_class(self, name)
        peer.start()
        return peer

    def meet(self, a: str, b: str) -> bool:
        """Whether a connection between two machines is possible."""
        return not (self.peers[a].outbound and self.peers[b].outbound)

    def holders(self) -> list[SimPeer]:
        """Live peers that hold the newest committed state."""
        head = len(self.coordinator.disk.records)
        staying = [peer for peer in self.peers.values() if peer.alive and not peer.leaving]
        return [peer for peer in staying if peer.shell.core.complete and peer.shell.core.applied >= head]

    def may_crash(self, peer: SimPeer, *, for_good: bool = False) -> bool:
        """Whether somebody else holds the run's state, or a disk does: losing it with its last holder is no bug."""
        others = [p for p in self.holders() if p is not peer]
        disks = [p for p in self.peers.values() if p is not peer or not for_good]
        return bool(others) or not self.coordinator.disk.chain0 or any(map(self.on_disk, disks))

    def on_disk(self, peer: SimPeer) -> bool:
        """Whether a machine that is here, or comes back, has a saved state of the history as it stands."""
        log = self.checkers.durable
        return not (peer.gone_for_good or peer.leaving) and any(
            k in log and log[k].chain == s.chain for k, (s, _) in peer.disk.kept.items()
        )

    def no_bequest_is_lost(self, peer: SimPeer) -> None:
        """Who leaves in order, and is not alone, does not take with it what nobody else has; it waits for an heir."""
        core, log = peer.shell.core, self.checkers.durable
        known = self.checkers.chains.get(core.chain)
        if not core.complete or (known is not None and log.get(known.number) != known):
            return
        others = [p for p in self.peers.values() if p.alive and p is not peer]
        # Makers have it in hand, and may not know that it counts; but not those that have lost the state below it.
        makers = () if known is None else known.contributors
        heirs = [
            p for p in others if p.shell.core.complete and (p.name in makers or p.shell.core.applied >= core.applied)
        ]
        if heirs or all(p.leaving for p in others):
            return
        told_of = self._staying_as_told(peer)
        staying = [p for p in others if p.name in told_of]
        # An heir may have crashed and not have been missed yet.
        unmissed = self.net.now - self.crashed_at < 2 * POLICY.suspect_ceiling_s
        excused = not staying or core.away_s(peer.now) >= RETURN_PATIENCE_S or unmissed
        asked_for_s, silent_s = peer.now - core._departure._since, peer.now - core._heard_at
        if not excused and asked_for_s < HEIR_PATIENCE_S and silent_s < LEAVE_PATIENCE_S:
            raise Violation(f"{peer.name} left with log number {core.applied}, which nobody else has")
        if not any(p.shell.core.complete for p in others) and not any(map(self.on_disk, self.peers.values())):
            raise StateIsGone

    def staying(self) -> frozenset[str]:
        """Who takes part, as the coordinator knows, and does not leave."""
        here = () if self.coordinator.core is None else self.coordinator.core.membership.alive
        return frozenset(name for name in here if not self.peers[name].leaving)

    def _staying_as_told(self, peer: SimPeer) -> frozenset[str]:
        """Who stays, as far as a leaving peer can know.

        Somebody may come when it has been told that it may leave, and the word that takes this back be on its way while
        it leaves. Had they come a moment later, they would not have found it either.
        """
        newest = max(peer.may_leave, default=-1)
        if peer.told in peer.may_leave and newest > peer.told and peer.may_leave[newest][0] < peer.shell.core.applied:
            return self.staying() & peer.may_leave[peer.told][1]
        return self.staying()

    def no_rewind_in_vain(self, after: int) -> None:
        """The log goes back only if nobody who can be reached has more, or has had time enough to say so."""
        cut = {name for pair in self.net.cut for name in pair} | set(self.net.frozen)
        for peer in self.peers.values():
            core = peer.shell.core if peer.alive and peer.name not in cut else None
            known = self.checkers.chains.get(core.chain) if core is not None and core.complete else None
            if core is None or known is None or core.applied <= after or known.number != core.applied:
                continue
            age_s = peer.now - core._recovery._moved_at
            fetched_late = self.net.now - age_s - self.committed_at > POLICY.grace_floor_s + 2 * POLICY.heartbeat_s
            if fetched_late and age_s < 2 * POLICY.heartbeat_s:
                continue  # long after the commit nobody had applied it; the word of who has just done so is on its way
            if self.net.now - self.committed_at < POLICY.deadline_ceiling_s:
                raise Violation(f"the log went back to {after} while {peer.name} was there with {core.applied}")
