"""Gossip with real numbers: a peer dies before every message that it sends; both of a pair apply, or neither does."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.sim.faults import restart
from tests.sim.gossip import GossipWorld, Replica
from tests.sim.values import PEERS

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
def test_without_any_loss_the_mean_follows_heavy_ball_whoever_is_paired_with_whom(tmp_path: Path) -> None:
    """Every step of a replica is the mixing, which does not move the mean, and momentum and gradient, which add up."""
    world = GossipWorld(tmp_path)
    before: dict[str, Replica] = {}
    gradient, pulls = [], []

    applied = world.applied

    def watched(who: str, record: object, mean: torch.Tensor) -> None:
        known = world.replicas.get(who) or Replica(torch.zeros_like(mean), torch.zeros_like(mean))
        before[who] = Replica(known.phi.double(), known.momentum.double())
        applied(who, record, mean)  # type: ignore[arg-type]
        after, contributors = world.replicas[who], record.contributors  # type: ignore[attr-defined]
        offer = world._offers[who, record.sync.attempt].double()  # type: ignore[attr-defined]
        own = 0.7 * (offer - before[who].phi)
        pulls.append(
            (record, after.phi.double() - before[who].phi - 0.5 * before[who].momentum - own, len(contributors))
        )
        gradient.append(own)

    world.applied = watched  # type: ignore[method-assign]
    advance(world, all_paired(world, 6))
    assert len(gradient) >= 12
    of_line: dict[bytes, list[torch.Tensor]] = {}
    for record, pull, _ in pulls:
        of_line.setdefault(record.chain, []).append(pull)  # type: ignore[attr-defined]
    whole = [found for (record, _, size) in pulls if len(found := of_line[record.chain]) == size]  # type: ignore[attr-defined]
    assert len(whole) >= 12
    for found in whole:
        torch.testing.assert_close(sum(found), torch.zeros_like(found[0]), rtol=0, atol=1e-3)
    assert any(found[0].abs().max() > 0.1 for found in whole if len(found) == 2)
    assert world.spreads
    assert all(0.3 < spread < 3 for spread in world.spreads[2:])
