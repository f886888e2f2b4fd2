"""A peer dies before every message that it sends in a sync, the coordinator before everything it does: sums stay right.

With the real engine and real numbers. Every message of an attempt that failed is delivered once more into the next one.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.sim.faults import restart
from tests.sim.values import PEERS, ValueWorld
from wantrain.peers.attempts import Attempt, Attempts
from wantrain.peers.messages import SyncId

TOPOLOGIES = ("direct", "ring")
LONGEST_S = 60.0
"""Virtual seconds until everybody is in two more commits."""
BACK_S = 1.0
"""How long the dead are away."""
ALL = {f"p{k}" for k in range(PEERS)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def running(folder: Path, topology: str, codec: str, answer: str = "result") -> ValueWorld:
    """A world in which the last commit holds everybody, and that keeps its messages from now on."""
    folder.mkdir()
    world = ValueWorld(folder, topology, codec, answer)
    advance(world, lambda: bool(world.lines) and set(world.lines[-1].contributors) == ALL)
    world.listen()
    return world


def advance(world: ValueWorld, reached: Callable[[], bool]) -> None:
    end_s = world.net.now + LONGEST_S
    while not reached():
        assert world.net.now < end_s, f"not reached: {world.coordinator.core and world.coordinator.core.reason()}"
        world.net.run_until(world.net.now + 0.01)


def everybody_again(world: ValueWorld) -> Callable[[], bool]:
    """Whether two commits that hold everybody were made from now on, and nobody is dead."""
    before = len(world.lines)

    def reached() -> bool:
        whole = [line for line in world.lines[before:] if set(line.contributors) == ALL]
        return len(whole) >= 2 and all(peer.alive for peer in world.peers.values())

    return reached


def finish(world: ValueWorld) -> None:
    """Deliver every message once more, let the trainers stop, and compare."""
    world.again()
    advance(world, everybody_again(world))
    world.trainers_stopped = True
    world.net.run_until(world.net.now + 3.0)
    world.check()


def dies(world: ValueWorld, peer: int | None, steps: int, *, spare: bool = False) -> bool:
    """Let a peer (or, with None, the coordinator) die before it sends (or does) one more; False if it never came to it.

    With `spare` only its daemon dies.

    It has until two commits were made: then there is nothing of this sync left to be done.
    """
    victim = world.coordinator if peer is None else world.peers[f"p{peer}"]
    victim.crash_after = steps
    if spare:
        victim.spares_trainer = True
        victim.slowness = 6.0  # what its trainer makes alone must fit into two digits
    lines = len(world.lines)

    def dead() -> bool:
        return world.coordinator.core is None or not all(p.alive for p in world.peers.values())

    advance(world, lambda: dead() or len(world.lines) >= lines + 2)
    if not dead():
        return False
    world.net.at(BACK_S, lambda: restart(world))
    return True


def every_death(
    folder: Path,
    peer: int | None,
    topology: str,
    codec: str,
    *,
    every: int = 1,
    spare: bool = False,
    answer: str = "result",
) -> None:
    """Let it die before each of its steps in a sync, one run for each, or for every so many."""
    steps = 0
    while True:
        world = running(folder / str(steps), topology, codec, answer)
        if not dies(world, peer, steps, spare=spare):
            break
        advance(world, everybody_again(world))
        assert world.retries <= 1, f"{world.retries} more attempts for one loss, before step {steps}"
        finish(world)
        steps += every
    assert steps >= 5  # reports, parts and results at the least


@pytest.mark.scenario(1, 2)
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("peer", range(PEERS))
def test_a_peer_that_dies_before_any_message_of_a_sync_is_in_it_whole_or_not_at_all(
    tmp_path: Path, peer: int, topology: str
) -> None:
    every_death(tmp_path, peer, topology, "fp32")


@pytest.mark.scenario(1, 2)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_same_with_a_codec_that_rounds(tmp_path: Path, topology: str) -> None:
    every_death(tmp_path, 0, topology, "int8", every=2)


@pytest.mark.scenario(16)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_trainer_that_outlives_its_daemon_loses_nothing_and_nothing_of_it_counts_twice(
    tmp_path: Path, topology: str
) -> None:
    every_death(tmp_path, 1, topology, "fp32", spare=True)


@pytest.mark.scenario(1, 2)
@pytest.mark.parametrize("spare", [False, True])
def test_what_is_answered_ahead_of_its_sync_is_in_it_whole_or_not_at_all(tmp_path: Path, spare: bool) -> None:
    every_death(tmp_path, 0, "direct", "fp32", spare=spare, answer="delayed")


@pytest.mark.scenario(6)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_coordinator_that_dies_before_any_step_of_a_sync_forgets_no_commit_and_makes_none_twice(
    tmp_path: Path, topology: str
) -> None:
    every_death(tmp_path, None, topology, "fp32")


def test_a_peer_that_takes_up_old_messages_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with a planted bug: whatever belongs to the sync is taken for part of the attempt that runs."""

    def of_any_attempt(self: Attempts, sync: SyncId) -> Attempt | None:
        attempt = self.running.get(sync.stream)
        return attempt if attempt is not None and attempt.sync.index == sync.index else None

    monkeypatch.setattr(Attempts, "of", of_any_attempt)
    with pytest.raises(AssertionError):  # a Violation is one
        every_death(tmp_path, 0, "direct", "fp32")


def test_without_any_loss_every_commit_holds_everybody_once(tmp_path: Path) -> None:
    world = running(tmp_path / "run", "direct", "fp32")
    advance(world, lambda: len(world.lines) >= 12)
    assert world.retries == 0
    assert all(set(line.contributors) == ALL for line in world.lines[-8:])
    finish(world)
