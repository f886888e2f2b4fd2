"""A trainer that has outlived its daemon: what it brings along, and what the commit log says became of it; a pure core.

The daemon keeps marks in the memory that it shares with its trainer (`shared_memory.py`), written in such an order that
they are true at whatever instant it is killed. A daemon that is started anew at the same place reads them. What became
of a contribution that the former one had reported is not for it to guess: the first line of the commit log behind the
trainer's own place decides, as it would have for the former daemon.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from wantrain.peers.messages import CommitRecord
from wantrain.transport.digest import next_link

FREE, STAGING, MERGING, MOVING, STARTING, GRANTED = range(6)
"""What the daemon is at with a stream's regions: nothing yet; `out` becomes, or is, the difference; they become what a
grant of kind merge, move, or any other hands over; that is done, and they are the trainer's."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What a daemon has written down about one stream."""

    phase: int = FREE
    count: int = 0
    """Chunks of `out` that are done in phases staging, merging and moving; Granted messages sent in phase granted."""
    serial: int = 0
    """The contribution that was taken in last, by the trainer's count."""
    used: int = 0
    """The last one that may have become part of attempts."""
    floor: int = 0
    """Attempts up to this number were made with earlier ones."""
    kind: str = ""
    index: int = 0
    global_step: int = 0
    """Of the last grant, in phase granted."""
    tokens: int = 0
    """The trainer's token count up to which its contributions were taken in, or dropped."""
    offered: int = 0
    """Its token count at contribution `serial`."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the shared memory of a former daemon holds."""

    number: int
    """Last commit whose consequences are all in the marks; -1: the trainer had not started."""
    chain: bytes
    marks: Mapping[str, Mark]
    reach: int = -1
    """Last commit of which something may have been granted; -1: none, or only what had been at `number`."""
    reach_chain: bytes = b""


@dataclass(slots=True)
class Pending:
    """One contribution of a stream whose outcome the trainer does not know."""

    serial: int
    after: int
    """Last sync of the stream that is in the trainer's weights: the next one decides."""
    used: bool
    floor: int
    phase: int
    decided: bool = False
    taken: bool = False
    number: int = 0
    """The line that has decided."""

    def observe(self, record: CommitRecord, me: str) -> None:
        """A line of the log: the first sync behind `after` decides."""
        if not self.decided and record.sync.index > self.after:
            self.decided, self.number = True, record.number
            self.taken = self.used and me in record.contributors and record.sync.attempt > self.floor


@dataclass(slots=True)
class Inheritance:
    """Reads the commit log from the place that the marks were true at.

    Args:
        me: this peer.
        held: what the former daemon left.
        received: per stream, the Granted messages that the trainer has received.
        indices: per stream, the last sync that the trainer has adopted.
        gossip: streams of which lines that do not name this peer are of no concern here.
    """

    me: str
    held: Held
    received: Mapping[str, int]
    indices: Mapping[str, int]
    gossip: frozenset[str] = frozenset()
    next: int = 0
    """The next line to read."""
    foreign: str = ""
    """Why the trainer cannot go on from where it stands; "" if it can."""
    granted: dict[str, int] = field(default_factory=dict)
    """Per stream: the sync that the trainer's weights are moved by once it has received what was granted."""
    again: list[str] = field(default_factory=list)
    """Streams whose last Granted the trainer has not received."""
    pending: dict[str, Pending] = field(default_factory=dict)
    _links: dict[int, bytes] = field(default_factory=dict)
    """Of the chain, by line that was read."""

    def __post_init__(self) -> None:
        self._begin()
        for name, mark in self.held.marks.items():
            if mark.phase == GRANTED and mark.count > self.received.get(name, 0):
                self.again.append(name)
                self.granted[name] = mark.index
                continue
            after = self.granted[name] = self.indices.get(name, 0)
            if mark.phase in (STAGING, MERGING, MOVING):
                used = mark.used == mark.serial
                self.pending[name] = Pending(mark.serial, after, used, mark.floor, mark.phase)
            elif mark.phase == STARTING:
                self.foreign = "the former daemon was about to start it anew"

    def _begin(self) -> None:
        """Read from the place of the marks on; what was read before may have been given up."""
        self.next, self._links = max(self.held.number, 1), {}
        for pending in self.pending.values():
            pending.decided = pending.taken = False

    def learn(self, records: Iterable[CommitRecord]) -> None:
        """Lines of the log have come; what is not the next one changes nothing."""
        for record in records:
            if record.number != self.next or self.foreign:
                continue
            follows = record.chain == self.held.chain if record.number == self.held.number else True
            if record.number > self.held.number:
                before = self._links.get(record.number - 1, self.held.chain)
                follows = next_link(before, record.digest) == record.chain
            if record.number == self.held.reach:
                follows = follows and record.chain == self.held.reach_chain
            if not follows:
                self.foreign = "the run has given up the history that the trainer stood in"
                return
            self._links[record.number] = record.chain
            self.next += 1
            for stream, pending in self.pending.items():
                if stream == record.sync.stream and (stream not in self.gossip or self.me in record.contributors):
                    pending.observe(record, self.me)

    def known(self, applied: int, chain: bytes, head: int, genesis: bytes) -> bool:
        """Whether what became of everything is known up to line `applied`, of link `chain`.

        The run is at `head` and began with `genesis`. What a line beyond `applied` has decided is not known yet: if
        nobody has that line's update any more, the run gives it up.
        """
        stood = max(self.held.number, self.held.reach)
        if head < stood or (self.held.number == 0 and self.held.chain != genesis):
            self.foreign = self.foreign or "the run has given up the history that the trainer stood in"
        if self.foreign:
            return True
        given_up = any(pending.decided and pending.number > head for pending in self.pending.values())
        if given_up or self._links.get(applied, chain) != chain:
            self._begin()
        if applied < stood or self.next <= applied:
            return False
        if any(pending.decided and pending.number > applied for pending in self.pending.values()):
            return False
        undecided = [name for name, pending in self.pending.items() if not pending.decided]
        if self.next <= head and not self.gossip.isdisjoint(undecided):
            return False  # once the trainer goes on, a line that the former daemon was in is passed by
        for pending in self.pending.values():
            granting = pending.phase in (MERGING, MOVING)
            if granting and (not pending.decided or pending.taken != (pending.phase == MERGING)):
                self.foreign = "the sync that was being handed to it is not in the log"
        return True
