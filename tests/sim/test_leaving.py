"""Leaving at bad moments: heirs that leave, too; newcomers nobody has told of; a daemon that is away."""

import random

import pytest

from tests.sim.network import Weather
from tests.sim.symbols import Violation
from tests.sim.world import SimCoordinator, SimPeer, StateIsGone, World
from wantrain.optimizers.stream import Stream
from wantrain.peers.coordinator import Coordinator, CoordinatorEffect, Send
from wantrain.peers.departure import Departure
from wantrain.peers.messages import MayLeave
from wantrain.peers.participant import COORDINATOR, Participant, PeerFacts

APART_S = 15.0
LATE = Weather((0.5, 0.5))


def whole_run(leaving: int, world_class: type[World] = World) -> tuple[World, list[SimPeer]]:
    """Three peers train; these many, who alone have the newest state, leave at one instant; the network mends later."""
    world = world_class(random.Random(7), (Stream("param", every=2),), Weather())
    peers = [world.join(world.new_name()) for _ in range(3)]
    while world.checkers.commits < 3 or len(world.holders()) < len(peers):
        assert world.net.now < 600.0
        world.net.run_until(world.net.now + 0.1)
    *ahead, last = peers
    pairs = {(last.name, one.name) for one in ahead} | {(one.name, last.name) for one in ahead}
    world.net.cut |= pairs
    last.slowness = 100.0
    while set(world.holders()) != set(ahead):
        assert world.net.now < 600.0
        world.net.run_until(world.net.now + 0.05)
    for one in ahead[:leaving]:
        assert one.trainer is not None
        one.trainer.leave()
    world.net.run_until(world.net.now + APART_S)
    world.net.cut -= pairs
    last.slowness = 1.0
    world.net.run_until(world.net.now + 10.0)
    return world, peers


@pytest.mark.parametrize("leaving", [1, 2])
def test_what_only_those_have_who_leave_at_once_is_handed_over_first(leaving: int) -> None:
    world, peers = whole_run(leaving)
    assert world.checkers.rewinds == 0
    assert [peer.alive for peer in peers] == [k >= leaving for k in range(3)]  # and it did not take for ever
    written = len(world.coordinator.disk.records)
    world.net.run_until(world.net.now + 1.0)  # the newest line may have been on its way
    assert peers[-1].shell.core.applied >= written


class _CountsOnAll(Coordinator):
    """Takes those who leave, too, for heirs."""

    def _let_go(self, peer: str, now: float) -> list[CoordinatorEffect]:
        self.log.revision += 1
        leaving = self.membership.leaving.items()
        return [Send(one, MayLeave(self.head, self.log.revision, report.sequence)) for one, report in leaving]


def world_of(coordinator: type[Coordinator] = Coordinator, participant: type[Participant] = Participant) -> type[World]:
    """Worlds with these cores."""
    sim_coordinator = type("_SimCoordinator", (SimCoordinator,), {"core_class": coordinator})
    sim_peer = type("_SimPeer", (SimPeer,), {"core_class": participant})
    return type("_World", (World,), {"coordinator_class": sim_coordinator, "peer_class": sim_peer})


def test_a_coordinator_that_counts_on_those_who_leave_is_caught() -> None:
    with pytest.raises(Violation, match="which nobody else has"):
        whole_run(2, world_of(_CountsOnAll))


def somebody_comes(world_class: type[World] = World, *, welcome: Weather | None = None) -> None:
    """The only peer leaves, the coordinator says that it may, and before it hears that somebody comes.

    Args:
        world_class: the kind of world.
        welcome: how what the coordinator says gets to the newcomer, if not as all else.
    """
    world = world_class(random.Random(7), (Stream("param", every=2),), Weather())
    world.save_every = 0
    last, name = world.join(world.new_name()), world.new_name()
    while world.checkers.commits < 3 or last.shell.core.in_flight:
        assert world.net.now < 600.0
        world.net.run_until(world.net.now + 0.01)
    world.net.links[COORDINATOR, last.name] = LATE
    world.net.cut |= {(last.name, name), (name, last.name)}  # a state is not handed over in no time
    if welcome is not None:
        world.net.links[COORDINATOR, name] = welcome
    assert last.trainer is not None
    last.trainer.leave()
    while not last.may_leave:
        assert last.alive
        world.net.run_until(world.net.now + 0.01)
    world.join(name)
    world.net.run_until(world.net.now + 10.0)


@pytest.mark.parametrize("welcome", [None, LATE], ids=["has reported", "has only said Hello"])
def test_who_comes_when_the_last_has_been_let_go_finds_nobody_if_that_one_leaves_before_it_hears_of_it(
    welcome: Weather | None,
) -> None:
    with pytest.raises(StateIsGone):
        somebody_comes(welcome=welcome)


class _SaysNoMore(Coordinator):
    """Lets somebody go, and does not take it back."""

    def _let_go(self, peer: str, now: float) -> list[CoordinatorEffect]:
        return [] if self._bequests.waiting else super()._let_go(peer, now)


class _GoesWhenItMayNot(Departure):
    """Has been let go, and leaves as soon as it hears that it is needed."""

    let_go = False

    def _is_needed(self, now: float, heard_at: float) -> bool:
        needed = super()._is_needed(now, heard_at)
        self.let_go = self.let_go or not needed
        return not (needed and self.let_go)


class _Hasty(Participant):
    def __init__(self, facts: PeerFacts) -> None:
        super().__init__(facts)
        self._departure.__class__ = _GoesWhenItMayNot


def test_a_coordinator_that_says_nothing_of_those_who_come_is_caught() -> None:
    with pytest.raises(Violation, match="which nobody else has"):
        somebody_comes(world_of(coordinator=_SaysNoMore))


def test_a_peer_that_leaves_when_it_has_heard_of_those_who_come_is_caught() -> None:
    with pytest.raises(Violation, match="which nobody else has"):
        somebody_comes(world_of(participant=_Hasty))


def test_who_leaves_while_its_daemon_is_away_trains_no_more() -> None:
    world = World(random.Random(7), (Stream("param", every=2),), Weather())
    peers = [world.join(world.new_name()) for _ in range(2)]
    world.net.run_until(5.0)
    one, trainer = peers[0], peers[0].trainer
    assert trainer is not None
    assert len(trainer.made) > 10
    one.die(seen=True, spare=True)
    one.disk.kept = {}  # the next daemon fetches the newest state, and could give it to a trainer at once
    one.start()
    while not one.shell.core.complete:
        assert world.net.now < 60.0
        world.net.run_until(world.net.now + 0.01)
    assert trainer.away  # the new daemon has the state, and has not been asked yet to go on with this trainer
    world.net.cut |= {(one.name, COORDINATOR), (COORDINATOR, one.name)}
    trainer.leave()
    made = len(trainer.made)
    world.net.run_until(world.net.now + APART_S)
    assert len(trainer.made) == made
    assert [peer.alive for peer in peers] == [False, True]
