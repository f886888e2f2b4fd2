"""Churn for long, on real processes: joins, leaves, kills, freezes and coordinator crashes from a seed; and a report.

scripts/soak --syncs 1000 --peers 5 --minutes 15          the result goes to docs/soak.json and docs/img/soak.png
"""

import argparse
import heapq
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.process.harness import DEADLINE_S, POLL_S, ROOT, Run
from wantrain.lab import Lab, Shape
from wantrain.peers.place import segment_directory

OPTIONS: dict[str, dict[str, Any]] = {
    "sync": {"grace_floor_s": 1.0, "grace_ceiling_s": 3.0, "deadline_floor_s": 3.0, "deadline_ceiling_s": 20.0},
    "liveness": {"heartbeat_s": 0.3, "suspect_floor_s": 2.0, "suspect_ceiling_s": 6.0},
    "log": {"keep_mb": 8, "keep_updates": 32},
}
STRIKES = ("kill", "kill", "leave", "leave", "freeze", "freeze", "coordinator")
"""What happens, as often as it stands here."""
SETTLED = 3
"""Of fewer that take part none is taken away: two always hold the run's state."""
SAMPLE_S = 1.0
WARM_S = 30.0
"""After this time a process has all its memory; what comes on top is growth."""
BLOCK = 100
"""Syncs of which the report gives one figure."""


@dataclass(slots=True)
class Sample:
    """One look at a process and its files; memory and descriptors are the daemon's."""

    at_s: float
    age_s: float
    memory_mb: float
    descriptors: int
    files: int
    """In its home."""
    home_mb: float


@dataclass(slots=True)
class Report:
    """What a soak amounts to; written as JSON."""

    seed: int
    peers: int
    shape: str
    syncs: int = 0
    seconds: float = 0.0
    strikes: dict[str, int] = field(default_factory=dict)
    aborted_attempts: int = 0
    lost: int = 0
    """How often a peer counted as lost."""
    sync_s: list[list[float]] = field(default_factory=list)
    """For each commit: when it was, and how long after the one before it."""
    struck_s: list[tuple[float, str]] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    """By process."""
    segments: list[tuple[float, int]] = field(default_factory=list)
    """Files of memory shared with trainers, also what killed daemons left behind."""
    parity: bool = False

    @property
    def blocks_s(self) -> list[float]:
        """Median seconds from commit to commit, for each block of syncs."""
        taken = [taken_s for _, taken_s in self.sync_s]
        return [median(taken[k : k + BLOCK]) for k in range(0, len(taken), BLOCK)]

    @property
    def growth_mb(self) -> float:
        """Most that a process has grown in its life after it was warm: its last memory over its first warm one."""
        return max((life[-1].memory_mb - life[0].memory_mb for life in self._lives()), default=0.0)

    @property
    def growth_mb_per_1000(self) -> float:
        """The same for the process that lived longest, for 1000 syncs."""
        longest = max(self._lives(), key=len, default=[])
        if len(longest) < 2:
            return 0.0
        begin, end = longest[0], longest[-1]
        syncs = sum(begin.at_s <= at_s <= end.at_s for at_s, _ in self.sync_s)
        return 1000 * (end.memory_mb - begin.memory_mb) / max(syncs, 1)

    @property
    def most(self) -> dict[str, float]:
        """The largest values that were seen of any process."""
        samples = [sample for known in self.samples.values() for sample in known]
        return {
            "memory_mb": max(sample.memory_mb for sample in samples),
            "descriptors": max(sample.descriptors for sample in samples),
            "files": max(sample.files for sample in samples),
            "home_mb": max(sample.home_mb for sample in samples),
            "segments": max((count for _, count in self.segments), default=0),
        }

    def _lives(self) -> list[list[Sample]]:
        """Warm samples, for each process from its start to its end."""
        lives: list[list[Sample]] = []
        for samples in self.samples.values():
            for before, sample in itertools.pairwise([None, *samples]):
                if before is None or sample is None or sample.age_s < before.age_s:
                    lives.append([])
                if sample is not None and sample.age_s >= WARM_S:
                    lives[-1].append(sample)
        return [life for life in lives if len(life) >= 2]

    def document(self) -> dict[str, object]:
        """For JSON."""
        names = ("blocks_s", "growth_mb", "growth_mb_per_1000", "most")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}


class Soak:
    """A run, what happens to it, and what was seen.

    Args:
        run: not started.
        peers: how many take part when nothing is wrong.
        every_s: mean time between two strikes.
        say: is told what happens.
    """

    def __init__(self, run: Run, seed: int, peers: int, every_s: float, say: Callable[[str], None]) -> None:
        self.report = Report(seed, peers, "loopback" if run.lab is None else "lab")
        self._run = run
        self._rng = random.Random(seed)
        self._names = [f"p{number}" for number in range(peers)]
        self._every_s = every_s
        self._say = say
        self._state = dict.fromkeys(self._names, "down")
        self._since: dict[str, int] = {}
        """Head of the log when a peer was started or thawed; it takes part once it is in a later commit."""
        self._started_s: dict[str, float] = {}
        self._plans: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._begin_s = time.monotonic()
        self._strikes: Counter[str] = Counter()
        self._scratches: set[str] = set()
        """Names that the files of all daemons so far begin with, in the memory shared with their trainers."""

    @property
    def _now(self) -> float:
        return time.monotonic() - self._begin_s

    def play(self, syncs: int, limit_s: float) -> Report:
        """Strike until there are so many commits or the time is over, mend everything, and see that all hold one state.

        Raises:
            AssertionError: the run has stopped, or the peers do not end alike.
        """
        run = self._run
        run.coordinator()
        self._started_s["coordinator"] = self._now
        for name in self._names:
            self._start(name)
        strike_s = sample_s = self._now + self._every_s
        moved_s, head = self._now, 0
        while run.head < syncs and self._now < limit_s:
            while self._plans and self._plans[0][0] <= self._now:
                heapq.heappop(self._plans)[2]()
            if run.head > head:
                moved_s, head = self._now, run.head
            assert self._now < moved_s + DEADLINE_S, (
                f"no commit for {DEADLINE_S:.0f} s: {run.status().get('reason')}\n{run.story()}"
            )
            if self._now >= strike_s:
                strike_s = self._now + self._rng.expovariate(1 / self._every_s)
                self._strike(self._rng.choice(STRIKES))
            if self._now >= sample_s:
                sample_s = self._now + SAMPLE_S
                self._sample()
            time.sleep(POLL_S)
        while self._plans:
            heapq.heappop(self._plans)[2]()
        self._finish()
        return self.report

    def _finish(self) -> None:
        run, report = self._run, self.report
        run.until_commits(2, *self._names)
        self._sample()
        report.seconds, report.strikes = self._now, dict(self._strikes)
        run.assert_parity(*self._names)
        report.parity = True
        commits = run.commits()
        report.syncs = run.head
        report.aborted_attempts = len(run.events("coordinator", "abort"))
        report.lost = len(run.events("coordinator", "lost"))
        offset = time.time() - self._now
        times = [event["time_unix"] - offset for event in commits]
        report.sync_s = [[round(b, 3), round(b - a, 4)] for a, b in itertools.pairwise(times)]
        run.stop(*self._names)

    # ---- what happens

    def _later(self, least_s: float, most_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._plans, (self._now + self._rng.uniform(least_s, most_s), next(self._order), do))

    def _settled(self) -> list[str]:
        """Peers that take part."""
        commits = self._run.commits()[-BLOCK:]
        last = {name: event["number"] for event in commits for name in event["contributors"]}
        return [n for n in self._names if self._state[n] == "up" and last.get(n, -1) > self._since[n]]

    def _strike(self, kind: str) -> None:
        settled = self._settled()
        if len(settled) < SETTLED or self._state.get("coordinator") == "down":
            return
        name = "coordinator" if kind == "coordinator" else self._rng.choice(settled)
        self._strikes[kind] += 1
        self.report.struck_s.append((round(self._now, 1), kind))
        self._say(f"{self._now:6.1f} s  {self._run.head:5} commits  {kind} {name}")
        run = self._run
        match kind:
            case "coordinator":
                run.kill("coordinator")
                self._state["coordinator"] = "down"
                self._later(0.2, 3.0, self._start_coordinator)
            case "kill":
                run.kill(name)
                self._state[name] = "down"
                self._later(0.5, 5.0, lambda: self._start(name))
            case "leave":
                run.signal(name, signal.SIGTERM)
                self._state[name] = "leaving"
                self._later(0.5, 2.0, lambda: self._start(name))
            case "freeze":
                run.signal(name, signal.SIGSTOP, group=True)
                self._state[name] = "frozen"
                self._later(1.0, 8.0, lambda: self._thaw(name))

    def _start_coordinator(self) -> None:
        self._run.coordinator()
        self._state["coordinator"] = "up"
        self._started_s["coordinator"] = self._now

    def _start(self, name: str) -> None:
        run = self._run
        if self._state[name] == "leaving":
            assert run.exit_code(name) == 0, f"{name} was to leave\n{run.story()}"
        run.peer(name)
        self._state[name], self._since[name], self._started_s[name] = "up", run.head, self._now

    def _thaw(self, name: str) -> None:
        self._run.signal(name, signal.SIGCONT, group=True)
        self._state[name], self._since[name] = "up", self._run.head

    # ---- what is seen

    def _sample(self) -> None:
        now, run = self._now, self._run
        for name in ("coordinator", *self._names):
            if self._state.get(name, "up") not in ("up", "frozen"):
                continue
            home = run.folder if name == "coordinator" else run.folder / name
            files = [path for path in home.glob("*" if name == "coordinator" else "**/*") if path.is_file()]
            if name == "coordinator":
                files = [path for path in files if path.name.startswith("run.")]
            try:
                sample = Sample(
                    round(now, 1),
                    round(now - self._started_s[name], 1),
                    *_process(run.pid(name)),
                    len(files),
                    round(sum(path.stat().st_size for path in files) / 1e6, 3),
                )
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended, or a file of it
            self.report.samples.setdefault(name, []).append(sample)
        for note in run.folder.glob("p*/**/scratch"):
            self._scratches.add(Path(note.read_text(encoding="utf-8")).name)
        segments = [path for scratch in self._scratches for path in segment_directory().glob(f"{scratch}-*")]
        self.report.segments.append((round(now, 1), len(segments)))


def _process(pid: int) -> tuple[float, int]:
    """Resident memory in MB, and open descriptors."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1), len(os.listdir(f"/proc/{pid}/fd"))


# ---- the report for people


def table(report: Report) -> str:
    """The figures in lines."""
    most, blocks = report.most, report.blocks_s
    rows = [
        ("syncs", f"{report.syncs} in {report.seconds:.0f} s, {report.peers} peers, {report.shape}"),
        ("strikes", ", ".join(f"{count} {kind}" for kind, count in sorted(report.strikes.items()))),
        ("attempts that failed", str(report.aborted_attempts)),
        ("times a peer counted as lost", str(report.lost)),
        (f"median seconds a sync, by {BLOCK}", ", ".join(f"{block:.2f}" for block in blocks)),
        ("resident memory, most", f"{most['memory_mb']:.0f} MB"),
        ("growth of a process when warm, most", f"{report.growth_mb:.1f} MB"),
        ("growth of the longest life for 1000 syncs", f"{report.growth_mb_per_1000:.1f} MB"),
        ("descriptors, most", f"{most['descriptors']:.0f}"),
        ("files in a home, most", f"{most['files']:.0f}, {most['home_mb']:.1f} MB"),
        ("segments in /dev/shm, most", f"{most['segments']:.0f}"),
        ("parity at the end", "yes" if report.parity else "no"),
    ]
    return "\n".join(f"{name:44}{value}" for name, value in rows)


def picture(report: Report, path: Path) -> None:
    """Time of a sync, memory and descriptors over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (syncs, memory, descriptors) = pyplot.subplots(3, 1, figsize=(9, 8), sharex=True, layout="constrained")
    syncs.plot(*zip(*report.sync_s, strict=True), ".", markersize=2, color="tab:blue")
    syncs.set(yscale="log", ylabel="s from commit to commit")
    colours = {"kill": "tab:red", "leave": "tab:green", "freeze": "tab:cyan", "coordinator": "black"}
    for kind, colour in colours.items():
        times = [at_s for at_s, struck in report.struck_s if struck == kind]
        syncs.vlines(times, 0, 1, colour, linewidth=0.6, label=kind, transform=syncs.get_xaxis_transform())
    syncs.legend(ncols=4, fontsize="small", loc="lower right")
    for name, samples in report.samples.items():
        style = {"linewidth": 1, "label": name, "color": "black" if name == "coordinator" else None}
        memory.plot([s.at_s for s in samples], [s.memory_mb for s in samples], **style)
        descriptors.plot([s.at_s for s in samples], [s.descriptors for s in samples], **style)
    memory.set(ylabel="resident memory, MB", ylim=(0, None))
    descriptors.set(ylabel="descriptors", xlabel="s", ylim=(0, None))
    memory.legend(ncols=6, fontsize="small", loc="lower right")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def soak(
    folder: Path,
    *,
    syncs: int,
    peers: int,
    limit_s: float,
    seed: int = 0,
    every_s: float = 3.0,
    shape: str = "",
    say: Callable[[str], None] = print,
) -> Report:
    """Run one in a folder of its own; on loopback, or over links of this shape in the lab."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(1 + peers, Shape.parse(shape), seed=seed)) if shape else None
        run = stack.enter_context(Run(folder, options=OPTIONS, lab=lab))
        played = Soak(run, seed, peers, every_s, say)
        played.report.shape = shape or "loopback"
        return played.play(syncs, limit_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command behind scripts/soak."""
    parser = argparse.ArgumentParser(
        prog="soak",
        description="Let a run of real processes meet joins, leaves, kills, freezes and coordinator crashes for long.",
        epilog="example: scripts/soak --syncs 1000 --peers 5 --minutes 15",
    )
    parser.add_argument("--syncs", type=int, default=1000, help="end after so many commits (1000)")
    parser.add_argument("--peers", type=int, default=5, help="how many peers, 3 or more (5)")
    parser.add_argument("--minutes", type=float, default=15.0, help="end after this time at the latest (15)")
    parser.add_argument("--seed", type=int, default=0, help="of what happens (0)")
    parser.add_argument("--every", type=float, default=3.0, help="mean seconds between two strikes (3)")
    parser.add_argument("--lab", metavar="SHAPE", default="", help="over such links in the network lab; needs root")
    parser.add_argument("--folder", type=Path, help="where logs and events are kept; else they are dropped")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "soak.json", help="the report (docs/soak.json)")
    options = parser.parse_args(arguments)
    if options.peers < SETTLED:
        parser.error(f"--peers is {options.peers}, allowed are {SETTLED} and more")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        report = soak(
            folder,
            syncs=options.syncs,
            peers=options.peers,
            limit_s=60 * options.minutes,
            seed=options.seed,
            every_s=options.every,
            shape=options.lab,
        )
    options.out.write_text(json.dumps(report.document(), indent=None) + "\n", encoding="utf-8")
    image = options.out.parent / "img" / "soak.png" if options.out.parent.name == "docs" else options.out
    picture(report, image.with_suffix(".png"))
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
