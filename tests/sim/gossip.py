"""A small gossip run with the real engine and real numbers: what every replica must be follows from who was in what."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.sim.symbols import Violation
from tests.sim.values import STREAM, ValueEngine, ValuePeer, ValueTrainer, ValueWorld
from wantrain.optimizers.noloco import NolocoOptions, noloco
from wantrain.optimizers.pair_step import NoLoCo
from wantrain.optimizers.stream import Stream, Wire
from wantrain.peers.messages import CommitRecord, Manifest
from wantrain.peers.saved_state import PHI
from wantrain.transport.collective import Payload


@dataclass(slots=True)
class Replica:
    """What a peer's state has to be."""

    phi: Tensor
    momentum: Tensor


class GossipEngine(ValueEngine):
    """The real one; notes the weights that it offers, by attempt."""

    def _look(self, stream: str) -> None:
        values = self._vectors[stream].used.values
        if self._before is None or not torch.equal(values, self._before):
            raise Violation(f"{self._peer.name}: an input was touched before its sync was decided")
        world, running = self._peer.world, self._peer.shell.core._attempts.running.get(stream)
        if running is not None:
            assert isinstance(world, GossipWorld)
            world.offered(self._peer.name, running.sync.attempt, self._vectors[stream].phi - values)

    def spread(self, stream: str, payloads: Sequence[Payload]) -> float:
        found, world = super().spread(stream, payloads), self._peer.world
        assert isinstance(world, GossipWorld)
        world.spreads.append(found)
        return found

    def apply(
        self, stream: str, payloads: Sequence[Payload], skip: frozenset[int] = frozenset(), index: int = 0
    ) -> None:
        super().apply(stream, payloads, skip, index)
        world = self._peer.world
        assert isinstance(world, GossipWorld)
        if world.copying == self._peer.name:
            world.replicas[self._peer.name] = self.replica()

    def replica(self) -> Replica:
        """A copy of the state at hand."""
        held = self.vectors()[STREAM]
        return Replica(held[PHI].clone(), held["momentum"].clone())


class GossipPeer(ValuePeer):
    """A peer whose state is its own."""

    def open_model(self, manifest: Manifest) -> Any:
        self.tensors = GossipEngine(self, manifest, self.world.streams)
        return self.tensors

    def new_trainer(self) -> ValueTrainer:
        return GossipTrainer(self)

    def note(self, event: str, details: dict[str, Any]) -> None:
        super().note(event, details)
        if event == "snapshot":
            assert isinstance(self.world, GossipWorld)
            assert isinstance(self.tensors, GossipEngine)
            self.world.replicas[self.name] = self.tensors.replica()


class GossipTrainer(ValueTrainer):
    """Moves its weights by so much that replicas differ, and stay finite for long."""

    def _learn(self) -> None:
        assert self.weights is not None
        self.weights.add_(torch.randn(self.weights.shape, generator=self.world.noise))


class GossipWorld(ValueWorld):
    """Three such peers. `replicas` follows what is committed; `check` compares it with what they hold."""

    peer_class = GossipPeer

    def __init__(self, folder: Path) -> None:
        self.replicas: dict[str, Replica] = {}
        self.copying = ""
        """Who goes on with another's state for the moment, which it has fetched in parts."""
        self.spreads: list[float] = []
        self.noise = torch.Generator().manual_seed(0)
        self.offers: dict[tuple[str, int], Tensor] = {}
        super().__init__(folder, "pair", "fp32")
        self.save_every = 0

    def method(self, topology: str, codec: str) -> tuple[Stream, ...]:
        return noloco(NolocoOptions(every=1), Wire(codec))

    def told(self, record: Any) -> None:
        pass

    def offered(self, who: str, attempt: int, weights: Tensor) -> None:
        """A peer uses its input in an attempt: the same at each use."""
        if not torch.equal(self.offers.setdefault((who, attempt), weights.clone()), weights):
            raise Violation(f"{who} used two inputs in attempt {attempt}")

    def applied(self, who: str, record: CommitRecord, mean: Tensor) -> None:
        """A peer applies an update: the mean of what its contributors offered. Its replica follows the rule."""
        known = self.update_of.setdefault(record.chain, (record, mean))
        if not torch.equal(known[1], mean):
            raise Violation(f"{who} applied other numbers as {record.number} than its partner")
        offers = [self.offers[peer, record.sync.attempt] for peer in record.contributors]
        if not torch.equal(mean, torch.stack(offers).sum(0).div(len(offers))):
            raise Violation(f"{record.sync} is not the mean of what {record.contributors} offered")
        if known[1] is mean:
            self.lines.append(record)
        self.copying = "" if who in record.contributors else who
        if self.copying:
            return
        self.checkers.own_lines[who].add(record.chain)
        replica = self.replicas.setdefault(who, Replica(torch.zeros_like(mean), torch.zeros_like(mean)))
        rule = NoLoCo()
        rule.apply(replica.phi, mean.clone(), (replica.momentum,), rule.options, torch.empty_like(mean))

    def check(self) -> None:
        """At rest: every replica is what follows from the exchanges that it was in."""
        for peer in self.peers.values():
            assert isinstance(peer.tensors, GossipEngine)
            held = peer.tensors.replica()
            if not torch.equal(held.phi, self.replicas[peer.name].phi):
                raise Violation(f"{peer.name} rests with a phi that does not follow from its exchanges")
            if not torch.equal(held.momentum, self.replicas[peer.name].momentum):
                raise Violation(f"{peer.name} rests with a momentum that does not follow from its exchanges")
            self.checkers.both_or_neither(peer.name)
