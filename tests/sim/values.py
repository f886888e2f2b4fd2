"""A small run with the real engine and real numbers, in which any sum shows by its digits who was in it, and how often.

Peer k moves its weights by d * 100**k at a step, with d from 1 to 9 by the number of the step. With a codec that
rounds, peer k moves every fourth element by d instead, beginning with element k.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.sim.network import Weather
from tests.sim.symbols import Violation
from tests.sim.world import SimCoordinator, SimPeer, SimTrainer, World
from wantrain.optimizers.stream import Stream
from wantrain.peers import coordinator as co
from wantrain.peers.common_memory import take_vectors
from wantrain.peers.effects import Apply, Effect
from wantrain.peers.engine import Engine
from wantrain.peers.inheritance import Held
from wantrain.peers.layout import stream_chunks
from wantrain.peers.messages import CommitRecord, Common, Manifest, Start
from wantrain.peers.peer import Peer
from wantrain.peers.shared_memory import Segment
from wantrain.transport.codec import as_tensor
from wantrain.transport.collective import Payload

STREAM = "param"
PEERS = 3
MOST_UNITS = 99
"""In one contribution: 9 of a step, more of a trainer that has trained alone for a while."""
PLACES = 4
"""Peers that a sum can tell from one another."""


def number_of(peer: str) -> int:
    """The k of a peer called "p<k>"."""
    return int(peer[1:])


def pattern(peer: str, codec: str, elements: int) -> Tensor:
    """fp32[elements]: what one unit of a peer's contribution is."""
    if codec == "fp32":
        return torch.full((elements,), 100.0 ** number_of(peer))
    return (torch.arange(elements) % PLACES == number_of(peer)).to(torch.float32)


def digits(total: Tensor, codec: str) -> list[int]:
    """How much of each peer is in a sum; every element has to say the same."""
    if codec == "fp32":
        values = {round(value) for value in (total.min().item(), total.max().item())}
        if len(values) != 1:
            raise Violation(f"the elements of a sum differ: {sorted(values)}")
        return [int(values.copy().pop()) // 100**k % 100 for k in range(PLACES)]
    found = []
    for k in range(PLACES):
        mine = total[k::PLACES]
        low, high = round(mine.min().item()), round(mine.max().item())
        if low != high:
            raise Violation(f"the elements of peer {k} differ: from {low} to {high}")
        found.append(low)
    return found


class ValueEngine(Engine):
    """The real one; looks at its inputs whenever they are used."""

    tainted = False

    def __init__(self, peer: "ValuePeer", manifest: Manifest, streams: Sequence[Stream]) -> None:
        super().__init__(manifest, streams)
        self._peer = peer
        self._before: Tensor | None = None

    def use_stage(self, stream: str, floor: int = 0) -> None:
        super().use_stage(stream, floor)
        self._before = self._vectors[stream].used.values.clone()

    def part(self, stream: str, chunk: int) -> Payload:
        self._look(stream)
        return super().part(stream, chunk)

    def reduce(
        self, stream: str, chunk: int, inputs: Sequence[tuple[float, Payload | None]], divisor: float, final: bool
    ) -> Payload:
        if any(payload is None for _, payload in inputs):
            self._look(stream)
        return super().reduce(stream, chunk, inputs, divisor, final)

    def settle(self, stream: str, taken: bool) -> None:
        if taken:
            self._look(stream)
        super().settle(stream, taken)

    def _look(self, stream: str) -> None:
        """The input is what it was when it was staged; note what it amounts to."""
        values = self._vectors[stream].used.values
        if self._before is None or not torch.equal(values, self._before):
            raise Violation(f"{self._peer.name}: an input was touched before its sync was decided")
        codec, core = self._vectors[stream].up.name, self._peer.shell.core
        running = core._attempts.running.get(stream)
        if running is not None:
            self._peer.world.contributed(self._peer, running.sync.attempt, digits(values, codec))

    @property
    def units_in_hand(self) -> int:
        """What of a contribution that was answered ahead of its sync is in no commit."""
        vector = self._vectors[STREAM]
        if vector.ahead is None or not (vector.contribution is not None or vector.ahead._owed):
            return 0
        return digits(vector.ahead.values, vector.up.name)[number_of(self._peer.name)]

    def update(self, payloads: Sequence[Payload]) -> Tensor:
        """fp32[elements]: an update, decoded."""
        vector = self._vectors[STREAM]
        out = torch.empty(vector.elements)
        for (start, stop), payload in zip(vector.bounds, payloads, strict=True):
            vector.down.decode(as_tensor(payload), out[start:stop])
        return out


class _Shell(Peer):
    """The real one; shows the world what it applies."""

    def _perform(self, effect: Effect, now: float) -> None:
        around, engine = self._around, self.tensors
        assert isinstance(around, ValuePeer)
        if isinstance(effect, Apply) and effect.payloads and isinstance(engine, ValueEngine):
            around.world.applied(around.name, effect.record, engine.update(effect.payloads))
        super()._perform(effect, now)


class ValuePeer(SimPeer):
    """A peer with a real engine; what it sends is copied, as a network does."""

    world: "ValueWorld"
    shell_class = _Shell

    def __init__(self, world: "ValueWorld", name: str) -> None:
        super().__init__(world, name)
        self.message_bytes = 10**5
        self._segments = 0

    def new_trainer(self) -> "ValueTrainer":
        return ValueTrainer(self)

    def open_model(self, manifest: Manifest) -> Any:
        self.tensors = ValueEngine(self, manifest, self.world.streams)
        return self.tensors

    def open_segment(self, tensors: Any) -> str:
        self._segments += 1
        path = self.world.folder / f"{self.name}-{self.boot}-{self._segments}"
        tensors.open_segment(path)
        return str(path)

    def resume_segment(self, tensors: Any, path: str) -> Held | None:
        held: Held = tensors.resume_segment(path)
        return held

    def open_common(self, tensors: Any) -> tuple[str, dict[str, int]]:
        self._segments += 1
        path = self.world.folder / f"{self.name}-{self.boot}-common-{self._segments}"
        return str(path), tensors.open_common(path)

    def _shown(self, record: Common) -> None:
        """What is handed out is phi at one log number, all of it, bit for bit."""
        assert isinstance(self.tensors, ValueEngine)
        phi = {s.name: self.tensors.phi(s.name) for s in self.world.streams if s.state == "param"}
        shown = take_vectors(Path(record.path), {name: vector.numel() for name, vector in phi.items()})
        if record.number != self.shell.core.applied or not all(torch.equal(shown[name], phi[name]) for name in phi):
            raise Violation(f"{self.name} shows {shown} as of {record.number}, phi is {phi}")
        self.looks += 1

    def send_bulk(self, to: str, record: Any, payloads: tuple[Any, ...], done: Any = None) -> bool:
        return super().send_bulk(to, record, tuple(bytes(payload) for payload in payloads), done)


class ValueTrainer(SimTrainer):
    """A trainer whose weights are numbers."""

    peer: ValuePeer
    world: "ValueWorld"

    def __init__(self, peer: ValuePeer) -> None:
        super().__init__(peer)
        self.step_s = 0.05
        self.since = peer.boot
        """The daemon that has started it; it may outlive that one."""
        self.segment: Segment | None = None
        self.weights: Tensor | None = None
        self.made_units = 0
        """Sum of the digits of all steps that were made."""

    def _map(self, tensors: Any) -> None:
        self.segment = tensors.segment
        self.regions = tensors.segment

    def _write_initial(self, stream: str) -> None:
        assert self.segment is not None
        self.segment.out(stream).zero_()

    def _learn(self) -> None:
        assert self.weights is not None
        digit = self.core.step % 9 + 1
        self.made_units += digit
        self.weights.sub_(digit * pattern(self.peer.name, self.world.codec, self.weights.numel()))

    def _write(self, stream: str) -> None:
        assert self.segment is not None
        self.segment.out(stream).copy_(self.weights)

    def _adopt(self, stream: str, kind: str, *, stepped: bool) -> None:
        assert self.segment is not None
        out, given = self.segment.out(stream), self.segment.given(stream)
        if kind == "start" or self.weights is None:
            if self.weights is not None:
                raise Violation(f"the trainer of {self.peer.name} had to start over")
            self.weights = given.clone()
        elif kind == "move" or stepped:
            self.weights.sub_(out).add_(given)
        else:
            self.weights.copy_(given)

    @property
    def unsent_units(self) -> int:
        """What of its steps is in its weights and not in phi."""
        assert self.segment is not None
        own = self.segment.given(STREAM) - self.weights
        return digits(own, self.world.codec)[number_of(self.peer.name)]


class _Coordinator(SimCoordinator):
    def _perform(self, effect: co.CoordinatorEffect) -> co.CoordinatorEvent | None:
        if isinstance(effect, co.Send):
            world = self.world
            assert isinstance(world, ValueWorld)
            world.told(effect.record)
        return super()._perform(effect)


class ValueWorld(World):
    """Three peers with these numbers, a good network, and a ledger of who was in what."""

    peer_class = ValuePeer
    coordinator_class = _Coordinator

    def __init__(self, folder: Path, topology: str, codec: str, answer: str = "result") -> None:
        self.folder = folder
        self.ahead = answer != "result"
        self.codec = codec
        self.update_of: dict[bytes, tuple[CommitRecord, Tensor]] = {}
        """By link of the chain: the line, and the mean that was applied."""
        self.lines: list[CommitRecord] = []
        self.retries = 0
        """Attempts at a sync after its first."""
        self._inputs: dict[tuple[str, int], tuple[int, list[int]]] = {}
        """By peer and attempt: which life of the peer used what."""
        self._units: dict[tuple[str, int], int] = defaultdict(int)
        """What of each life of a peer is in commits."""
        self.messages: list[tuple[str, Any]] = []
        """Everything that was carried since `listen`, to be delivered once more."""
        self._listening = False
        self._newest = (0, 0)
        streams = tuple(replace(stream, answer=answer) for stream in self.method(topology, codec))
        super().__init__(random.Random(f"{topology} {codec}"), streams, Weather())
        assert stream_chunks(self.streams[0], SimTrainer.manifest) == 3
        self._carry, self.net.carry = self.net.carry, self._carried
        for k in range(PEERS):
            self.net.at(0.1 * k, lambda: self.join(self.new_name()))

    def method(self, topology: str, codec: str) -> tuple[Stream, ...]:
        """The run's streams: one, which is exchanged after every step."""
        return (Stream(STREAM, every=1, topology=topology, codec=codec),)

    def somebody_changed(self) -> None:
        pass

    # ---- every message, and every message again

    def listen(self) -> None:
        """From now on keep all messages, and deliver them once more into every second attempt at a sync."""
        self._listening = True

    def _carried(self, source: str, target: str, deliver: Any) -> None:
        if self._listening:
            self.messages.append((target, deliver))
        self._carry(source, target, deliver)

    def again(self) -> None:
        """Deliver all kept messages once more, mixed."""
        for target, deliver in self.messages:
            self.net.on(target, self.rng.uniform(0.0, 0.2), deliver)

    def told(self, record: Any) -> None:
        """The coordinator sends something."""
        if isinstance(record, Start) and record.sync.attempt > self._newest[1]:
            again = record.sync.index == self._newest[0]
            self._newest = record.sync.index, record.sync.attempt
            self.retries += again
            if again:
                self.again()

    # ---- the ledger

    def contributed(self, peer: ValuePeer, attempt: int, found: list[int]) -> None:
        """A peer uses its input in an attempt."""
        if self._inputs.setdefault((peer.name, attempt), (peer.boot, found)) != (peer.boot, found):
            raise Violation(f"{peer.name} used two inputs in attempt {attempt}")

    def applied(self, who: str, record: CommitRecord, mean: Tensor) -> None:
        """A peer applies an update: its digits are those of the recorded contributors, and of nobody else."""
        known = self.update_of.setdefault(record.chain, (record, mean))
        if not torch.equal(known[1], mean):
            raise Violation(f"{who} applied other numbers as {record.number} than the first who did")
        if known[1] is not mean:
            return
        self.lines.append(record)
        found = digits(mean * sum(record.weights), self.codec)
        expected = [0] * PLACES
        for peer in record.contributors:
            life, gave = self._inputs[peer, record.sync.attempt]
            units = gave[number_of(peer)]
            if not 1 <= units <= MOST_UNITS:
                raise Violation(f"{peer} contributed {units} steps' worth to {record.sync}")
            expected[number_of(peer)] = units
            self._units[peer, life] += units
        if found != expected:
            raise Violation(f"{record.sync} holds {found}, its contributors gave {expected}")

    def check(self) -> None:
        """At rest: phi is what follows from the updates, equal everywhere, and every step is accounted for once."""
        phi = torch.zeros_like(self.update_of[self.lines[0].chain][1])
        for record in self.coordinator.disk.records:
            phi.sub_(self.update_of[record.chain][1])
        for peer in self.peers.values():
            trainer, engine = peer.trainer, peer.tensors
            assert isinstance(engine, ValueEngine)
            assert isinstance(trainer, ValueTrainer)
            if not torch.equal(engine.phi(STREAM), phi):
                raise Violation(f"{peer.name} rests with a phi that does not follow from the commits")
            lives = range(trainer.since, peer.boot + 1)
            sent, unsent = sum(self._units[peer.name, life] for life in lives), trainer.unsent_units
            unsent += engine.units_in_hand
            made = trainer.made_units
            # What is answered ahead is in the daemon's hands alone, and is lost with it.
            lost = self.ahead and trainer.since < peer.boot and made - sent - unsent <= MOST_UNITS
            if made != sent + unsent and not (lost and made > sent + unsent):
                raise Violation(
                    f"{peer.name} made steps worth {made}, {sent} are in commits and {unsent} in its weights"
                )
