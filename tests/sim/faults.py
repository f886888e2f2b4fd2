"""What can go wrong in a simulated run: one function for each kind of fault, and the end of all of them.

A fault says by numbers whom it hits; who that is depends on who is alive then, so that a plan without some of its
faults still makes sense. What a fault breaks it mends itself, `back_s` later.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from tests.sim.network import Weather
from tests.sim.plan import Fault, Plan
from tests.sim.world import SimPeer, World
from wantrain.peers.participant import COORDINATOR

MOST_PEERS = 6
FLAP_S = 1.0
LOOK_S = 0.02
STORM_S = 0.7
"""Time between two crashes of a process that is started again at once."""

Strike: TypeAlias = Callable[[World, Fault, SimPeer, str], None]
"""The fault, one live peer, and another machine or the coordinator."""

STRIKES: dict[str, Strike] = {}
"""Every kind of fault by name."""


def fault(kind: str) -> Callable[[Strike], Strike]:
    """Make a function a kind of fault."""

    def add(strike: Strike) -> Strike:
        STRIKES[kind] = strike
        return strike

    return add


def kinds() -> tuple[str, ...]:
    """All kinds of faults."""
    return tuple(STRIKES)


def schedule(world: World, plan: Plan) -> None:
    """Let the faults of a plan strike when their time has come."""
    for planned in plan.faults:
        world.net.at(planned.at_s, lambda planned=planned: strike(world, planned))


def strike(world: World, planned: Fault) -> None:
    """Let one fault happen now."""
    alive = [peer for peer in world.peers.values() if peer.alive]
    if not alive:
        return
    peer = alive[planned.peer % len(alive)]
    others = [name for name in (*world.peers, COORDINATOR) if name != peer.name]
    other = others[planned.other % len(others)]
    if world.trace.on:
        world.trace.add(world.net.now, "FAULT", f"{planned.kind} {peer.name} {other} for {planned.back_s} s")
    STRIKES[planned.kind](world, planned, peer, other)


# ---- processes


def _back(world: World, planned: Fault) -> None:
    world.net.at(planned.back_s, lambda: restart(world))


@fault("crash")
def _crash(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    if world.may_crash(peer):
        peer.die(seen=planned.amount % 10 < 7)
    _back(world, planned)


@fault("disk-lost")
def _disk_lost(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """A machine that dies and comes back with an empty disk."""
    kept, peer.disk.kept = peer.disk.kept, {}
    if world.may_crash(peer):
        peer.die(seen=planned.amount % 10 < 7)
    else:
        peer.disk.kept = kept
    _back(world, planned)


@fault("all-crash")
def _all_crash(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """The power fails everywhere; the coordinator's, too, in half of the cases. What is on disk stays."""
    alive = [p for p in world.peers.values() if p.alive]
    if any(map(world.on_disk, alive)):
        for one in alive:
            one.die(seen=False)
        if planned.amount % 2 and world.coordinator.core is not None:
            world.coordinator.die()
    _back(world, planned)


@fault("peer-disk-full")
def _peer_disk_full(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """A peer cannot save its state for a while."""
    peer.disk.broken = True
    world.net.at(planned.back_s, lambda: setattr(peer.disk, "broken", False))


@fault("crash-later")
def _crash_later(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    peer.crash_after = planned.amount % 41
    _back(world, planned)


@fault("daemon")
def _daemon(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """The daemon crashes, its trainer lives: at once, before a message, or between two writes to their memory."""
    if planned.amount % 4 == 0:
        if world.may_crash(peer):
            peer.die(seen=planned.amount % 10 < 7, spare=True)
    else:
        peer.spares_trainer = True
        if planned.amount % 4 == 1:
            peer.crash_after = planned.amount // 4 % 41
        else:
            peer.instants = planned.amount // 4 % 31
    _back(world, planned)


@fault("memory-lost")
def _memory_lost(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """The daemon crashes, its trainer lives, and the next daemon finds nothing of the memory that they shared."""
    if world.may_crash(peer):
        peer.die(seen=planned.amount % 10 < 7, spare=True)
        peer.segments = dict.fromkeys(peer.segments)
    _back(world, planned)


def _again_and_again(world: World, planned: Fault, die: Callable[[bool], None]) -> None:
    """A process that crashes again whenever it is started again; `die` is told whether others see it."""

    def again(left: int) -> None:
        if world.calm:
            return
        die(left % 2 == 0)
        if left:
            world.net.at(STORM_S, lambda: restart(world))
            world.net.at(STORM_S * 1.5, lambda: again(left - 1))
        else:
            _back(world, planned)

    again(2 + planned.amount % 4)


@fault("storm")
def _storm(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    _again_and_again(world, planned, lambda seen: peer.die(seen=seen) if world.may_crash(peer) else None)


@fault("freeze")
def _freeze(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """SIGSTOP: what comes meanwhile is delivered when it thaws."""
    world.net.freeze(peer.name)
    world.net.at(planned.back_s, lambda: world.net.thaw(peer.name))


@fault("trainer")
def _trainer(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    if peer.trainer is not None:
        peer.trainer.crash()


@fault("join")
def _join(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    if world.named < MOST_PEERS:
        world.join(world.new_name())


@fault("leave")
def _leave(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """swarm.leave(); half of those who leave come back."""
    if peer.trainer is not None and peer.trainer.trains and world.may_crash(peer, for_good=True):
        peer.trainer.leave()
        if planned.amount % 2:
            world.net.at(planned.back_s, peer.come_back)


@fault("leave-together")
def _leave_together(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """As soon as some have the newest state and others have not, those who have it leave, all at the same instant."""
    over_at = world.net.now + planned.back_s

    def look() -> None:
        staying = [p for p in world.peers.values() if p.alive and not p.leaving]
        newest = [p for p in world.holders() if p.trainer is not None and p.trainer.trains]
        if 0 < len(newest) < len(staying) and not any(p.outbound for p in staying):
            for one in newest:
                one.trainer.leave()
                if planned.amount % 2:
                    world.net.at(planned.back_s, one.come_back)
        elif world.net.now < over_at and not world.calm:
            world.net.at(LOOK_S, look)

    look()


@fault("coordinator")
def _coordinator(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    if world.coordinator.core is not None:
        world.coordinator.die()
    _back(world, planned)


@fault("coordinator-later")
def _coordinator_later(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    world.coordinator.crash_after = planned.amount % 41
    _back(world, planned)


@fault("coordinator-storm")
def _coordinator_storm(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    coordinator = world.coordinator
    _again_and_again(world, planned, lambda seen: coordinator.die() if coordinator.core is not None else None)


@fault("coordinator-freeze")
def _coordinator_freeze(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    world.net.freeze(COORDINATOR)
    world.net.at(planned.back_s, lambda: world.net.thaw(COORDINATOR))


# ---- clocks


def _whose(planned: Fault, peer: SimPeer) -> str:
    return COORDINATOR if planned.amount % 3 == 0 else peer.name


@fault("clock-jump")
def _clock_jump(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """A machine that was suspended, as its monotonic clock may show it: minutes are gone at once."""
    world.clocks.jump(_whose(planned, peer), 30.0 * (1 + planned.amount % 20))


@fault("clock-stop")
def _clock_stop(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """`now` stands still, then goes on with the right time."""
    name = _whose(planned, peer)
    world.clocks.stop(name)
    world.net.at(planned.back_s, lambda: world.clocks.go_on(name))


# ---- the network


@fault("one-way")
def _one_way(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    _cut(world, [(peer.name, other) if planned.amount % 2 else (other, peer.name)], planned.back_s)


@fault("pair")
def _pair(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    _cut(world, [(peer.name, other), (other, peer.name)], planned.back_s)


@fault("split")
def _split(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """Two sides; the bits of `amount` say who is on which, the coordinator included."""
    names = [*world.peers, COORDINATOR]
    side = {name for k, name in enumerate(names) if planned.amount >> k & 1}
    _cut(world, [(a, b) for a in names for b in names if (a in side) != (b in side)], planned.back_s)


def _cut(world: World, pairs: list[tuple[str, str]], back_s: float) -> None:
    world.net.cut.update(pairs)
    world.net.at(back_s, lambda: world.net.cut.difference_update(pairs))


@fault("flap")
def _flap(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """A link that breaks and comes up every second."""
    pairs = {(peer.name, other), (other, peer.name)}

    def turn(up: bool, left_s: float) -> None:
        up = up or world.calm
        (world.net.cut.difference_update if up else world.net.cut.update)(pairs)
        world.connection(peer.name, other, up=up)
        if left_s > 0.0 or not up:
            world.net.at(FLAP_S, lambda: turn(not up, left_s - FLAP_S))

    turn(False, planned.back_s)


@fault("asymmetric")
def _asymmetric(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """One direction of a link is slow and loses much, the other is as it was."""
    way = (peer.name, other) if planned.amount % 2 else (other, peer.name)
    world.net.links[way] = Weather((0.3, 0.3 + 0.1 * (planned.amount % 10)), loss=0.2)
    world.net.at(planned.back_s, lambda: world.net.links.pop(way, None))


@fault("slow")
def _slow(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """Ten times slower than it was: its links and its trainer."""
    world.net.times[peer.name] = 10.0
    peer.slowness = 10.0

    def over() -> None:
        world.net.times.pop(peer.name, None)
        peer.slowness = 1.0

    world.net.at(planned.back_s, over)


@fault("late")
def _late(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """All that it says and hears comes seconds late."""
    world.net.late_s[peer.name] = 0.5 + 0.25 * (planned.amount % 11)
    world.net.at(planned.back_s, lambda: world.net.late_s.pop(peer.name, None))


@fault("flood")
def _flood(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """A burst of loss on everything."""
    net = world.net
    net.weather = replace(net.usual, loss=0.6)

    def over() -> None:
        net.weather = net.usual

    net.at(min(planned.back_s, 4.0), over)


@fault("replay")
def _replay(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """Messages from any time before are delivered once more."""
    world.net.replay(1 + planned.amount % 40)


# ---- the coordinator's disk


@fault("disk-full")
def _disk_full(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """From now on, or in the middle of what is written next."""
    disk = world.coordinator.disk
    disk.room = planned.amount % 4

    def over() -> None:
        disk.room = None

    world.net.at(planned.back_s, over)


@fault("disk-slow")
def _disk_slow(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """What is written is durable seconds later, or is and the coordinator hears of it only then."""
    disk = world.coordinator.disk
    disk.slow_s = 0.2 + 0.3 * (planned.amount % 12)

    def over() -> None:
        disk.slow_s = 0.0

    world.net.at(planned.back_s, over)


# ---- what is contributed, and memory


@fault("poison")
def _poison(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    if peer.trainer is not None:
        peer.trainer.flaw = "nan"


@fault("too-large")
def _too_large(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    trainer = peer.trainer
    if trainer is not None:
        trainer.flaw = "part" if planned.amount % 2 else "sum"
        world.net.at(planned.back_s, lambda: setattr(trainer, "flaw", ""))


@fault("garbage")
def _garbage(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """A member that sends some of the others what is no chunk of anything."""
    peer.lies_to = planned.amount

    def over() -> None:
        peer.lies_to = 0

    world.net.at(planned.back_s, over)


@fault("bit-flip")
def _bit_flip(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    # With fewer than three who can be compared nobody can tell who is right.
    alive = [p for p in world.peers.values() if p.alive]
    clean = [p for p in world.holders() if p.tensors is not None and not p.tensors.tainted]
    if len(clean) >= 3 and len(clean) == len(alive):
        clean[0].tensors.flip_a_bit(world.rng)


@fault("liar")
def _liar(world: World, planned: Fault, peer: SimPeer, other: str) -> None:
    """It gives false bytes to those who catch up, of which there is one more."""
    peer.lies = True
    if world.named < MOST_PEERS:
        world.join(world.new_name())
    world.net.at(planned.back_s, lambda: setattr(peer, "lies", False))


# ---- the end


def restart(world: World) -> None:
    """Start again whatever has crashed."""
    if world.coordinator.core is None:
        world.coordinator.start()
    for peer in world.peers.values():
        if not peer.alive and not peer.gone_for_good:
            peer.start()


def heal(world: World) -> None:
    """No more faults from here on."""
    net = world.net
    world.calm = True
    net.weather = net.usual = Weather()
    world.refuse_send = world.flicker = world.redial_s = 0.0
    net.cut.clear()
    net.links.clear()
    net.times.clear()
    net.late_s.clear()
    for name in list(net.frozen):
        net.thaw(name)
    world.clocks.all_go_on()
    world.coordinator.crash_after = None
    world.coordinator.disk.room = None
    world.coordinator.disk.slow_s = 0.0
    for peer in world.peers.values():
        peer.crash_after = peer.instants = None
        peer.slowness = 1.0
        peer.lies = False
        peer.lies_to = 0
        peer.disk.broken = False
        if peer.trainer is not None:
            peer.trainer.flaw = ""
    restart(world)
    staying = [peer for peer in world.peers.values() if not peer.gone_for_good and not peer.leaving]
    if all(peer.outbound for peer in staying):
        world.outbound = 0.0  # only through somebody who can be reached do they come together again
        if len(staying) > 1:
            world.join(world.new_name())
