"""The coordinator is away for a while: whose method has a delay does not stop, and nothing that was made is lost."""

import random

import pytest

from tests.conftest import Measured
from tests.sim.network import Weather
from tests.sim.world import World
from wantrain.optimizers.stream import Stream

AWAY_S = 4.0


def paused_s(delay: int, measured: Measured) -> float:
    """The longest pause of a trainer while the coordinator is killed at an unlucky moment and is away for a while."""
    world = World(random.Random(7), (Stream("param", every=100, delay=delay),), Weather())
    peers = [world.join(world.new_name()) for _ in range(3)]

    def commits(count: int) -> int:
        wanted = world.checkers.commits + count
        while world.checkers.commits < wanted:
            assert world.net.now < 600.0
            world.net.run_until(world.net.now + 0.1)
        return world.checkers.commits

    def staged() -> bool:
        """Whether somebody has just staged, and waits if the method lets it wait: nothing can be decided yet."""
        return any(peer.trainer.core.outstanding if delay else peer.trainer.core.waiting for peer in peers)

    for peer in peers:
        world.net.run_until(world.net.now + 0.5)
        assert peer.trainer is not None
        peer.trainer.step_s = 0.1
    commits(2)
    while not staged():
        world.net.run_until(world.net.now + 0.01)
    for peer in peers:
        peer.trainer.longest_pause_s = 0.0
    world.coordinator.die()
    world.net.run_until(world.net.now + AWAY_S)
    world.coordinator.start()
    before = dict(world.checkers.commits_of)
    commits(2)
    assert all(world.checkers.commits_of[peer.name] > before[peer.name] for peer in peers)
    pause_s = max(peer.trainer.longest_pause_s for peer in peers)
    measured(6, f"pause of trainers, coordinator away for {AWAY_S:.0f} s, delay {delay} steps of 100", pause_s, "s")
    return pause_s


@pytest.mark.scenario(6)
def test_with_a_delay_nobody_stops_while_the_coordinator_is_away(measured: Measured) -> None:
    assert paused_s(100, measured) == 0.0


@pytest.mark.scenario(6)
def test_without_one_training_stops_for_its_result(measured: Measured) -> None:
    assert paused_s(0, measured) > 0.0
