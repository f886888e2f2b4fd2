"""Whole runs under faults, from seeds: the guarantees hold, planted bugs are caught, and a seed gives one outcome."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.sim.coverage import Transition, never_reached
from tests.sim.mutants import CAUGHT_BY, MUTANTS
from tests.sim.plan import Plan
from tests.sim.simulate import Outcome, plan_of, run_in_worker, run_plan, run_seed
from tests.sim.trials import TRIALS
from tests.sim.world import MANIFEST
from wantrain.optimizers.stream import Stream
from wantrain.peers.layout import stream_chunks

SEEDS = 10_000
BATCH = 1000
WORKERS = 2
CAUGHT_WITHIN_SEEDS = 120

FOUND = [
    (8, "the only peer was left out of a sync for ever after one failed attempt"),
    (210, "a View was lost, and with it who holds the state"),
    (224, "a trainer waited for a mean gradient that a snapshot had skipped"),
    (725, "nobody had the last update any more, and the run was not taken back as long as anybody was a member"),
    (741, "after a Refetch a trainer waited for a mean gradient for ever"),
    (251, "after a rewind to the initial state a peer took what it had meanwhile for that"),
    (992, "in a run that commits fast the newest line was given up, as everybody was a line late all the time"),
    (449, "two who reach each other were left behind by a third, as one of them owned what it could not send"),
    (54003, "a ring of one, as was asked for, gave its update to nobody, and was cut off"),
    (558, "a peer whose former process still counted as alive was asked for its Hello without end"),
    (51011, "a view was being written when the clock jumped, and the log went back at once"),
    (4160, "an old report that came late to a restarted coordinator named a trainer that had been replaced"),
    (9313, "a trainer went on by a line that its new daemon had not applied, and that was given up"),
    (5975, "a daemon's end took the first of two messages to its trainer, and not the second"),
    (2981, "one false state outvoted the two others, who came later after a restart of the coordinator"),
]
"""Seeds that failed once, and why. As faults are added a seed becomes another run, but it stays in."""
ORDERED = [35, 146, 500035, 500146, *range(20)]
"""Seeds with much in them that could depend on the order of a set."""
PLANS = Path(__file__).parent / "found"
"""Plans of seeds that failed once, shrunk; the name of the file says what was wrong."""


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as workers:
        yield workers


@pytest.fixture(scope="module")
def reached() -> set[Transition]:
    return set()


def explain(outcome: Outcome) -> str:
    return f"seed {outcome.seed}: {outcome.failure}\n  scripts/simulate --from {outcome.seed} --seeds 1 --trace"


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_the_guarantees_hold_under_all_faults(pool: ProcessPoolExecutor, first: int, reached: set[Transition]) -> None:
    outcomes = list(pool.map(run_in_worker, range(first, first + BATCH), chunksize=10))
    reached.update(*(outcome.reached for outcome in outcomes))
    assert [explain(outcome) for outcome in outcomes if outcome.failure] == []
    assert sum(outcome.commits for outcome in outcomes) > 5 * BATCH  # the runs do get somewhere


def test_every_row_of_the_transition_tables_is_reached(reached: set[Transition]) -> None:
    if not reached:
        pytest.skip("says something only after the seeds above")
    assert never_reached(reached) == []


@pytest.mark.parametrize(("seed", "why"), FOUND, ids=[str(seed) for seed, _ in FOUND])
def test_seeds_that_failed_once_hold(seed: int, why: str) -> None:
    outcome = run_seed(seed)
    assert not outcome.failure, f"again: {why}\n{explain(outcome)}"


@pytest.mark.parametrize("file", sorted(PLANS.glob("*.json")), ids=lambda file: file.stem)
def test_plans_that_failed_once_hold(file: Path) -> None:
    assert not run_plan(Plan.from_text(file.read_text())).failure, f"again: scripts/simulate --schedule {file} --trace"


def catches(bug: str, seed: int) -> bool:
    """Whether this seed shows the bug."""
    plan, how = plan_of(seed), CAUGHT_BY.get(bug, "")
    if (trial := how.removesuffix(": ")) in TRIALS:
        plan = replace(plan, faults=(), trial=trial)
    failure = run_plan(plan, MUTANTS[bug]).failure
    return failure.startswith("Violation") and how in failure


@pytest.mark.parametrize("bug", MUTANTS)
def test_a_planted_bug_is_caught(pool: ProcessPoolExecutor, bug: str) -> None:
    few = 2 * WORKERS
    batches = (range(first, first + few) for first in range(0, CAUGHT_WITHIN_SEEDS, few))
    caught = any(any(pool.map(catches, [bug] * few, seeds)) for seeds in batches)
    assert caught, f"not caught: something that {bug}"


@pytest.mark.parametrize("seed", [3, 17, 42])
def test_a_seed_gives_the_same_run_every_time(seed: int) -> None:
    first, second = run_seed(seed, trace=True), run_seed(seed, trace=True)
    assert first.trace
    assert first == second


def test_a_seed_gives_the_same_run_in_every_process() -> None:
    """Sets of names have another order in each: nothing that a run does may depend on it."""
    code = (
        "from hashlib import sha256\nfrom tests.sim.simulate import run_seed\n"
        f"for seed in {ORDERED}: print(sha256('\\n'.join(run_seed(seed, trace=True).trace).encode()).hexdigest())"
    )
    root = Path(__file__).parents[2]
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": order},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for order in ("0", "1", "3")
    }
    assert len(printed) == 1
    assert len(printed.pop().split()) == len(ORDERED)


def test_the_model_of_the_simulation_has_several_chunks() -> None:
    assert stream_chunks(Stream("param"), MANIFEST) == 3
