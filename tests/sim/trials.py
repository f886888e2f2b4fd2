"""Guarantees 4, 5 and 7: in a run that is well something goes wrong for good, or somebody joins; the others go on.

All they may lose is time, within the bounds of the policy: no trainer that has nothing to do with it starts over,
is stopped for longer than that, or stays without new syncs.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.sim.symbols import Violation
from tests.sim.world import POLICY, SimPeer, SimTrainer, World

SYNCS = 2
"""Syncs of every stream that the others adopt in a trial."""
MARGIN_S = 1.5
"""Ticks, and messages on their way."""
EVERY_S = 0.5


@dataclass(slots=True)
class _Set:
    """A trial that has begun."""

    others: list[SimPeer]
    """Who must go on."""
    mend: Callable[[], None]


@dataclass(slots=True)
class _Save:
    """For how long somebody was in no exchange because it saved the state of a gossip run, as seen by many looks.

    This is no matter of the trial, but of its disk, and may come in the same pause as a wait for who is late. It is one
    save for each pause: before the next one all replicas come to one, which the trainer is granted.
    """

    longest_s: float = 0.0
    _lasts_s: float = 0.0

    def look(self, saves: bool) -> None:
        self._lasts_s = self._lasts_s + EVERY_S if saves else 0.0
        self.longest_s = max(self.longest_s, self._lasts_s)


def _join(world: World, alive: list[SimPeer]) -> _Set:
    world.join(world.new_name())
    return _Set(alive, lambda: None)


def _freeze(world: World, alive: list[SimPeer]) -> _Set:
    frozen, *others = alive
    world.net.freeze(frozen.name)
    return _Set(others, lambda: world.net.thaw(frozen.name))


def _crash(world: World, alive: list[SimPeer]) -> _Set:
    dead, *others = alive
    dead.die(seen=False)
    return _Set(others, dead.start)


def _black_hole(world: World, alive: list[SimPeer]) -> _Set:
    """Two peers that cannot reach each other; the coordinator reaches both."""
    one, other, *others = alive
    pairs = {(one.name, other.name), (other.name, one.name)}
    world.net.cut |= pairs
    return _Set(others, lambda: world.net.cut.difference_update(pairs))


def _isolated(world: World, alive: list[SimPeer]) -> _Set:
    """One that no other peer can reach, and that is ready sooner than they; the coordinator reaches all of them."""
    lone, *others = alive
    names = [peer.name for peer in others]
    pairs = {(lone.name, name) for name in names} | {(name, lone.name) for name in names}
    world.net.cut |= pairs
    for peer in others:
        peer.slowness = 20.0

    def mend() -> None:
        world.net.cut.difference_update(pairs)
        for peer in others:
            peer.slowness = 1.0

    return _Set(others, mend)


def _hang(world: World, alive: list[SimPeer]) -> _Set:
    """A trainer that takes a thousand times as long for a step; its daemon is well."""
    slow, *others = alive
    slow.slowness = 1000.0
    return _Set(others, lambda: None)


TRIALS: dict[str, tuple[Callable[[World, list[SimPeer]], _Set], int, float]] = {
    # how it begins, how many peers it takes, and what may be waited for besides the grace time
    "join": (_join, 1, 0.0),
    "freeze": (_freeze, 2, POLICY.suspect_ceiling_s),
    "crash": (_crash, 2, POLICY.suspect_ceiling_s),
    "black hole": (_black_hole, 3, 2 * POLICY.deadline_ceiling_s),
    "isolated": (_isolated, 3, 2 * POLICY.deadline_ceiling_s),
    "hang": (_hang, 2, 0.0),
}


def _is_well(trainer: SimTrainer | None) -> bool:
    """Whether it trains, and its daemon knows of it: one without a daemon may have to start over when it has one."""
    return trainer is not None and trainer.trains and not trainer.away


def stand_trial(world: World, kind: str) -> None:
    """Let it happen, watch the others, and mend it."""
    begin, peers, extra_s = TRIALS[kind]
    alive = [peer for peer in world.peers.values() if peer.alive and not peer.leaving]
    world.rng.shuffle(alive)
    if len(alive) < peers or not all(_is_well(peer.trainer) for peer in alive):
        return
    if len(world.holders()) < len(alive) or any(peer.tensors.tainted for peer in alive):
        return  # it is not well yet
    if kind == "black hole" and any(peer.outbound for peer in alive):
        return  # the way that is cut may be the only one of a third
    for peer in alive:
        peer.trainer.longest_pause_s = 0.0
    before = {peer.name: (peer.boot, peer.trainer, peer.trainer.restarts, _indices(peer)) for peer in alive}
    # Who was late for one sync waits for the next: a pause may hold the grace time of two syncs, and of each stream.
    bound_s = POLICY.grace_ceiling_s * (1 + len(world.streams)) + extra_s + MARGIN_S
    started_at = world.net.now
    trial = begin(world, alive)
    saves = {peer.name: _Save() for peer in trial.others}
    if len(trial.others) > 1 and all(peer.outbound for peer in trial.others):
        trial.mend()  # whom it has hit was the only way between them
        return
    going = list(trial.others)
    while going:
        world.net.run_until(world.net.now + EVERY_S)
        for peer in trial.others:
            boot, trainer, restarts, _ = before[peer.name]
            if not peer.alive or peer.boot != boot or peer.trainer is not trainer or trainer.restarts != restarts:
                raise Violation(f"{kind}: {peer.name}, who had nothing to do with it, had to start over")
            saves[peer.name].look(_held_back(world, peer))
            allowed_s = bound_s + saves[peer.name].longest_s
            if (pause_s := max(trainer.longest_pause_s, trainer.pause_s)) > allowed_s:
                why = peer.shell.core.waiting(peer.now)
                raise Violation(
                    f"{kind}: {peer.name} was stopped for {pause_s:.1f} s, allowed are {allowed_s:.1f}: {why}"
                )
        going = [peer for peer in going if not _went_on(before[peer.name][3], _indices(peer))]
        if going and world.net.now > started_at + (SYNCS + 1) * bound_s:
            names = [(peer.name, peer.shell.core.waiting(peer.now)) for peer in going]
            raise Violation(f"{kind}: {names} got no new syncs for {world.net.now - started_at:.1f} s")
    trial.mend()


def _held_back(world: World, peer: SimPeer) -> bool:
    """Whether it is in no exchange until the state that it saves is on disk."""
    core = world.coordinator.core
    return world.gossip and core is not None and core.saves.writer == peer.name


def _indices(peer: SimPeer) -> dict[str, int]:
    return {stream.name: peer.trainer.core.index(stream.name) for stream in peer.world.streams}


def _went_on(before: dict[str, int], after: dict[str, int]) -> bool:
    return all(after[name] >= index + SYNCS for name, index in before.items())
