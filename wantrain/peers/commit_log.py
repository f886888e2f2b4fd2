"""The run's history as the coordinator holds it: initial state, commit log, and what is being written; a pure core.

A part of `coordinator.py`, which alone calls it. Durable before visible: what is written goes out as a `Persist`
effect, one at a time, and what follows from it happens only when `stored` says that it is on disk.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeAlias

from wantrain.peers.coordinator_events import CoordinatorEffect, Persist, PersistCommit, PersistView
from wantrain.peers.messages import MAX_RECORDS, CommitRecord, Report, SyncId, TensorSpec
from wantrain.transport.digest import next_link
from wantrain.transport.wire import MAX_HEADER_BYTES

STORE_RETRY_S = 1.0
ATTEMPTS_PER_EPOCH = 10**9
"""Attempt and revision numbers of one life of the coordinator; those of the next one are larger than all of them."""

LINE_BYTES, WEIGHT_BYTES = 400, 12
"""Of a packed line without its contributors, and of each of them beside its name; both are more than it takes."""

FollowUp: TypeAlias = Callable[[float], list[CoordinatorEffect]]
"""What happens once it is durable, given the time."""


@dataclass(frozen=True, slots=True)
class History:
    """What the store holds at start."""

    epoch: int
    view: int = 0
    manifest: tuple[TensorSpec, ...] = ()
    chain0: bytes = b""
    """chain[0], or b"" if there is no initial state yet."""
    records: tuple[CommitRecord, ...] = ()
    leases: Mapping[str, str] = field(default_factory=dict)
    """Rows of the data leases."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names of all that were ever admitted, by peer: one that is awaited may not have come back yet."""
    members: tuple[str, ...] = ()
    """Of the last view: they hold the run's state, and may not have come back yet."""


class CommitLog:
    """What is durable, and the queue of what is not yet.

    Args:
        history: what the store holds at start.
    """

    def __init__(self, history: History) -> None:
        self.manifest = history.manifest
        self.chain0 = history.chain0
        self.records = list(history.records)
        self.head = len(self.records) if self.chain0 else -1
        """Last committed log number; 0 is the initial state, -1 means there is none."""
        self.committed = Counter(record.sync.stream for record in history.records)
        """Syncs in the log, by stream."""
        self.newest = {record.sync.stream: record for record in history.records}
        """The last line of each stream."""
        self.first_number = history.epoch * ATTEMPTS_PER_EPOCH
        """All attempt and revision numbers of this life of the coordinator are above it, and no earlier one's is."""
        self.revision = self.first_number
        """Grows with every Welcome and MayLeave: by it a peer tells which of two words is the newer one."""
        self.trouble = ""
        """Why the store cannot be written, or ""."""
        self._pending: deque[tuple[Persist, FollowUp]] = deque()
        self._retry_at = 0.0

    def chain(self, number: int) -> bytes:
        """Link `number` of the digest chain, b"" for -1."""
        if number < 0:
            return b""
        return self.chain0 if number == 0 else self.records[number - 1].chain

    def foreign(self, report: Report) -> str:
        """Why a peer's log cannot be this one, or ""."""
        if report.log_number < 0:
            return ""
        if report.log_number > self.head:
            return f"log number {report.log_number} is beyond the run's {self.head}"
        if report.chain != self.chain(report.log_number):
            return f"another history up to log number {report.log_number}"
        return ""

    @property
    def writing(self) -> bool:
        """Whether anything is not durable yet."""
        return bool(self._pending)

    def awaits(self, *kinds: type) -> bool:
        """Whether something of these kinds is not durable yet."""
        return any(isinstance(persist, kinds) for persist, _ in self._pending)

    def awaits_line_of(self, peer: str) -> bool:
        """Whether a line that names this peer is not durable yet."""
        return any(isinstance(p, PersistCommit) and peer in p.record.contributors for p, _ in self._pending)

    # ---- what becomes of it

    def begin(self, manifest: tuple[TensorSpec, ...], chain0: bytes) -> None:
        """The run has an initial state."""
        self.manifest, self.chain0, self.head = manifest, chain0, 0

    def forget(self) -> None:
        """The run has no state any more; nothing was committed on it."""
        self.manifest, self.chain0, self.head = (), b"", -1

    def next_record(
        self,
        sync: SyncId,
        contributors: tuple[str, ...],
        weights: tuple[float, ...],
        digest: bytes,
        steps: int = 0,
        pace_s: float = 0.0,
        *,
        consensus: bool = False,
    ) -> CommitRecord:
        """The line that comes after all lines, also those that are being written; `steps`: of this sync alone."""
        waiting = [persist.record for persist, _ in self._pending if isinstance(persist, PersistCommit)]
        number, chain = (waiting[-1].number, waiting[-1].chain) if waiting else (self.head, self.chain(self.head))
        before = self.newest.get(sync.stream)
        steps += before.steps if before is not None else 0
        link = next_link(chain, digest)
        return CommitRecord(number + 1, sync, contributors, weights, digest, link, steps, pace_s, consensus)

    def lines_from(self, first: int) -> tuple[CommitRecord, ...]:
        """The lines from `first` on, as many as one message holds, at least one; who lacks more asks again."""
        lines = self.records[first - 1 : first - 1 + MAX_RECORDS]
        sizes = (LINE_BYTES + sum(len(peer) + WEIGHT_BYTES for peer in line.contributors) for line in lines)
        fit = sum(so_far <= MAX_HEADER_BYTES // 2 for so_far in accumulate(sizes))
        return tuple(lines[: max(fit, 1)])

    def append(self, record: CommitRecord) -> None:
        """The line is durable."""
        self.records.append(record)
        self.head = len(self.records)
        self.committed[record.sync.stream] += 1
        self.newest[record.sync.stream] = record

    def rewind(self, after: int) -> None:
        """The lines after `after` are given up."""
        del self.records[after:]
        self.head = len(self.records)
        self.committed = Counter(record.sync.stream for record in self.records)
        self.newest = {record.sync.stream: record for record in self.records}

    # ---- durable before visible

    def write(self, persist: Persist, follow_up: FollowUp) -> list[CoordinatorEffect]:
        """Write something; `follow_up` happens when it is durable. A view that waits is replaced by a newer one."""
        if isinstance(persist, PersistView):
            for k in range(len(self._pending) - 1, 0, -1):
                if isinstance(self._pending[k][0], PersistView):
                    del self._pending[k]
        self._pending.append((persist, follow_up))
        return [persist] if len(self._pending) == 1 else []

    def stored(self, now: float) -> list[CoordinatorEffect]:
        """The oldest write is durable."""
        self.trouble = ""
        _, follow_up = self._pending.popleft()
        effects = follow_up(now)
        # The follow-up may have begun a write of its own, if nothing else was waiting.
        nothing_begun = not any(isinstance(effect, Persist) for effect in effects)
        return effects + ([self._pending[0][0]] if self._pending and nothing_begun else [])

    def failed(self, reason: str, now: float) -> bool:
        """The oldest write failed, and is tried again after a while; whether this is news."""
        news = reason != self.trouble
        self.trouble, self._retry_at = reason, now + STORE_RETRY_S
        return news

    def retry(self, now: float) -> list[CoordinatorEffect]:
        """Try the oldest write again, if it failed and it is time."""
        if not self.trouble or now < self._retry_at or not self._pending:
            return []
        self._retry_at = math.inf  # it is under way now
        return [self._pending[0][0]]
