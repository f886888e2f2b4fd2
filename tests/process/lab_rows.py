"""Failures that need a network: real daemons in the network lab, links cut, slowed and changed while they train.

Each row is a play on a `Stage`, used by test_lab_failures.py and by hand: `sudo scripts/netlab failures 4 17`.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import Measured
from tests.process.harness import Event, Run
from wantrain.lab import Lab, Shape, available

SEVERAL_CHUNKS = ("--hidden", "8192")
"""Eleven chunks, 170 KB as int8."""
BROADBAND = "rate=100mbit,rtt=20ms"
USUAL = Shape.parse(BROADBAND)
THREE = ("anna", "bert", "carl")
DOWN = Shape(loss=1.0)
DEADLINES: dict[str, dict[str, Any]] = {
    "sync": {"deadline_floor_s": 3.0, "deadline_ceiling_s": 20.0, "wait_ceiling_s": 2.0},
    "liveness": {"heartbeat_s": 0.5, "suspect_floor_s": 2.0, "suspect_ceiling_s": 8.0},
}
HELD_OUT_S = 5.0
"""How long a partition lasts after the others have gone on."""
CHANGES = ("rate=20mbit,rtt=300ms,loss=1%", "rate=100mbit,rtt=20ms", "rate=8mbit,rtt=100ms", "rate=50mbit,rtt=5ms")


@dataclass(slots=True)
class Stage:
    """A run of three peers in a lab, on which one play after another takes place, and where figures go."""

    run: Run
    lab: Lab
    measured: Measured = lambda *_: None
    say: Callable[[str], None] = print
    row: int = 0
    began_unix: float = 0.0

    def begin(self, row: int) -> None:
        """Everybody has contributed; a play begins."""
        if not self.run.address:
            self.run.coordinator()
            for name in THREE:
                self.run.peer(name, trainer=SEVERAL_CHUNKS)
        self.run.until_commits(3, *THREE)
        self.row, self.began_unix = row, time.time()
        self.say(f"{', '.join(THREE)} train over {BROADBAND}")

    def events(self, *kinds: str) -> list[Event]:
        """The coordinator's events of these kinds since the play began."""
        known = self.run.events("coordinator")
        return [event for event in known if event["event"] in kinds and event["time_unix"] > self.began_unix]

    def shape(self, pairs: Sequence[tuple[str, str]], shape: Shape) -> None:
        """Change the ways from the first of each pair to the second."""
        for a, b in pairs:
            self.lab.shape(self.run.hosts[a], self.run.hosts[b], shape)

    def between(self, side: Sequence[str], other: Sequence[str]) -> list[tuple[str, str]]:
        """All ways from one side to the other and back."""
        return [pair for a in side for b in other for pair in ((a, b), (b, a))]

    def everywhere(self, shape: Shape) -> None:
        """Change all ways."""
        self.shape([(a, b) for a in self.run.hosts for b in self.run.hosts if a != b], shape)

    def figure(self, what: str, value: float, unit: str) -> None:
        """Take down what was measured."""
        self.measured(self.row, what, value, unit)
        self.say(f"{what}: {value:.3g} {unit}")

    def faults(self) -> list[Event]:
        """What a healthy run has none of."""
        return self.events("lost", "abort", "left-behind")

    def end(self) -> None:
        """All links are as usual, all train together again, and hold one state."""
        self.everywhere(USUAL)
        self.run.until_commits(3, *THREE)
        self.run.assert_parity(*THREE)
        self.say("all three hold one state")

    def leave(self) -> None:
        """All leave in order."""
        self.run.stop(*THREE)


# ---- row 4: black holes


def black_hole(stage: Stage, *, both_ways: bool) -> None:
    """Packets between two of three peers vanish: the others go on, later all three around the hole."""
    run = stage.run
    since = time.time()
    stage.shape([("anna", "bert"), ("bert", "anna")] if both_ways else [("anna", "bert")], DOWN)
    stage.say("from anna to bert nothing arrives any more" + (", nor from bert to anna" if both_ways else ""))
    run.until_commits(3)
    stage.figure("first commit after the hole opened", run.commits()[-3]["time_unix"] - since, "s")
    around = run.until_commits(10, *THREE)[0]
    stage.figure("all three in a commit around the hole", around["time_unix"] - since, "s")
    assert not stage.events("lost"), "both of them reach the coordinator"
    run.until_commits(20, *THREE)
    stage.figure("longest time without a commit", run.longest_pause_s(since), "s")
    stage.figure("attempts that failed", len(stage.events("abort")), "")
    stage.end()


# ---- row 5: partitions


def partition(stage: Stage, inside: Sequence[str], outside: Sequence[str]) -> None:
    """The peers outside lose the coordinator and the others: only the coordinator's side commits."""
    run = stage.run
    since, steps = time.time(), {name: run.steps(name) for name in outside}
    stage.shape(stage.between(("coordinator", *inside), outside), DOWN)
    stage.say(f"{', '.join(outside)} cannot be reached by anybody else any more")
    run.until(lambda: len(stage.events("lost")) >= len(outside), f"{outside} count as lost")
    cut_at = run.head
    seen_s = max(event["time_unix"] for event in stage.events("lost")) - since
    stage.figure("until those outside counted as lost", seen_s, "s")
    if inside:
        commits = run.until_commits(10, *inside, after=cut_at)
        assert not {name for event in commits for name in event["contributors"]} & set(outside)
        stage.figure("longest time without a commit inside", run.longest_pause_s(since), "s")
    run.until(lambda: all(run.steps(name) > steps[name] + 50 for name in outside), "those outside train on")
    numbers = {name: len(run.events(name, "commit")) for name in outside}
    end_at = time.monotonic() + HELD_OUT_S
    run.until(lambda: time.monotonic() > end_at, "the partition lasts")
    assert numbers == {name: len(run.events(name, "commit")) for name in outside}, "only the coordinator's side commits"
    assert run.head == cut_at or inside
    stage.figure("inner steps made outside meanwhile", min(run.steps(name) - steps[name] for name in outside), "steps")
    healed = time.time()
    stage.shape(stage.between(("coordinator", *inside), outside), USUAL)
    stage.say("the partition is over")
    together = run.until_commits(1, *THREE)[0]
    stage.figure("until all contributed again", together["time_unix"] - healed, "s")
    stage.end()


# ---- row 17: slow, far, lossy and changing links


def slow_link(stage: Stage) -> None:
    """One of three peers has a tenth of the others' rate, 300 ms and 1 % loss: nobody is suspected, it owns less."""
    run = stage.run
    slow = Shape.parse("rate=10mbit,rtt=300ms,loss=1%")
    stage.shape(stage.between(("carl",), ("coordinator", "anna", "bert")), slow)
    stage.say("carl has 10 Mbit/s, 300 ms and 1 % loss now")

    def shares_follow() -> list[Event]:
        return [event for event in stage.events("commit") if _share(event, "carl") < _share(event, "anna") / 2]

    run.until(shares_follow, "carl owns less than half of what anna owns")
    run.until_commits(5, *THREE)
    assert stage.faults() == []
    last = run.commits()[-1]
    stage.figure("part of the chunks that the slow peer owns", _share(last, "carl"), "")
    stage.figure("attempts that failed, and peers suspected", len(stage.faults()), "")
    stage.figure("time of a sync with the slow peer", last["move_s"], "s")
    stage.end()


def changing_links(stage: Stage) -> None:
    """All links change several times, to slow, far and lossy ones and back: nobody is suspected."""
    run = stage.run
    for words in CHANGES:
        stage.everywhere(Shape.parse(words))
        commits = run.until_commits(6, *THREE)
        stage.say(f"{words}: a sync takes {commits[-1]['move_s']:.2g} s")
    assert stage.faults() == []
    stage.figure("changes of all links", len(CHANGES), "")
    stage.figure("attempts that failed, and peers suspected", len(stage.faults()), "")
    stage.end()


def _share(commit: Event, name: str) -> float:
    """Part of the chunks that a peer owned in a sync; 1 for all if it was not in it."""
    if name not in commit["contributors"] or commit["topology"] != "direct":
        return 1.0
    owned: int = commit["shards"][commit["contributors"].index(name)]
    return owned / sum(commit["shards"])


# ---- row 3: frozen, over a network


def frozen(stage: Stage) -> None:
    """A peer stops for longer than its deadline: its connections stay up, and nothing comes."""
    run = stage.run
    since = time.time()
    run.signal("carl", signal.SIGSTOP, group=True)
    stage.say("carl is frozen")
    run.until(lambda: stage.events("lost"), "carl counts as lost")
    lost = stage.events("lost")[-1]
    assert lost["name"] == "carl"
    stage.figure("until the frozen peer was left out", lost["time_unix"] - since, "s")
    run.until_commits(10, "anna", "bert", after=run.head)
    stage.figure("longest time without a commit", run.longest_pause_s(since), "s")
    thawed = time.time()
    run.signal("carl", signal.SIGCONT, group=True)
    back = run.until_commits(1, *THREE)[0]
    stage.figure("until it contributed again after it was thawed", back["time_unix"] - thawed, "s")
    stage.end()


# ---- all of them


@dataclass(frozen=True, slots=True)
class LabRow:
    """One play: the row of the table that it shows, and its name."""

    row: int
    name: str
    play: Callable[[Stage], None]


LAB_ROWS = (
    LabRow(17, "slow-link", slow_link),
    LabRow(17, "changing-links", changing_links),
    LabRow(3, "frozen", frozen),
    LabRow(5, "one-outside", lambda stage: partition(stage, ("anna", "bert"), ("carl",))),
    LabRow(5, "most-outside", lambda stage: partition(stage, ("anna",), ("bert", "carl"))),
    LabRow(4, "black-hole-one-way", lambda stage: black_hole(stage, both_ways=False)),
    LabRow(4, "black-hole-both-ways", lambda stage: black_hole(stage, both_ways=True)),
)


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """A stage in a new lab; nothing of it stays behind."""
    with Lab(1 + len(THREE), USUAL, seed=1) as lab, Run(folder, options=DEADLINES, lab=lab) as run:
        yield Stage(run, lab)


def main() -> int:
    """The command behind `scripts/netlab failures`."""
    parser = argparse.ArgumentParser(
        prog="netlab failures",
        description="Let real daemons in the network lab meet failures, and print what happened and what was measured. "
        "Needs root and Linux. Example: sudo scripts/netlab failures 4 17",
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="number or name of a row; without any, all of them")
    parser.add_argument("--folder", type=Path, help="where run files, logs and events are kept, one folder a row")
    options = parser.parse_args()
    known = {str(row.row) for row in LAB_ROWS} | {row.name for row in LAB_ROWS}
    if wrong := sorted(set(options.rows) - known):
        parser.error(f"{wrong[0]!r} is no row of the lab; allowed are {', '.join(sorted(known))}")
    if why := available():
        print(f"error: {why}\nnext: run as root on Linux", file=sys.stderr)
        return 1
    failed = 0
    with ExitStack() as scratch:
        folder = options.folder or Path(scratch.enter_context(tempfile.TemporaryDirectory()))
        for row in LAB_ROWS:
            if not options.rows or {str(row.row), row.name} & set(options.rows):
                failed += not _played(row, folder / row.name)
    return 1 if failed else 0


def _played(row: LabRow, folder: Path) -> bool:
    """Play one row on a stage of its own, and say what happens."""
    began = time.monotonic()
    print(f"row {row.row}, {row.name}", flush=True)
    folder.mkdir(parents=True)
    with staged(folder) as stage:
        stage.say = lambda words: print(f"  {time.monotonic() - began:6.1f} s  {words}", flush=True)
        try:
            stage.begin(row.row)
            row.play(stage)
            stage.leave()
        except AssertionError as error:
            stage.say(f"FAILED: {error}")
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
