"""The coordinator as a pure core: who is in the run, which sync starts when, and what is committed.

It holds no tensor and reads no clock; `coordinator_daemon.py` is its shell. Whatever must survive a restart goes out as
a `Persist` effect and becomes visible to peers only after `Stored` has come back.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wantrain.optimizers.stream import Stream
from wantrain.peers import rounds
from wantrain.peers.layout import stream_chunks
from wantrain.peers.membership import (
    Gone,
    Greeted,
    Heard,
    IdentityInUse,
    Joined,
    Left,
    Membership,
    MembershipEffect,
    MembershipEvent,
    Outdated,
    ViewChanged,
)
from wantrain.peers.membership import Tick as MembershipTick
from wantrain.peers.messages import (
    MAX_RECORDS,
    Commit,
    CommitRecord,
    Genesis,
    Hello,
    Leave,
    Record,
    Refetch,
    Refused,
    Report,
    SyncId,
    TensorSpec,
    View,
    Waiting,
    WantGenesis,
    WantHello,
    WantRecords,
    Welcome,
)
from wantrain.peers.timing import Policy
from wantrain.transport.digest import first_link, next_link
from wantrain.transport.wire import PROTOCOL_VERSION

ATTEMPTS_PER_EPOCH = 10**9
"""Attempt numbers of one life of the coordinator; those of the next life are larger than all of them."""
STORE_RETRY_S = 1.0
GENESIS_AGAIN_S = 5.0
"""How often the peer that is to give the initial weights is asked again."""
SAY_EVERY_S = 1.0
"""How often peers that wait hear why."""
RESEND_S = 1.0
"""A peer that reports an old log number twice gets the missing lines again, at most this often."""


# ---- events


@dataclass(frozen=True, slots=True)
class FromPeer:
    """A message from an admitted peer; `curve_key` is the key that the link authenticated."""

    peer: str
    record: Record
    curve_key: bytes = b""


@dataclass(frozen=True, slots=True)
class Stored:
    """The oldest Persist is durable."""


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """The oldest Persist could not be written; nothing of it was."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


CoordinatorEvent = FromPeer | Stored | StoreFailed | Tick


# ---- effects


@dataclass(frozen=True, slots=True)
class Send:
    """Send a record to a peer; it may get lost."""

    to: str
    record: Record


@dataclass(frozen=True, slots=True)
class PersistGenesis:
    """Write the run's model and initial state."""

    manifest: tuple[TensorSpec, ...]
    state_digest: bytes
    chain: bytes


@dataclass(frozen=True, slots=True)
class PersistDropGenesis:
    """Forget an initial state that nobody holds any more and nothing was committed on."""


@dataclass(frozen=True, slots=True)
class PersistCommit:
    """Append a line to the commit log."""

    record: CommitRecord


@dataclass(frozen=True, slots=True)
class PersistRewind:
    """Abandon the lines after `after`: everybody who held them is gone."""

    after: int
    reason: str


@dataclass(frozen=True, slots=True)
class PersistView:
    """Write a view."""

    number: int
    members: tuple[str, ...]


Persist = PersistGenesis | PersistDropGenesis | PersistCommit | PersistRewind | PersistView


@dataclass(frozen=True, slots=True)
class Announce:
    """Something for the event log and for people."""

    event: str
    details: dict[str, Any] = field(default_factory=dict)


CoordinatorEffect = Send | Persist | Announce


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the coordinator knows of the run from its spec."""

    run: bytes
    spec_toml: str
    spec_digest: bytes
    streams: tuple[Stream, ...]
    codec: str
    version: str
    policy: Policy


@dataclass(frozen=True, slots=True)
class History:
    """What the store holds at start."""

    epoch: int
    view: int = 0
    manifest: tuple[TensorSpec, ...] = ()
    chain0: bytes = b""
    """chain[0], or b"" if there is no initial state yet."""
    records: tuple[CommitRecord, ...] = ()


class Coordinator:
    """The core. `handle` is its only mutator.

    Args:
        facts: the run spec's part in it.
        history: what was durable when this process started.
    """

    def __init__(self, facts: RunFacts, history: History) -> None:
        self.facts = facts
        self.epoch = history.epoch
        self.manifest = history.manifest
        self.records = list(history.records)
        self.membership = Membership(facts.policy, history.view)
        self.rounds: dict[str, rounds.Round] = {}
        self.trouble = ""
        """Why the store cannot be written, or ""."""
        self._chain0 = history.chain0
        self._attempts = history.epoch * ATTEMPTS_PER_EPOCH
        self._revision = history.epoch * ATTEMPTS_PER_EPOCH
        self._pending: deque[tuple[Persist, Callable[[float], list[CoordinatorEffect]]]] = deque()
        self._retry_at = 0.0
        self._candidate = ""
        self._asked_at = 0.0
        self._said_at = 0.0
        self._stranded_at: float | None = None
        self._resent: dict[str, tuple[int, float]] = {}
        self._digests: dict[int, tuple[bytes, str]] = {}
        self._details: dict[int, dict[str, float]] = {}
        if self._chain0:
            self._open_rounds()

    # ---- what others may read

    @property
    def head(self) -> int:
        """Last committed log number; 0 is the initial state, -1 means there is none."""
        return len(self.records) if self._chain0 else -1

    def chain(self, number: int) -> bytes:
        """Link `number` of the digest chain, b"" for -1."""
        if number < 0:
            return b""
        return self._chain0 if number == 0 else self.records[number - 1].chain

    def name_of(self, peer: str) -> str:
        """A peer's name for people."""
        known = self.membership.peers.get(peer)
        return known.hello.name if known else peer

    def timing(self, number: int) -> dict[str, float]:
        """How commit `number` went: gather_s, move_s and committed_at; empty for commits of an earlier process."""
        return self._details.get(number, {})

    def reason(self) -> str:
        """Why the run waits, or ""."""
        if self.trouble:
            return f"the commit log cannot be written: {self.trouble}"
        alive = [peer for peer, known in self.membership.peers.items() if known.alive]
        if not alive:
            return "no peer is connected"
        if self.head < 0:
            who = f"from {self.name_of(self._candidate)}" if self._candidate else "of a peer whose trainer has started"
            return f"waiting for the initial weights {who}"
        if not self.membership.members:
            return f"no live peer holds the run's state at log number {self.head} yet"
        return "; ".join(r.reason for r in self.rounds.values() if r.reason)

    # ---- the one mutator

    def handle(self, event: CoordinatorEvent, now: float) -> list[CoordinatorEffect]:
        """React to an event at time `now` in seconds. A record that a peer may not send is ignored."""
        match event:
            case FromPeer(peer, Hello() as hello, curve_key):
                return self._hello(peer, hello, curve_key, now)
            case FromPeer(peer, record):
                known = self.membership.peers.get(peer)
                if known is None:
                    return [Send(peer, WantHello())]
                if known.state == "left" and not isinstance(record, Leave):
                    return []
                return self._from_known(peer, record, now)
            case Stored():
                self.trouble = ""
                _, follow_up = self._pending.popleft()
                return follow_up(now) + self._write_next()
            case StoreFailed(reason):
                fresh = reason != self.trouble
                self.trouble = reason
                self._retry_at = now + STORE_RETRY_S
                return [Announce("store-failed", {"reason": reason})] if fresh else []
            case Tick():
                return self._tick(now)

    def _from_known(self, peer: str, record: Record, now: float) -> list[CoordinatorEffect]:
        match record:
            case Report():
                return self._report(peer, record, now)
            case Genesis(manifest, state_digest):
                return self._genesis(peer, manifest, state_digest)
            case WantRecords(first):
                return self._send_records(peer, first)
            case Leave(reason):
                effects: list[CoordinatorEffect] = [Announce("leaving", {"peer": peer, "reason": reason})]
                return effects + self._member(Left(peer), now)
            case _:
                return []

    # ---- peers come, speak and go

    def _hello(self, peer: str, hello: Hello, curve_key: bytes, now: float) -> list[CoordinatorEffect]:
        facts = self.facts
        refusal: Refused | None = None
        if hello.protocol != PROTOCOL_VERSION:
            refusal = Refused(
                "protocol",
                f"the run speaks protocol {PROTOCOL_VERSION} (wantrain {facts.version}), "
                f"this peer {hello.protocol} (wantrain {hello.version})",
                f"install wantrain {facts.version} on the peer",
            )
        elif hello.spec_digest and hello.spec_digest != facts.spec_digest:
            refusal = Refused(
                "spec", "this peer holds the options of another run", "start it with a fresh --home directory"
            )
        elif missing := sorted({stream.codec for stream in facts.streams} - set(hello.codecs)):
            refusal = Refused(
                "codec",
                f"the run's codecs {', '.join(missing)} are not among this peer's: {', '.join(hello.codecs)}",
                f"install wantrain {facts.version} on the peer",
            )
        if refusal is not None:
            return [Send(peer, refusal), Announce("refused", {"peer": peer, "reason": refusal.reason})]
        effects = self._member(Greeted(peer, hello, curve_key), now)
        if any(isinstance(e, Send) and e.to == peer and isinstance(e.record, Refused) for e in effects):
            return effects
        return [Send(peer, self._welcome(peer)), *effects, Send(peer, self._view())]

    def _welcome(self, peer: str) -> Welcome:
        indices = {name: current.index - 1 for name, current in self.rounds.items()}
        head = self.head
        self._revision += 1
        return Welcome(
            peer, self._revision, self.facts.spec_toml, head, self.chain(head), self._chain0, indices, self.manifest
        )

    def _view(self) -> View:
        return View(self.membership.view, self.membership.roster())

    def _member(self, event: MembershipEvent, now: float) -> list[CoordinatorEffect]:
        return self._interpret(self.membership.handle(event, now), now)

    def _interpret(self, changes: Sequence[MembershipEffect], now: float) -> list[CoordinatorEffect]:
        effects: list[CoordinatorEffect] = []
        changed = False
        for change in changes:
            match change:
                case Joined(peer):
                    effects.append(Announce("joined", {"peer": peer, "name": self.name_of(peer)}))
                case Gone(peer, reason):
                    event = "left" if reason == "left" else "lost"
                    effects.append(Announce(event, {"peer": peer, "name": self.name_of(peer), "reason": reason}))
                    if peer == self._candidate:
                        self._candidate = ""
                case IdentityInUse(peer):
                    refusal = Refused(
                        "identity-in-use",
                        f"another live process uses the identity of {self.name_of(peer)} ({peer})",
                        "give each peer on a machine a --home directory of its own",
                    )
                    effects += [Send(peer, refusal), Announce("refused", {"peer": peer, "reason": refusal.reason})]
                case ViewChanged():
                    changed = True
        if changed:
            view = self._view()
            members = self.membership.members
            effects.append(Announce("view", {"number": view.number, "members": [self.name_of(p) for p in members]}))
            effects += self._write(
                PersistView(view.number, members),
                lambda _now: [Send(member.peer, view) for member in view.members],
            )
            effects += self._recast(now)
        return effects

    def _report(self, peer: str, report: Report, now: float) -> list[CoordinatorEffect]:
        known = self.membership.peers[peer]
        if report.boot != known.hello.boot:
            return [Send(peer, WantHello())]
        if known.report is not None and report.sequence <= known.report.sequence:
            return []
        before = known.report
        refetch = self._foreign_history(report)
        current = not refetch and report.log_number == self.head >= 0
        effects = self._member(Heard(peer, report, current), now)
        if refetch:
            return effects + self._outdated(peer, report, refetch, now)
        if 0 <= report.log_number < self.head:
            effects += self._catch_up(peer, report.log_number, now)
        elif report.log_number < 0 <= self.head:
            effects += self._introduce_run(peer, now)
        effects += self._compare_state(peer, report, now)
        if before is None or (before.trainer, before.log_number) != (report.trainer, report.log_number):
            effects += self._recast(now)
        if current:
            for line in report.syncs:
                if line.stream in self.rounds:
                    effects += self._round(line.stream, rounds.Reported(peer, line), now)
        return effects

    def _foreign_history(self, report: Report) -> str:
        """Why a peer's log cannot be this run's, or ""."""
        if report.log_number < 0:
            return ""
        if report.log_number > self.head:
            return f"log number {report.log_number} is beyond the run's {self.head}"
        if report.chain != self.chain(report.log_number):
            return f"another history up to log number {report.log_number}"
        return ""

    def _outdated(self, peer: str, report: Report, reason: str, now: float) -> list[CoordinatorEffect]:
        effects: list[CoordinatorEffect] = [
            Announce("refetch", {"peer": peer, "name": self.name_of(peer), "reason": reason}),
            Send(peer, Refetch(report.log_number, report.chain, reason)),
            Send(peer, self._welcome(peer)),
        ]
        return effects + self._member(Outdated(peer), now)

    def _compare_state(self, peer: str, report: Report, now: float) -> list[CoordinatorEffect]:
        """The first digest of a state that was reported stands; who differs from it fetches the state anew."""
        number = report.state_number
        if number < 0 or number != report.log_number or not report.state_digest:
            return []
        digest, first = self._digests.setdefault(number, (report.state_digest, peer))
        while len(self._digests) > MAX_RECORDS:
            self._digests.pop(next(iter(self._digests)))
        if digest == report.state_digest:
            return []
        return self._outdated(peer, report, f"state digest at {number} differs from that of {self.name_of(first)}", now)

    def _catch_up(self, peer: str, number: int, now: float) -> list[CoordinatorEffect]:
        seen, sent_at = self._resent.get(peer, (-1, now))
        if seen == number and now - sent_at < RESEND_S:
            return []
        self._resent[peer] = (number, now)
        return self._send_records(peer, number + 1) if seen == number else []

    def _introduce_run(self, peer: str, now: float) -> list[CoordinatorEffect]:
        seen, sent_at = self._resent.get(peer, (-2, now))
        if seen == -1 and now - sent_at < RESEND_S:
            return []
        self._resent[peer] = (-1, now)
        return [Send(peer, self._welcome(peer))] if seen == -1 else []

    def _send_records(self, peer: str, first: int) -> list[CoordinatorEffect]:
        if not 1 <= first <= self.head:
            return []
        return [Send(peer, Commit(tuple(self.records[first - 1 : first - 1 + MAX_RECORDS]), self.head))]

    # ---- the initial state

    def _genesis(self, peer: str, manifest: tuple[TensorSpec, ...], digest: bytes) -> list[CoordinatorEffect]:
        if self.head >= 0 or peer != self._candidate or any(isinstance(p, PersistGenesis) for p, _ in self._pending):
            return []
        chain = first_link(self.facts.run, digest)

        def adopt(now: float) -> list[CoordinatorEffect]:
            self.manifest, self._chain0 = manifest, chain
            self._open_rounds()
            alive = [p for p, known in self.membership.peers.items() if known.alive]
            effects: list[CoordinatorEffect] = [Announce("genesis", {"peer": peer, "name": self.name_of(peer)})]
            return effects + [Send(p, self._welcome(p)) for p in alive] + self._recast(now)

        return self._write(PersistGenesis(manifest, digest, chain), adopt)

    def _ask_for_genesis(self, now: float) -> list[CoordinatorEffect]:
        if self.head >= 0 or (self._candidate and now - self._asked_at < GENESIS_AGAIN_S):
            return []
        trainers = [
            peer
            for peer, known in self.membership.peers.items()
            if known.alive and known.report is not None and known.report.trainer not in ("none", "done")
        ]
        if not trainers:
            return []
        self._candidate = self._candidate or trainers[0]
        self._asked_at = now
        return [Send(self._candidate, WantGenesis())]

    # ---- syncs and commits

    def _open_rounds(self) -> None:
        self.rounds = {}
        for stream in self.facts.streams:
            committed = sum(record.sync.stream == stream.name for record in self.records)
            chunks = stream_chunks(stream, self.manifest)
            self.rounds[stream.name] = rounds.Round(
                stream.name, chunks, committed + 1, self.facts.policy, self._next_attempt, self.name_of
            )

    def _next_attempt(self) -> int:
        self._attempts += 1
        return self._attempts

    def _recast(self, now: float) -> list[CoordinatorEffect]:
        expected: dict[str, float | None] = {}
        abreast = set()
        for peer in self.membership.members:
            report = self.membership.peers[peer].report
            if report is not None and report.log_number == self.head:
                abreast.add(peer)
            if report is not None and report.trainer in ("starting", "training", "waiting"):
                seen_at = self.membership.peers[peer].seen_at
                expected[peer] = seen_at + report.eta_s if report.eta_s >= 0 else None
        cast = rounds.Cast(self.membership.view, self.membership.members, frozenset(abreast), expected)
        effects: list[CoordinatorEffect] = []
        for stream in self.rounds:
            effects += self._round(stream, cast, now)
        return effects

    def _round(self, stream: str, event: rounds.RoundEvent, now: float) -> list[CoordinatorEffect]:
        effects: list[CoordinatorEffect] = []
        for effect in self.rounds[stream].handle(event, now):
            match effect:
                case rounds.Tell(to, record):
                    effects.append(Send(to, record))
                case rounds.Persist(start, digest, gather_s, move_s):
                    effects += self._commit(start.sync, start.contributors, start.weights, digest, gather_s, move_s)
                case rounds.Aborted(sync, reason, dropped):
                    names = [self.name_of(peer) for peer in dropped]
                    effects.append(Announce("abort", {"sync": str(sync), "reason": reason, "dropped": names}))
                case rounds.LeftBehind(sync, peer, reason):
                    details = {"sync": str(sync), "name": self.name_of(peer), "reason": reason}
                    effects.append(Announce("left-behind", details))
                case rounds.Committed():
                    pass
        return effects

    def _commit(
        self,
        sync: SyncId,
        contributors: tuple[str, ...],
        weights: tuple[float, ...],
        digest: bytes,
        gather_s: float,
        move_s: float,
    ) -> list[CoordinatorEffect]:
        waiting = [p.record for p, _ in self._pending if isinstance(p, PersistCommit)]
        number, chain = (waiting[-1].number, waiting[-1].chain) if waiting else (self.head, self.chain(self.head))
        record = CommitRecord(number + 1, sync, contributors, weights, digest, next_link(chain, digest))

        def announce(now: float) -> list[CoordinatorEffect]:
            self.records.append(record)
            self._details[record.number] = {"gather_s": gather_s, "move_s": move_s, "committed_at": now}
            names = [self.name_of(peer) for peer in contributors]
            details = {"number": record.number, "sync": str(sync), "contributors": names, "gather_s": gather_s}
            alive = [p for p, known in self.membership.peers.items() if known.alive]
            commit = Commit((record,), self.head)
            effects: list[CoordinatorEffect] = [Send(peer, commit) for peer in alive]
            effects.append(Announce("commit", {**details, "move_s": move_s}))
            return effects + self._round(sync.stream, rounds.Persisted(), now)

        return self._write(PersistCommit(record), announce)

    # ---- durable before visible

    def _write(
        self, persist: Persist, follow_up: Callable[[float], list[CoordinatorEffect]]
    ) -> list[CoordinatorEffect]:
        self._pending.append((persist, follow_up))
        return [persist] if len(self._pending) == 1 else []

    def _write_next(self) -> list[CoordinatorEffect]:
        return [self._pending[0][0]] if self._pending else []

    # ---- time

    def _tick(self, now: float) -> list[CoordinatorEffect]:
        effects: list[CoordinatorEffect] = []
        if self.trouble and now >= self._retry_at:
            self._retry_at = now + STORE_RETRY_S
            effects += self._write_next()
        effects += self._member(MembershipTick(), now)
        effects += self._ask_for_genesis(now)
        effects += self._recast(now)
        for stream in self.rounds:
            effects += self._round(stream, rounds.Tick(), now)
        if now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            effects += self._say_why()
        return effects + self._rescue(now)

    def _say_why(self) -> list[CoordinatorEffect]:
        """Tell those who are ready for whom they wait."""
        told = {peer: current.reason for current in self.rounds.values() if current.reason for peer in current.ready}
        return [Send(peer, Waiting(reason)) for peer, reason in told.items()]

    def _rescue(self, now: float) -> list[CoordinatorEffect]:
        """If everybody who held the head of the log is gone for good, go back to the newest state that is still held."""
        if self.head < 0 or self.membership.members or self._pending:
            self._stranded_at = None
            return []
        held = {
            peer: known.report.log_number
            for peer, known in self.membership.peers.items()
            if known.alive and known.report is not None and known.report.log_number >= 0
        }
        trainers = any(k.alive and k.report and k.report.trainer != "none" for k in self.membership.peers.values())
        if not held and not (self.head == 0 and trainers):
            self._stranded_at = None
            return []
        self._stranded_at = now if self._stranded_at is None else self._stranded_at
        if now - self._stranded_at < self.facts.policy.deadline_ceiling_s:
            return []
        self._stranded_at = None
        if not held:
            return self._write(PersistDropGenesis(), self._forget_genesis)
        after = max(held.values())
        reason = f"nobody holds log numbers {after + 1} to {self.head} any more"

        def rewind(now: float) -> list[CoordinatorEffect]:
            del self.records[after:]
            self._digests = {n: d for n, d in self._digests.items() if n <= after}
            self._open_rounds()
            return [Announce("rewind", {"to": after, "reason": reason}), *self._recast(now)]

        return self._write(PersistRewind(after, reason), rewind)

    def _forget_genesis(self, now: float) -> list[CoordinatorEffect]:
        self._chain0, self.manifest, self.rounds, self._candidate = b"", (), {}, ""
        self._digests = {}
        alive = [peer for peer, known in self.membership.peers.items() if known.alive]
        return [Announce("genesis-lost", {}), *[Send(peer, self._welcome(peer)) for peer in alive]]
