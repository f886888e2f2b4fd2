"""Data leases in a simulated run: what trainers draw, and the check that no sample is lost or counted twice."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from tests.sim.symbols import Violation
from wantrain.peers.commit_log import ATTEMPTS_PER_EPOCH
from wantrain.peers.leases import Leases
from wantrain.peers.messages import Drawn, Leased, Record, Report, WantLease
from wantrain.peers.supply import Supply

DATA = "data"

Place = tuple[int, int]
"""Epoch and position of a sample."""


class SimReader:
    """The data side of one trainer process: one sample for each inner step."""

    def __init__(self, checker: "DataChecker") -> None:
        self._checker = checker
        self._reader = checker.new_reader()
        self.supply = Supply(DATA, checker.length, 0, 0, self._reader)

    def draw(self, step: int, now: float) -> bool:
        """Draw the sample of a step; False if there is none now."""
        place = self.supply.draw(now)
        if place is None:
            return False
        self._checker.steps[step] = (self._reader, place)
        return True

    def question(self, now: float) -> WantLease | None:
        """What is to be asked now."""
        return self.supply.ask(now)

    def answered(self, record: Leased, now: float) -> None:
        """An answer has come."""
        self.supply.leased(record, now)

    def restart(self, *, within_a_step: bool) -> None:
        """The weights are the run's again; a step that is under way ends in the new ones."""
        if within_a_step:
            self._checker.silent.add(self._reader)
        self._reader = self._checker.new_reader()
        self.supply.restart(self._reader)

    @property
    def drawn(self) -> Drawn:
        """What the weights contain."""
        return Drawn(self._reader, {DATA: self.supply.settled})


@dataclass
class DataChecker:
    """Who has drawn what, seen from outside, and which readers the coordinator had reason to give up."""

    length: int
    patience_s: float
    steps: dict[int, tuple[bytes, Place]] = field(default_factory=dict)
    """By inner step: the reader and the sample."""
    silent: set[bytes] = field(default_factory=set)
    """Readers of which the coordinator has once not heard for as long as it has patience."""
    _heard: dict[bytes, float] = field(default_factory=dict)
    _newest: dict[bytes, int] = field(default_factory=dict)
    """By peer process: the newest report that came; a copy of an old one says nothing."""
    _readers: int = 0

    def new_reader(self) -> bytes:
        """An id that no other trainer has."""
        self._readers += 1
        return f"{self._readers:08}".encode()

    def heard(self, record: Record, process: bytes, epoch: int, now: float) -> None:
        """The coordinator was told something; `now` is what its clock shows.

        A report says that a reader is there only if it is of the process that the coordinator of this epoch knows that
        peer by, and was made since it greeted this coordinator. Any other comes too late to be gone by: it may tell of
        a time before what a newer one has said. For all that the coordinator can know, such a reader is still silent.
        """
        self._quiet(now)
        if not isinstance(record, Report) or record.boot != process or record.revision <= epoch * ATTEMPTS_PER_EPOCH:
            return
        if record.sequence > self._newest.get(record.boot, 0):
            self._newest[record.boot] = record.sequence
            for reader in {record.reader, *(line.drawn.reader for line in record.syncs)} - {b""}:
                self._heard[reader] = now

    def _quiet(self, now: float) -> None:
        for reader in [r for r, at in self._heard.items() if now - at >= self.patience_s]:
            self.silent.add(reader)
            del self._heard[reader]

    def check(self, leases: Leases, committed: set[int], *, complete: bool) -> None:
        """At the end of a run, with the inner steps that are in commits.

        No sample is in two of them unless the reader that drew it first fell silent; and, if no progress was dropped,
        none that counts as used is in none.
        """
        times: Counter[Place] = Counter()
        readers: dict[Place, list[bytes]] = defaultdict(list)
        for step in committed & set(self.steps):
            reader, place = self.steps[step]
            times[place] += 1
            readers[place].append(reader)
        for place, count in times.items():
            if count - sum(reader in self.silent for reader in readers[place]) > 1:
                raise Violation(f"sample {place} is in {count} commits, drawn by {readers[place]}")
        data = leases.data.get(DATA)
        if data is None or not complete:
            return
        unused = {
            (epoch, first + k) for epoch, first, count in leases.snapshot(2**62)[DATA]["open"] for k in range(count)
        }
        for epoch in range(data.epoch + 1):
            used = range(data.next if epoch == data.epoch else data.length)
            lost = [p for p in ((epoch, position) for position in used) if p not in times and p not in unused]
            if lost:
                raise Violation(f"samples {lost[:5]} count as used and are in no commit")
