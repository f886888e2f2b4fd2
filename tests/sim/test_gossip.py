"""Gossip with real numbers: a peer dies before every message that it sends; both of a pair apply, or neither does."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.sim.faults import restart
from tests.sim.gossip import GossipWorld, Replica
from tests.sim.values import PEERS
from wantrain.peers.messages import CommitRecord

LONGEST_S = 60.0
"""Virtual seconds until everybody is in more pairs."""
BACK_S = 1.0
REST_S = 12.0
"""What grace times and reports may still take once no trainer steps any more."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def advance(world: GossipWorld, reached: Callable[[], bool]) -> None:
    end_s = world.net.now + LONGEST_S
    while not reached():
        assert world.net.now < end_s, f"not reached: {world.coordinator.core and world.coordinator.core.reason()}"
        world.net.run_until(world.net.now + 0.05)


def all_paired(world: GossipWorld, times: int = 2) -> Callable[[], bool]:
    """Whether every peer was in so many pairs from now on, and nobody is dead."""
    before = len(world.lines)

    def reached() -> bool:
        pairs = [line for line in world.lines[before:] if len(line.contributors) == 2]
        counts = [sum(f"p{k}" in line.contributors for line in pairs) for k in range(PEERS)]
        return min(counts) >= times and all(peer.alive for peer in world.peers.values())

    return reached


def finish(world: GossipWorld) -> None:
    """Deliver every message once more, let the trainers stop, and compare."""
    world.again()
    advance(world, all_paired(world))
    world.trainers_stopped = True
    world.net.run_until(world.net.now + REST_S)
    world.check()


def dies(world: GossipWorld, victim: int | None, steps: int, *, spare: bool) -> bool:
    """Let a peer (or, with None, the coordinator) die before it sends (or does) one more; False if that never comes."""
    target = world.coordinator if victim is None else world.peers[f"p{victim}"]
    target.crash_after = steps
    if victim is not None:
        world.peers[f"p{victim}"].spares_trainer = spare
    done = all_paired(world)

    def dead() -> bool:
        return world.coordinator.core is None or not all(peer.alive for peer in world.peers.values())

    advance(world, lambda: dead() or done())
    if not dead():
        return False
    world.net.at(BACK_S, lambda: restart(world))
    return True


@pytest.mark.scenario(1, 6, 16, 23)
@pytest.mark.parametrize(("victim", "spare"), [(0, False), (1, True), (None, False)])
def test_both_of_a_pair_apply_or_neither_does_whenever_somebody_dies(
    tmp_path: Path, victim: int | None, spare: bool
) -> None:
    steps = 0
    while True:
        (tmp_path / str(steps)).mkdir()
        world = GossipWorld(tmp_path / str(steps))
        advance(world, all_paired(world))
        world.listen()
        if not dies(world, victim, steps, spare=spare):
            break
        finish(world)
        steps += 1 if steps < 8 else 3
    assert steps >= 8


@pytest.mark.scenario(23)
def test_what_two_pull_at_each_other_does_not_move_their_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is momentum, the own outer gradient and a pull; the pulls of a pair add up to nothing."""
    pulls: dict[bytes, list[torch.Tensor]] = {}
    real = GossipWorld.applied

    def applied(self: GossipWorld, who: str, record: CommitRecord, mean: torch.Tensor) -> None:
        before = self.replicas.get(who) or Replica(torch.zeros_like(mean), torch.zeros_like(mean))
        phi, momentum = before.phi.double(), before.momentum.double()
        real(self, who, record, mean)
        own = 0.7 * (self.offers[who, record.sync.attempt].double() - phi)
        pulls.setdefault(record.chain, []).append(self.replicas[who].phi.double() - phi - 0.5 * momentum - own)

    monkeypatch.setattr(GossipWorld, "applied", applied)
    world = GossipWorld(tmp_path)
    advance(world, all_paired(world, 6))
    pairs = [found for found in pulls.values() if len(found) == 2]
    assert len(pairs) >= 6
    for one, other in pairs:
        torch.testing.assert_close(one, -other, rtol=0, atol=1e-3)
        assert one.abs().max() > 0.1
    assert world.spreads
    assert all(0.3 < spread < 3 for spread in world.spreads[2:])
