"""What goes wrong in a simulated run, when, and the end of it: everything drawn from one seed."""

import random
from dataclasses import replace

from tests.sim.network import Weather
from tests.sim.world import World
from wantrain.optimizers.stream import Stream
from wantrain.peers.participant import COORDINATOR

FAULTS = (
    "crash", "crash-later", "freeze", "coordinator", "coordinator-later", "one-way", "pair", "split", "trainer",
    "join", "leave", "disk-full", "poison", "flood", "bit-flip", "too-large",
)  # fmt: skip


def methods(rng: random.Random) -> tuple[Stream, ...]:
    """The streams of a run, with a topology drawn for each."""
    return tuple(replace(stream, topology=rng.choice(["auto", "direct", "ring"])) for stream in _streams(rng))


def _streams(rng: random.Random) -> tuple[Stream, ...]:
    every = rng.choice([1, 2, 3, 5])
    kind = rng.choice(["one", "one", "one", "late-adopt", "delayed", "two", "gradients"])
    if kind == "two":
        return (
            Stream("a", every=every + 1, offset=1),
            Stream("b", every=every + 1, offset=every, delay=rng.choice([0, 1])),
        )
    if kind == "gradients":
        return (Stream("grad", state="grad", every=1), Stream("param", every=4, late="adopt"))
    if kind == "late-adopt":
        return (Stream("param", every=every, late="adopt"),)
    return (Stream("param", every=every, delay=rng.choice([1, every]) if kind == "delayed" else 0),)


def weather(rng: random.Random) -> Weather:
    """How good the network is."""
    loss = rng.choice([0.0, 0.0, 0.01, 0.1])
    spike = rng.choice([0.0, 0.05, 0.2])
    duplicate = rng.choice([0.0, 0.0, 0.1])
    return Weather((0.001, rng.choice([0.005, 0.05, 0.3])), spike, rng.choice([0.5, 2.0]), loss, duplicate)


def schedule(world: World, until_s: float) -> None:
    """Plan the faults of a run."""
    rng = world.rng
    for _ in range(rng.randint(0, 7)):
        kind = rng.choice(FAULTS)
        world.net.at(rng.uniform(0.0, until_s), lambda kind=kind: strike(world, kind))


def strike(world: World, kind: str) -> None:
    """Let one fault happen now."""
    rng, net = world.rng, world.net
    alive = [peer for peer in world.peers.values() if peer.alive]
    if not alive:
        return
    peer = rng.choice(alive)
    others = [name for name in (*world.peers, COORDINATOR) if name != peer.name]
    other = rng.choice(others)
    back_s = rng.choice([0.1, 1.0, 4.0, 12.0])
    world.trace.add(net.now, "FAULT", f"{kind} {peer.name} {other} for {back_s} s")
    match kind:
        case "crash":
            if world.may_crash(peer):
                peer.die(seen=rng.random() < 0.7)
        case "crash-later":
            peer.crash_after = rng.randint(0, 40)
        case "freeze":
            net.frozen.setdefault(peer.name, [])
            net.at(back_s, lambda: net.thaw(peer.name))
        case "coordinator":
            if world.coordinator.core is not None:
                world.coordinator.die()
        case "coordinator-later":
            world.coordinator.crash_after = rng.randint(0, 40)
        case "one-way":
            _cut(world, [(peer.name, other)], back_s)
        case "pair":
            _cut(world, [(peer.name, other), (other, peer.name)], back_s)
        case "split":
            names = [*world.peers, COORDINATOR]
            side = {name for name in names if rng.random() < 0.5}
            _cut(world, [(a, b) for a in names for b in names if (a in side) != (b in side)], back_s)
        case "trainer":
            if peer.trainer is not None:
                peer.trainer.crash()
        case "join":
            if world.named < 6:
                world.join(world.new_name())
        case "leave":
            if peer.trainer is not None and peer.trainer.started and world.may_crash(peer):
                peer.trainer.leave()
        case "disk-full":
            world.coordinator.disk.full = True
            net.at(back_s, lambda: setattr(world.coordinator.disk, "full", False))
        case "poison":
            if peer.trainer is not None:
                peer.trainer.flaw = "nan"
        case "too-large":
            if peer.trainer is not None:
                peer.trainer.flaw = rng.choice(["part", "sum"])
                net.at(back_s, lambda trainer=peer.trainer: setattr(trainer, "flaw", ""))
        case "bit-flip":
            # With fewer than three who can be compared nobody can tell who is right.
            clean = [p for p in world.holders() if p.tensors is not None and not p.tensors.tainted]
            if len(clean) >= 3 and len(clean) == len(alive):
                clean[0].tensors.flip_a_bit(rng)
        case "flood":
            # A burst of loss on everything.
            usual = net.weather
            net.weather = replace(usual, loss=0.6)
            net.at(min(back_s, 4.0), lambda: net.becomes(usual))
    if kind in ("crash", "crash-later", "coordinator", "coordinator-later"):
        net.at(back_s, lambda: restart(world))


def _cut(world: World, pairs: list[tuple[str, str]], back_s: float) -> None:
    world.net.cut.update(pairs)
    world.net.at(back_s, lambda: world.net.cut.difference_update(pairs))


def restart(world: World) -> None:
    """Start again whatever has crashed."""
    if world.coordinator.core is None:
        world.coordinator.start()
    for peer in world.peers.values():
        if not peer.alive and not peer.gone_for_good:
            peer.start()


def heal(world: World) -> None:
    """No more faults from here on."""
    world.net.becomes(Weather(), for_good=True)
    world.refuse_send = 0.0
    world.net.cut.clear()
    for name in list(world.net.frozen):
        world.net.thaw(name)
    world.coordinator.crash_after = None
    world.coordinator.disk.full = False
    for peer in world.peers.values():
        peer.crash_after = None
        if peer.trainer is not None:
            peer.trainer.flaw = ""
    restart(world)
