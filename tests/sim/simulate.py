"""Run one seed, or many: the seed is the bug report. Play, print and shrink plans. See `scripts/simulate --help`."""

import argparse
import itertools
import os
import random
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from tests.sim import symbols
from tests.sim.coverage import Transition, never_reached, summary
from tests.sim.faults import heal, kinds, schedule
from tests.sim.plan import Plan, draw
from tests.sim.shrink import same_failure, shrink
from tests.sim.symbols import Violation
from tests.sim.trials import TRIALS, stand_trial
from tests.sim.world import StateIsGone, World

CALM_S = 90.0
"""Longest that a run may take to recover: the largest ceiling of the policy three times over."""
QUIET_S = 45.0
"""Longest that it may take to come to rest."""
STAYS_S = 2.0
"""How long it has to stay at rest: several heartbeats and ticks."""
PROGRESS_SEEDS = 500
BATCH = 2000
WATCHED = 8
"""In one of so many seeds the transitions are noted that it reaches: that takes its time."""
CHUNK = 10
"""Seeds that are handed out at once, and to one process."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a seed. `failure` is "" if all guarantees held."""

    seed: int
    failure: str
    commits: int
    deliveries: int
    reached: frozenset[Transition] = frozenset()
    trace: tuple[str, ...] = ()


def plan_of(seed: int) -> Plan:
    """The plan that a seed stands for."""
    return draw(seed, kinds(), tuple(TRIALS))


def run_seed(seed: int, world_class: type[World] = World, *, trace: bool = False) -> Outcome:
    """Simulate a whole run from a seed, then check everything."""
    return run_plan(plan_of(seed), world_class, trace=trace)


def run_plan(plan: Plan, world_class: type[World] = World, *, trace: bool = False) -> Outcome:
    """Simulate a run by a plan, then check everything."""
    symbols.SymbolicTensors._idents = itertools.count(1)
    watched = trace or plan.seed % WATCHED == 0
    world = world_class(random.Random(plan.seed), plan.streams, plan.weather, watched=watched)
    world.trace.on = trace
    world.refuse_send = plan.refuse_send
    world.wait_ceiling_s = plan.wait_ceiling_s
    world.outbound, world.flicker, world.redial_s = plan.outbound, plan.flicker, plan.redial_s
    try:
        with suppress(StateIsGone):
            _play(world, plan)
        failure = ""
    except Exception as error:  # whatever goes wrong is the seed's finding
        failure = f"{type(error).__name__}: {error}"
        if not isinstance(error, Violation):
            world.trace.lines += "".join(traceback.format_exception(error, limit=-8)).splitlines()
    reached = frozenset(world.reached.transitions)
    return Outcome(plan.seed, failure, world.checkers.commits, world.net.delivered, reached, tuple(world.trace.lines))


def _play(world: World, plan: Plan) -> None:
    for name, at_s in [(world.new_name(), at_s) for at_s in plan.joins_s]:
        world.net.at(at_s, lambda name=name: world.join(name))
    schedule(world, plan)
    world.net.run_until(plan.faulty_s)
    heal(world)
    for at_s in plan.late_joins_s:
        world.net.at(at_s, lambda: world.join(world.new_name()))
    _recovers(world, max(plan.late_joins_s, default=0.0))
    if plan.trial:
        stand_trial(world, plan.trial)
    world.trainers_stopped = True
    _comes_to_rest(world)


def _recovers(world: World, not_before_s: float) -> None:
    """Guarantee 4: after the last fault everybody takes part again, within a bound."""
    healed_at = world.net.now
    before = dict(world.checkers.commits_of)
    while world.net.now < healed_at + CALM_S:
        world.net.run_until(world.net.now + 0.5)
        alive = [peer for peer in world.peers.values() if peer.alive]
        behind = [peer.name for peer in alive if world.checkers.commits_of[peer.name] <= before.get(peer.name, 0)]
        if not behind and world.net.now > healed_at + not_before_s:
            return
    assert world.coordinator.core is not None
    state = {peer.name: (peer.shell.core.applied, peer.shell.core.waiting(peer.now)) for peer in alive}
    raise Violation(
        f"after {CALM_S} s of calm {behind} have not contributed: {state}; "
        f"coordinator at {world.coordinator.core.head}: {world.coordinator.core.reason()}"
    )


def _comes_to_rest(world: World) -> None:
    """When nobody trains any more all reach one state, within a bound, and stay there."""
    deadline = world.net.now + QUIET_S
    resting_since: tuple[int, float] | None = None
    while resting_since is None or world.net.now < resting_since[1] + STAYS_S:
        world.net.run_until(world.net.now + 0.5)
        reason, head = _unrest(world), len(world.coordinator.disk.records)
        if reason:
            resting_since = None
        elif resting_since is None or resting_since[0] != head:
            resting_since = head, world.net.now
        if reason and world.net.now > deadline:
            raise Violation(reason)
    for peer in world.peers.values():
        if world.gossip and peer.alive:
            world.checkers.both_or_neither(peer.name)
    _nothing_lost(world)


def _unrest(world: World) -> str:
    """Why the run is not at rest with parity, or ""."""
    head = len(world.coordinator.disk.records)
    alive = [peer for peer in world.peers.values() if peer.alive]
    for peer in alive:
        core = peer.shell.core
        if not core.complete or core.applied != head:
            return f"{peer.name} rests at {core.applied} of {head}: {core.waiting(peer.now)}"
        if world.gossip:
            continue
        if peer.tensors is None or peer.tensors.phi != alive[0].tensors.phi:
            return f"{peer.name} and {alive[0].name} rest with different states"
        if peer.tensors.tainted and not world.doubtful:
            return f"{peer.name} rests with a state in which a bit was flipped"
    coordinator = world.coordinator.core
    if coordinator is not None and coordinator.reason() and alive:
        # Who is ready may wait for others up to a ceiling; what comes of that is to be seen, too.
        return f"the coordinator waits: {coordinator.reason()}"
    return ""


def _nothing_lost(world: World) -> None:
    """No inner step of a trainer that lived is lost, nor a sample, but where the method drops them."""
    dropping = world.gradients or any(stream.late == "adopt" for stream in world.streams)
    ahead = any(stream.answer != "result" for stream in world.streams)
    if ahead and any(peer.boot > 1 for peer in world.peers.values()):
        dropping = True  # what a daemon had in hand, and its trainer not any more, goes with it
    lead = next(stream.name for stream in world.streams if stream.state == "param")
    assert world.coordinator.core is not None
    committed = {step for stream, step in world.checkers.taken if stream == lead}
    # Where every peer has a state of its own, what all have lost that were in a sync is lost, though it is committed.
    world.data.check(world.coordinator.core.leases, committed, complete=not dropping and not world.gossip)
    if dropping or world.checkers.rewinds:
        return
    for peer in world.peers.values():
        trainer = peer.trainer
        if not peer.alive or trainer is None or not trainer.alive or trainer.restarts:
            continue
        if world.gossip and peer.boot > 1:
            continue  # what a daemon has taken in alone and not saved is lost with it
        for stream, theta in trainer.theta.items():
            lost = {step for step in trainer.made - theta.steps if (stream, step) not in world.checkers.taken}
            if ahead and peer.tensors is not None:
                lost -= peer.tensors.in_hand(stream)
            if lost:
                raise Violation(
                    f"inner steps {sorted(lost)[:5]} of {peer.name} are in no commit and not in its weights"
                )


_told: set[Transition] = set()
"""What this process has reported already: a million seeds would send the same transitions a million times."""


def run_in_worker(seed: int) -> Outcome:
    """Like `run_seed`, with those transitions only that this process has not reported before."""
    outcome = run_seed(seed)
    news = outcome.reached - _told
    _told.update(news)
    return replace(outcome, reached=news)


def run_seeds(seeds: range, *, workers: int) -> Iterator[Outcome]:
    """Outcomes of many seeds in their order, each with the transitions that its process has not reported before."""
    if workers == 1:
        yield from map(run_in_worker, seeds)
        return
    # Not forked: the caller may have threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for first in range(seeds.start, seeds.stop, BATCH):  # a million waiting tasks would be a lot of memory
            yield from pool.map(run_in_worker, range(first, min(first + BATCH, seeds.stop)), chunksize=CHUNK)


def main() -> int:
    """The command behind scripts/simulate."""
    parser = argparse.ArgumentParser(
        description="Simulate runs under faults and check the guarantees.",
        epilog="example: scripts/simulate --seeds 10000 --from 5000; then scripts/simulate --shrink SEED > plan.json",
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds (1000)")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (one per core)")
    parser.add_argument("--trace", action="store_true", help="print what led to the first failure")
    parser.add_argument("--lines", type=int, default=200, help="how many events of the trace (200)")
    parser.add_argument("--plan", type=int, metavar="SEED", help="only print the plan of this seed")
    parser.add_argument("--schedule", type=Path, metavar="FILE", help="play the plan in this file, not a seed's")
    parser.add_argument("--shrink", type=int, metavar="SEED", help="print the least plan that still fails as SEED does")
    options = parser.parse_args()
    if options.plan is not None:
        print(plan_of(options.plan).text())
        return 0
    if options.shrink is not None:
        return _shrink(options.shrink)
    if options.schedule is not None:
        outcome = run_plan(Plan.from_text(options.schedule.read_text()), trace=options.trace)
        print("\n".join((*outcome.trace[-options.lines :], outcome.failure or "all guarantees hold")))
        return 1 if outcome.failure else 0
    return _run_many(options)


def _shrink(seed: int) -> int:
    """The plan goes to stdout, all else to stderr."""
    plan = plan_of(seed)
    failure = run_plan(plan).failure
    if not failure:
        print(f"seed {seed} does not fail", file=sys.stderr)
        return 2
    least, tried = shrink(plan, lambda other: same_failure(failure, run_plan(other).failure))
    print(f"{failure}\nleast of {tried} plans; play it with scripts/simulate --schedule FILE --trace", file=sys.stderr)
    print(least.text())
    return 1


def _run_many(options: argparse.Namespace) -> int:
    started = time.monotonic()
    failures = commits = deliveries = done = 0
    reached: set[Transition] = set()
    seeds = range(options.first, options.first + options.seeds)
    try:
        for done, outcome in enumerate(run_seeds(seeds, workers=options.workers), start=1):
            commits += outcome.commits
            deliveries += outcome.deliveries
            reached |= outcome.reached
            if outcome.failure:
                failures += 1
                print(f"seed {outcome.seed}: {outcome.failure}", flush=True)
                if options.trace and failures == 1:
                    print("\n".join(run_seed(outcome.seed, trace=True).trace[-options.lines :]))
            if done % PROGRESS_SEEDS == 0:
                seconds = time.monotonic() - started
                line = f"{done} seeds, {failures} failures, {commits} commits, {len(reached)} transitions"
                print(f"{line}, {seconds:.0f} s; go on with --from {outcome.seed + 1}", flush=True)
    except KeyboardInterrupt:
        print(f"stopped; go on with --from {options.first + done}")
    print(
        f"{done} seeds from {options.first}: {failures} failures, {commits} commits, {deliveries} events, "
        f"{time.monotonic() - started:.1f} s"
    )
    print(summary(reached))
    if unreached := never_reached(reached):
        print("never reached: " + "; ".join(unreached))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
