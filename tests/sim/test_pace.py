"""Methods on the virtual clock: who waits for whom where trainers are unequal, or syncs take as long as a round."""

import random

import pytest

from tests.sim.network import Weather
from tests.sim.world import SimPeer, World
from wantrain.optimizers.stream import Stream

STEP_S = 0.1


def running(stream: Stream, *speeds: float, weather: Weather | None = None) -> tuple[World, list[SimPeer]]:
    """Peers whose trainers make a step in STEP_S times their number of `speeds`, after four commits."""
    world = World(random.Random(3), (stream,), weather or Weather())
    peers = [world.join(world.new_name()) for _ in speeds]
    world.net.run_until(0.5)
    for peer, speed in zip(peers, speeds, strict=True):
        assert peer.trainer is not None
        peer.trainer.step_s = STEP_S * speed
    commits(world, 4)
    for peer in peers:
        assert peer.trainer is not None
        peer.trainer.longest_pause_s = 0.0
    return world, peers


def commits(world: World, count: int) -> None:
    wanted = world.checkers.commits + count
    while world.checkers.commits < wanted:
        assert world.net.now < 600.0, world.coordinator.core and world.coordinator.core.reason(world.net.now)
        world.net.run_until(world.net.now + STEP_S)


def pauses_s(peers: list[SimPeer]) -> list[float]:
    return [peer.trainer.longest_pause_s for peer in peers if peer.trainer is not None]


def last_steps(world: World, name: str) -> list[int]:
    """The run's step count at each line of the log."""
    records = world.coordinator.disk.records
    assert records[-1].sync.stream == name
    return [record.steps for record in records]


def test_unequal_trainers_make_unequal_rounds_and_arrive_together() -> None:
    world, peers = running(Stream("param", every=30), 1.0, 2.0)
    commits(world, 4)
    assert max(pauses_s(peers)) > 25 * STEP_S
    world, peers = running(Stream("param", every=30, schedule="dynamic"), 1.0, 2.0)
    commits(world, 4)
    assert [peer.trainer.core.made("param") for peer in peers if peer.trainer is not None] == [30, 15]
    assert max(pauses_s(peers)) < 10 * STEP_S
    newest = world.coordinator.disk.records[-4:]
    assert [len(record.contributors) for record in newest] == [2] * 4
    assert {record.pace_s for record in newest} == {STEP_S}
    steps = last_steps(world, "param")
    assert {after - before for before, after in zip(steps[-4:], steps[-3:], strict=False)} == {30}


def test_rounds_of_seconds_last_as_long_whatever_a_step_takes() -> None:
    stream = Stream("param", every=5, schedule="seconds", schedule_options=(("round_s", 6.0),))
    world, peers = running(stream, 1.0, 3.0)
    commits(world, 3)
    made = [peer.trainer.core.made("param") for peer in peers if peer.trainer is not None]
    assert made == [60, 20]


def test_the_runs_step_count_is_the_same_for_all_where_rounds_grow() -> None:
    options = (("cap", 1000.0), ("growth", 0.05), ("warmup", 12.0))
    world, peers = running(Stream("param", every=4, schedule="qsr", schedule_options=options), 1.0, 1.0)
    commits(world, 2)
    steps = last_steps(world, "param")
    # The simulated learning rate is 0.01: rounds of 4 steps up to step 12, then of (0.05 / 0.01)^2.
    assert [after - before for before, after in zip(steps, steps[1:], strict=False)][:5] == [4, 4, 25, 25, 25]
    newcomer = world.join(world.new_name())
    commits(world, 4)
    everybody = [*peers, newcomer]
    assert newcomer.trainer is not None
    assert newcomer.trainer.core.made("param") == 25
    where = [peer.trainer.core.global_step for peer in everybody if peer.trainer is not None]
    assert max(where) - min(where) < 25


@pytest.mark.parametrize(("answer", "stops"), [("result", True), ("delayed", False), ("eager", False)])
def test_a_sync_that_takes_less_than_a_round_stops_nobody_who_is_answered_ahead(answer: str, stops: bool) -> None:
    slow = Weather(delay_s=(0.3, 0.5))
    world, peers = running(Stream("param", every=100, answer=answer), 1.0, 1.0, 1.0, weather=slow)
    commits(world, 4)
    # Before any answer there is the way to the daemon, 0.02 s in the simulation.
    assert (max(pauses_s(peers)) > 0.1) == stops


def test_one_that_takes_longer_is_waited_for() -> None:
    slow = Weather(delay_s=(0.5, 0.9))
    world, peers = running(Stream("param", every=3, answer="delayed"), 1.0, 1.0, weather=slow)
    commits(world, 4)
    assert all(pause > 0.5 for pause in pauses_s(peers))
