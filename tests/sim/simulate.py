"""Run one seed, or many: the seed is the bug report. `python -m tests.sim.simulate --seeds N --from S`."""

import argparse
import itertools
import os
import random
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from tests.sim import symbols
from tests.sim.faults import heal, methods, schedule, weather
from tests.sim.symbols import Violation
from tests.sim.world import World

FAULTY_S = 25.0
CALM_S = 90.0
"""Longest that a run may take to recover: the largest ceiling of the policy three times over."""
QUIET_S = 45.0
PROGRESS_SEEDS = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a seed. `failure` is "" if all guarantees held."""

    seed: int
    failure: str
    commits: int
    deliveries: int
    trace: tuple[str, ...] = ()


def run_seed(seed: int, world_class: type[World] = World, *, keep_trace: bool = False) -> Outcome:
    """Simulate a whole run from a seed, then check everything."""
    rng = random.Random(seed)
    symbols.SymbolicTensors._idents = itertools.count(1)
    world = world_class(rng, methods(rng), weather(rng))
    world.refuse_send = rng.choice([0.0, 0.0, 0.05])
    world.wait_ceiling_s = rng.choice([None, 1.0, 6.0])
    try:
        _play(world)
        failure = ""
    except Exception as error:  # whatever goes wrong is the seed's finding
        failure = f"{type(error).__name__}: {error}"
        if not isinstance(error, Violation):
            world.trace.lines += traceback.format_exception(error, limit=-8)
    trace = tuple(world.trace.lines) if failure or keep_trace else ()
    return Outcome(seed, failure, world.checkers.commits, world.net.delivered, trace)


def _play(world: World) -> None:
    for name in [world.new_name() for _ in range(world.rng.randint(1, 4))]:
        world.net.at(world.rng.uniform(0.0, 3.0), lambda name=name: world.join(name))
    schedule(world, FAULTY_S)
    world.net.run_until(FAULTY_S)
    heal(world)
    _recovers(world)
    world.trainers_stopped = True
    world.net.run_until(world.net.now + QUIET_S)
    _rests(world)


def _recovers(world: World) -> None:
    """Guarantee 4: after the last fault everybody takes part again, within a bound."""
    deadline = world.net.now + CALM_S
    before = dict(world.checkers.commits_of)
    while world.net.now < deadline:
        world.net.run_until(world.net.now + 1.0)
        alive = [peer for peer in world.peers.values() if peer.alive]
        behind = [peer.name for peer in alive if world.checkers.commits_of[peer.name] <= before.get(peer.name, 0)]
        if not behind:
            return
    assert world.coordinator.core is not None
    state = {peer.name: (peer.shell.core.applied, peer.shell.core.waiting(world.net.now)) for peer in alive}
    raise Violation(
        f"after {CALM_S} s of calm {behind} have not contributed: {state}; "
        f"coordinator at {world.coordinator.core.head}: {world.coordinator.core.reason()}"
    )


def _rests(world: World) -> None:
    """Parity at the end, and no inner step of a trainer that lived is lost."""
    head = len(world.coordinator.disk.records)
    alive = [peer for peer in world.peers.values() if peer.alive]
    for peer in alive:
        core = peer.shell.core
        if not core.complete or core.applied != head:
            raise Violation(f"{peer.name} rests at {core.applied} of {head}: {core.waiting(world.net.now)}")
        if peer.tensors is None or peer.tensors.phi != alive[0].tensors.phi:
            raise Violation(f"{peer.name} and {alive[0].name} rest with different states")
        if peer.tensors.tainted and not world.doubtful:
            raise Violation(f"{peer.name} rests with a state in which a bit was flipped")
        dropping = world.gradients or any(stream.late == "adopt" for stream in world.streams)
        trainer = peer.trainer
        if dropping or world.checkers.rewinds or trainer is None or not trainer.alive or trainer.restarts:
            continue
        for stream, theta in trainer.theta.items():
            lost = {step for step in trainer.made - theta.steps if (stream, step) not in world.checkers.taken}
            if lost:
                raise Violation(
                    f"inner steps {sorted(lost)[:5]} of {peer.name} are in no commit and not in its weights"
                )


def run_seeds(seeds: Iterable[int], *, workers: int) -> Iterator[Outcome]:
    """Outcomes of many seeds, as they come."""
    if workers == 1:
        yield from map(run_seed, seeds)
        return
    # Not forked: the caller may have threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run_seed, seeds, chunksize=10)


def main() -> int:
    """The command behind scripts/simulate."""
    parser = argparse.ArgumentParser(description="Simulate runs under faults and check the guarantees.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds (1000)")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (one per core)")
    parser.add_argument("--trace", action="store_true", help="print what led to the first failure")
    parser.add_argument("--lines", type=int, default=200, help="how many events of the trace (200)")
    options = parser.parse_args()
    started = time.monotonic()
    failures = commits = deliveries = 0
    for done, outcome in enumerate(
        run_seeds(range(options.first, options.first + options.seeds), workers=options.workers), start=1
    ):
        commits += outcome.commits
        deliveries += outcome.deliveries
        if outcome.failure:
            failures += 1
            print(f"seed {outcome.seed}: {outcome.failure}", flush=True)
            if options.trace and failures == 1:
                print("\n".join(outcome.trace[-options.lines :]))
        if done % PROGRESS_SEEDS == 0:
            seconds = time.monotonic() - started
            print(f"{done} seeds, {failures} failures, {commits} commits, {seconds:.0f} s", flush=True)
    print(
        f"{options.seeds} seeds from {options.first}: {failures} failures, {commits} commits, {deliveries} events, "
        f"{time.monotonic() - started:.1f} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
